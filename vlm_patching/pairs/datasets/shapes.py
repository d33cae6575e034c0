"""Pairs of drawn pictures that differ in exactly one factor."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vlm_patching.errors import SpecError, unknown
from vlm_patching.pairs.candidates import Found
from vlm_patching.pairs.datasets.base import DatasetSpec
from vlm_patching.pairs.pair import Pair, Prompt
from vlm_patching.pairs.shapes import PAIR_KINDS, draw_contrast, other_options, render
from vlm_patching.pairs.text_corruptions import replace_spans
from vlm_patching.validation import one_of

FILES = "none: its pictures are drawn"
ABOUT = "drawn scenes of coloured shapes; pictures that differ in one factor, texts with both options replaced"
ANSWERS = ("number", "yes_no")
Kind = Annotated[
    str, AfterValidator(one_of("kind of question", PAIR_KINDS)), Field(json_schema_extra={"enum": [*PAIR_KINDS]})
]


class Shapes(DatasetSpec):
    """Drawn pairs, as `load` draws them.

    Attributes
    ----------
    questions
        Kinds of question, taken in turn.
    aligned
        Only the shortest questions of a kind, so that a token index means the same in each.
    constraints
        Only questions that name the thing by so many attributes.
    answers
        Whether agreement, removal, and, or, xor and not are asked for the `number` of things or by `yes_no`.
    """

    dataset: Literal["shapes"]
    questions: tuple[Kind, ...] = Field(default=("color_choice",), min_length=1)
    aligned: bool = True
    constraints: int | None = Field(default=None, ge=1, le=2)
    answers: Literal["number", "yes_no"] = "number"


def candidates(spec: Shapes) -> Iterator[Found]:
    """Pairs one after the other, as many as the section says."""
    for pair in load(spec.n, spec.seed, spec.questions, spec.aligned, spec.constraints, spec.answers):
        yield Found(pair.id, pair)


def load(
    n: int | None = None,
    seed: int = 0,
    questions: Sequence[str] = ("color_choice",),
    aligned: bool = True,
    constraints: int | None = None,
    answers: Literal["number", "yes_no"] = "number",
) -> list[Pair]:
    """Draw pairs.

    The corrupted image differs from the clean one in one factor, which the kind of question names, and every pixel
    outside of what changed is equal. The foil is the right answer to it (semantic image pair); in stroop_word, where
    the right answer stays, it is the word that is written in it. The corrupted text has both answer options replaced by
    two other words of the same role (symmetric token replacement) in color_choice, shape_choice and place; else it is
    the clean one. docs/datasets/shapes.md shows a pair of every kind.

    Parameters
    ----------
    n
        How many; 64 where not given.
    seed
        Same seed, same pairs; the first m of n pairs are those that n = m gives.
    questions
        Kinds, taken in turn: color, shape, size, color_choice, shape_choice, size_choice, place, relation,
        relation_swap, agreement, count, removal, and, or, xor, not, stroop_word, stroop_color, relatedness_low,
        relatedness_middle, relatedness_high.
    aligned
        Only the shortest questions of a kind (things named by as few words as it allows, relations above or below), so
        that a token index means the same in each.
    constraints
        Only questions that name the thing by so many attributes, 1 ("the circle", "the red object") or 2 ("the small
        circle", "the small red object"); for the kinds from color to size_choice and for removal. Pairs then have the
        span `constraint`, of the whole subject, and with 2 `constraint_1` and `constraint_2`, of the first and the
        second attribute's word. Each attribute is true of the thing, but one of them alone may be enough to tell it
        from the others.
    answers
        How agreement, removal, and, or, xor and not are asked: for the `number` of things, which is 1 or 0, or by
        `yes_no`.

    Returns
    -------
    list of Pair
        With spans `subject`, in choices and relation_swap `answer_option` and `foil_option`, in relations and agreement
        `landmark`, in agreement `relation`, in and, or, xor and not `operator` and constraints; regions `object`,
        in relation_swap and agreement `landmark`, where a word is written `word`.

    Raises
    ------
    SpecError
        A kind of question that there is not, none, constraints that are not 1 or 2, answers that there are not, or
        either of a kind that has none.
    """
    questions = tuple(questions)
    for kind in questions:
        if kind not in PAIR_KINDS:
            raise unknown("kind of question in pairs.questions", kind, PAIR_KINDS)
    if not questions:
        raise SpecError(f"pairs.questions is empty; name at least one of {', '.join(PAIR_KINDS)}.")
    if constraints is not None:
        if type(constraints) is not int or constraints not in (1, 2):
            raise SpecError(f"pairs.constraints must be 1 or 2, or left out, not {constraints!r}.")
        able = [kind for kind, made in PAIR_KINDS.items() if made.constrained]
        _check_kinds(f"pairs.constraints is {constraints}", questions, able)
    if answers not in ANSWERS:
        raise unknown("value of pairs.answers", answers, ANSWERS)
    if answers == "yes_no":
        able = [kind for kind, made in PAIR_KINDS.items() if made.fewest_words_yes_no is not None]
        _check_kinds("pairs.answers is 'yes_no'", questions, able)
    pairs = []
    for i in range(64 if n is None else n):
        kind, rng = questions[i % len(questions)], random.Random(f"{seed}/{i}")
        contrast = draw_contrast(rng, kind, aligned, constraints, answers == "yes_no")
        text, spans_corrupted = replace_spans(contrast.text, contrast.spans, other_options(rng, kind, contrast))
        pair = Pair(
            id=f"shapes-{seed}-{i}",
            clean=Prompt(render(contrast.clean), contrast.text),
            corrupted=Prompt(render(contrast.corrupted), text),
            answer=contrast.answer,
            foil=contrast.foil,
            spans=contrast.spans,
            spans_corrupted=spans_corrupted,
            regions=contrast.regions,
            task=kind,
        )
        pairs.append(pair)
    return pairs


def _check_kinds(asked: str, questions: Sequence[str], able: Sequence[str]) -> None:
    for kind in questions:
        if kind not in able:
            raise SpecError(
                f"{asked}, but questions of kind {kind!r} cannot be drawn by it; those that can: {', '.join(able)}."
            )
