"""GQA (Hudson & Manning 2019), and the six tasks that cross-modal information flow was followed through.

Files, either

- the tasks as Zhang et al. 2024 chose them: `GQA_val_correct_question_with_..._ChooseAttr.csv`, ..., out of datasets/
  of github.com/FightingFighting/cross-modal-information-flow-in-MLLM, in the folder or in a folder in it; or
- GQA's own (cs.stanford.edu/people/dorarad/gqa): `val_balanced_questions.json` and `val_sceneGraphs.json`, out of which
  the same kinds of questions are taken, all of them;

and GQA's images, `images/2366627.jpg`, as large as they are published: boxes are in their pixels.

Pair rule (Zhang et al. 2024): the question as it is written, of its own picture alone; nothing is corrupted, attention
is knocked out. Where the question offers two words, the foil is the other one, and which comes first is even among the
pairs where the sentence allows it (`order: published` leaves it as it is written). Else it is no for yes, right for
left, or another answer of the task, drawn by the seed.

Spans: `answer_option`, `foil_option`; `subject`, or `object_1` and `object_2` where two things are asked about.
Regions: `object`, or `object_1` and `object_2`: their boxes.

Held while it reads: how often each answer is a task's; of the scene graphs, the boxes of things that are asked about.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from vlm_patching.errors import SpecError
from vlm_patching.pairs.candidates import Candidate, Choice, Dropped, Found, attempt, with_suffix
from vlm_patching.pairs.datasets.base import QuestionsSpec
from vlm_patching.pairs.english import article, is_plural, plural
from vlm_patching.pairs.gqa import TASKS, Boxes, Question, Task, columns_of, of_graphs, of_table, tables, task_of
from vlm_patching.pairs.pair import Pair, Prompt, Span
from vlm_patching.pairs.reading.csv_files import read_csv
from vlm_patching.pairs.reading.folders import inside
from vlm_patching.pairs.reading.json_files import read_json_by_key
from vlm_patching.pairs.reading.rows import BadRow, Row

ABOUT = "questions of six tasks, with the boxes of what they ask about, for attention knockout"
FILES = (
    "*_ChooseAttr.csv, ... (github.com/FightingFighting/cross-modal-information-flow-in-MLLM), or GQA's own; images/"
)
_OPPOSITES = {"yes": "no", "no": "yes", "left": "right", "right": "left"}
_ROLES = {"": "attribute", "name": "thing", "rel": "side"}
_BETWEEN = re.compile(r" or (?:maybe )?(?:(?:is|are) (?:it|they) )?(to the |the |an? |)")
_AHEAD = re.compile(r"\b(to the |the |an? )$")
_QUESTIONS, _GRAPHS = "{split}_balanced_questions.json", "{split}_sceneGraphs.json"


class Gqa(QuestionsSpec):
    """GQA: questions of six tasks.

    Attributes
    ----------
    path
        The folder with the tables, or with GQA's questions and scene graphs.
    tasks
        Which questions. It is the pair's `task`.
    split
        Of GQA's own questions; the tables are of `val`.
    order
        Of the two words that a question offers: `balanced`, or as it was `published`.
    """

    dataset: Literal["gqa"]
    tasks: tuple[Task, ...] = Field(default=TASKS, min_length=1)
    split: Literal["train", "val"] = "val"
    order: Literal["balanced", "published"] = "balanced"


Asked = tuple[str, Question | Dropped | BadRow]
"""What a row of either source gives, and where it stands."""


def candidates(spec: Gqa) -> Iterator[Found]:
    """A pair of every question."""
    boxes = Boxes()
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, asked in _asked(spec, boxes):
        if isinstance(asked, Question) and asked.other is None:
            answers[asked.task][asked.answer] += 1
    if boxes.wanted:
        boxes.read(inside(spec.folder, _GRAPHS.format(split=spec.split)))
    for where, asked in _asked(spec, boxes):
        made = attempt(partial(_pair, spec, asked, answers), where) if isinstance(asked, Question) else asked
        yield Found(where, made)


def _asked(spec: Gqa, boxes: Boxes) -> Iterator[Asked]:
    """Every question of the asked tasks, out of the tables where there are any."""
    known = tables(spec.folder)
    if not known:
        yield from _own(spec, boxes)
        return
    if spec.split != "val":
        raise SpecError(f"pairs.split: the tables in {spec.folder} are of val, not of {spec.split!r}.")
    for task in spec.tasks:
        if task not in known:
            raise SpecError(
                f"{spec.folder} has no table of {task} (its name ends with _{task}.csv). It has {', '.join(known)}."
            )
        for row in read_csv(known[task], columns_of(task)):
            yield row.where, row if isinstance(row, BadRow) else attempt(partial(of_table, row, task), row.where)


def _own(spec: Gqa, boxes: Boxes) -> Iterator[Asked]:
    file = inside(spec.folder, _QUESTIONS.format(split=spec.split))
    if not file.exists():
        raise SpecError(
            f"{spec.folder} (in {Path.cwd()}) has neither {file.name} nor tables of the tasks, whose names end with "
            f"_{TASKS[0]}.csv and so on."
        )

    def made(name: str, row: Row) -> Question | Dropped:
        task = task_of(row)
        return (
            of_graphs(name, row, task, boxes) if task in spec.tasks else Dropped("it is of no task that is asked for")
        )

    for name, row in read_json_by_key(file):
        yield row.where, row if isinstance(row, BadRow) else attempt(partial(made, name, row), row.where)


def _pair(spec: Gqa, asked: Question, answers: Mapping[str, Counter[str]]) -> Candidate:
    foil = asked.other or _foil(spec, asked, answers[asked.task])
    if foil is None:
        return Dropped("its task has no other answer")
    picture = spec.pictures / f"{asked.picture}.jpg"
    names = ["subject"] if len(asked.things) == 1 else [f"object_{n}" for n in range(1, len(asked.things) + 1)]
    things = dict(zip(names, asked.things, strict=True))
    boxed = {"object" if name == "subject" else name: thing.box for name, thing in things.items()}
    regions = {name: box for name, box in boxed.items() if box}
    words = {name: thing.name for name, thing in things.items()}
    if asked.other and spec.order == "balanced" and (form := _form(asked.text, asked.answer, asked.other)):
        template, before = form
        template, filling = _named(template, words)
        role = _ROLES.get(asked.kind, asked.kind) + ", plural" * (asked.kind == "name" and is_plural(asked.answer))
        return Choice(
            id=asked.id,
            question=template,
            answer=asked.answer,
            foil=foil,
            clean=picture,
            corrupted=picture,
            words=filling,
            before=before,
            role=role,
            regions=regions,
            task=asked.task,
            suffix=spec.suffix,
        )
    options = {"answer_option": asked.answer, "foil_option": foil} if asked.other else {}
    spans = {name: span for name, word in {**words, **options}.items() if (span := _place(asked.text, word))}
    text, spans = with_suffix(asked.text, spans, spec.suffix)
    prompt = Prompt(picture, text)
    return Pair(asked.id, prompt, prompt, asked.answer, foil, spans, regions=regions, task=asked.task)


def _foil(spec: Gqa, asked: Question, answers: Counter[str]) -> str | None:
    if asked.answer in _OPPOSITES:
        return _OPPOSITES[asked.answer]
    others = sorted(word for word in answers if word != asked.answer)
    if not others:
        return None
    rng = random.Random(f"{spec.seed}/foil/{asked.id}")
    return rng.choices(others, [answers[word] for word in others])[0]


def _form(text: str, answer: str, other: str) -> tuple[str, tuple[str, str]] | None:
    """The question as a template of its two options, and what stands before each; None where they cannot change
    places ("the laptop computer or the screen", "in front or behind").
    """
    places = {
        word: [match.span() for match in re.finditer(rf"\b{re.escape(word)}\b", text)] for word in (answer, other)
    }
    if any(len(spans) != 1 for spans in places.values()) or "front" in places:
        return None
    (a0, a1), (b0, b1) = sorted(spans[0] for spans in places.values())
    between = _BETWEEN.fullmatch(text, a1, b0)
    ends = text[b1:].strip() == "?" or set(places) == {"left", "right"}
    if a1 > b0 or between is None or not ends:
        return None
    ahead = _AHEAD.search(text[:a0])
    first, second = ahead[1] if ahead else "", between[1]
    indefinite = {"a ", "an "}
    if first in indefinite and second in indefinite:
        middle = text[a1 : b0 - len(second)]
        template = f"{text[: a0 - len(first)]}{{first}}{middle}{{second}}{text[b1:]}"
        return template, (f"{article(answer)} ", f"{article(other)} ")
    if first != second:
        return None
    return f"{text[:a0]}{{first}}{text[a1:b0]}{{second}}{text[b1:]}", ("", "")


def _named(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """A template with names in the place of the things that it names, and what stands there."""
    filling = {}
    for name, word in words.items():
        place = _place(re.sub(r"\{\w+\}", lambda match: "\0" * len(match[0]), template), word)
        if place:
            filling[name] = template[slice(*place)]
            template = f"{template[: place[0]]}{{{name}}}{template[place[1] :]}"
    return template, filling


def _place(text: str, word: str) -> Span | None:
    """Where a word, or its plural, stands; the first place."""
    match = re.search(rf"(?<!\w)(?:{re.escape(word)}|{re.escape(plural(word))})(?!\w)", text, re.IGNORECASE)
    return match.span() if match else None
