"""COCO-QA (Ren et al. 2015): questions of one word's answer, made of COCO's captions.

Files: `train/` and `test/` of cocoqa-2015-05-17.zip (www.cs.toronto.edu/~mren/research/imageqa/data/cocoqa), each with
`questions.txt`, `answers.txt`, `img_ids.txt` and `types.txt` (0 object, 1 number, 2 color, 3 location), of which the
lines of one number belong together; and COCO's pictures of 2014, train2014 for train and val2014 for test.

Pair rule (Palit et al. 2023): the question as it is written, about its own picture alone; what corrupts it is noise, or
another corruption that is made of the picture. The foil is the answer to another question of the same type, drawn by
the seed, each as likely as it is frequent; never one that means nearly the same (`words/coco.yaml`), that is the answer
to another question about the same picture, or that stands in the question.

Held while it reads: the answers of every picture.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from pydantic import Field

from vlm_patching.pairs.candidates import Candidate, Dropped, Found, each, with_suffix
from vlm_patching.pairs.coco import CocoPictures
from vlm_patching.pairs.datasets.base import QuestionsSpec
from vlm_patching.pairs.pair import Pair, Prompt
from vlm_patching.pairs.reading.lines import read_side_by_side
from vlm_patching.pairs.reading.rows import BadRow, Row
from vlm_patching.pairs.vocabulary import exclusions

ABOUT = "questions of one word's answer about COCO's pictures, to be corrupted by noise"
FILES = "train/ and test/ with questions.txt, answers.txt, img_ids.txt, types.txt (COCO-QA, Toronto); COCO's pictures"
EXCLUDED = "coco"
Type = Literal["object", "number", "color", "location"]
TYPES: tuple[Type, ...] = get_args(Type)
"""As types.txt numbers them."""
_FILES = ("questions", "answers", "img_ids", "types")
_TRIES = 50


class CocoQa(QuestionsSpec):
    """COCO-QA: a question of one word's answer.

    Attributes
    ----------
    path
        The folder with train/ and test/.
    split
        `train` or `test`.
    types
        Which questions. It is the pair's `task`.
    """

    dataset: Literal["coco_qa"]
    split: Literal["train", "test"] = "test"
    types: tuple[Type, ...] = Field(default=TYPES, min_length=1)


@dataclass(frozen=True)
class _Answers:
    """The answers of one type: each word, how many have it or one before it."""

    words: tuple[str, ...]
    summed: tuple[int, ...]


def candidates(spec: CocoQa) -> Iterator[Found]:
    """A pair of every line."""
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    by_picture: dict[int, tuple[str, ...]] = {}
    for row in _rows(spec):
        try:
            picture, kind, answer = row.whole("img_ids"), _type(row), row.text("answers")
        except BadRow:
            continue  # is found again below
        by_type[kind][answer] += 1
        if answer not in by_picture.get(picture, ()):
            by_picture[picture] = (*by_picture.get(picture, ()), answer)
    answers = {}
    for kind, counts in by_type.items():
        words = tuple(sorted(counts))
        answers[kind] = _Answers(words, tuple(accumulate(counts[word] for word in words)))
    pictures = CocoPictures(spec.pictures, ("train", "val") if spec.split == "train" else ("val", "train"))

    def make(row: Row) -> Candidate:
        return _pair(spec, row, pictures, answers, by_picture)

    return each(_rows(spec), make)


def _rows(spec: CocoQa) -> Iterator[Row]:
    return read_side_by_side({name: spec.folder / spec.split / f"{name}.txt" for name in _FILES})


def _type(row: Row) -> str:
    number = row.whole("types")
    if not 0 <= number < len(TYPES):
        raise row.bad("'types' is no number from 0 to 3", f" but {number}")
    return TYPES[number]


def _pair(
    spec: CocoQa,
    row: Row,
    pictures: CocoPictures,
    answers: Mapping[str, _Answers],
    by_picture: Mapping[int, tuple[str, ...]],
) -> Candidate:
    kind, question, answer, picture = _type(row), row.text("questions"), row.text("answers"), row.whole("img_ids")
    if kind not in spec.types:
        return Dropped("its type is not asked for")
    ending = hashlib.blake2b(f"{question}\n{answer}".encode(), digest_size=4).hexdigest()
    name = f"{spec.split}-{picture}-{ending}"
    taken = {answer, *by_picture[picture], *re.findall(r"[\w'-]+", question.casefold())}
    foil = _foil(random.Random(f"{spec.seed}/foil/{name}"), answers[kind], answer, taken)
    if foil is None:
        return Dropped("there is no other answer of its type")
    text, spans = with_suffix(question, {}, spec.suffix)
    prompt = Prompt(pictures(picture), text)
    return Pair(name, prompt, prompt, answer, foil, spans, task=kind)


def _foil(rng: random.Random, answers: _Answers, answer: str, taken: set[str]) -> str | None:
    near = exclusions(EXCLUDED).near
    for _ in range(_TRIES):
        (word,) = rng.choices(answers.words, cum_weights=answers.summed)
        if word not in taken and not near(word, answer):
            return word
    others = [word for word in answers.words if word not in taken and not near(word, answer)]
    return rng.choice(others) if others else None
