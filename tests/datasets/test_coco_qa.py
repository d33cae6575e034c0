"""COCO-QA: a question as it is written, about its own picture, with another answer of its type as foil."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from tests.datasets.kit_questions import coco_picture, coco_qa
from tests.refusals import refusal, says
from vlm_patching.pairs.coco import CocoPictures
from vlm_patching.pairs.vocabulary import exclusions

ROWS = [
    ("what is the color of the bus ?", "red", 7, 2),
    ("what is the color of the cat ?", "gray", 7, 2),
    ("what is the color of the train ?", "silver", 8, 2),
    ("what is the color of the wall ?", "blue", 9, 2),
    ("how many dogs are there ?", "two", 9, 1),
    ("how many cats are there ?", "three", 10, 1),
    ("what is in front of the house ?", "bike", 11, 0),
    ("what is next to the dog ?", "bicycle", 12, 0),
    ("what is on the couch ?", "dog", 13, 0),
]


def drawn(folder: Path, **options: Any) -> vp.pairs.Pairs:
    return vp.load_pairs("coco_qa", path=folder, **options)


def test_every_line_is_asked_as_it_is_written_with_a_foil_of_its_type(tmp_path: Path) -> None:
    rows = [row for row in ROWS if row[1] != "bicycle"]
    pairs = drawn(coco_qa(tmp_path, rows))
    assert len(pairs) == len(rows) == pairs.considered
    by_question = {pair.clean.text: pair for pair in pairs}
    types = ("object", "number", "color", "location")
    for question, answer, image, number in rows:
        pair = by_question[question]
        assert (pair.answer, pair.task) == (answer, types[number])
        assert pair.clean.image == tmp_path / "images" / "val2014" / f"COCO_val2014_{image:012d}.jpg"
        assert pair.corrupted == pair.clean
        assert pair.foil in {a for _, a, _, kind in ROWS if kind == number}
        assert not pair.spans


def test_a_foil_is_wrong_whatever_else_is_said_of_the_picture(tmp_path: Path) -> None:
    coco_qa(tmp_path, ROWS)
    foils = Counter((pair.answer, pair.foil) for seed in range(30) for pair in drawn(tmp_path, seed=seed))
    near = exclusions("coco").near
    assert not [pair for pair in foils if near(*pair)]
    assert {foil for answer, foil in foils if answer == "red"} == {"silver", "blue"}  # image 7 is of a gray cat too
    assert {foil for answer, foil in foils if answer == "gray"} == {"blue"}  # silver is nearly gray
    assert {foil for answer, foil in foils if answer == "bicycle"} == set()  # a bike is one, the dog is in the question
    assert {foil for answer, foil in foils if answer == "bike"} == {"dog"}


def test_a_frequent_answer_is_drawn_more_often(tmp_path: Path) -> None:
    many = [(f"what is the color of thing {i} ?", "white" if i else "green", 100 + i, 2) for i in range(10)]
    coco_qa(tmp_path, [*many, ("what is the color of the wall ?", "blue", 9, 2)])
    foils = [pair.foil for seed in range(60) for pair in drawn(tmp_path, seed=seed) if pair.answer == "blue"]
    assert 45 <= foils.count("white") < 60  # nine of ten


def test_a_line_without_another_answer_or_of_another_type_is_left_out_and_counted(tmp_path: Path) -> None:
    coco_qa(tmp_path, [*ROWS, ("what is in the room ?", "kitchen", 20, 3), ROWS[4]])
    assert drawn(tmp_path, types=["number"]).dropped == {
        "its type is not asked for": 8,
        "the same row is there before": 1,
    }
    assert drawn(tmp_path).dropped["there is no other answer of its type"] == 2  # the kitchen, and the bicycle


def test_pairs_stay_whatever_other_lines_there_are_of_other_types(tmp_path: Path) -> None:
    before = {pair.id: pair.foil for pair in drawn(coco_qa(tmp_path / "a", ROWS[:6]), types=["color"])}
    after = {pair.id: pair.foil for pair in drawn(coco_qa(tmp_path / "b", ROWS), types=["color"])}
    assert before == after


def test_the_split_says_which_folder_and_which_pictures(tmp_path: Path) -> None:
    coco_qa(tmp_path, ROWS[:4], "train")
    assert all("COCO_train2014_" in str(pair.clean.image) for pair in drawn(tmp_path, split="train"))
    says(refusal(lambda: drawn(tmp_path)), str(tmp_path / "test"), "no folder")
    says(refusal(lambda: drawn(tmp_path, split="val")), "pairs.split", "'val'", "'train'", "'test'")


def test_a_suffix_stands_behind_the_question_and_the_question_keeps_a_span(tmp_path: Path) -> None:
    pair = drawn(coco_qa(tmp_path, ROWS[:4]), suffix=" Answer in one word.")[0]
    assert pair.clean.text.endswith(" ? Answer in one word.")
    assert pair.clean.text[slice(*pair.spans["asked"])] + " Answer in one word." == pair.clean.text


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("types.txt", "2\n2\n9\n2\n", ("line 3 of questions.txt", "'types' is no number from 0 to 3", "9")),
        ("types.txt", "2\ncolor\n2\n2\n", ("line 2 of questions.txt", "'types' is no whole number", "'color'")),
        ("img_ids.txt", "7\n\n8\n9\n", ("line 2 of questions.txt", "'img_ids'", "whole number")),
        ("answers.txt", "red\ngray\n\nblue\n", ("line 3 of questions.txt", "'answers' is empty")),
        ("answers.txt", "red\ngray\n", ("answers.txt", "ends at line 2", "questions.txt", "cut off")),
    ],
)
def test_a_line_that_is_wrong_is_an_error_with_its_number(
    tmp_path: Path, file: str, content: str, parts: tuple[str, ...]
) -> None:
    coco_qa(tmp_path, ROWS[:4])
    (tmp_path / "test" / file).write_text(content)
    says(refusal(lambda: drawn(tmp_path)), *parts)
    if "cut off" not in parts:
        assert sum(drawn(tmp_path, on_error="skip").dropped.values()) == 1


def test_a_file_that_is_not_utf8_or_is_missing_is_refused(tmp_path: Path) -> None:
    coco_qa(tmp_path, ROWS[:4])
    (tmp_path / "test" / "questions.txt").write_bytes(b"a\nb\ncaf\xe9\nd\n")
    says(refusal(lambda: drawn(tmp_path)), "questions.txt, line 3", "0xe9", "UTF-8")
    (tmp_path / "test" / "questions.txt").unlink()
    says(refusal(lambda: drawn(tmp_path)), "questions.txt", "does not exist")


def test_a_missing_picture_is_an_error_or_skipped(tmp_path: Path) -> None:
    coco_qa(tmp_path, ROWS[:4])
    (tmp_path / "images" / "val2014" / "COCO_val2014_000000000008.jpg").unlink()
    says(refusal(lambda: drawn(tmp_path)), "line 3 of questions.txt", "COCO_val2014_000000000008.jpg", "does not exist")
    assert drawn(tmp_path, on_error="skip").dropped == {"error: an image does not exist": 1}


@pytest.mark.parametrize(
    "name",
    [
        "val2014/COCO_val2014_000000000042.jpg",
        "COCO_train2014_000000000042.jpg",
        "train2017/000000000042.jpg",
        "000000000042.jpg",
    ],
)
def test_a_picture_of_coco_is_found_whatever_its_release_calls_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    coco_picture(tmp_path, 43)
    pictures = CocoPictures(tmp_path, ("val", "train"))
    for _ in range(2):
        assert pictures(42) == path
        assert pictures(43) == tmp_path / "val2014" / "COCO_val2014_000000000043.jpg"
        assert pictures(44) == tmp_path / "val2014" / "COCO_val2014_000000000044.jpg"


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    coco_qa(tmp_path / "qa", ROWS[:4])
    (tmp_path / "qa" / "images").rename(tmp_path / "coco")
    assert drawn(tmp_path / "qa", images=tmp_path / "coco")[0].clean.image.is_relative_to(tmp_path / "coco")


def test_a_preset_runs_on_its_files(tmp_path: Path) -> None:
    rows = [("what color is the ring ?", "red", 0, 2), ("what color is the star ?", "blue", 1, 2)]
    pairs = {"dataset": "coco_qa", "path": str(coco_qa(tmp_path, rows)), "n": 2, "keep": "all"}
    ds = vp.run(vp.Experiment.from_spec("palit2023", {"pairs": pairs, "corruption.draws": 2}), progress=False)
    assert ds.sizes["example"] == 2 and set(ds["answer"].values) == {"red", "blue"} == set(ds["foil"].values)
    assert np.isfinite(ds["probability_corrupted"].values).all()
    assert ds.attrs["pairs_considered"] == 2 and set(ds["task"].values) == {"color"}
