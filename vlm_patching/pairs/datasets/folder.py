"""Your own pairs: a folder with images and `pairs.jsonl`, one JSON object a line, or `pairs.csv`.

Files: images of any names, relative to the folder, and a line a pair.

- A JSON object has the keys `id`, `clean` and `corrupted` (each with `image` and `text`), `answer`, `foil`, and may
  have `spans`, `spans_corrupted`, `regions`, `task`.
- A table has the columns `id`, `clean.image`, `clean.text`, `corrupted.image`, `corrupted.text`, `answer`, `foil`, and
  may have `task` and others such as `spans.subject` ("8 13"), `spans_corrupted.subject`, `regions.object`
  ("40 32 160 128"); an empty cell is none.

Pair rule: as written, in the order of the lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlm_patching.errors import SpecError, nearest, shown
from vlm_patching.pairs.candidates import Found, each
from vlm_patching.pairs.datasets.base import FilesSpec
from vlm_patching.pairs.pair import Pair, Prompt
from vlm_patching.pairs.reading.csv_files import read_csv
from vlm_patching.pairs.reading.json_files import read_json_lines
from vlm_patching.pairs.reading.rows import BadRow, Row

ABOUT = "your own pairs, as written"
FILES = "pairs.jsonl (one JSON object a line) or pairs.csv, and the images that it names"
LINES, TABLE = "pairs.jsonl", "pairs.csv"
_REQUIRED = ("id", "clean", "corrupted", "answer", "foil")
_SIDE = ("image", "text")
_RANGES = {"spans": 2, "spans_corrupted": 2, "regions": 4}
"""Optional keys: how many numbers each of their entries has."""
_COLUMNS = ("id", "clean.image", "clean.text", "corrupted.image", "corrupted.text", "answer", "foil")


class Folder(FilesSpec):
    """Pairs as they are written in a folder; n: the first n.

    Attributes
    ----------
    path
        The folder, with pairs.jsonl or pairs.csv.
    """

    dataset: Literal["folder"]


def candidates(spec: Folder) -> Iterator[Found]:
    """Every line's pair, in the order of the lines."""
    lines, table = spec.folder / LINES, spec.folder / TABLE
    if lines.is_file() and table.is_file():
        raise SpecError(f"{spec.folder} has both {LINES} and {TABLE}; one of them says what the pairs are.")
    rows: Iterable[Row | BadRow]
    if table.is_file():
        file, rows = table, _untabled(read_csv(table, _COLUMNS))
    elif lines.is_file():
        file, rows = lines, read_json_lines(lines)
    else:
        raise SpecError(
            f"{lines} does not exist (in {Path.cwd()}), nor does {TABLE} beside it: dataset 'folder' reads pairs from "
            "one of them. A relative pairs.path begins at the working directory."
        )
    nothing = True
    for found in each(rows, partial(_pair, spec.folder)):
        nothing = False
        yield found
    if nothing:
        raise SpecError(f"{file} holds no pair.")


def _untabled(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Rows of a table, as the objects of pairs.jsonl."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        record: dict[str, Any] = {"clean": {}, "corrupted": {}}
        for column, cell in row.values.items():
            section, dot, name = column.partition(".")
            if section in _RANGES and dot:
                if cell.strip():
                    numbers = cell.split()
                    whole = all(number.isascii() and number.isdigit() for number in numbers)
                    record.setdefault(section, {})[name] = [int(n) for n in numbers] if whole else cell
            elif section in ("clean", "corrupted") and name in _SIDE:
                record[section][name] = (cell or None) if name == "image" else cell
            elif column in ("id", "answer", "foil", "task"):
                record[column] = cell
            else:
                known = (*_COLUMNS, "task", "spans.NAME", "spans_corrupted.NAME", "regions.NAME")
                where = row.where.split(", line ")[0]
                raise SpecError(
                    f"{where}, line 1: unknown column {column!r}.{nearest(column, known)} Known: {', '.join(known)}."
                )
        yield Row(row.where, record)


def _pair(folder: Path, row: Row) -> Pair:
    record, where = row.values, row.where
    _check_keys(record, _REQUIRED, (*_RANGES, "task"), where)
    prompts = {}
    for side in ("clean", "corrupted"):
        _check_keys(record[side], _SIDE, (), f"{where}, {side}")
        images = _images(record[side]["image"], folder, f"{where}, {side}.image")
        prompts[side] = Prompt(images, _text(record[side]["text"], f"{where}, {side}.text"))
    words: dict[str, Any] = {key: _text(record[key], f"{where}, {key}") for key in ("answer", "foil")}
    words["task"] = _text(record.get("task", ""), f"{where}, task")
    ranges: dict[str, Any] = {key: _ranges(record, key, length, where) for key, length in _RANGES.items()}
    if type(record["id"]) not in (str, int):
        raise SpecError(f"{where}, id must be text or a whole number, not {shown(record['id'])}.")
    return Pair(id=str(record["id"]), clean=prompts["clean"], corrupted=prompts["corrupted"], **words, **ranges)


def _images(value: Any, folder: Path, where: str) -> Path | tuple[Path, ...] | None:
    """A file, several, or none (null)."""
    if value is None:
        return None
    if isinstance(value, list):
        if not value:
            raise SpecError(f"{where} is an empty list; a prompt without an image has null there.")
        return tuple(folder / _text(name, where) for name in value)
    return folder / _text(value, where)


def _check_keys(record: Any, required: tuple[str, ...], optional: tuple[str, ...], where: str) -> None:
    known = (*required, *optional)
    if not isinstance(record, Mapping):
        raise SpecError(f"{where}: an object with the keys {', '.join(known)} is expected, not {shown(record)}.")
    for key in record:
        if key not in known:
            raise SpecError(f"{where}: unknown key {key!r}.{nearest(key, known)} Known: {', '.join(known)}.")
    missing = [key for key in required if key not in record]
    if missing:
        raise SpecError(f"{where}: {', '.join(map(repr, missing))} missing.")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{where} must be text, not {shown(value)}.")
    return value


def _ranges(record: Mapping[str, Any], key: str, length: int, where: str) -> dict[str, Any]:
    ranges = record.get(key, {})
    if not isinstance(ranges, Mapping):
        raise SpecError(f"{where}: {key!r} must be an object of name: range.")
    for name, numbers in ranges.items():
        whole = isinstance(numbers, list) and all(isinstance(x, int) and not isinstance(x, bool) for x in numbers)
        if not whole or len(numbers) != length:
            raise SpecError(f"{where}: {key}.{name} must be {length} whole numbers, not {shown(numbers)}.")
    return {name: tuple(numbers) for name, numbers in ranges.items()}
