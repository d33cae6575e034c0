"""The user's own pairs: a folder with images and `pairs.jsonl`, one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_patching.errors import SpecError, nearest
from vlm_patching.pairs.pair import Pair, Prompt
from vlm_patching.validation import parse_json, read_text

ABOUT = "your own pairs: a folder with images and pairs.jsonl"
_REQUIRED = ("id", "clean", "corrupted", "answer", "foil")
_RANGES = {"spans": 2, "spans_corrupted": 2, "regions": 4}
"""Optional keys: how many numbers each of their entries has."""


def load(n: int | None = None, seed: int = 0, path: str | Path | None = None) -> list[Pair]:
    """Read pairs from a folder, in the order of its lines.

    Parameters
    ----------
    n
        Read only the first n; all where not given.
    seed
        Not used: the order is the file's.
    path
        The folder. Image names in it are relative to it.

    Returns
    -------
    list of Pair

    Raises
    ------
    SpecError
        Naming the file and line: no JSON, an unknown or missing key, a wrong type, a repeated id, a span outside its
        text, a missing or broken image.
    """
    if path is None:
        raise SpecError("pairs.path is missing: dataset 'folder' needs the folder that holds pairs.jsonl.")
    file = Path(path) / "pairs.jsonl"
    if not file.is_file():
        raise SpecError(
            f"{file} does not exist (in {Path.cwd()}): dataset 'folder' reads one JSON object a line from it. A "
            "relative pairs.path begins at the working directory."
        )
    pairs: list[Pair] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if n is not None and len(pairs) == n:
            break
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        pair = _pair(line, Path(path), where)
        if pair.id in seen:
            raise SpecError(f"{where}: id {pair.id!r} is already used in line {seen[pair.id]}; ids must be unique.")
        seen[pair.id] = number
        pairs.append(pair)
    if not pairs:
        raise SpecError(f"{file} holds no pair.")
    if n is not None and len(pairs) < n:
        raise SpecError(f"pairs.n is {n}, but {file} holds {len(pairs)} pairs.")
    return pairs


def _pair(line: str, folder: Path, where: str) -> Pair:
    record = parse_json(line, where)
    _check_keys(record, _REQUIRED, (*_RANGES, "task"), where)
    prompts = {}
    for side in ("clean", "corrupted"):
        _check_keys(record[side], ("image", "text"), (), f"{where}, {side}")
        images = _images(record[side]["image"], folder, f"{where}, {side}.image")
        prompts[side] = Prompt(images, _text(record[side]["text"], f"{where}, {side}.text"))
    words: dict[str, Any] = {key: _text(record[key], f"{where}, {key}") for key in ("answer", "foil")}
    words["task"] = _text(record.get("task", ""), f"{where}, task")
    ranges: dict[str, Any] = {key: _ranges(record, key, length, where) for key, length in _RANGES.items()}
    if type(record["id"]) not in (str, int):
        raise SpecError(f"{where}, id must be text or a whole number, not {record['id']!r}.")
    try:
        pair = Pair(id=str(record["id"]), clean=prompts["clean"], corrupted=prompts["corrupted"], **words, **ranges)
        prompts["corrupted"].pictures()
        pictures = prompts["clean"].pictures()
        if pictures:
            _check_regions(pair, *pictures[0].size)
        elif pair.regions:
            raise SpecError(f"Pair {pair.id!r} has regions, but no image.")
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from error
    return pair


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
        raise SpecError(f"{where}: an object with the keys {', '.join(known)} is expected, not {record!r}.")
    for key in record:
        if key not in known:
            raise SpecError(f"{where}: unknown key {key!r}.{nearest(key, known)} Known: {', '.join(known)}.")
    missing = [key for key in required if key not in record]
    if missing:
        raise SpecError(f"{where}: {', '.join(map(repr, missing))} missing.")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{where} must be text, not {value!r}.")
    return value


def _ranges(record: Mapping[str, Any], key: str, length: int, where: str) -> dict[str, Any]:
    ranges = record.get(key, {})
    if not isinstance(ranges, Mapping):
        raise SpecError(f"{where}: {key!r} must be an object of name: range.")
    for name, numbers in ranges.items():
        whole = isinstance(numbers, list) and all(isinstance(x, int) and not isinstance(x, bool) for x in numbers)
        if not whole or len(numbers) != length:
            raise SpecError(f"{where}: {key}.{name} must be {length} whole numbers, not {numbers!r}.")
    return {name: tuple(numbers) for name, numbers in ranges.items()}


def _check_regions(pair: Pair, width: int, height: int) -> None:
    for name, (_, _, x1, y1) in pair.regions.items():
        if x1 > width or y1 > height:
            raise SpecError(
                f"Pair {pair.id!r}: region {name!r} ends at ({x1}, {y1}), outside its image of {width} × {height} "
                "pixels."
            )
