"""The API's pages, out of what the package says is public; what is public has a docstring, or the site is not built."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import vlm_patching as vp
from vlm_patching import graph

GROUPS = {
    "Experiments": ("Experiment", "run", "plan", "evaluate", "diagnose", "presets", "load_results"),
    "Models": ("load_model", "describe_model", "bundled_models"),
    "Pairs": ("load_pairs", "corrupt_images", "Pair", "Prompt"),
    "Effects": ("effect", "total_effect"),
    "Graphs": ("InterventionGraph",),
    "Servers": ("Remote",),
    "Errors": ("SpecError", "RunError", "CheckError"),
}
"""Heading → the names of the package under it; a name that is under none comes last."""
ROOMS = {"analysis": "analysis", "plot": "plots", "bundle": "bundle"}
"""Name as `vp.NAME` → module."""
GRAPH = ("Run", "Edit", "Read", "Place", "Dimension")
"""What a graph is made of, for graphs that are written by hand."""


PATHS = ("reference/api.md", *(f"reference/api-{name}.md" for name in ROOMS))
"""Of the pages."""


def pages() -> dict[str, str]:
    """Path → Markdown: one page of the package's own names, one a room."""
    wrong = list(problems())
    if wrong:
        raise ValueError("what is public lacks documentation:\n  " + "\n  ".join(wrong))
    found = {PATHS[0]: _package()}
    for path, (name, module) in zip(PATHS[1:], ROOMS.items(), strict=True):
        room = importlib.import_module(f"vlm_patching.{module}")
        about = _paragraph(room)
        entries = [_entry(f"vlm_patching.{module}.{each}", f"vp.{name}.{each}", 2) for each in room.__all__]
        found[path] = "\n\n".join([f"# vp.{name}", about, *entries]) + "\n"
    return found


def _package() -> str:
    rest = [name for name in vp.__all__ if name not in ROOMS and not any(name in names for names in GROUPS.values())]
    parts = [
        "# vlm_patching",
        "Everything is reached by `import vlm_patching as vp`. A name is loaded when it is first used.",
        *(f"- [`vp.{name}`](api-{name}.md): {_paragraph(getattr(vp, name))}" for name in ROOMS),
    ]
    for title, names in {**GROUPS, "More": tuple(rest)}.items():
        if names:
            parts += [f"## {title}", *(_entry(f"vlm_patching.{name}", f"vp.{name}", 3) for name in names)]
        if title == "Graphs":
            parts += [_entry(f"vlm_patching.graph.{name}", f"vlm_patching.graph.{name}", 3) for name in GRAPH]
    return "\n\n".join(parts) + "\n"


def _entry(path: str, shown: str, level: int) -> str:
    label = shown.removeprefix("vlm_patching.")
    return f"::: {path}\n    options:\n      heading: {shown}\n      toc_label: {label}\n      heading_level: {level}"


def _paragraph(described: Any) -> str:
    return " ".join((inspect.getdoc(described) or "").split("\n\n")[0].split())


def public() -> dict[str, Any]:
    """Everything that is documented, by the name that users write."""
    found: dict[str, Any] = {}
    for name in vp.__all__:
        value = getattr(vp, name)
        if isinstance(value, ModuleType):
            found |= {f"vp.{name}.{each}": getattr(value, each) for each in value.__all__}
        else:
            found[f"vp.{name}"] = value
    return found | {f"vlm_patching.graph.{name}": getattr(graph, name) for name in GRAPH}


def problems() -> Iterator[str]:
    """What the documentation of public names lacks, a sentence each."""
    for name, value in public().items():
        text = inspect.getdoc(value) or ""
        if not text:
            yield f"{name} has no docstring."
        elif inspect.isclass(value):
            fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
            fields += list(getattr(value, "model_fields", ()))
            yield from (f"{name}: the field {field} is not said." for field in fields if not _said(text, field))
            for method, found in vars(value).items():
                documented = callable(found) or isinstance(found, property | classmethod)
                if documented and not method.startswith("_") and not inspect.getdoc(getattr(value, method)):
                    yield f"{name}.{method} has no docstring."
        elif callable(value):
            given = list(inspect.signature(value).parameters)
            yield from (f"{name}: the parameter {each} is not said." for each in given if not _said(text, each))


def _said(text: str, name: str) -> bool:
    """Whether a numpy-style docstring has an entry of a name."""
    return bool(re.search(rf"^\*{{0,2}}(\w+, \*{{0,2}})*{name}(, \w+)*( : .*)?$", text, re.MULTILINE))
