"""A spec to begin with: every section and every option, each with what it means, its default and what is allowed.

It is written out of the models that check specs (`vlm_patching.manual`), so it cannot go stale. A line that begins with
"#" and a space is prose; "#key: value" is an option, with the value that it has where it is left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from vlm_patching.errors import unknown
from vlm_patching.experiment import Experiment
from vlm_patching.manual import Entry, as_yaml, entries, summary
from vlm_patching.models.architecture import Architecture
from vlm_patching.pairs import DATASETS
from vlm_patching.sweeps import METHOD_SECTIONS, NEED_CORRUPTION

Values = Mapping[str, Any]
WIDTH = 100
_NEEDED_TOO: dict[str, dict[str, Values]] = {"hub": {"columns": {"text": "text"}}}
"""Dataset → what its sections cannot do without, though each of their fields may be left out."""


def commented_spec(
    name: str, architecture: Architecture, *, method: str = "patch", model: str, dataset: str = "shapes"
) -> str:
    """The text of a spec that runs as it is, in YAML.

    Parameters
    ----------
    name
        What results and figures are called.
    architecture
        The model's: sites and positions are chosen that it has.
    method
        The section that says what is done, a name out of `METHOD_SECTIONS`.
    model, dataset
        Their names. Where a dataset needs files, their place is left to be filled in.

    Raises
    ------
    SpecError
        An unknown method or dataset.
    """
    if method not in METHOD_SECTIONS:
        raise unknown("method", method, METHOD_SECTIONS)
    if dataset not in DATASETS:
        raise unknown("dataset", dataset, DATASETS)
    starts = _starts(architecture)
    corrupted = method in NEED_CORRUPTION or method == "steer"
    given: dict[str, Any] = {"name": name, "model": {"name": model}, "pairs": _pairs(dataset), method: starts[method]}
    corruption = {"kind": "semantic_image_pair" if architecture.image else "symmetric_token_replacement"}
    if corrupted:
        given["corruption"] = corruption
    others = [each for each in METHOD_SECTIONS if each != method]
    known = {entry.name: entry for entry in entries(Experiment) if entry.name not in others}
    lines = [
        "# An experiment of vlm_patching, with every section and every option.",
        "#",
        f"#   vlm-patching plan {name}.yaml      what it will cost, before anything runs",
        f"#   vlm-patching run {name}.yaml       run it; the same again, to go on where it stopped",
        "#",
        '# "#key: value" is an option, with the value that it has where it is left out (null: none);',
        "# take the # away to set it.",
    ]
    for entry in known.values():
        if entry.sections and entry.name not in given:
            corruption_of = f"{entry.meaning} {method.capitalize()} has no corrupted run: leave it out."
            lines += ["", *_prose(corruption_of, 0), *_off(entry, corruption)]
        elif entry.sections:
            meaning = summary(_section_of(entry, given)) if entry.name == method else entry.meaning
            section = _section_of(entry, given)
            lines += ["", *_prose(meaning, 0), f"{entry.name}:", *_options(section, given[entry.name])]
        else:
            lines += ["", *_option(entry, given, 0)]
    lines += ["", *_prose(f"In the place of {method}, another section may say what is done:", 0)]
    for entry in entries(Experiment):
        if entry.name in others:
            lines += ["#", *_prose(summary(entry.sections[0]), 0), *_off(entry, starts[entry.name])]
    return "\n".join(lines) + "\n"


def _starts(architecture: Architecture) -> dict[str, Values]:
    """Method → options that it cannot do without, or begins well with, on a model."""
    text = architecture.text_stack
    inline = architecture.image is not None and architecture.image.inline
    crosses = f"{text}.cross_attn_pattern" in architecture.pattern_sites()
    pattern = f"{text}.cross_attn_pattern" if crosses and not inline else f"{text}.attn_pattern"
    positions = ["image", "question", "last"] if inline else ["question", "last"]
    edges = ["image -> question", "question -> last"] if architecture.image else ["question -> last"]
    return {
        "patch": {"sites": [f"{text}.resid_post"], "positions": positions},
        "knockout": {"edges": edges},
        "ablate": {"sites": [f"{text}.attn_head"]},
        "steer": {"sites": [f"{text}.resid_post"], "strengths": [1.0, 2.0]},
        "path": {"sites": [f"{text}.attn_head"]},
        "lens": {"positions": ["last"]},
        "attention": {"sites": [pattern], "keys": "image" if architecture.image else "question"},
    }


def _pairs(dataset: str) -> dict[str, Any]:
    """The section of a dataset, the place of its files to be filled in."""
    needed = _needed(DATASETS[dataset].spec, f"path/to/{dataset}")
    for name, more in _NEEDED_TOO.get(dataset, {}).items():
        needed[name] = {**needed[name], **more}
    return {"dataset": dataset, **needed, "n": 32}


def _needed(section: type[BaseModel], path: str) -> dict[str, Any]:
    """What must be given of a section: a path and names to be filled in, the first of those that are allowed."""
    needed: dict[str, Any] = {}
    for entry in entries(section):
        if entry.required and entry.name != "dataset":
            named = path if entry.name == "path" else (*entry.allowed, entry.name)[0]
            needed[entry.name] = _needed(entry.sections[0], path) if entry.sections else named
    return needed


def _section_of(entry: Entry, given: Values) -> type[BaseModel]:
    """The section of a field; of several kinds of pairs, that of the dataset."""
    return DATASETS[given["pairs"]["dataset"]].spec if entry.name == "pairs" else entry.sections[0]


def _options(section: type[BaseModel], given: Values) -> Iterator[str]:
    """A section's options, those that are given before the others."""
    for option in sorted(entries(section), key=lambda option: option.name not in given):
        yield from _option(option, given, 1)


def _option(entry: Entry, given: Values, depth: int) -> Iterator[str]:
    """What an option means and how it is written, and the option: as given, or off, with its default."""
    details = " | ".join(entry.allowed) if entry.allowed else entry.written
    if entry.sections:
        fields = ", ".join(option.name for section in entry.sections for option in entries(section))
        details = f"{entry.written}: {fields}"
    yield from _prose(f"{entry.meaning} ({details})", depth)
    indent = "  " * depth
    if entry.name in given:
        yield f"{indent}{entry.name}: {as_yaml(given[entry.name])}"
    else:
        yield f"{indent}#{entry.name}: {entry.shown_default}"


def _off(entry: Entry, start: Values) -> Iterator[str]:
    """A section that is left out: its options without what they mean."""
    yield f"#{entry.name}:"
    for option in sorted(entries(entry.sections[0]), key=lambda option: option.name not in start):
        yield f"#  {option.name}: {as_yaml(start[option.name]) if option.name in start else option.shown_default}"


def _prose(text: str, depth: int) -> list[str]:
    indent = "  " * depth + "# "
    text = text.replace("`", "")
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
