"""Pairs of drawn pictures that differ in exactly one attribute of the asked-about thing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vlm_patching.errors import SpecError, unknown
from vlm_patching.pairs.candidates import Found
from vlm_patching.pairs.datasets.base import DatasetSpec
from vlm_patching.pairs.pair import Pair, Prompt, Span
from vlm_patching.pairs.shapes import KINDS, Question, render, sample
from vlm_patching.pairs.shapes.scene import COLORS, SHAPES
from vlm_patching.pairs.text_corruptions import OPTIONS, replace_spans
from vlm_patching.validation import one_of

FILES = "none: its pictures are drawn"
ABOUT = "drawn scenes of coloured shapes; image pairs that differ in one attribute, texts with both options replaced"
PAIR_KINDS = tuple(kind for kind in KINDS if kind != "count")
CONSTRAINED_KINDS = tuple(kind for kind in PAIR_KINDS if kind not in ("place", "relation"))
Kind = Annotated[
    str, AfterValidator(one_of("kind of question", PAIR_KINDS)), Field(json_schema_extra={"enum": [*PAIR_KINDS]})
]
_REPLACEMENTS = (tuple(COLORS), SHAPES, ("left", "right", "top", "bottom"))
_FEWEST_WORDS = {
    "color": 5,
    "shape": 6,
    "size": 5,
    "color_choice": 6,
    "shape_choice": 9,
    "size_choice": 6,
    "place": 8,
    "relation": 8,
}


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
    """

    dataset: Literal["shapes"]
    questions: tuple[Kind, ...] = Field(default=("color_choice",), min_length=1)
    aligned: bool = True
    constraints: int | None = Field(default=None, ge=1, le=2)


def candidates(spec: Shapes) -> Iterator[Found]:
    """Pairs one after the other, as many as the section says."""
    for pair in load(spec.n, spec.seed, spec.questions, spec.aligned, spec.constraints):
        yield Found(pair.id, pair)


def load(
    n: int | None = None,
    seed: int = 0,
    questions: Sequence[str] = ("color_choice",),
    aligned: bool = True,
    constraints: int | None = None,
) -> list[Pair]:
    """Draw pairs.

    The corrupted image differs from the clean one in one attribute of the asked-about thing, every other pixel is
    equal, and the foil is the right answer to it (semantic image pair). The corrupted text has both answer options
    replaced by two other words of the same role (symmetric token replacement); where a question has no options
    (color, shape, size), or no other words of their role fit (size_choice, relation), the corrupted text is the clean
    one.

    Parameters
    ----------
    n
        How many; 64 where not given.
    seed
        Same seed, same pairs; the first m of n pairs are those that n = m gives.
    questions
        Kinds, taken in turn: color, shape, size, color_choice, shape_choice, size_choice, place, relation.
    aligned
        Only the shortest questions of a kind (things named by as few words as it allows, relations above or below), so
        that a token index means the same in each.
    constraints
        Only questions that name the thing by so many attributes, 1 ("the circle", "the red object") or 2 ("the small
        circle", "the small red object"); not for place and relation. Pairs then have the span `constraint`, of the
        whole subject, and with 2 `constraint_1` and `constraint_2`, of the first and the second attribute's word. Each
        attribute is true of the thing, but one of them alone may be enough to tell it from the others.

    Returns
    -------
    list of Pair
        With spans `subject`, in choices `answer_option` and `foil_option`, in relations `landmark`; region `object`.

    Raises
    ------
    SpecError
        A kind of question that there is not, none, or constraints that are not 1 or 2 or of a kind that has none.
    """
    questions = tuple(questions)
    for kind in questions:
        if kind not in PAIR_KINDS:
            raise unknown("kind of question in pairs.questions", kind, PAIR_KINDS)
    if not questions:
        raise SpecError(f"pairs.questions is empty; name at least one of {', '.join(PAIR_KINDS)}.")
    if constraints is not None:
        _check_constraints(constraints, questions)
    return [
        _draw(f"shapes-{seed}-{i}", random.Random(f"{seed}/{i}"), questions[i % len(questions)], aligned, constraints)
        for i in range(64 if n is None else n)
    ]


def _check_constraints(constraints: int, questions: Sequence[str]) -> None:
    if type(constraints) is not int or constraints not in (1, 2):
        raise SpecError(f"pairs.constraints must be 1 or 2, or left out, not {constraints!r}.")
    for kind in questions:
        if kind not in CONSTRAINED_KINDS:
            raise SpecError(
                f"pairs.constraints is {constraints}, but questions of kind {kind!r} cannot be drawn by it; those that "
                f"can: {', '.join(CONSTRAINED_KINDS)}."
            )


def _draw(name: str, rng: random.Random, kind: str, aligned: bool, constraints: int | None) -> Pair:
    scene, question = sample(rng, kind)
    while not _is_wanted(question, aligned, constraints):
        scene, question = sample(rng, kind)
    assert question.target is not None and question.counterfactual is not None
    changed = scene.with_thing(question.target, **question.counterfactual)
    spans = question.spans if constraints is None else {**question.spans, **_constraint_spans(question)}
    text, spans_corrupted = replace_spans(question.text, spans, _other_options(rng, question))
    return Pair(
        id=name,
        clean=Prompt(render(scene), question.text),
        corrupted=Prompt(render(changed), text),
        answer=question.answer,
        foil=question.foil,
        spans=spans,
        spans_corrupted=spans_corrupted,
        regions={"object": scene.things[question.target].box},
        task=kind,
    )


def _is_wanted(question: Question, aligned: bool, constraints: int | None) -> bool:
    if constraints is not None and len(question.constraints) != constraints:
        return False
    fewest = _FEWEST_WORDS[question.kind] + (constraints == 2)  # the second attribute is one word more
    return not aligned or len(question.text.split()) == fewest


def _constraint_spans(question: Question) -> dict[str, Span]:
    """The subject once more, as what names the thing; and its attributes apart, where there are two."""
    spans = {"constraint": question.spans["subject"]}
    if len(question.constraints) == 2:
        spans |= dict(zip(("constraint_1", "constraint_2"), question.constraints, strict=True))
    return spans


def _other_options(rng: random.Random, question: Question) -> dict[str, str]:
    """Two words in the place of the question's options, of their role; none where there are no options or no others."""
    options = {question.answer, question.foil}
    if "answer_option" not in question.spans:
        return {}
    role = next((words for words in _REPLACEMENTS if options <= set(words) and question.kind != "relation"), ())
    others = [word for word in role if word not in options]
    if len(others) < 2:
        return {}
    return dict(zip(OPTIONS, rng.sample(others, 2), strict=True))
