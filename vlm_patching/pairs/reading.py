"""The files of datasets, row by row: nothing is read into memory whole, and every error names the file and the line."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from vlm_patching.errors import SpecError, nearest, shown
from vlm_patching.pairs.pair import Box
from vlm_patching.validation import parse_json

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BOM = b"\xef\xbb\xbf"


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
        super().__init__(f"{said if said.startswith(where) else f'{where}: {said}'}.", reason)
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
        """A box, x, y, width, height there, as x0, y0, x1, y1 in whole pixels; cut off at the edges of a size."""
        values = self.value(key)
        numbers: list[Any] = values if isinstance(values, list) else []
        if len(numbers) != 4 or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise self.bad(f"{key!r} is no box of x, y, width, height", f" but {shown(values)}")
        x, y, width, height = numbers
        ends = (math.inf, math.inf) if size is None else size
        x0, y0 = max(0, round(x)), max(0, round(y))
        x1, y1 = min(round(x + width), ends[0]), min(round(y + height), ends[1])
        if x1 <= x0 or y1 <= y0:
            raise self.bad(f"{key!r} is an empty box", f": {shown(values)}")
        return x0, y0, int(x1), int(y1)

    def whole(self, key: str) -> int:
        """A whole number."""
        value = self.value(key)
        if isinstance(value, str) and value.strip().lstrip("+-").isascii() and value.strip().lstrip("+-").isdigit():
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


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[Row | BadRow]:
    """A table's rows, one after the other.

    Parameters
    ----------
    path
        UTF-8, with or without a byte order mark; the first row names the columns.
    columns
        Those it must have, in any order among others.

    Yields
    ------
    Row or BadRow
        The latter for a row of more or fewer fields than there are columns.

    Raises
    ------
    SpecError
        No file, other columns, bytes that are not UTF-8, or a quote that is never closed: the file is not what it was.
    """
    lines = _Lines(path)
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_columns(header, columns, f"{path}, line 1")
        while True:
            lines.begin()
            fields = next(reader, None)
            if fields is None:
                return
            where, offset = f"{path}, line {lines.first}", lines.start
            if len(fields) == len(header):
                yield Row(where, dict(zip(header, fields, strict=True)), offset)
            elif fields:  # an empty line is none
                yield BadRow(
                    where, "too many or too few fields", f"{len(fields)} fields, where {len(header)} are named"
                )
    except csv.Error as error:
        cut = "the file ends inside a quoted field, which begins there" if "end of data" in str(error) else str(error)
        raise SpecError(f"{path}, line {lines.first}: no CSV that can be read: {cut}.") from error


def read_csv_at(path: Path, columns: Sequence[str], offset: int) -> Row:
    """The one row of a table that begins at a byte; `SpecError` where the file has changed since it was read."""
    with path.open("rb") as file:
        header = next(csv.reader([file.readline().removeprefix(_BOM).decode("utf-8")]))
        file.seek(offset)
        fields = next(csv.reader(line.decode("utf-8") for line in file), [])
    names = [name.strip() for name in header]
    _check_columns(names, columns, f"{path}, line 1")
    if len(fields) != len(names):
        raise SpecError(f"{path} has changed since its rows were read: no row begins at byte {offset}.")
    return Row(f"{path}, byte {offset}", dict(zip(names, fields, strict=True)), offset)


def read_json_lines(path: Path) -> Iterator[Row | BadRow]:
    """The objects of a file that has one a line; `BadRow` for a line that holds none. Empty lines are left out."""
    lines = _Lines(path)
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
    values = parse_json("".join(_Lines(path)), str(path))
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


def read_side_by_side(files: Mapping[str, Path]) -> Iterator[Row]:
    """Text files of which the lines of one number belong together: name → line of that file.

    Raises
    ------
    SpecError
        No file, bytes that are not UTF-8, or one that ends before the others.
    """
    lines = {name: _Lines(path) for name, path in files.items()}
    while True:
        row = {name: next(each, None) for name, each in lines.items()}
        if all(line is None for line in row.values()):
            return
        number = max(each.number for each in lines.values())
        for name, line in row.items():
            if line is None:
                longer = next(path for other, path in files.items() if row[other] is not None)
                raise SpecError(
                    f"{files[name]} ends at line {number - 1}, before {longer}: the lines of one number belong "
                    "together, so one of the files is cut off."
                )
        yield Row(
            f"{next(iter(files.values()))}, line {number}", {n: str(line).rstrip("\r\n") for n, line in row.items()}
        )


def inside(folder: Path, name: str) -> Path:
    """A file of a folder, or of one of the folders in it; where there is none, where it would be."""
    path = folder / name
    return path if path.exists() else next(iter(sorted(folder.glob(f"*/{name}"))), path)


def read_lists(path: Path) -> dict[str, tuple[str, ...]]:
    """A small table without a header: the first cell of a line → the others of it that are not empty."""
    return {
        row[0].strip(): tuple(cell.strip() for cell in row[1:] if cell.strip())
        for row in csv.reader(_Lines(path))
        if row
    }


def folders_in(folder: Path) -> list[Path]:
    """The folders inside a folder, in the order of their names; `SpecError` where there is none of its name."""
    if not folder.is_dir():
        raise SpecError(f"{folder} does not exist (in {Path.cwd()}), or is no folder.")
    return sorted(path for path in folder.iterdir() if path.is_dir())


def image_names(folder: Path) -> tuple[str, ...]:
    """The names of the pictures in a folder, in order; `SpecError` where there is none of its name."""
    if not folder.is_dir():
        raise SpecError(f"{folder} does not exist (in {Path.cwd()}), or is no folder.")
    return _image_names(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _image_names(folder: Path, changed: int) -> tuple[str, ...]:
    return tuple(sorted(name for name in os.listdir(folder) if name.lower().endswith(_ENDINGS)))


def _entry(where: str, entry: Any) -> Row | BadRow:
    if isinstance(entry, dict):
        return Row(where, entry)
    return BadRow(where, "no object", f"an object is expected, not {shown(entry)}")


def _check_columns(header: Sequence[str], columns: Iterable[str], where: str) -> None:
    if not any(header):
        raise SpecError(f"{where}: the file is empty; its first line names the columns {', '.join(columns)}.")
    twice = [name for number, name in enumerate(header) if name in header[:number]]
    if twice:
        raise SpecError(f"{where}: the column {twice[0]!r} is there twice.")
    for name in columns:
        if name not in header:
            raise SpecError(f"{where}: there is no column {name!r}.{nearest(name, header)} It has {', '.join(header)}.")


class _Lines:
    """A file's lines as text, and where they stand.

    Attributes
    ----------
    number
        Of the line that was given out last, from 1.
    first, start
        Where the present record began, as `begin` found it: number of its first line, and its first byte.
    """

    def __init__(self, path: Path) -> None:
        self.number, self.first, self.start = 0, 1, 0
        self._path, self._lines, self._read = path, self._raw(), 0

    def begin(self) -> None:
        """The next line begins a record."""
        self.first, self.start = self.number + 1, self._read

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = next(self._lines)
        self.number += 1
        self._read += len(raw)
        try:
            return (raw.removeprefix(_BOM) if self.number == 1 else raw).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(self._path, self.number, error) from error

    def _raw(self) -> Iterator[bytes]:
        with _open(self._path) as file:
            yield from file


class _Entries:
    """A JSON file, given to the parser line by line, so that the line of an error is known."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line, self._ended = 1, False

    def all(self, parse: Any, inside: str) -> Iterator[tuple[int, Any]]:
        """What `parse` (of ijson) finds at a place, numbered from 0."""
        found = -1
        with _open(self._path) as file:
            self._file = file
            if file.read(len(_BOM)) != _BOM:
                file.seek(0)
            try:
                for number, entry in enumerate(parse(self, inside, use_float=True)):
                    found = number
                    yield number, entry
            except ijson.JSONError as error:
                raise self._explained(error) from error
        if found < 0:
            place = inside.removesuffix("item").removesuffix(".")
            raise SpecError(f"{self._path} has nothing {f'at {place!r}' if place else 'in it'}.{self._known(place)}")

    def read(self, size: int) -> bytes:
        """At most one line (ijson calls this)."""
        if self._ended:
            self._line, self._ended = self._line + 1, False
        piece = self._file.readline(size) if size else b""
        self._ended = piece.endswith(b"\n")
        return piece

    def _explained(self, error: ijson.JSONError) -> SpecError:
        bad = _first_not_utf8(self._path)
        if bad is not None:
            return bad
        if "premature EOF" in str(error) or "Incomplete JSON" in str(error):
            return SpecError(
                f"{self._path}, line {self._line}: the file ends in the middle of the JSON; it is cut off."
            )
        said = str(error).split("\n")[0].removeprefix("parse error: ").removeprefix("lexical error: ")
        return SpecError(f"{self._path}, line {self._line} is not JSON: {said.rstrip('.')}.")

    def _known(self, place: str) -> str:
        if not place:
            return ""
        with _open(self._path) as file:
            self._file = file
            keys = [value for prefix, event, value in ijson.parse(self) if prefix == "" and event == "map_key"]
        return f"{nearest(place, keys)} It has {', '.join(keys) or 'no keys'}."


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        there = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        missing = "" if path.parent.is_dir() else f": there is no folder {path.parent}"
        raise SpecError(f"{path} does not exist (in {Path.cwd()}){missing}.{nearest(path.name, there)}") from error
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.") from error


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> SpecError:
    return SpecError(
        f"{path}, line {line}: byte {error.start + 1} of the line is {error.object[error.start]:#04x}, which is not "
        "UTF-8 text. Save the file as UTF-8 (it may be latin-1 now)."
    )


def _first_not_utf8(path: Path) -> SpecError | None:
    lines = _Lines(path)
    try:
        for _ in lines:
            pass
    except SpecError as error:
        return error
    return None
