"""Scenes that differ in one thing's being there: how many things there are, and whether there is one."""

from __future__ import annotations

import random
from dataclasses import replace

from vlm_patching.pairs.shapes.contrast import Contrast, Wording, plural
from vlm_patching.pairs.shapes.questions import COUNT, fill, group_to_count, name_of, scene_for_count
from vlm_patching.pairs.shapes.scene import MOST_THINGS, sample_scene

FEWEST_THINGS = 2
"""In a scene, also in one that something was taken from."""
_PRESENCE = Wording(COUNT, "are there any {subject}?")
_NAMES = ("shape", "color object", "color shape", "size shape", "size color object")


def draw_count(rng: random.Random, yes_no: bool) -> Contrast | None:
    """How many there are of a group, to which one thing is added or from which one is taken."""
    scene = scene_for_count(rng)
    group = group_to_count(rng, scene)
    number = len(scene.things)
    changes = [-1] * (group.number(scene) > 0 and number > FEWEST_THINGS) + [1] * (number < MOST_THINGS)
    if not changes:
        return None
    if rng.choice(changes) == 1:
        row, col = rng.choice(scene.free_cells())
        other = scene.with_more(replace(sample_scene(rng, 1).things[0], row=row, col=col))
        if group.attribute != "any":
            other = other.with_thing(number, **{group.attribute: group.word})
        thing = other.things[number]
    else:
        index = rng.choice([i for i, thing in enumerate(scene.things) if group.holds(thing)])
        thing, other = scene.things[index], scene.without_thing(index)
    text, spans = fill(COUNT, {"subject": group.phrase})
    answer, foil = (str(group.number(side)) for side in (scene, other))
    return Contrast(text, answer, foil, spans, scene, other, {"object": thing.box})


def draw_removal(rng: random.Random, yes_no: bool) -> Contrast | None:
    """Whether there is a thing, which is the only one of its name; the other scene lacks it."""
    scene = sample_scene(rng, rng.randint(FEWEST_THINGS + 1, MOST_THINGS))
    target = rng.randrange(len(scene.things))
    name = name_of(rng, scene, target, _NAMES)
    if name is None:
        return None
    regions = {"object": scene.things[target].box}
    words = {"subject": plural(name)}
    return _PRESENCE.contrast(rng, yes_no, words, (scene, regions), (scene.without_thing(target), regions))
