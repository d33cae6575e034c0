"""JSON files of any size, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ijson

from vlm_patching.errors import SpecError, nearest, shown
from vlm_patching.pairs.reading.lines import BOM, Lines, first_not_utf8, open_file
from vlm_patching.pairs.reading.rows import BadRow, Row
from vlm_patching.validation import parse_json

_KINDS = {"start_map": "an object", "start_array": "a list", "null": "null"}


def read_json_lines(path: Path) -> Iterator[Row | BadRow]:
    """The objects of a file that has one a line; `BadRow` for a line that holds none. Empty lines are left out."""
    lines = Lines(path)
    for line in lines:
        where = f"{path}, line {lines.number}"
        if not line.strip():
            continue
        try:
            values = parse_json(line.rstrip("\r\n"), where)
        except SpecError as error:
            yield BadRow(where, "no JSON", error)
            continue
        if isinstance(values, dict):
            yield Row(where, values)
        else:
            yield BadRow(where, "no object", f"an object is expected, not {shown(values)}")


def read_object(path: Path) -> Row:
    """The one object of a small JSON file; `SpecError` where it holds none."""
    values = parse_json("".join(Lines(path)), str(path))
    if not isinstance(values, dict):
        raise SpecError(f"{path}: an object is expected, not {shown(values)}.", "no object")
    return Row(str(path), values)


def read_json(path: Path, under: str) -> Iterator[Row | BadRow]:
    """The objects of a list inside a JSON file of any size.

    Parameters
    ----------
    path
        The file.
    under
        The key of the list ("questions"; dots between keys of keys), or "" where the file is the list.

    Yields
    ------
    Row or BadRow
        The latter for an entry that is no object.

    Raises
    ------
    SpecError
        No file, no such list, or no whole JSON: the line is named.
    """
    inside = f"{under}.item" if under else "item"
    for number, entry in _Entries(path).all(ijson.items, inside):
        where = f"{path}, {under or 'entry'}[{number}]"
        yield _entry(where, entry)


def read_json_tuples(path: Path, names: Sequence[str], under: str = "") -> Iterator[Row | BadRow]:
    """The same of a list of short lists: each with a name for every place in it."""
    inside = f"{under}.item" if under else "item"
    for number, entry in _Entries(path).all(ijson.items, inside):
        where = f"{path}, {under or 'entry'}[{number}]"
        if isinstance(entry, list) and len(entry) == len(names):
            yield Row(where, dict(zip(names, entry, strict=True)))
        else:
            yield BadRow(where, f"no list of {len(names)}", f"a list of {len(names)} is expected, not {shown(entry)}")


def read_json_by_key(path: Path, under: str = "") -> Iterator[tuple[str, Row | BadRow]]:
    """The same of an object whose values are objects: each key and its value."""
    for _, (key, entry) in _Entries(path).all(ijson.kvitems, under):
        where = f"{path}, {under or 'entry'}[{key!r}]"
        yield key, _entry(where, entry)


def _entry(where: str, entry: Any) -> Row | BadRow:
    if isinstance(entry, dict):
        return Row(where, entry)
    return BadRow(where, "no object", f"an object is expected, not {shown(entry)}")


class _Entries:
    """A JSON file, given to the parser line by line, so that the line of an error is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line, self._ended = 1, False

    def all(self, parse: Any, inside: str) -> Iterator[tuple[int, Any]]:
        """What `parse` (of ijson) finds at a place, numbered from 0."""
        found = -1
        with open_file(self._path) as file:
            self._file = file
            if file.read(len(BOM)) != BOM:
                file.seek(0)
            try:
                for number, entry in enumerate(parse(self, inside, use_float=True)):
                    found = number
                    yield number, entry
            except ijson.JSONError as error:
                raise self._explained(error) from error
        if found < 0:
            place = inside.removesuffix("item").removesuffix(".")
            raise self._without(place, "a list" if inside.endswith("item") else "an object")

    def read(self, size: int) -> bytes:
        """At most one line (ijson calls this)."""
        if self._ended:
            self._line, self._ended = self._line + 1, False
        piece = self._file.readline(size) if size else b""
        self._ended = piece.endswith(b"\n")
        return piece

    def _explained(self, error: ijson.JSONError) -> SpecError:
        bad = first_not_utf8(self._path)
        if bad is not None:
            return bad
        if "premature EOF" in str(error) or "Incomplete JSON" in str(error):
            return SpecError(
                f"{self._path}, line {self._line}: the file ends in the middle of the JSON; it is cut off."
            )
        said = str(error).split("\n")[0].removeprefix("parse error: ").removeprefix("lexical error: ")
        return SpecError(f"{self._path}, line {self._line} is not JSON: {said.rstrip('.')}.")

    def _without(self, place: str, wanted: str) -> SpecError:
        """What a file holds instead of entries at a place."""
        there: dict[str, str] = {}  # the whole and the place → what is there
        keys = []
        with open_file(self._path) as file:
            self._file = file
            for prefix, event, value in ijson.parse(self):
                if prefix in ("", place) and not event.startswith(("end", "map_key")):
                    there.setdefault(prefix, _KINDS.get(event, f"{value!r}"))
                if prefix == "" and event == "map_key":
                    keys.append(value)
        at = f"at {place!r}" if place else "in it"
        if place in there:
            if there[place] == wanted:
                return SpecError(f"{self._path} has nothing {at}: {wanted} without entries.")
            return SpecError(f"{self._path} has {there[place]} {at}, where {wanted} is expected.")
        if there[""] != "an object":
            return SpecError(f"{self._path} is {there['']}, where an object with the key {place!r} is expected.")
        return SpecError(f"{self._path} has nothing {at}.{nearest(place, keys)} It has {', '.join(keys) or 'no keys'}.")
