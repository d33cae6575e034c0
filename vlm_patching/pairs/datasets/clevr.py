"""CLEVR (Johnson et al. 2017): rendered scenes of solids, and questions that are programs in words.

Files, of CLEVR_v1.0.zip (cs.stanford.edu/people/jcjohns/clevr), for `split: val`: `questions/CLEVR_val_questions.json`,
`scenes/CLEVR_val_scenes.json`, `images/val/CLEVR_val_000000.png`, ...; test has neither answers nor scenes.

Pair rule: the corrupted picture is another of as many things, to which the question's program gives another answer: the
foil. It is the first such among `TRIES` that the seed draws. A question is left out where there is none among them, and
where the phrases of its text cannot be told from each other by its program.

Spans: `constraint_1`, `constraint_2`, ... are the phrases that name things by their attributes ("tiny red ball"), in
the order of the text; `constraint` and `subject` are the one nearest to the answer. Regions: `object_1`, ... are the
things that they name, where they name one; `object` is that of `constraint`. CLEVR gives centres; the boxes follow from
its camera.

Held while it reads: every scene, in about a kilobyte.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from vlm_patching.pairs.candidates import Candidate, Dropped, Found, each, with_suffix
from vlm_patching.pairs.clevr import Phrase, Scene, Step, outputs, phrases_of, program_of, said, spans_of
from vlm_patching.pairs.datasets.base import QuestionsSpec
from vlm_patching.pairs.pair import Box, Pair, Prompt, Span
from vlm_patching.pairs.reading.json_files import read_json
from vlm_patching.pairs.reading.rows import BadRow, Row

ABOUT = "rendered scenes of solids; the same question of two scenes that answer it differently"
FILES = "questions/, scenes/ and images/ of CLEVR_v1.0.zip (cs.stanford.edu/people/jcjohns/clevr)"
TRIES = 100
Kind = Literal["query", "count", "exist", "compare_attribute", "compare_number"]
_KINDS: Mapping[str, Kind] = {
    "query": "query",
    "count": "count",
    "exist": "exist",
    "equal": "compare_attribute",
    "less": "compare_number",
    "greater": "compare_number",
}


class Clevr(QuestionsSpec):
    """CLEVR: a question of two scenes.

    Attributes
    ----------
    path
        The folder with questions/, scenes/ and images/.
    split
        `train` or `val`.
    kinds
        Which questions, by what they ask for. It is the pair's `task`.
    constraints
        Only questions that name things by so many phrases.
    """

    dataset: Literal["clevr"]
    split: Literal["train", "val"] = "val"
    kinds: tuple[Kind, ...] = Field(
        default=("query", "count", "exist", "compare_attribute", "compare_number"), min_length=1
    )
    constraints: int | None = Field(default=None, ge=0, le=6)


class _Scenes:
    """Every scene, by its picture's name, and by how many things it has."""

    def __init__(self, file: Path) -> None:
        self.named: dict[str, Scene | BadRow] = {}
        self.of_size: dict[int, list[Scene]] = defaultdict(list)
        for row in read_json(file, "scenes"):
            if isinstance(row, BadRow):
                continue
            try:
                scene = Scene.of(row)
            except BadRow as error:
                self.named[str(row.values.get("image_filename"))] = error
                continue
            self.named[scene.picture] = scene
            self.of_size[len(scene.things)].append(scene)
        for scenes in self.of_size.values():
            scenes.sort(key=lambda scene: scene.picture)  # so that what is drawn does not depend on the file's order


def candidates(spec: Clevr) -> Iterator[Found]:
    """A pair of every question."""
    scenes = _Scenes(spec.folder / "scenes" / f"CLEVR_{spec.split}_scenes.json")

    def make(row: Row) -> Candidate:
        return _pair(spec, row, scenes)

    yield from each(read_json(spec.folder / "questions" / f"CLEVR_{spec.split}_questions.json", "questions"), make)


def _pair(spec: Clevr, row: Row, scenes: _Scenes) -> Candidate:
    program = program_of(row)
    kind = _kind(program[-1])
    if kind not in spec.kinds:
        return Dropped("its kind is not asked for")
    phrases = phrases_of(program)
    if spec.constraints is not None and len(phrases) != spec.constraints:
        return Dropped("it names things by another number of phrases")
    question, picture = row.text("question"), row.text("image_filename")
    scene = scenes.named.get(picture)
    if not isinstance(scene, Scene):
        raise row.bad("its scene cannot be used", f": {scene or f'no scene is of {picture!r}'}")
    given, answer = outputs(program, scene), said(row.value("answer"))
    if given is None or said(given[-1]) != answer:
        told = "none" if given is None else repr(said(given[-1]))
        raise row.bad("its program does not give its answer", f": on {picture} it gives {told}, not {answer!r}")
    places = spans_of(question, phrases)
    if places is None:
        return Dropped("its phrases cannot be told from each other by its program")
    ending = hashlib.blake2b(question.encode(), digest_size=4).hexdigest()
    name = f"{Path(picture).stem}-{ending}"
    other = _other(random.Random(f"{spec.seed}/scene/{name}"), program, answer, scenes.of_size[len(scene.things)])
    if other is None:
        return Dropped("no scene of as many things, of those that were drawn, answers it otherwise")
    text, spans = with_suffix(question, _named(places), spec.suffix)
    clean, corrupted = (Prompt(spec.pictures / spec.split / shown.picture, text) for shown in (scene, other[0]))
    regions = _regions(scene, given, phrases, places)
    return Pair(name, clean, corrupted, answer, other[1], spans, regions=regions, task=kind)


def _kind(last: Step) -> Kind:
    return "compare_number" if last.attribute == "integer" else _KINDS[last.kind]


def _other(
    rng: random.Random, program: Sequence[Step], answer: str, scenes: Sequence[Scene]
) -> tuple[Scene, str] | None:
    """The first scene of those drawn to which the program gives another answer, and that answer."""
    for _ in range(TRIES):
        scene = rng.choice(scenes)
        given = outputs(program, scene)
        if given is not None and said(given[-1]) != answer:
            return scene, said(given[-1])
    return None


def _named(places: Sequence[Span]) -> dict[str, Span]:
    spans = {f"constraint_{number}": place for number, place in enumerate(sorted(places), 1)}
    return {**spans, "constraint": places[0], "subject": places[0]} if places else spans


def _regions(
    scene: Scene, given: Sequence[object], phrases: Sequence[Phrase], places: Sequence[Span]
) -> dict[str, Box]:
    """Where the things are that phrases name, as far as each names a single one; numbered as the spans are."""
    regions: dict[str, Box] = {}
    order = sorted(range(len(places)), key=lambda number: places[number])
    for number, phrase in enumerate(phrases):
        things = given[phrase.step]
        assert isinstance(things, int)
        box = scene.box(things.bit_length() - 1) if things.bit_count() == 1 else None
        if box:
            regions[f"object_{order.index(number) + 1}"] = box
            if number == 0:
                regions["object"] = box
    return regions
