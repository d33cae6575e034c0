"""Pairs of drawn pictures that differ in exactly one attribute of the asked-about thing."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlm_patching.errors import SpecError, unknown
from vlm_patching.pairs.pair import Pair, Prompt, Span
from vlm_patching.pairs.shapes import KINDS, Question, render, sample
from vlm_patching.pairs.shapes.scene import COLORS, SHAPES

ABOUT = "drawn scenes of coloured shapes; image pairs that differ in one attribute, texts with both options replaced"
PAIR_KINDS = tuple(kind for kind in KINDS if kind != "count")
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


def load(
    n: int | None = None, seed: int = 0, questions: Sequence[str] = ("color_choice",), aligned: bool = True
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

    Returns
    -------
    list of Pair
        With spans `subject`, in choices `answer_option` and `foil_option`, in relations `landmark`; region `object`.
    """
    questions = tuple(questions)
    for kind in questions:
        if kind not in PAIR_KINDS:
            raise unknown("kind of question in pairs.questions", kind, PAIR_KINDS)
    if not questions:
        raise SpecError(f"pairs.questions is empty; name at least one of {', '.join(PAIR_KINDS)}.")
    return [
        _draw(f"shapes-{seed}-{i}", random.Random(f"{seed}/{i}"), questions[i % len(questions)], aligned)
        for i in range(64 if n is None else n)
    ]


def _draw(name: str, rng: random.Random, kind: str, aligned: bool) -> Pair:
    scene, question = sample(rng, kind)
    while aligned and not _is_short(question):
        scene, question = sample(rng, kind)
    assert question.target is not None and question.counterfactual is not None
    changed = scene.with_thing(question.target, **question.counterfactual)
    text, spans = _replace_options(rng, question)
    return Pair(
        id=name,
        clean=Prompt(render(scene), question.text),
        corrupted=Prompt(render(changed), text),
        answer=question.answer,
        foil=question.foil,
        spans=question.spans,
        spans_corrupted=spans,
        regions={"object": scene.things[question.target].box},
    )


def _is_short(question: Question) -> bool:
    return len(question.text.split()) == _FEWEST_WORDS[question.kind]


def _replace_options(rng: random.Random, question: Question) -> tuple[str, dict[str, Span]]:
    """The question with both options exchanged for others of their role, and where its spans are then."""
    options = {question.answer, question.foil}
    if "answer_option" not in question.spans:
        return question.text, dict(question.spans)
    role = next((words for words in _REPLACEMENTS if options <= set(words) and question.kind != "relation"), ())
    others = [word for word in role if word not in options]
    if len(others) < 2:
        return question.text, dict(question.spans)
    new = dict(zip(("answer_option", "foil_option"), rng.sample(others, 2), strict=True))
    text, spans, shift, end = "", {}, 0, 0
    for name, (start, stop) in sorted(question.spans.items(), key=lambda item: item[1]):
        word = new.get(name, question.text[start:stop])
        text += question.text[end:start] + word
        spans[name] = (start + shift, start + shift + len(word))
        shift += len(word) - (stop - start)
        end = stop
    return text + question.text[end:], spans
