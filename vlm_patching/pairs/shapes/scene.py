"""Scenes as data: which things lie where. Nothing here draws."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

GRID = 4
CELL = 24
IMAGE_SIZE = GRID * CELL

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 140, 60),
    "blue": (40, 80, 215),
    "yellow": (240, 205, 35),
    "purple": (135, 60, 175),
    "orange": (245, 130, 25),
    "cyan": (45, 195, 210),
    "black": (35, 35, 40),
}
SIZES = {"small": 11, "large": 20}
VALUES: dict[str, tuple[str, ...]] = {"size": tuple(SIZES), "color": tuple(COLORS), "shape": SHAPES}
"""Every attribute's words, in the order in which they stand before one another in a name."""
JITTER = 2
WORD_HEIGHT = 11
MOST_THINGS = 5


@dataclass(frozen=True)
class Thing:
    """One object: what it looks like and which grid cell holds it.

    Attributes
    ----------
    shape, color, size
        Words out of `SHAPES`, `COLORS`, `SIZES`.
    row, col
        Grid cell, counted from the top left.
    dx, dy
        How far it lies off its cell's centre, each in [-1, 1] of `JITTER` pixels.
    """

    shape: str
    color: str
    size: str
    row: int
    col: int
    dx: float = 0.0
    dy: float = 0.0

    @property
    def cell(self) -> tuple[int, int]:
        return self.row, self.col

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Pixel box x0, y0, x1, y1 that the thing is drawn in."""
        side = SIZES[self.size]
        x = self.col * CELL + (CELL - side) // 2 + round(self.dx * JITTER)
        y = self.row * CELL + (CELL - side) // 2 + round(self.dy * JITTER)
        return x, y, x + side, y + side


@dataclass(frozen=True)
class Word:
    """A word of at most 8 letters, written over two neighbouring cells.

    Attributes
    ----------
    text
        What it says.
    row, col
        The left one of its cells, counted from the top left.
    """

    text: str
    row: int
    col: int

    @property
    def cells(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.row, self.col), (self.row, self.col + 1)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Pixel box x0, y0, x1, y1 that holds it, the same for every word in this place."""
        x, y = self.col * CELL, self.row * CELL + (CELL - WORD_HEIGHT) // 2
        return x, y, x + 2 * CELL, y + WORD_HEIGHT


@dataclass(frozen=True)
class Scene:
    """Things on a plain background, whose grey level is in [0, 255], and perhaps words."""

    things: tuple[Thing, ...]
    background: int = 230
    words: tuple[Word, ...] = ()

    def with_thing(self, index: int, **changes: Any) -> Scene:
        """The same scene with attributes of one thing changed."""
        things = list(self.things)
        things[index] = replace(things[index], **changes)
        return replace(self, things=tuple(things))

    def without_thing(self, index: int) -> Scene:
        """The same scene with one thing taken away."""
        return replace(self, things=self.things[:index] + self.things[index + 1 :])

    def with_more(self, thing: Thing) -> Scene:
        """The same scene with one thing more, which comes last."""
        return replace(self, things=(*self.things, thing))

    def with_word(self, word: Word) -> Scene:
        """The same scene with this word in it, and no other."""
        return replace(self, words=(word,))

    def free_cells(self) -> list[tuple[int, int]]:
        taken = {thing.cell for thing in self.things} | {cell for word in self.words for cell in word.cells}
        return [(row, col) for row in range(GRID) for col in range(GRID) if (row, col) not in taken]


def sample_scene(rng: random.Random, number: int | None = None) -> Scene:
    """A random scene of 2 to 5 things; later things often share a word with an earlier one,
    so that a question must bind colour to shape to be answered."""
    number = rng.randint(2, MOST_THINGS) if number is None else number
    cells = rng.sample([(row, col) for row in range(GRID) for col in range(GRID)], number)
    things: list[Thing] = []
    for row, col in cells:
        shape, color = rng.choice(SHAPES), rng.choice(tuple(COLORS))
        if things and rng.random() < 0.4:
            other = rng.choice(things)
            if rng.random() < 0.5:
                shape = other.shape
            else:
                color = other.color
        things.append(Thing(shape, color, rng.choice(tuple(SIZES)), row, col, rng.uniform(-1, 1), rng.uniform(-1, 1)))
    return Scene(tuple(things), rng.randint(215, 245))
