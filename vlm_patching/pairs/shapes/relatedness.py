"""How much what comes in the place of a thing has to do with the rest of the scene, in three levels (Merlo et al. 2025,
COOCO).

A thing's shape changes to one that most of the other things have, or one of them, or none. The three levels of a seed
share the clean picture and the question, so that nothing but the foil tells them apart.
"""

from __future__ import annotations

import random
from functools import partial

from vlm_patching.pairs.shapes.contrast import Contrast
from vlm_patching.pairs.shapes.questions import ask_about
from vlm_patching.pairs.shapes.scene import MOST_THINGS, SHAPES, sample_scene

SHARED = {"low": 0, "middle": 1, "high": MOST_THINGS - 2}
"""With how many of the other things the shape is shared that comes into the picture."""


def _draw(level: str, rng: random.Random, yes_no: bool) -> Contrast | None:
    """The first thing's shape changes; the level decides nothing but into what."""
    scene = sample_scene(rng, MOST_THINGS)
    own, common, single, unseen = rng.sample(SHAPES, 4)
    for i, shape in enumerate((own, *[common] * SHARED["high"], *[single] * SHARED["middle"])):
        scene = scene.with_thing(i, shape=shape)
    question = ask_about(rng, scene, "shape", 0)
    if question is None:
        return None
    foil = {"low": unseen, "middle": single, "high": common}[level]
    regions = {"object": scene.things[0].box}
    return Contrast(question.text, own, foil, question.spans, scene, scene.with_thing(0, shape=foil), regions)


LEVELS = {level: partial(_draw, level) for level in SHARED}
