"""What every key of a family's file means, and every layout rule: tables for the documentation, out of docstrings."""

from __future__ import annotations

import importlib
import inspect
import sys
from importlib import resources
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from vlm_patching.manual import documented
from vlm_patching.models import layouts
from vlm_patching.models.architecture import ImageEntry, Prompting
from vlm_patching.models.families import schema

SECTIONS: dict[str, tuple[type[BaseModel], type]] = {
    "The file": (schema.FamilyFile, schema.FamilyFile),
    "`stacks`: each": (schema.StackFile, schema.StackFile),
    "`attention` and `cross_attention`": (schema.AttentionFile, schema.AttentionFile),
    "`image`": (schema.ImageFile, ImageEntry),
    "`prompt`": (schema.PromptFile, Prompting),
    "`pack`": (schema.PackFile, schema.PackFile),
    "A place (`embeds`, `whole`, `readout`, `position_ids`)": (schema.PlaceFile, schema.PlaceFile),
}
"""Title → the section, and the class that documents its keys."""
EXAMPLE = "paligemma.yaml"


def tables() -> str:
    """Every section's keys, in Markdown."""
    parts = []
    for title, (section, described) in SECTIONS.items():
        means = documented(described)
        rows = [
            f"| `{name}` | {_default(section, name)} | {means[name]}{_allowed(section, name)} |"
            for name in section.model_fields
        ]
        parts.append("\n".join([f"**{title}**\n", "| key | where left out | meaning |", "|---|---|---|", *rows]))
    heads = ["**`image.layout`**\n", "| `rule` | what it is for | its settings |", "|---|---|---|"]
    parts.append("\n".join([*heads, *map(_rule, layouts.rules())]))
    return "\n\n".join(parts) + "\n"


def _rule(name: str) -> str:
    module = importlib.import_module(f"{layouts.__name__}.{name}")
    settings = [f"`{setting}`" for setting in list(inspect.signature(module.layout).parameters)[1:]]
    return f"| `{name}` | {' '.join((module.__doc__ or '').split())} | {', '.join(settings)} |"


def _allowed(section: type[BaseModel], name: str) -> str:
    kind = section.model_fields[name].annotation
    return f" One of {', '.join(f'`{value}`' for value in get_args(kind))}." if get_origin(kind) is Literal else ""


def _default(section: type[BaseModel], name: str) -> str:
    known = section.model_fields[name]
    if known.is_required():
        return "must be given"
    value = known.get_default() if known.default_factory is None else None
    return "" if value in (None, "", ()) or isinstance(value, BaseModel) else f"`{str(value).lower()}`"


def filled(page: str) -> str:
    """A page of documentation, anew with what stands between its marks: the tables, and one file as an example."""
    example = resources.files("vlm_patching.models.families") / EXAMPLE
    page = _between(page, "keys", tables())
    return _between(page, EXAMPLE, f"```yaml\n{example.read_text(encoding='utf-8')}```\n")


def _between(page: str, mark: str, text: str) -> str:
    before, begin, rest = page.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- end of {mark} -->\n")
    return before + begin + "\n" + text + "\n" + end + after


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(filled(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
