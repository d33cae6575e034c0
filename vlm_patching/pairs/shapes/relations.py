"""Spatial relations between two named things: nothing changes but cells, and the relation is reversed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from vlm_patching.pairs.pair import Box
from vlm_patching.pairs.shapes.contrast import Contrast, Wording, plural
from vlm_patching.pairs.shapes.questions import ANY_NAME, SIDES, fill, name_of
from vlm_patching.pairs.shapes.scene import GRID, Scene, sample_scene

_SAID = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_AGREEMENT = Wording("how many {subject} are {relation} the {landmark}?", "is the {subject} {relation} the {landmark}?")


def draw_swap(rng: random.Random, yes_no: bool) -> Contrast | None:
    """Two things change places: the same things are there, and the same cells are taken."""
    two = _two_things(rng)
    if two is None:
        return None
    options = {"answer_option": two.relation, "foil_option": two.reverse}
    first, second = rng.sample(tuple(options), 2)
    choice = two.choice.format(first=f"{{{first}}}", second=f"{{{second}}}")
    text, spans = fill(f"is the {{subject}} {choice} the {{landmark}}?", two.names | options)
    thing, landmark = two.scene.things[two.target], two.scene.things[two.other]
    swapped = two.scene.with_thing(two.target, row=landmark.row, col=landmark.col)
    swapped = swapped.with_thing(two.other, row=thing.row, col=thing.col)
    return Contrast(text, two.relation, two.reverse, spans, two.scene, swapped, two.regions(two.scene))


def draw_agreement(rng: random.Random, yes_no: bool) -> Contrast | None:
    """One of them moves along its row or column to the other side of the other; does what is said of them hold?

    Each moves as often as the other: where only one of them did, the half of the picture it lies in would tell.
    """
    two = _two_things(rng)
    if two is None:
        return None
    moves, stays = rng.sample((two.target, two.other), 2)
    thing = two.scene.things[moves]
    here, there = (getattr(two.scene.things[i], two.axis) for i in (moves, stays))
    line = [{"row": thing.row, "col": thing.col, two.axis: place} for place in range(GRID)]
    beyond = [cell for cell in line if (cell[two.axis] - there) * (here - there) < 0]
    free = [cell for cell in beyond if (cell["row"], cell["col"]) in two.scene.free_cells()]
    if not free:
        return None
    words = two.names | {"relation": _SAID[two.relation]}
    if not yes_no:
        words["subject"] = plural(words["subject"])
    scenes = two.scene, two.scene.with_thing(moves, **rng.choice(free))
    return _AGREEMENT.contrast(rng, yes_no, words, *((scene, two.regions(scene)) for scene in scenes))


@dataclass(frozen=True)
class _TwoThings:
    """Two things of a scene, what they are called (`subject`, `landmark`), and how the first lies to the second."""

    scene: Scene
    target: int
    other: int
    names: dict[str, str]
    axis: str
    relation: str
    reverse: str
    choice: str

    def regions(self, scene: Scene) -> dict[str, Box]:
        """Where the two are in this scene or another one."""
        return {"object": scene.things[self.target].box, "landmark": scene.things[self.other].box}


def _two_things(rng: random.Random) -> _TwoThings | None:
    """A scene with two things that can be told from all others; None where those it drew cannot, or lie level."""
    scene = sample_scene(rng)
    target, other = rng.sample(range(len(scene.things)), 2)
    names = {role: name_of(rng, scene, i, ANY_NAME) for role, i in (("subject", target), ("landmark", other))}
    axis, low, high, choice = rng.choice(SIDES)
    here, there = (getattr(scene.things[i], axis) for i in (target, other))
    known = {role: name for role, name in names.items() if name}
    if len(known) < 2 or here == there:
        return None
    relation, reverse = (low, high) if here < there else (high, low)
    return _TwoThings(scene, target, other, known, axis, relation, reverse, choice)
