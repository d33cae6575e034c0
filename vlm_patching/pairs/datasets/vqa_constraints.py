"""VQA-Constraints (Basu et al. 2024): questions about a picture, with the phrase of each that the picture explains.

Files, of data_constraints/ of github.com/microsoft/MLLMInterpret: `okvqa.csv`, `multimodal_known.csv` or
`multimodal_movies.csv`, with the columns question, main_entity (the constraint), image_url. They hold no answers, so
beside the table there has to be

- for okvqa, OK-VQA's own `OpenEnded_mscoco_val2014_questions.json` and `mscoco_val2014_annotations.json` (okvqa.org):
  the most frequent of ten answers, if three or more agree;
- for known, `known_1000.json` of Meng et al. (rome.baulab.info/data/dsets): the attribute of the row's `subject`;
- for movies, and in place of either, a table that `answers` names, with the columns image_url, question, answer (and
  foil, where it is to be a certain one): the model's own answers, for instance, which the paper traces.

Pictures: for okvqa `images/val2014/COCO_val2014_....jpg`; else the archives that the repository links to, of which
every row has a folder, `images/A photo of Space Needle/`; its first picture is taken.

Pair rule: the question and its picture; the corruption `constraint_replacement` puts another phrase in the place of the
span `constraint`. The foil is the answer to another question: of the same relation (known), or that begins with the
same two words, drawn by the seed. A row is left out where its constraint does not stand in its question.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vlm_patching.errors import SpecError
from vlm_patching.pairs.candidates import Candidate, Dropped, Found, attempt, each, with_suffix
from vlm_patching.pairs.datasets.base import FileName, QuestionsSpec
from vlm_patching.pairs.pair import Pair, Prompt
from vlm_patching.pairs.reading.csv_files import read_csv
from vlm_patching.pairs.reading.folders import folders_in, image_names, inside
from vlm_patching.pairs.reading.json_files import read_json
from vlm_patching.pairs.reading.rows import BadRow, Row
from vlm_patching.pairs.vocabulary import exclusions
from vlm_patching.pairs.vqa import answers_of, no_answers

ABOUT = "questions about a picture, with the phrase that it explains, to be replaced by another"
FILES = (
    "okvqa.csv, multimodal_known.csv or multimodal_movies.csv (github.com/microsoft/MLLMInterpret), answers, images/"
)
EXCLUDED = "coco"
AGREEING = 3
_UNANSWERED = "it has no answer"
_TABLES = {"okvqa": "okvqa.csv", "known": "multimodal_known.csv", "movies": "multimodal_movies.csv"}
_COLUMNS = ("question", "main_entity", "image_url")


class VqaConstraints(QuestionsSpec):
    """VQA-Constraints: a question with its constraint.

    Attributes
    ----------
    path
        The folder with the table, and with the files of answers.
    source
        Which table: `okvqa`, `known` or `movies`. It is the pair's `task`.
    answers
        A table of answers, in place of the published ones.
    """

    dataset: Literal["vqa_constraints"]
    source: Literal["okvqa", "known", "movies"]
    answers: FileName | None = None


@dataclass(frozen=True)
class _Answer:
    """The answer to a row's question.

    Attributes
    ----------
    group
        Foils are answers of the same.
    right
        Every answer that is no foil.
    foil
        The foil, where it is given.
    """

    answer: str
    group: str
    right: frozenset[str]
    foil: str | None = None


Answers = Callable[[Row], _Answer | Dropped]


def candidates(spec: VqaConstraints) -> Iterator[Found]:
    """A pair of every row."""
    file = spec.folder / _TABLES[spec.source]
    answers = _answers(spec)
    columns = (*_COLUMNS, "subject") if spec.source == "known" else _COLUMNS
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for row in read_csv(file, columns):
        try:
            answered = answers(row) if isinstance(row, Row) else None
        except BadRow:
            continue  # is found again below
        if isinstance(answered, _Answer):
            groups[answered.group][answered.answer] += 1
    folders = {} if spec.source == "okvqa" else {_same_letters(f.name): f for f in folders_in(spec.pictures)}

    def make(row: Row) -> Candidate:
        return _pair(spec, row, answers(row), groups, folders)

    yield from each(read_csv(file, columns), make)


def _pair(
    spec: VqaConstraints,
    row: Row,
    answered: _Answer | Dropped,
    groups: Mapping[str, Counter[str]],
    folders: Mapping[str, Path],
) -> Candidate:
    if isinstance(answered, Dropped):
        return answered
    question, place = row.text("question"), row.text("image_url").removeprefix("./")
    constraint = row.text("main_entity").strip(" ,.;:?!")
    stands = re.search(rf"(?<!\w){re.escape(constraint)}(?!\w)", question, re.IGNORECASE) if constraint else None
    if stands is None:
        return Dropped("its constraint does not stand in its question")
    ending = hashlib.blake2b(f"{question}\n{constraint}".encode(), digest_size=4).hexdigest()
    name = f"{spec.source}-{Path(place).stem if spec.source == 'okvqa' else place}-{ending}"
    foil = answered.foil or _foil(random.Random(f"{spec.seed}/foil/{name}"), answered, groups[answered.group])
    if foil is None:
        return Dropped("no other question of its kind has another answer")
    text, spans = with_suffix(question, {"constraint": stands.span(), "subject": stands.span()}, spec.suffix)
    prompt = Prompt(_picture(spec, row, place, folders), text)
    return Pair(name, prompt, prompt, answered.answer, foil, spans, task=spec.source)


def _picture(spec: VqaConstraints, row: Row, place: str, folders: Mapping[str, Path]) -> Path:
    if spec.source == "okvqa":
        return spec.pictures / place
    folder = folders.get(_same_letters(place), spec.pictures / place)
    if folder.is_file() or not folder.is_dir():
        return folder  # where there is none, that is told
    names = sorted(
        image_names(folder), key=lambda name: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", name)]
    )
    if not names:
        raise row.bad("its folder holds no picture", f": {folder}")
    return folder / names[0]


def _same_letters(name: str) -> str:
    """A name in one spelling: archives made on a Mac write é as two characters."""
    return unicodedata.normalize("NFC", name)


def _foil(rng: random.Random, answered: _Answer, group: Counter[str]) -> str | None:
    near, right = exclusions(EXCLUDED).near, {word.casefold() for word in answered.right}
    words = [word for word in sorted(group) if word.casefold() not in right and not near(word, answered.answer)]
    return rng.choices(words, [group[word] for word in words])[0] if words else None


def _beginning(question: str) -> str:
    return " ".join(question.casefold().split()[:2])


def _answers(spec: VqaConstraints) -> Answers:
    if spec.answers is not None:
        return _given(spec, Path(spec.answers))
    if spec.source == "movies":
        raise SpecError(
            "pairs.answers is missing: the table of movies says no answers. Give the path of a CSV file with the "
            "columns image_url, question, answer (and foil), such as the model's own answers."
        )
    return _of_ok_vqa(spec) if spec.source == "okvqa" else _of_known(spec)


def _take(spec: VqaConstraints, rows: Iterable[Row | BadRow], take: Callable[[Row], None]) -> None:
    """Every row of a file of answers; one that is wrong is an error, or its answer is missing."""
    for row in rows:
        error = row if isinstance(row, BadRow) else attempt(partial(take, row), row.where)
        if isinstance(error, BadRow) and not spec.skips:
            raise error


def _given(spec: VqaConstraints, file: Path) -> Answers:
    """Answers out of a table that the user made."""
    known: dict[tuple[str, str], _Answer] = {}

    def take(row: Row) -> None:
        answer, foil, question = row.text("answer"), row.values.get("foil", "").strip(), row.text("question")
        answered = _Answer(answer, _beginning(question), frozenset((answer,)), foil or None)
        known[row.text("image_url"), question] = answered

    _take(spec, read_csv(file, ("image_url", "question", "answer")), take)
    return lambda row: known.get((row.text("image_url"), row.text("question"))) or Dropped(_UNANSWERED)


def _of_ok_vqa(spec: VqaConstraints) -> Answers:
    asked: dict[int, tuple[int, str]] = {}
    known: dict[tuple[int, str], _Answer | Dropped] = {}

    def ask(row: Row) -> None:
        asked[row.whole("question_id")] = row.whole("image_id"), row.text("question").casefold()

    def answer(row: Row) -> None:
        given = answers_of(row)
        if not given:
            raise no_answers(row)
        word, count = min(given.items(), key=lambda item: (-item[1], item[0]))
        place = asked.get(row.whole("question_id"))
        if place is not None:
            answered = _Answer(word, _beginning(place[1]), frozenset(given))
            known[place] = answered if count >= AGREEING else Dropped(f"fewer than {AGREEING} of its answers agree")

    _take(spec, read_json(inside(spec.folder, "OpenEnded_mscoco_val2014_questions.json"), "questions"), ask)
    _take(spec, read_json(inside(spec.folder, "mscoco_val2014_annotations.json"), "annotations"), answer)

    def answer_of(row: Row) -> _Answer | Dropped:
        number = re.search(r"(\d+)\.\w+$", row.text("image_url"))
        found = known.get((int(number[1]), row.text("question").casefold())) if number else None
        return found or Dropped(_UNANSWERED)

    return answer_of


def _of_known(spec: VqaConstraints) -> Answers:
    """Of several facts about one subject, that whose words are the most like the question's."""
    facts: dict[str, list[tuple[set[str], _Answer]]] = defaultdict(list)

    def take(row: Row) -> None:
        answer, words = row.text("attribute"), set(row.text("prompt").casefold().split())
        facts[row.text("subject")].append((words, _Answer(answer, row.text("relation_id"), frozenset((answer,)))))

    _take(spec, read_json(inside(spec.folder, "known_1000.json"), ""), take)

    def answer_of(row: Row) -> _Answer | Dropped:
        words = set(row.text("question").casefold().split())
        found = facts.get(row.text("subject"))
        return max(found, key=lambda fact: len(fact[0] & words))[1] if found else Dropped(_UNANSWERED)

    return answer_of
