"""A word in the picture that contradicts what is there, as in Stroop's experiment: it names a colour."""

from __future__ import annotations

import random

from vlm_patching.pairs.shapes.contrast import Contrast
from vlm_patching.pairs.shapes.questions import Question, sample
from vlm_patching.pairs.shapes.scene import GRID, Scene, Thing, Word


def draw_word(rng: random.Random, yes_no: bool) -> Contrast:
    """The word changes from the thing's colour to another. The answer stays right; the foil is what is written."""
    scene, question, thing = _asked(rng)
    row, col = _beside(rng, scene, thing)
    sides = (scene.with_word(Word(said, row, col)) for said in (question.answer, question.foil))
    return _contrast(question, thing, *sides)


def draw_color(rng: random.Random, yes_no: bool) -> Contrast:
    """The thing takes on the colour that is written; in the clean picture it has another."""
    scene, question, thing = _asked(rng)
    scene = scene.with_word(Word(question.foil, *_beside(rng, scene, thing)))
    assert question.target is not None
    return _contrast(question, thing, scene, scene.with_thing(question.target, color=question.foil))


def _asked(rng: random.Random) -> tuple[Scene, Question, Thing]:
    scene, question = sample(rng, "color")
    assert question.target is not None
    return scene, question, scene.things[question.target]


def _beside(rng: random.Random, scene: Scene, thing: Thing) -> tuple[int, int]:
    """The left one of two free neighbouring cells whose middle is as near to a thing as any's."""
    free = set(scene.free_cells())
    places = [(row, col) for row in range(GRID) for col in range(GRID - 1) if {(row, col), (row, col + 1)} <= free]
    distances = [(row - thing.row) ** 2 + (col + 0.5 - thing.col) ** 2 for row, col in places]
    return rng.choice([place for place, far in zip(places, distances, strict=True) if far == min(distances)])


def _contrast(question: Question, thing: Thing, clean: Scene, corrupted: Scene) -> Contrast:
    regions = {"object": thing.box, "word": clean.words[0].box}
    return Contrast(question.text, question.answer, question.foil, question.spans, clean, corrupted, regions)
