"""ShapeWorld (Kuhnle & Copestake 2017): generated pictures of coloured shapes, as they were written to files.

Files: what `generate.py` of github.com/AlexKuhnle/ShapeWorld leaves with `--include-model` and without `--archive`,
`--concatenate-images` and `--numpy-format`: `world_model.json`, a list of worlds with size (in pixels) and entities
(each with shape, color and bounding_box, from 0 to 1), and `world-NUMBER.png` (or .bmp) beside it. Shards, and folders
of several data sets, may be anywhere below the folder. Captions are not read.

Pair rule: a question about a thing whose shape (or colour) no other thing of its world has, and of the same question
another world with another answer: "Is the pentagon red or blue?", "Is the red shape a pentagon or a cross?". The two
pictures differ in more than the answer; pairs that do not are drawn by the dataset `shapes`. A square is a rectangle
too, and a circle an ellipse (`words/shapeworld.yaml`): such are not held against each other.

Held in memory: of every world its things, each as two words and a box.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vlm_patching.errors import SpecError
from vlm_patching.pairs.candidates import Candidate, Choice, Dropped, Found, attempt
from vlm_patching.pairs.datasets.base import FilesSpec
from vlm_patching.pairs.english import indefinite
from vlm_patching.pairs.pair import Box
from vlm_patching.pairs.reading.json_files import read_json
from vlm_patching.pairs.reading.rows import BadRow, Row
from vlm_patching.pairs.vocabulary import exclusions

ABOUT = "generated pictures of coloured shapes, as ShapeWorld writes them"
FILES = "world_model.json and world-NUMBER.png (generate.py -M -G of github.com/AlexKuhnle/ShapeWorld)"
EXCLUDED = "shapeworld"
Attribute = Literal["color", "shape"]


class ShapeWorld(FilesSpec):
    """ShapeWorld: the colour or the shape of a thing in two worlds.

    Attributes
    ----------
    path
        The folder with world_model.json and the pictures, or one that such are below.
    attributes
        What is asked for. It is the pair's `task`.
    """

    dataset: Literal["shapeworld"]
    attributes: tuple[Attribute, ...] = Field(default=("color", "shape"), min_length=1)


@dataclass(frozen=True, slots=True)
class _Thing:
    """A thing of a world that its shape (or colour) names, and what is asked for."""

    where: str
    folder: Path
    number: int
    attribute: Attribute
    named: str
    value: str
    box: Box

    @property
    def asked(self) -> tuple[str, str]:
        return self.attribute, self.named


def candidates(spec: ShapeWorld) -> Iterator[Found]:
    """A question of every thing that can be named, and attribute."""
    tables = sorted(spec.folder.rglob("world_model.json"))
    if not tables:
        raise SpecError(f"{spec.folder} (in {Path.cwd()}) has no world_model.json, nor has a folder below it.")
    things: list[_Thing] = []
    for table in tables:
        for number, row in enumerate(read_json(table, "")):
            try:
                things += _things(spec, table.parent, number, row)
            except BadRow as error:
                yield Found(row.where, error)
    worlds: dict[tuple[str, str], dict[str, list[_Thing]]] = {}
    for thing in things:
        worlds.setdefault(thing.asked, {}).setdefault(thing.value, []).append(thing)
    for thing in things:
        yield Found(thing.where, attempt(partial(_question, spec, thing, worlds[thing.asked]), thing.where))


def _things(spec: ShapeWorld, folder: Path, number: int, row: Row | BadRow) -> Iterator[_Thing]:
    if isinstance(row, BadRow):
        raise row
    size, entities = row.whole("size"), row.value("entities")
    if not isinstance(entities, list):
        raise row.bad("'entities' is no list", f" but {entities!r}")
    there = [_entity(Row(f"{row.where}, entities[{i}]", {"entity": entity}), size) for i, entity in enumerate(entities)]
    for attribute in spec.attributes:
        pairs = [(color, shape)[:: 1 if attribute == "shape" else -1] for color, shape, _ in there]
        counts = Counter(named for named, _ in pairs)
        for (named, value), (*_, box) in zip(pairs, there, strict=True):
            if counts[named] == 1:
                yield _Thing(row.where, folder, number, attribute, named, value, box)


def _entity(row: Row, size: int) -> tuple[str, str, Box]:
    """Colour, shape and box of a thing."""
    entity: Any = row.value("entity")
    try:
        words = [Row(row.where, entity[key]).text("name") for key in ("color", "shape")]
        corners = [
            float(entity["bounding_box"][end][side]) for end in ("topleft", "bottomright") for side in ("x", "y")
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise row.bad("an entity has no color, shape and bounding_box", f": {entity!r}") from error
    x0, y0, x1, y1 = (min(max(round(corner * size), 0), size) for corner in corners)
    if x1 <= x0 or y1 <= y0:
        raise row.bad("an entity's bounding_box is empty", f": {corners}")
    return words[0], words[1], (x0, y0, x1, y1)


def _question(spec: ShapeWorld, thing: _Thing, worlds: Mapping[str, Sequence[_Thing]]) -> Candidate:
    near = exclusions(EXCLUDED).near
    foils = sorted(value for value in worlds if not near(thing.value, value))
    if not foils:
        return Dropped("no other world has another answer to its question")
    inside = "/".join(thing.folder.relative_to(spec.folder).parts)
    name = f"{inside}/{thing.number}/{thing.attribute}-{thing.named}".lstrip("/")
    rng = random.Random(f"{spec.seed}/foil/{name}")
    foil = rng.choice(foils)
    of_shape = thing.attribute == "shape"
    return Choice(
        id=name,
        question="Is the {subject} " + "shape " * of_shape + "{first} or {second}?",
        answer=thing.value,
        foil=foil,
        clean=_picture(thing),
        corrupted=_picture(rng.choice(worlds[foil])),
        words={"subject": thing.named},
        before=(indefinite(thing.value), indefinite(foil)) if of_shape else ("", ""),
        role=thing.attribute,
        regions={"object": thing.box},
        task=thing.attribute,
    )


def _picture(thing: _Thing) -> Path:
    png = thing.folder / f"world-{thing.number}.png"
    bitmap = png.with_suffix(".bmp")
    return bitmap if bitmap.is_file() else png
