"""COOCO (Merlo et al. 2025): scenes in which an object was replaced by one that fits there, more or less.

Files: those of huggingface.co/datasets/fmerlo/COOCO, `COOCO_data_new.json` and `COOCO_images/*.jpg`. The first is an
object of an entry a picture: its scene, target (the scene's own object), swapped_object (what stands in its place),
target_bbox (x, y, width, height), rel_level (how well it fits: low, middle, high, or same_target where the object is
another of the target's kind) and excluded (a model did not find the object there). The pictures' names are those of the
entries: `000000064659_cubicle_office_laptop_original.jpg`, `..._laptop_ham_relscore_low.jpg`, `..._laptop_clean.jpg`.

Pair rule: the clean image is the original scene, the corrupted one that with the object swapped, brought to its size:
"Is there a laptop or a shoe in this picture?". With `clean: same_target` the clean image too is one in which an object
was painted, so that the pictures differ in what it is, and not in whether it was. Entries that are excluded are left
out, and so are objects that a picture cannot tell apart (`words/cooco.yaml`; or where one's name holds the other's).

Held in memory: of every clean image its name, object and box. The file is read twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from vlm_patching.errors import SpecError
from vlm_patching.pairs.candidates import Candidate, Choice, Dropped, Found, attempt
from vlm_patching.pairs.datasets.base import FilesSpec
from vlm_patching.pairs.english import indefinite
from vlm_patching.pairs.pictures import Resized
from vlm_patching.pairs.reading.json_files import read_json_by_key
from vlm_patching.pairs.reading.rows import BadRow, Row

ABOUT = "scenes in which an object was replaced by one that fits there, more or less"
FILES = "COOCO_data_new.json and COOCO_images/ (huggingface.co/datasets/fmerlo/COOCO)"
EXCLUDED = "cooco"
Level = Literal["low", "middle", "high"]
LEVELS: tuple[Level, ...] = ("low", "middle", "high")
_NOT_SWAPPED = ("original", "same_target", "clean")
_SPELLED = {"medium": "middle"}


class Cooco(FilesSpec):
    """COOCO: a scene's own object, and another in its place.

    Attributes
    ----------
    path
        The folder with COOCO_data_new.json and COOCO_images/.
    levels
        How well the other object fits the scene. It is the pair's `task`.
    clean
        `original`: the photograph. `same_target`: a picture in which another object of its kind was painted.
    """

    dataset: Literal["cooco"]
    levels: tuple[Level, ...] = Field(default=LEVELS, min_length=1)
    clean: Literal["original", "same_target"] = "original"


Cleans = Mapping[tuple[str, str], tuple[str, Row]]
"""Number of an image, and its object → the name of its picture, and what is needed of its entry."""


def candidates(spec: Cooco) -> Iterator[Found]:
    """A question of every picture in which an object was swapped."""
    path = spec.folder / "COOCO_data_new.json"
    cleans: dict[tuple[str, str], tuple[str, Row]] = {}
    for name, row in read_json_by_key(path):
        if isinstance(row, BadRow) or _kind(name, row) != spec.clean:
            continue  # what is bad is found again below
        excluded = attempt(partial(_is_excluded, row), row.where)
        if isinstance(excluded, BadRow):
            yield Found(row.where, excluded)
        elif not excluded:
            kept = Row(row.where, {"target_bbox": row.values.get("target_bbox")})
            cleans.setdefault((_number(name), _word(str(row.values.get("target")))), (name, kept))
    if not cleans:
        raise SpecError(f"{path} has no entry of a clean image, {spec.clean!r}.")
    for name, row in read_json_by_key(path):
        if isinstance(row, BadRow):
            yield Found(row.where, row)
        elif _kind(name, row) not in _NOT_SWAPPED:
            yield Found(row.where, attempt(partial(_question, spec, cleans, name, row), row.where))


def _kind(name: str, row: Row) -> str:
    """How well the object in a picture fits, or "original", "same_target", "clean" (without it)."""
    ending = re.search(rf"_({'|'.join(_NOT_SWAPPED)})\.\w+$", name)
    level = str(row.values.get("rel_level"))
    return ending[1] if ending else _SPELLED.get(level, level)


def _is_excluded(row: Row) -> bool:
    """Whether a model did not find the object; of pictures in which none was swapped not all say it."""
    return "excluded" in row.values and row.flag("excluded")


def _number(name: str) -> str:
    return name.partition("_")[0]


def _word(name: str) -> str:
    """An object's name as a question has it: "dining_table" → "dining table", "mouse (computer)" → "mouse"."""
    return " ".join(re.sub(r"\(.*?\)", " ", name.replace("_", " ")).lower().split())


def _question(spec: Cooco, cleans: Cleans, name: str, row: Row) -> Candidate:
    if row.flag("excluded"):
        return Dropped("a model did not find the object in its picture")
    level = _kind(name, row)
    if level not in LEVELS:
        raise row.bad("'rel_level' is none of low, middle, high, same_target", f" but {row.value('rel_level')!r}")
    if level not in spec.levels:
        return Dropped("its level is not asked for")
    own, other = _word(row.text("target")), _word(row.text("swapped_object"))
    if set(own.split()) <= set(other.split()) or set(other.split()) <= set(own.split()):
        return Dropped("one object's name holds the other's")
    clean = cleans.get((_number(name), own))
    if clean is None:
        return Dropped("there is no clean image of its scene and object")
    folder = spec.folder / "COOCO_images"
    return Choice(
        id=Path(name).stem,
        question="Is there {first} or {second} in this picture?",
        answer=own,
        foil=other,
        clean=folder / clean[0],
        corrupted=Resized(folder / name, folder / clean[0]),
        before=(indefinite(own), indefinite(other)),
        role="object",
        named="object",
        regions={"object": clean[1].box("target_bbox")},
        task=level,
    )
