"""Visual Jenga style inpaintings (Bhattad et al. 2025): a picture, and the same without one of its objects.

Files, either

- `removals.json`, a list of objects with original and removed (pictures, relative to the folder), object (its name)
  and, where it is known, box (x, y, width, height in the original); or
- what a run of the method leaves behind, at any depth: folders `step_NN` with `original.png` (the picture before the
  step), `removed_LABEL.png` (after it), `scores.json` (of every object obj_idx, label and score; that of the highest
  was removed), `detect.json` (the labels of all objects) and `mask_NN_LABEL.png` (white where the object is).

Pair rule: the clean image is the original, the corrupted one that without the object: "Is there a cup in this picture,
yes or no?". Of a run, an object is left out whose name another object of the picture has too (there still is a cup),
or that has no name of its own ("distinct object").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from vlm_patching.errors import SpecError
from vlm_patching.pairs.candidates import Candidate, Choice, Dropped, Found, attempt
from vlm_patching.pairs.datasets.base import YesNoSpec
from vlm_patching.pairs.english import indefinite, is_plural
from vlm_patching.pairs.pair import Box
from vlm_patching.pairs.pictures import Resized, opened
from vlm_patching.pairs.reading.json_files import read_json
from vlm_patching.pairs.reading.rows import BadRow, Row

ABOUT = "pictures with and without one of their objects, which was removed by inpainting"
FILES = (
    "removals.json and the pictures that it names; or step_NN/ folders with original.png, removed_*.png, scores.json"
)
_UNNAMED = re.compile(r"(distinct |every )?(object|thing|item)s?(_\d+)?")


class VisualJenga(YesNoSpec):
    """Pictures with and without an object.

    Attributes
    ----------
    path
        The folder with removals.json, or with folders step_NN somewhere in it.
    """

    dataset: Literal["visual_jenga"]


def candidates(spec: VisualJenga) -> Iterator[Found]:
    """A question of every object that was removed."""
    table = spec.folder / "removals.json"
    if table.is_file():
        for row in read_json(table, ""):
            what = row if isinstance(row, BadRow) else attempt(partial(_listed, spec, row), row.where)
            yield Found(row.where, what)
        return
    steps = sorted(path for path in spec.folder.rglob("step_*") if path.is_dir())
    if not steps:
        raise SpecError(
            f"{spec.folder} (in {Path.cwd()}) has neither removals.json nor folders step_01, step_02, ... in it."
        )
    for step in steps:
        yield Found(str(step), attempt(partial(_step, spec, step), str(step)))


def _listed(spec: VisualJenga, row: Row) -> Candidate:
    original, removed = (spec.folder / row.text(key) for key in ("original", "removed"))
    box = None if row.values.get("box") is None else row.box("box")
    return _question(spec, f"{row.text('original')}/{row.text('removed')}", row.text("object"), original, removed, box)


def _step(spec: VisualJenga, step: Path) -> Candidate:
    removed = sorted(step.glob("removed_*.png"))
    if not removed:
        return Dropped("nothing was removed in its step")
    objects = _rows(step / "scores.json")
    most = max(objects, key=_score)
    label = most.text("label")
    if [path.name for path in removed] != [f"removed_{_in_files(label)}.png"]:
        raise most.bad("scores.json and the picture of its step are not of the same object", f": {label!r}")
    name = _name(label)
    if _UNNAMED.fullmatch(name):
        return Dropped("its object has no name of its own")
    if [_name(row.text("label")) for row in _rows(step / "detect.json")].count(name) > 1:
        return Dropped("another object of its name is in the picture")
    mask = step / f"mask_{most.whole('obj_idx'):02d}_{_in_files(label)}.png"
    box = opened(mask).convert("L").getbbox() if mask.is_file() else None
    return _question(spec, "/".join(step.relative_to(spec.folder).parts), name, step / "original.png", removed[0], box)


def _rows(path: Path) -> list[Row]:
    rows = []
    for row in read_json(path, ""):
        if isinstance(row, BadRow):
            raise row
        rows.append(row)
    return rows


def _score(row: Row) -> float:
    score = row.value("score")
    if type(score) not in (int, float):
        raise row.bad("'score' is no number", f" but {score!r}")
    return float(score)


def _in_files(label: str) -> str:
    """A label as files are called by it."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in label)[:40]


def _name(label: str) -> str:
    """A label as a question has it: "The cup." → "cup"."""
    return re.sub(r"^(a|an|the) ", "", label.strip(" .").lower())


def _question(spec: VisualJenga, name: str, thing: str, original: Path, removed: Path, box: Box | None) -> Choice:
    verb = "Are there" if is_plural(thing) else f"Is there {indefinite(thing)}".rstrip()
    return Choice(
        id=name,
        question=f"{verb} {{subject}} in this picture, {{first}} or {{second}}?",
        answer=spec.yes_no[0],
        foil=spec.yes_no[1],
        clean=original,
        corrupted=Resized(removed, original),
        words={"subject": thing},
        role="truth",
        regions={} if box is None else {"object": box},
    )
