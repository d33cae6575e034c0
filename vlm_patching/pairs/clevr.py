"""CLEVR's scenes, its functional programs, and the phrases that a program's filters are in a question."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import and_, eq, gt, lt, or_
from typing import Any

from vlm_patching.pairs.pair import Box, Span
from vlm_patching.pairs.reading.rows import Row

ATTRIBUTES = ("size", "color", "material", "shape")
RELATIONS = ("left", "right", "front", "behind")
WIDTH, HEIGHT = 480, 320
_FOCAL = 525
"""Of the camera, in pixels."""
_EXTENTS = {"sphere": (1.0, 1.0), "cylinder": (1.0, 1.35), "cube": (1.42, 1.5)}
"""Half of a thing's width and height as the camera, some 25° above, sees it, in its half height; cubes stand askew."""
_WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "size": {"large": ("large", "big"), "small": ("small", "tiny")},
    "color": {c: (c,) for c in ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")},
    "material": {"metal": ("metal", "metallic", "shiny"), "rubber": ("rubber", "matte")},
    "shape": {"cube": ("cube", "block"), "sphere": ("sphere", "ball"), "cylinder": ("cylinder",)},
}
"""Attribute → value → what questions call it."""
_MEANING = {word: (a, value) for a, values in _WORDS.items() for value, words in values.items() for word in words}
_VALUES = {value: number for number, value in enumerate(value for values in _WORDS.values() for value in values)}
Thing = tuple[str, str, str, str]
"""A thing's attributes, in the order of `ATTRIBUTES`."""
Values = Mapping[str, str]


@cache
def _thing(*attributes: str) -> Thing:
    size, color, material, shape = attributes
    return size, color, material, shape


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, in about a kilobyte. Sets of things are numbers, of which bit i stands for thing i.

    Attributes
    ----------
    picture
        The name of its file.
    things
        Their attributes.
    related
        For each of `RELATIONS` and each thing, the things that are there as seen from it.
    having
        For every value of an attribute, the things that have it.
    places
        For each thing its centre (x, y) in pixels, how far it is from the camera, and half of its height.
    """

    picture: str
    things: tuple[Thing, ...]
    related: tuple[tuple[int, ...], ...]
    having: tuple[int, ...]
    places: array[float]

    @classmethod
    def of(cls, row: Row) -> Scene:
        """A scene of the file of scenes; `BadRow` where it is none."""
        things, relations = row.value("objects"), row.value("relationships")
        try:
            attributes = tuple(_thing(*(str(thing[name]) for name in ATTRIBUTES)) for thing in things)
            related = tuple(tuple(sum(1 << i for i in there) for there in relations[name]) for name in RELATIONS)
            places = array("f", (n for t in things for n in (*t["pixel_coords"][:3], t["3d_coords"][2])))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise row.bad("it is no scene of CLEVR", f": {_said(error)} (its objects or relationships)") from error
        if len(places) != 4 * len(attributes) or any(distance <= 0 for distance in places[2::4]):
            raise row.bad("it is no scene of CLEVR", ": pixel_coords are x, y and the distance, which is above 0")
        having = tuple(sum(1 << i for i, thing in enumerate(attributes) if value in thing) for value in _VALUES)
        return cls(row.text("image_filename"), attributes, related, having, places)

    def box(self, number: int) -> Box | None:
        """About where a thing is in the picture: CLEVR says its centre, the box follows from size and distance."""
        x, y, distance, half = self.places[4 * number : 4 * number + 4]
        across, down = (ratio * half * _FOCAL / distance for ratio in _EXTENTS[self.things[number][3]])
        x0, x1 = max(0, round(x - across)), min(WIDTH, round(x + across))
        y0, y1 = max(0, round(y - down)), min(HEIGHT, round(y + down))
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


@dataclass(frozen=True, slots=True)
class Step:
    """A function of a program.

    Attributes
    ----------
    kind, attribute
        Its name: "filter" and "color", "unique" and "".
    inputs
        On which steps' outputs it works.
    value
        What it filters by, or the relation.
    number
        Of the value among all, of the attribute or of the relation: whichever it needs.
    """

    kind: str
    attribute: str
    inputs: tuple[int, ...]
    value: str
    number: int

    @classmethod
    def of(cls, name: str, inputs: Sequence[int], value: str, before: Sequence[Step]) -> Step:
        """A step behind others; `KeyError` or `ValueError` where no function or value is called so, or it does not take
        what they give.
        """
        kind, _, attribute = name.partition("_")
        takes = ("number", "number") if name == "equal_integer" else _FUNCTIONS[kind][0]
        given = tuple(_FUNCTIONS[before[i].kind][1] for i in inputs if 0 <= i < len(before))
        if given != takes or len(given) != len(inputs):
            raise ValueError(f"{name} takes {takes}, not {given}")
        if kind == "filter":
            number = _VALUES[value]
        elif kind == "relate":
            number = RELATIONS.index(value)
        else:
            number = ATTRIBUTES.index(attribute) if kind in ("query", "same") else 0
        return cls(kind, attribute, tuple(inputs), value, number)


_FUNCTIONS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "scene": ((), "set"),
    "filter": (("set",), "set"),
    "unique": (("set",), "thing"),
    "relate": (("thing",), "set"),
    "same": (("thing",), "set"),
    "query": (("thing",), "value"),
    "count": (("set",), "number"),
    "exist": (("set",), "truth"),
    "union": (("set", "set"), "set"),
    "intersect": (("set", "set"), "set"),
    "equal": (("value", "value"), "truth"),
    "less": (("number", "number"), "truth"),
    "greater": (("number", "number"), "truth"),
}
"""Kind of function → what it takes, and what it gives; `equal_integer` takes numbers."""


def _said(error: Exception) -> str:
    """What a value was that could not be used."""
    return f"{error} is missing, or no word of CLEVR's" if isinstance(error, KeyError) else str(error)


def program_of(row: Row) -> tuple[Step, ...]:
    """The program of a question; `BadRow` where it is none."""
    steps: list[Step] = []
    program = row.value("program")
    try:
        for step in program:
            name = step["function"] if "function" in step else step["type"]
            steps.append(Step.of(name, step["inputs"], "".join(step["value_inputs"]), steps))
        if _FUNCTIONS[steps[-1].kind][1] in ("set", "thing"):
            raise ValueError(f"its last function, {name}, gives no answer")
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        raise row.bad("'program' is no program of CLEVR", f": {_said(error)}") from error
    return tuple(steps)


def outputs(program: Sequence[Step], scene: Scene) -> list[Any] | None:
    """What every step gives on a scene: a set of things, a thing's number, a value, a count or a truth; None where a
    thing that the program takes for the only one of its kind is not.
    """
    given: list[Any] = []
    for step in program:
        first = given[step.inputs[0]] if step.inputs else 0
        match step.kind:
            case "filter":
                given.append(first & scene.having[step.number])
            case "unique":
                if first.bit_count() != 1:
                    return None
                given.append(first.bit_length() - 1)
            case "scene":
                given.append((1 << len(scene.things)) - 1)
            case "relate":
                given.append(scene.related[step.number][first])
            case "query":
                given.append(scene.things[first][step.number])
            case "same":
                given.append(scene.having[_VALUES[scene.things[first][step.number]]] & ~(1 << first))
            case "count":
                given.append(first.bit_count())
            case "exist":
                given.append(first != 0)
            case _:
                given.append(_OF_TWO[step.kind](first, given[step.inputs[1]]))
    return given


_OF_TWO: Mapping[str, Callable[[Any, Any], Any]] = {
    "union": or_,
    "intersect": and_,
    "equal": eq,
    "less": lt,
    "greater": gt,
}


def said(answer: Any) -> str:
    """An answer as questions have it: "yes", "3", "rubber"."""
    return {True: "yes", False: "no"}[answer] if isinstance(answer, bool) else str(answer)


@dataclass(frozen=True)
class Phrase:
    """The filters that follow each other in a program: "the small red ball".

    Attributes
    ----------
    step
        The last of them.
    values
        Attribute → value.
    """

    step: int
    values: Values


def phrases_of(program: Sequence[Step]) -> list[Phrase]:
    """Every phrase of a program that names a value, the one nearest to the answer first."""
    found: list[Phrase] = []
    todo, done = [len(program) - 1], set()
    while todo:
        place = todo.pop(0)
        values: dict[str, str] = {}
        end = place
        while program[place].kind == "filter":
            values[program[place].attribute] = program[place].value
            (place,) = program[place].inputs
        if values and end not in done:
            found.append(Phrase(end, values))
        done.add(end)
        todo = [*program[place].inputs, *todo]
    return found


_PHRASE = re.compile(
    r"\b"
    + "".join(
        f"(?:({'|'.join(word for words in _WORDS[name].values() for word in words)}) )?" for name in ATTRIBUTES[:3]
    )
    + f"({'|'.join([*(word for words in _WORDS['shape'].values() for word in words), 'thing', 'object'])})s?\\b"
)


def spans_of(question: str, phrases: Sequence[Phrase]) -> list[Span] | None:
    """Where each phrase of a program stands in its question; None where they cannot be told from each other."""
    places: dict[tuple[tuple[str, str], ...], list[Span]] = {}
    for match in _PHRASE.finditer(question.lower()):
        values = tuple(sorted(_MEANING[word] for word in match.groups() if word in _MEANING))
        if values:
            places.setdefault(values, []).append(match.span())
    wanted = [tuple(sorted(phrase.values.items())) for phrase in phrases]
    if sorted(wanted) != sorted(places) or any(len(spans) > 1 for spans in places.values()):
        return None
    return [places[values][0] for values in wanted]
