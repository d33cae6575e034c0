"""Tables, row by row."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vlm_patching.errors import SpecError, nearest
from vlm_patching.pairs.reading.lines import BOM, Lines
from vlm_patching.pairs.reading.rows import BadRow, Row


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
    lines = Lines(path)
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
        header = next(csv.reader([file.readline().removeprefix(BOM).decode("utf-8")]))
        file.seek(offset)
        fields = next(csv.reader(line.decode("utf-8") for line in file), [])
    names = [name.strip() for name in header]
    _check_columns(names, columns, f"{path}, line 1")
    if len(fields) != len(names):
        raise SpecError(f"{path} has changed since its rows were read: no row begins at byte {offset}.")
    return Row(f"{path}, byte {offset}", dict(zip(names, fields, strict=True)), offset)


def read_lists(path: Path) -> dict[str, tuple[str, ...]]:
    """A small table without a header: the first cell of a line → the others of it that are not empty."""
    return {
        row[0].strip(): tuple(cell.strip() for cell in row[1:] if cell.strip())
        for row in csv.reader(Lines(path))
        if row
    }


def _check_columns(header: Sequence[str], columns: Iterable[str], where: str) -> None:
    if not any(header):
        raise SpecError(f"{where}: the file is empty; its first line names the columns {', '.join(columns)}.")
    twice = [name for number, name in enumerate(header) if name in header[:number]]
    if twice:
        raise SpecError(f"{where}: the column {twice[0]!r} is there twice.")
    for name in columns:
        if name not in header:
            raise SpecError(f"{where}: there is no column {name!r}.{nearest(name, header)} It has {', '.join(header)}.")
