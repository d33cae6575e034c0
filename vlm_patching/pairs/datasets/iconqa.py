"""IconQA (Lu et al. 2021): questions about diagrams of icons, with choices of words or of pictures.

Files: iconqa_data.zip of github.com/lupantech/IconQA, a folder a problem: `iconqa/SPLIT/TASK/ID/data.json` (question,
choices, answer, which is the number of a choice, grade, label), `image.png` and, where pictures are to be chosen,
`choice_0.png`, ... The splits are train, val and test, the tasks choose_txt and choose_img. Problems of the third task,
fill_in_blank, have no choices, so they make no pairs.

Pair rule: the foil is a wrong choice.

- choose_txt: "How likely is it that you will pick a black one? probable or certain?". The corrupted image is that of
  another problem with the same question and choices, whose answer is the foil (`foils: any` takes any wrong choice, and
  has no corrupted image).
- choose_img: the prompt has three pictures, the diagram, the right choice and a wrong one in either order; "Which shape
  has more sides? The second picture or the third?". In the corrupted prompt the two have changed places.

Held in memory: of every problem of the split and the task its question, choices and answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlm_patching.errors import SpecError
from vlm_patching.pairs.candidates import Candidate, Choice, Dropped, Found, literal
from vlm_patching.pairs.datasets.base import FilesSpec
from vlm_patching.pairs.reading.folders import folders_in
from vlm_patching.pairs.reading.json_files import read_object
from vlm_patching.pairs.reading.rows import BadRow

ABOUT = "diagrams of icons, and questions about them with choices"
FILES = "iconqa/SPLIT/TASK/ID/ with data.json, image.png, choice_*.png (iconqa_data.zip, github.com/lupantech/IconQA)"
_PLACES = ("second", "third")


class IconQA(FilesSpec):
    """IconQA: questions about diagrams, and a wrong choice.

    Attributes
    ----------
    path
        The folder iconqa, or the one that it is in.
    split
        train, val or test.
    task
        `choose_txt`: the choices are words. `choose_img`: they are pictures; for models that take several.
    foils
        Of choose_txt. `pictured`: a wrong choice that is right about another picture. `any`: any wrong choice; the
        corrupted image is the clean one, for corruptions that make their own.
    """

    dataset: Literal["iconqa"]
    split: Literal["train", "val", "test"] = "val"
    task: Literal["choose_txt", "choose_img"] = "choose_txt"
    foils: Literal["pictured", "any"] = "pictured"


@dataclass(frozen=True, slots=True)
class _Problem:
    """A problem, and what is asked in it; `alike` is what problems of the same question and choices share."""

    folder: Path
    question: str
    choices: tuple[str, ...]
    answer: str
    skill: str

    @property
    def alike(self) -> tuple[str, ...]:
        return self.question.casefold(), *sorted(choice.casefold() for choice in self.choices)


def candidates(spec: IconQA) -> Iterator[Found]:
    """A question of every problem."""
    problems: list[_Problem] = []
    for folder in folders_in(_root(spec) / spec.split / spec.task):
        try:
            problems.append(_read(spec, folder))
        except SpecError as error:
            yield Found(str(folder), BadRow(str(folder), error.reason or "data.json cannot be read", error))
    answered: dict[tuple[str, ...], dict[str, list[_Problem]]] = {}
    for problem in problems:
        answered.setdefault(problem.alike, {}).setdefault(problem.answer.casefold(), []).append(problem)
    for problem in problems:
        yield Found(str(problem.folder), _question(spec, problem, answered[problem.alike]))


def _root(spec: IconQA) -> Path:
    """The folder of the splits."""
    inside = [spec.folder, spec.folder / "iconqa", spec.folder / "iconqa_data" / "iconqa"]
    there = [root for root in inside if any((root / split).is_dir() for split in ("train", "val", "test"))]
    if not there:
        raise SpecError(
            f"{spec.folder} (in {Path.cwd()}) has no folders train, val or test, nor has iconqa inside of it: they "
            "hold the problems of IconQA."
        )
    return there[0]


def _read(spec: IconQA, folder: Path) -> _Problem:
    row = read_object(folder / "data.json")
    if row.text("ques_type") != spec.task:
        raise row.bad("'ques_type' is not that of its folder", f" {spec.task} but {row.text('ques_type')}")
    choices, answer = row.texts("choices"), row.whole("answer")
    if not 0 <= answer < len(choices):
        raise row.bad("'answer' is no number of a choice", f": {answer} of {len(choices)}, counted from 0")
    return _Problem(folder, row.text("question"), choices, choices[answer], f"{row.text('grade')} {row.text('label')}")


def _question(spec: IconQA, problem: _Problem, answered: Mapping[str, Sequence[_Problem]]) -> Candidate:
    others = [choice for choice in problem.choices if choice.casefold() != problem.answer.casefold()]
    if not others:
        return Dropped("it has no wrong choice")
    rng = random.Random(f"{spec.seed}/foil/{spec.task}/{problem.folder.name}")
    if spec.task == "choose_img":
        return _of_pictures(problem, rng.choice(others), rng.random() < 0.5)
    image = problem.folder / "image.png"
    if spec.foils == "any":
        return _of_words(problem, rng.choice(others), image)
    pictured = [choice for choice in others if choice.casefold() in answered]
    if not pictured:
        return Dropped("no other picture is asked the same with another answer")
    foil = rng.choice(pictured)
    return _of_words(problem, foil, rng.choice(answered[foil.casefold()]).folder / "image.png")


def _of_words(problem: _Problem, foil: str, corrupted: Path) -> Choice:
    """A question that names the two choices already, "even or odd", keeps its words; others have them put behind."""
    one, other = re.escape(problem.answer), re.escape(foil)
    before, named, behind = _around(rf"\b(?:{one} or {other}|{other} or {one})\b", problem.question)
    question = f"{before}{{first}} or {{second}}{behind}" if named else f"{before} {{first}} or {{second}}?"
    return Choice(
        id=f"choose_txt/{problem.folder.name}",
        question=question,
        answer=problem.answer,
        foil=foil,
        clean=problem.folder / "image.png",
        corrupted=corrupted,
        role=problem.skill,
        task=problem.skill,
    )


def _around(pattern: str, text: str) -> tuple[str, bool, str]:
    """What stands before and behind the one place where a pattern is, as templates have it; or all before nothing."""
    places = list(re.finditer(pattern, text, re.IGNORECASE))
    if len(places) != 1:
        return literal(text), False, ""
    return literal(text[: places[0].start()]), True, literal(text[places[0].end() :])


def _of_pictures(problem: _Problem, foil: str, right_first: bool) -> Choice:
    image, right, wrong = (problem.folder / name for name in ("image.png", problem.answer, foil))
    shown, swapped = ((image, right, wrong), (image, wrong, right))[:: 1 if right_first else -1]
    answer, other = _PLACES[:: 1 if right_first else -1]
    return Choice(
        id=f"choose_img/{problem.folder.name}",
        question=f"{literal(problem.question)} The {{first}} picture or the {{second}}?",
        answer=answer,
        foil=other,
        clean=shown,
        corrupted=swapped,
        role="place",
        task=problem.skill,
    )
