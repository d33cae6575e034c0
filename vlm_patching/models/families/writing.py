"""A family's file, written: as people write them, what is uncertain with a comment above it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

MARK = "UNCERTAIN"
_LONGEST = 90
"""Of a mapping on one line."""


def written(title: str, says: Mapping[str, Any], doubts: Mapping[tuple[Any, ...], str]) -> str:
    """The text of a file.

    Parameters
    ----------
    doubts
        Path of keys → why what is there is uncertain.
    """
    return "\n".join([f"# {title}", *_lines(says, doubts, ())]) + "\n"


def doubts(text: str) -> list[str]:
    """What a file's comments call uncertain: the line, and why."""
    lines = [line.strip().removeprefix("- ").removesuffix(":") for line in text.splitlines()]
    return [
        f"uncertain is {next(other for other in lines[number:] if not other.startswith('#'))}: {why}"
        for number, (mark, _, why) in enumerate(line.partition(f"{MARK}: ") for line in lines)
        if mark == "# "
    ]


def _lines(data: Mapping[str, Any], doubts: Mapping[tuple[Any, ...], str], at: tuple[Any, ...]) -> Iterator[str]:
    indent = "  " * len(at)
    for key, value in data.items():
        here = (*at, key)
        if here in doubts:
            yield f"{indent}# {MARK}: {doubts[here]}"
        inner = any(path[: len(here)] == here and path != here for path in doubts)
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield f"{indent}{key}:"
            for number, item in enumerate(value):
                first, *rest = _lines(item, doubts, (*here, number))
                yield from (f"{indent}  - {first.strip()}", *rest)
        elif isinstance(value, dict) and value and (inner or len(_flow(value)) > _LONGEST):
            yield f"{indent}{key}:"
            yield from _lines(value, doubts, here)
        else:
            yield f"{indent}{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
