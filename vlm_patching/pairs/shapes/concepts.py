"""Visual complex concepts: AND, OR, XOR and NOT of attributes.

In one scene a single thing satisfies the concept, in the other none does; they differ in one attribute of that thing.
The other things do not satisfy it, in every way in which a thing can fail to, so that no attribute by itself tells the
scenes apart where the concept allows that: for "red and circles" there is always a red thing that is no circle and a
circle that is not red.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from vlm_patching.pairs.pair import Span
from vlm_patching.pairs.shapes.contrast import Contrast, Wording
from vlm_patching.pairs.shapes.questions import PLURALS
from vlm_patching.pairs.shapes.scene import MOST_THINGS, VALUES, Scene, sample_scene

Truths = tuple[bool, ...]
"""Of each of a concept's words, whether it is true of a thing."""


@dataclass(frozen=True)
class Concept:
    """A condition on one or two attributes.

    Attributes
    ----------
    phrase
        How it is said; fields as in the pairs' spans.
    operator
        What stands in the field of that name.
    holds
        Whether a thing satisfies it, by whether it has each of the attributes.
    """

    phrase: str
    operator: str
    holds: Callable[..., bool]

    @property
    def number(self) -> int:
        """Of how many attributes it is."""
        return self.phrase.count("{constraint")

    def draw(self, rng: random.Random, yes_no: bool) -> Contrast:
        """A scene that satisfies it and one that does not."""
        drawn = set(rng.sample(tuple(VALUES), self.number))
        words = {attribute: rng.choice(values) for attribute, values in VALUES.items() if attribute in drawn}
        fields = ["constraint"] if self.number == 1 else ["constraint_1", "constraint_2"]
        said = {field: PLURALS.get(word, word) for field, word in zip(fields, words.values(), strict=True)}
        wording = Wording(f"how many objects are {self.phrase}?", f"are there any objects that are {self.phrase}?")
        sides = ((scene, {"object": scene.things[0].box}) for scene in self._scenes(rng, words))
        contrast = wording.contrast(rng, yes_no, said | {"operator": self.operator}, *sides)
        return replace(contrast, spans=_with_subject(contrast.spans))

    def _scenes(self, rng: random.Random, words: Mapping[str, str]) -> tuple[Scene, Scene]:
        """One whose first thing alone satisfies it, and the same with an attribute of that thing changed."""
        failing = [truths for truths in product((True, False), repeat=self.number) if not self.holds(*truths)]
        truths, changed = rng.choice(self._flips())
        others = rng.randint(max(2, len(failing)), MOST_THINGS - 1)
        wanted = [truths, *failing, *rng.choices(failing, k=others - len(failing))]
        scene = sample_scene(rng, len(wanted))
        for i, has in enumerate(wanted):
            values = {a: _value(rng, a, word, true) for (a, word), true in zip(words.items(), has, strict=True)}
            scene = scene.with_thing(i, **values)
        attribute, word = list(words.items())[changed]
        return scene, scene.with_thing(0, **{attribute: _value(rng, attribute, word, not truths[changed])})

    def _flips(self) -> list[tuple[Truths, int]]:
        """Every way to satisfy it together with a word whose truth, reversed, makes it fail."""
        found = []
        for truths in product((True, False), repeat=self.number):
            for i, truth in enumerate(truths):
                if self.holds(*truths) and not self.holds(*truths[:i], not truth, *truths[i + 1 :]):
                    found.append((truths, i))
        return found


def _value(rng: random.Random, attribute: str, word: str, truth: bool) -> str:
    """The word, or another one of its attribute."""
    return word if truth else rng.choice([value for value in VALUES[attribute] if value != word])


def _with_subject(spans: Mapping[str, Span]) -> dict[str, Span]:
    """All of the concept as `subject`, and as `constraint` where two words make it up."""
    whole = min(start for start, _ in spans.values()), max(end for _, end in spans.values())
    return {"constraint": whole, **spans, "subject": whole}


CONCEPTS = {
    "and": Concept("{constraint_1} {operator} {constraint_2}", "and", lambda a, b: a and b),
    "or": Concept("{constraint_1} {operator} {constraint_2}", "or", lambda a, b: a or b),
    "xor": Concept("{constraint_1} or {constraint_2} {operator}", "but not both", lambda a, b: a != b),
    "not": Concept("{operator} {constraint}", "not", lambda a: not a),
}
