"""VQA v2 (Goyal et al. 2017): people's questions about COCO's pictures, each asked of two pictures that answer it
differently.

Files, of visualqa.org/download.html (for `split: val`; in the folder, or in folders in it):
`v2_OpenEnded_mscoco_val2014_questions.json`, `v2_mscoco_val2014_annotations.json` and
`v2_mscoco_val2014_complementary_pairs.json`; and COCO's pictures of 2014.

Pair rule: the two pictures of a complementary pair, the clean one drawn by the seed; the question as it is written, the
answer of each picture its multiple_choice_answer. A pair is left out where fewer than `agreement` of a picture's ten
annotators gave its answer, where three or more of them gave the other picture's, and where the two answers mean nearly
the same (`words/coco.yaml`).

Held while it reads: picture, question and answers of every question whose annotators agree.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from vlm_patching.pairs.candidates import Candidate, Dropped, Found, attempt, each, with_suffix
from vlm_patching.pairs.coco import CocoPictures
from vlm_patching.pairs.datasets.base import QuestionsSpec
from vlm_patching.pairs.pair import Pair, Prompt
from vlm_patching.pairs.reading.folders import inside
from vlm_patching.pairs.reading.json_files import read_json, read_json_tuples
from vlm_patching.pairs.reading.rows import BadRow, Row
from vlm_patching.pairs.vqa import answers_of

ABOUT = "people's questions, each about two pictures of COCO that answer it differently"
FILES = "questions, annotations and complementary pairs of a split, JSON (visualqa.org); COCO's pictures of 2014"
EXCLUDED = "coco"
ACCEPTED = 3
"""So many annotators make an answer right, as VQA's accuracy counts."""
AnswerType = Literal["yes/no", "number", "other"]


class VqaV2(QuestionsSpec):
    """VQA v2: a question about two pictures.

    Attributes
    ----------
    path
        The folder with the three files.
    split
        `train` or `val`; the answers of test are not public.
    answer_types
        Which questions. It is the pair's `task`.
    agreement
        How many of the ten annotators must have given the answer.
    """

    dataset: Literal["vqa_v2"]
    split: Literal["train", "val"] = "val"
    answer_types: tuple[AnswerType, ...] = Field(default=("yes/no", "number", "other"), min_length=1)
    agreement: int = Field(default=6, ge=1, le=10)


@dataclass(frozen=True, slots=True)
class _Answers:
    """What annotators said: the answer, and every one that enough of them gave. Questions share it."""

    kind: str
    answer: str
    accepted: tuple[str, ...]


@dataclass(slots=True)
class _Question:
    picture: int
    answers: _Answers
    text: str = ""


Known = dict[int, _Question | str | BadRow]
"""Id → the question; or why it is left out; or what is wrong with it."""


def candidates(spec: VqaV2) -> Iterator[Found]:
    """A pair of every complementary pair."""
    known = _answered(spec)
    _ask(spec, known)
    pictures = CocoPictures(spec.pictures, ("train", "val") if spec.split == "train" else ("val", "train"))

    def make(row: Row) -> Candidate:
        ids = sorted((row.whole("one"), row.whole("other")))
        name = f"{spec.split}-{ids[0]}-{ids[1]}"
        if random.Random(f"{spec.seed}/clean/{name}").random() < 0.5:
            ids.reverse()
        both = []
        for number in ids:
            question = known.get(number)
            if isinstance(question, BadRow):
                raise question
            if isinstance(question, str):
                return Dropped(question)
            if question is None:
                raise row.bad("a question of it has no annotation", f": {number}")
            if not question.text:
                raise row.bad("a question of it has no text", f": {number} is not among the questions")
            both.append(question)
        clean, corrupted = both
        return _pair(spec, name, clean, corrupted, pictures)

    yield from each(
        read_json_tuples(_file(spec, "v2_mscoco_{split}2014_complementary_pairs.json"), ("one", "other")), make
    )


def _file(spec: VqaV2, name: str) -> Path:
    return inside(spec.folder, name.replace("{split}", spec.split))


def _answered(spec: VqaV2) -> Known:
    """Every question's picture and answers."""
    known: Known = {}
    shared: dict[_Answers, _Answers] = {}
    few = f"fewer than {spec.agreement} annotators agree"
    for row in read_json(_file(spec, "v2_mscoco_{split}2014_annotations.json"), "annotations"):
        number = _id(row)
        if number is None or isinstance(row, BadRow):
            continue
        made = attempt(partial(_annotated, row), row.where)
        if isinstance(made, BadRow):
            known[number] = made
            continue
        picture, answers, agreed = made
        if answers.kind not in spec.answer_types:
            known[number] = "its type of answer is not asked for"
        elif agreed < spec.agreement:
            known[number] = few
        else:
            known[number] = _Question(picture, shared.setdefault(answers, answers))
    return known


def _annotated(row: Row) -> tuple[int, _Answers, int]:
    """Its picture, what annotators said, and how many said the answer."""
    kind, answer, picture = row.text("answer_type"), row.text("multiple_choice_answer"), row.whole("image_id")
    given = answers_of(row)
    accepted = tuple(sorted(word for word, count in given.items() if count >= ACCEPTED))
    return picture, _Answers(kind, answer, accepted), given[answer]


def _ask(spec: VqaV2, known: Known) -> None:
    """Puts the texts to those that are known; a text that many have is held once."""
    texts: dict[str, str] = {}
    for row in read_json(_file(spec, "v2_OpenEnded_mscoco_{split}2014_questions.json"), "questions"):
        number = _id(row)
        if number is None or isinstance(row, BadRow):
            continue
        question = known.get(number)
        if isinstance(question, _Question):
            text = attempt(partial(row.text, "question"), row.where)
            if isinstance(text, BadRow):
                known[number] = text
            else:
                question.text = texts.setdefault(text, text)


def _id(row: Row | BadRow) -> int | None:
    """The id of an entry; None where it has none, and is missed by the pair that names it."""
    try:
        return None if isinstance(row, BadRow) else row.whole("question_id")
    except BadRow:
        return None


def _pair(spec: VqaV2, name: str, clean: _Question, corrupted: _Question, pictures: CocoPictures) -> Candidate:
    answer, foil = clean.answers.answer, corrupted.answers.answer
    if clean.text != corrupted.text:
        return Dropped("its two questions differ")
    if clean.picture == corrupted.picture:
        return Dropped("its two pictures are the same")
    if answer == foil:
        return Dropped("both pictures have the same answer")
    if foil in clean.answers.accepted or answer in corrupted.answers.accepted:
        return Dropped("annotators gave the other picture's answer too")
    text, spans = with_suffix(clean.text, {}, spec.suffix)
    prompts = Prompt(pictures(clean.picture), text), Prompt(pictures(corrupted.picture), text)
    return Pair(name, *prompts, answer, foil, spans, task=clean.answers.kind)
