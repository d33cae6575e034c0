"""A row of any file, its values checked; and the error of one that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_patching.errors import SpecError, nearest, shown
from vlm_patching.pairs.pair import Box

_FARTHEST = 1e9
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


class BadRow(SpecError):
    """One row that cannot be used: skipped, and counted by its reason, where the spec says `on_error: skip`.

    Parameters
    ----------
    where
        File and line.
    reason
        What is wrong, in words that other rows' errors share.
    told
        What is wrong with this one; the reason where not given.
    """

    reason: str

    def __init__(self, where: str, reason: str, told: object = None) -> None:
        said = str(told or reason).rstrip(".")
        whole = said if said.startswith(where) else f"{where}: {said}"
        super().__init__(whole if whole.endswith("?") else f"{whole}.", reason)
        self.where = where


@dataclass(frozen=True)
class Row:
    """A row of a table, or an object out of a JSON file.

    Attributes
    ----------
    where
        File and line (of JSON: which entry).
    values
        Column or key → value; text, of a table.
    offset
        At which byte of the file a table's row begins.
    """

    where: str
    values: Mapping[str, Any]
    offset: int = 0

    def bad(self, reason: str, detail: str = "") -> BadRow:
        """The error to raise for this row."""
        return BadRow(self.where, reason, reason + detail)

    def value(self, key: str) -> Any:
        """Whatever stands at a key; `BadRow` where there is none."""
        if key not in self.values:
            raise self.bad(f"{key!r} is missing", f".{nearest(key, self.values)} It has {', '.join(self.values)}")
        return self.values[key]

    def text(self, key: str) -> str:
        """A text, without spaces around it; `BadRow` where it is none, or empty."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self.bad(f"{key!r} is no text", f" but {shown(value)}")
        if not value.strip():
            raise self.bad(f"{key!r} is empty")
        return value.strip()

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, without spaces around them."""
        values = self.value(key)
        if not isinstance(values, list) or not values:
            raise self.bad(f"{key!r} is no list of texts", f" but {shown(values)}")
        return tuple(Row(self.where, {f"{key}[{i}]": value}).text(f"{key}[{i}]") for i, value in enumerate(values))

    def box(self, key: str, size: tuple[int, int] | None = None) -> Box:
        """A box, x, y, width, height there, as x0, y0, x1, y1 in whole pixels, of an image.

        Where its size is given, what is outside is cut off; else a box that is partly outside is refused.
        """
        values = self.value(key)
        numbers: list[Any] = values if isinstance(values, list) else []
        if len(numbers) != 4 or not all(type(n) in (int, float) and abs(n) <= _FARTHEST for n in numbers):
            raise self.bad(f"{key!r} is no box of x, y, width, height", f" but {shown(values)}")
        x, y, width, height = numbers
        x0, y0, x1, y1 = round(x), round(y), round(x + width), round(y + height)
        if size is not None:
            x0, y0, x1, y1 = max(0, x0), max(0, y0), min(x1, size[0]), min(y1, size[1])
        elif x0 < 0 or y0 < 0:
            raise self.bad(f"{key!r} begins outside its image", f": {shown(values)}")
        if x1 <= x0 or y1 <= y0:
            raise self.bad(f"{key!r} is an empty box", f": {shown(values)}")
        return x0, y0, x1, y1

    def whole(self, key: str) -> int:
        """A whole number."""
        value = self.value(key)
        if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
            value = int(value)
        if type(value) is not int:
            raise self.bad(f"{key!r} is no whole number", f" but {shown(value)}")
        return value

    def flag(self, key: str) -> bool:
        """True or false, in any case."""
        value = self.value(key)
        named = {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(named, bool):
            raise self.bad(f"{key!r} is neither True nor False", f" but {shown(value)}")
        return named
