"""Two scenes that differ in one factor, and what is asked about them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from vlm_patching.pairs.pair import Box, Span
from vlm_patching.pairs.shapes.questions import PLURALS, fill
from vlm_patching.pairs.shapes.scene import Scene


@dataclass(frozen=True)
class Contrast:
    """A minimal pair before it is drawn.

    Attributes
    ----------
    text, spans
        What is asked of both scenes, and character ranges of it by name.
    answer, foil
        What is right of the clean scene, and what it is measured against: where nothing else is said, what is right of
        the corrupted scene.
    clean, corrupted
        The two scenes.
    regions
        Pixel boxes of the clean scene by name.
    """

    text: str
    answer: str
    foil: str
    spans: Mapping[str, Span]
    clean: Scene
    corrupted: Scene
    regions: Mapping[str, Box]


Shown = tuple[Scene, Mapping[str, Box]]
"""A scene, and boxes in it by name."""


@dataclass(frozen=True)
class Wording:
    """How it is asked whether something is there: by its number, which is 1 or 0, or by yes or no.

    Both are templates of the same fields.
    """

    number: str
    yes_no: str

    def contrast(
        self, rng: random.Random, yes_no: bool, words: Mapping[str, str], there: Shown, not_there: Shown
    ) -> Contrast:
        """Ask it of a scene with it and one without; as often as not the one with it is the clean one."""
        text, spans = fill(self.yes_no if yes_no else self.number, words)
        sides = list(zip((there, not_there), ("yes", "no") if yes_no else ("1", "0"), strict=True))
        rng.shuffle(sides)
        ((clean, regions), answer), ((corrupted, _), foil) = sides
        return Contrast(text, answer, foil, spans, clean, corrupted, regions)


def plural(name: str) -> str:
    """Several of what a name means.

    Examples
    --------
    >>> plural("red cross"), plural("red object")
    ('red crosses', 'red objects')
    """
    *before, last = name.split()
    return " ".join([*before, PLURALS.get(last, f"{last}s")])
