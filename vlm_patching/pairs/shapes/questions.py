"""Questions about a scene: the text, the answer, where its words are, and what change of the scene would change the
answer.

Every kind is asked of one thing (the target), named by a phrase that fits no other thing. Answers are balanced, so that
neither the words alone nor the picture alone gives them away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vlm_patching.pairs.shapes.scene import COLORS, GRID, MOST_THINGS, SHAPES, SIZES, Scene, Thing, sample_scene

PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes
    ----------
    kind
        A name out of `KINDS`.
    text, answer
        What is asked and the right one-word answer.
    foil
        The wrong answer a pair is measured against; the answer once `counterfactual` has been applied to the scene.
    spans
        Character ranges of `text` by name: `subject`, and in choices `answer_option` and `foil_option`.
    target
        Index of the thing that is asked about; None for a count, which is about all of them.
    counterfactual
        Attributes of the target that turn the answer into the foil; None for a count.
    """

    kind: str
    text: str
    answer: str
    foil: str
    spans: dict[str, tuple[int, int]]
    target: int | None
    counterfactual: dict[str, object] | None


def sample(rng: random.Random, kind: str) -> tuple[Scene, Question]:
    """A scene and a question of that kind about it; draws scenes until one allows it."""
    while True:
        scene = scene_for_count(rng) if kind == "count" else sample_scene(rng)
        question = ask(rng, scene, kind)
        if question is not None:
            return scene, question


def ask(rng: random.Random, scene: Scene, kind: str) -> Question | None:
    """A question of one kind about a scene, or None where the scene allows none."""
    if kind == "count":
        return _count(rng, scene)
    indices = list(range(len(scene.things)))
    rng.shuffle(indices)
    for target in indices:
        question = ask_about(rng, scene, kind, target)
        if question is not None:
            return question
    return None


def ask_about(rng: random.Random, scene: Scene, kind: str, target: int) -> Question | None:
    """A question of one kind, but `count`, about one thing of a scene, or None where it allows none."""
    return _ASK[kind](rng, scene, target)


def name_of(rng: random.Random, scene: Scene, target: int, patterns: tuple[str, ...]) -> str | None:
    """A phrase after one of the patterns that names the target and no other thing; "object" stands for any shape."""
    found = []
    for pattern in patterns:
        words = pattern.split()
        attributes = [word for word in words if word != "object"]
        if all(
            any(getattr(other, a) != getattr(scene.things[target], a) for a in attributes)
            for i, other in enumerate(scene.things)
            if i != target
        ):
            found.append(" ".join(word if word == "object" else getattr(scene.things[target], word) for word in words))
    return rng.choice(found) if found else None


def fill(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """Fill `{name}` fields of a template; the fields' character ranges become the spans."""
    text, spans = "", {}
    for i, piece in enumerate(template.replace("}", "{").split("{")):
        if i % 2:
            spans[piece] = (len(text), len(text) + len(words[piece]))
            text += words[piece]
        else:
            text += piece
    return text, spans


def _question(
    kind: str, template: str, answer: str, foil: str, target: int, change: dict[str, object], **words: str
) -> Question:
    """A question out of a template, whose fields `first` and `second` hold answer and foil."""
    text, spans = fill(template, words)
    named = {"answer_option": answer, "foil_option": foil}
    for option in ("first", "second"):
        if option in spans:
            name = next(n for n, word in named.items() if word == words[option])
            spans[name] = spans.pop(option)
    return Question(kind, text, answer, foil, spans, target, change)


def _attribute(
    attribute: str, values: tuple[str, ...], patterns: tuple[str, ...], template: str, kind: str
) -> Callable:
    """What value an attribute of the target has; with {first} and {second} in the template, which of two."""

    def build(rng: random.Random, scene: Scene, target: int) -> Question | None:
        phrase = name_of(rng, scene, target, patterns)
        if phrase is None:
            return None
        answer = getattr(scene.things[target], attribute)
        foil = rng.choice([value for value in values if value != answer])
        options = [answer, foil]
        rng.shuffle(options)
        words = {"subject": phrase, "first": options[0], "second": options[1]}
        return _question(kind, template, answer, foil, target, {attribute: foil}, **words)

    return build


ANY_NAME = ("shape", "color object", "color shape")
_AXES = (
    ("col", "left", "right", "on the {first} or {second}"),
    ("row", "top", "bottom", "at the {first} or {second}"),
)
SIDES = (("col", "left", "right", "to the {first} or {second} of"), ("row", "above", "below", "{first} or {second}"))
"""Axis, what is low on it, what is high on it, and how the choice between them is worded before "the landmark"."""


def _place(rng: random.Random, scene: Scene, target: int) -> Question | None:
    """Which half of the picture the target lies in."""
    phrase = name_of(rng, scene, target, ANY_NAME)
    if phrase is None:
        return None
    axis, low, high, tail = rng.choice(_AXES)
    thing = scene.things[target]
    half = GRID // 2
    is_low = getattr(thing, axis) < half
    answer, foil = (low, high) if is_low else (high, low)
    cells = [c for c in scene.free_cells() if (c[axis == "col"] < half) != is_low]
    same_line = [c for c in cells if c[axis == "row"] == thing.cell[axis == "row"]]
    row, col = rng.choice(same_line or cells)
    options = [answer, foil]
    rng.shuffle(options)
    words = {"subject": phrase, "first": options[0], "second": options[1]}
    return _question("place", f"is the {{subject}} {tail}?", answer, foil, target, {"row": row, "col": col}, **words)


def _relation(rng: random.Random, scene: Scene, target: int) -> Question | None:
    """On which side of another thing the target lies."""
    phrase = name_of(rng, scene, target, ANY_NAME)
    others = [i for i in range(len(scene.things)) if i != target]
    rng.shuffle(others)
    axes = list(SIDES)
    rng.shuffle(axes)
    for other in others:
        landmark = name_of(rng, scene, other, ANY_NAME)
        for axis, low, high, middle in axes:
            here, there = getattr(scene.things[target], axis), getattr(scene.things[other], axis)
            cells = [c for c in scene.free_cells() if (c[axis == "col"] - there) * (here - there) < 0]
            if phrase is None or landmark is None or not cells:
                continue
            answer, foil = (low, high) if here < there else (high, low)
            options = [answer, foil]
            rng.shuffle(options)
            row, col = rng.choice(cells)
            template = f"is the {{subject}} {middle} the {{landmark}}?"
            words = {"subject": phrase, "landmark": landmark, "first": options[0], "second": options[1]}
            return _question("relation", template, answer, foil, target, {"row": row, "col": col}, **words)
    return None


@dataclass(frozen=True)
class Group:
    """The things that have a word for an attribute; all of them where the attribute is `any`.

    Attributes
    ----------
    attribute, word
        Such as `color` and `red`.
    phrase
        What they are called together, such as "red objects".
    """

    attribute: str
    word: str
    phrase: str

    def holds(self, thing: Thing) -> bool:
        return self.attribute == "any" or getattr(thing, self.attribute) == self.word

    def number(self, scene: Scene) -> int:
        """How many of a scene's things are in it."""
        return sum(map(self.holds, scene.things))


def scene_for_count(rng: random.Random) -> Scene:
    """A scene in which every number from 0 to 4 is as often the size of some group of like things."""
    wanted = rng.randint(0, MOST_THINGS - 1)
    number = rng.randint(max(2, wanted), MOST_THINGS)
    attribute = rng.choice(("color", "shape"))
    values = tuple(COLORS) if attribute == "color" else SHAPES
    word = rng.choice(values)
    scene = sample_scene(rng, number)
    like = set(rng.sample(range(number), wanted))
    for i in range(number):
        value = word if i in like else rng.choice([v for v in values if v != word])
        scene = scene.with_thing(i, **{attribute: value})
    return scene


def group_to_count(rng: random.Random, scene: Scene) -> Group:
    """All things, or those of one colour or shape; each number the scene offers is equally likely."""
    if rng.random() < 0.25:
        return Group("any", "", "objects")
    by_number: dict[int, list[Group]] = {}
    for attribute, values in (("color", tuple(COLORS)), ("shape", SHAPES)):
        for word in values:
            group = Group(attribute, word, f"{word} objects" if attribute == "color" else PLURALS[word])
            by_number.setdefault(group.number(scene), []).append(group)
    largest = max(by_number)
    number = largest if largest > 1 and rng.random() < 0.6 else rng.choice(sorted(by_number))
    return rng.choice(by_number[number])


COUNT = "how many {subject} are there?"


def _count(rng: random.Random, scene: Scene) -> Question:
    """How many things of a group there are."""
    group = group_to_count(rng, scene)
    answer = group.number(scene)
    text, spans = fill(COUNT, {"subject": group.phrase})
    return Question("count", text, str(answer), str(answer - 1 if answer else 1), spans, None, None)


_COLOR_NAMES, _SHAPE_NAMES = ("shape", "size shape"), ("color object", "size color object")
_ASK: dict[str, Callable[[random.Random, Scene, int], Question | None]] = {
    "color": _attribute("color", tuple(COLORS), _COLOR_NAMES, "what color is the {subject}?", "color"),
    "shape": _attribute("shape", SHAPES, _SHAPE_NAMES, "what shape is the {subject}?", "shape"),
    "size": _attribute("size", tuple(SIZES), ANY_NAME, "what size is the {subject}?", "size"),
    "color_choice": _attribute(
        "color", tuple(COLORS), _COLOR_NAMES, "is the {subject} {first} or {second}?", "color_choice"
    ),
    "shape_choice": _attribute(
        "shape", SHAPES, _SHAPE_NAMES, "is the {subject} a {first} or a {second}?", "shape_choice"
    ),
    "size_choice": _attribute("size", tuple(SIZES), ANY_NAME, "is the {subject} {first} or {second}?", "size_choice"),
    "place": _place,
    "relation": _relation,
}
KINDS = (*_ASK, "count")
