"""Kinds of pairs, by name: one row each."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from vlm_patching.pairs.pair import Span
from vlm_patching.pairs.shapes import counting, relatedness, relations, stroop
from vlm_patching.pairs.shapes.concepts import CONCEPTS
from vlm_patching.pairs.shapes.contrast import Contrast
from vlm_patching.pairs.shapes.questions import sample
from vlm_patching.pairs.shapes.scene import COLORS, SHAPES
from vlm_patching.pairs.text_corruptions import OPTIONS


@dataclass(frozen=True)
class PairKind:
    """How pairs of a kind are made.

    Attributes
    ----------
    draw
        Takes a source of randomness and whether to ask by yes or no; None where what it drew allows no such pair.
    changes
        What differs between the two pictures.
    fewest_words
        Of its shortest questions, which are those of aligned pairs.
    fewest_words_yes_no
        The same of questions that are answered by yes or no; None where it has none.
    constrained
        Whether its questions name a thing by one or two attributes, which can be chosen.
    others
        Words that can stand in the place of both options in a corrupted text.
    """

    draw: Callable[[random.Random, bool], Contrast | None]
    changes: str
    fewest_words: int
    fewest_words_yes_no: int | None = None
    constrained: bool = False
    others: tuple[str, ...] = ()


def _asked(kind: str, rng: random.Random, yes_no: bool) -> Contrast:
    """A question that the bundled models were trained on, and the change of its target that makes the foil right."""
    scene, question = sample(rng, kind)
    assert question.target is not None and question.counterfactual is not None
    changed = scene.with_thing(question.target, **question.counterfactual)
    regions = {"object": scene.things[question.target].box}
    return Contrast(question.text, question.answer, question.foil, question.spans, scene, changed, regions)


PAIR_KINDS = {
    "color": PairKind(partial(_asked, "color"), "the thing's colour", 5, constrained=True),
    "shape": PairKind(partial(_asked, "shape"), "the thing's shape", 6, constrained=True),
    "size": PairKind(partial(_asked, "size"), "the thing's size", 5, constrained=True),
    "color_choice": PairKind(
        partial(_asked, "color_choice"), "the thing's colour", 6, constrained=True, others=tuple(COLORS)
    ),
    "shape_choice": PairKind(partial(_asked, "shape_choice"), "the thing's shape", 9, constrained=True, others=SHAPES),
    "size_choice": PairKind(partial(_asked, "size_choice"), "the thing's size", 6, constrained=True),
    "place": PairKind(partial(_asked, "place"), "the thing's cell", 8, others=("left", "right", "top", "bottom")),
    "relation": PairKind(partial(_asked, "relation"), "the thing's cell", 8),
    "relation_swap": PairKind(relations.draw_swap, "the cells of two things, which change places", 8),
    "agreement": PairKind(relations.draw_agreement, "the thing's row or its column", 7, 6),
    "count": PairKind(counting.draw_count, "one thing is added or taken away", 5),
    "removal": PairKind(counting.draw_removal, "the thing is there or not", 5, 4, constrained=True),
    "and": PairKind(CONCEPTS["and"].draw, "one attribute of one thing", 7, 9),
    "or": PairKind(CONCEPTS["or"].draw, "one attribute of one thing", 7, 9),
    "xor": PairKind(CONCEPTS["xor"].draw, "one attribute of one thing", 10, 12),
    "not": PairKind(CONCEPTS["not"].draw, "one attribute of one thing", 6, 8),
    "stroop_word": PairKind(stroop.draw_word, "the word", 5),
    "stroop_color": PairKind(stroop.draw_color, "the thing's colour", 5),
    **{f"relatedness_{level}": PairKind(draw, "the thing's shape", 6) for level, draw in relatedness.LEVELS.items()},
}


def draw_contrast(
    rng: random.Random, kind: str, aligned: bool = True, constraints: int | None = None, yes_no: bool = False
) -> Contrast:
    """Draw until a pair of this kind is what is wanted (see `load_pairs`)."""
    made = PAIR_KINDS[kind]
    fewest = made.fewest_words_yes_no if yes_no else made.fewest_words
    assert fewest is not None
    while True:
        contrast = made.draw(rng, yes_no)
        if contrast is None:
            continue
        named_by = _naming(contrast)
        if constraints is not None and len(named_by) != constraints:
            continue
        if aligned and len(contrast.text.split()) != fewest + (constraints == 2):  # the second is one word more
            continue
        if constraints is None:
            return contrast
        spans = {**contrast.spans, "constraint": contrast.spans["subject"]}
        if constraints == 2:
            spans |= dict(zip(("constraint_1", "constraint_2"), named_by, strict=True))
        return replace(contrast, spans=spans)


def _naming(contrast: Contrast) -> list[Span]:
    """Where in the subject the words stand that name it by an attribute ("object" names it by none), in order."""
    words = re.compile(r"\w+").finditer(contrast.text, *contrast.spans["subject"])
    return [word.span() for word in words if word[0] not in ("object", "objects")]


def other_options(rng: random.Random, kind: str, contrast: Contrast) -> dict[str, str]:
    """Two words in the place of a question's options, of their role; none where there are no options or no others."""
    options = {contrast.answer, contrast.foil}
    others = [word for word in PAIR_KINDS[kind].others if word not in options]
    return dict(zip(OPTIONS, rng.sample(others, 2), strict=True)) if others else {}
