"""VQA v2: one question, two pictures, two answers that people agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from tests.datasets.kit_questions import coco_picture, vqa_answers, vqa_v2
from tests.refusals import refusal, says

ASKED = {
    7000: (7, "What color is the bus?", "other", vqa_answers("red")),
    8001: (8, "What color is the bus?", "other", vqa_answers("blue", 8)),
    9000: (9, "How many dogs are there?", "number", vqa_answers("2")),
    10002: (10, "How many dogs are there?", "number", vqa_answers("3", 6, "4")),
    11000: (11, "Is it raining?", "yes/no", vqa_answers("yes", 7, "no")),
    12000: (12, "Is it raining?", "yes/no", vqa_answers("no")),
    13000: (13, "What is he riding?", "other", vqa_answers("bike")),
    14000: (14, "What is he riding?", "other", vqa_answers("bicycle")),
    15000: (15, "What is this?", "other", vqa_answers("cat", 5)),
    16000: (16, "What is this?", "other", vqa_answers("dog")),
    17000: (17, "What is this?", "other", vqa_answers("dog")),
    18000: (18, "What is that?", "other", vqa_answers("cow")),
}
PAIRS = [[7000, 8001], [9000, 10002], [12000, 11000], [13000, 14000], [15000, 16000], [16000, 17000], [16000, 18000]]
FILE = "v2_mscoco_val2014_{}.json"


def drawn(folder: Path, **options: Any) -> vp.pairs.Pairs:
    return vp.load_pairs("vqa_v2", path=folder, **options)


def test_a_complementary_pair_is_asked_of_both_pictures_with_both_answers(tmp_path: Path) -> None:
    pairs = drawn(vqa_v2(tmp_path, ASKED, PAIRS))
    asked = {(q, said[0]["answer"]): image for image, q, _, said in ASKED.values()}
    assert {pair.clean.text for pair in pairs} == {"What color is the bus?", "How many dogs are there?"}
    for pair in pairs:
        assert pair.corrupted.text == pair.clean.text
        for prompt, word in ((pair.clean, pair.answer), (pair.corrupted, pair.foil)):
            assert prompt.image.name == f"COCO_val2014_{asked[prompt.text, word]:012d}.jpg"
    assert {pair.id: pair.task for pair in pairs} == {"val-7000-8001": "other", "val-9000-10002": "number"}
    assert pairs.considered == 7
    assert pairs.dropped == {
        "annotators gave the other picture's answer too": 1,  # three of ten say that it does not rain
        "answer and foil mean nearly the same": 1,
        "fewer than 6 annotators agree": 1,
        "both pictures have the same answer": 1,
        "its two questions differ": 1,
    }


def test_the_seed_draws_which_picture_is_the_clean_one(tmp_path: Path) -> None:
    vqa_v2(tmp_path, ASKED, PAIRS[:1])
    answers = [drawn(tmp_path, seed=seed)[0].answer for seed in range(20)]
    assert set(answers) == {"red", "blue"} and answers == [drawn(tmp_path, seed=s)[0].answer for s in range(20)]
    vqa_v2(tmp_path, ASKED, [[8001, 7000], [7000, 8001]])
    pairs = drawn(tmp_path, seed=3)
    assert pairs[0].answer == answers[3]  # the order of the two does not matter
    assert pairs.dropped == {"the same row is there before": 1}


def test_agreement_and_types_of_answer_are_asked_for(tmp_path: Path) -> None:
    vqa_v2(tmp_path, ASKED, PAIRS)
    assert {pair.task for pair in drawn(tmp_path, answer_types=["number"])} == {"number"}
    assert drawn(tmp_path, answer_types=["number"]).dropped == {"its type of answer is not asked for": 6}
    says(refusal(lambda: drawn(tmp_path, agreement=10)), "no pair left", "fewer than 10 annotators agree (4)")
    assert drawn(tmp_path, agreement=7).dropped["fewer than 7 annotators agree"] == 2
    says(refusal(lambda: drawn(tmp_path, agreement=11)), "pairs.agreement", "10", "11")
    says(refusal(lambda: drawn(tmp_path, answer_types=["binary"])), "answer_types", "'binary'", "'yes/no'")


def test_files_may_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    vqa_v2(tmp_path, ASKED, PAIRS)
    before = drawn(tmp_path)
    for name, folder in (("OpenEnded_mscoco_val2014_questions", "Questions"), ("mscoco_val2014_annotations", "Notes")):
        (tmp_path / folder).mkdir()
        (tmp_path / f"v2_{name}.json").rename(tmp_path / folder / f"v2_{name}.json")
    assert drawn(tmp_path) == before


def test_a_pair_whose_question_is_in_no_file_is_an_error_with_its_place(tmp_path: Path) -> None:
    vqa_v2(tmp_path, ASKED, [*PAIRS[:2], [7000, 99], [7000], [7000, "x"]])
    says(refusal(lambda: drawn(tmp_path)), FILE.format("complementary_pairs"), "entry[2]", "no annotation", "99")
    assert drawn(tmp_path, on_error="skip").dropped == {
        "error: a question of it has no annotation": 1,
        "error: no list of 2": 1,
        "error: 'other' is no whole number": 1,
    }


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("annotations", {"answers": "red"}, "'answers' are no answers"),
        ("annotations", {"answers": [{"said": "red"}]}, "'answers' are no answers"),
        ("annotations", {"multiple_choice_answer": ""}, "'multiple_choice_answer' is empty"),
        ("annotations", {"answer_type": None}, "'answer_type' is no text"),
        ("annotations", {"image_id": "seven"}, "'image_id' is no whole number"),
        ("questions", {"question": ""}, "'question' is empty"),
    ],
)
def test_an_entry_that_is_wrong_is_an_error_of_the_pairs_that_need_it(
    tmp_path: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    vqa_v2(tmp_path, ASKED, PAIRS[:2])
    path = tmp_path / (FILE.format(file) if file == "annotations" else "v2_OpenEnded_mscoco_val2014_questions.json")
    data = json.loads(path.read_text())
    data[file][1] |= change
    path.write_text(json.dumps(data))
    says(refusal(lambda: drawn(tmp_path)), f"{path}, {file}[1]", reason)
    assert drawn(tmp_path, on_error="skip").dropped == {f"error: {reason}": 1}


def test_an_entry_without_an_id_is_missed_by_the_pair_that_names_it(tmp_path: Path) -> None:
    vqa_v2(tmp_path, ASKED, PAIRS[:2])
    path = tmp_path / FILE.format("annotations")
    data = json.loads(path.read_text())
    data["annotations"][1] = {"image_id": 8}
    data["annotations"][2] = "nothing"
    path.write_text(json.dumps(data))
    says(refusal(lambda: drawn(tmp_path)), "complementary_pairs.json, entry[0]", "has no annotation", "8001")


def test_files_that_are_cut_off_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    vqa_v2(tmp_path, ASKED, PAIRS)
    file = tmp_path / FILE.format("annotations")
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    says(refusal(lambda: drawn(tmp_path)), str(file), "line 1", "cut off")
    file.write_text(whole.replace('"annotations"', '"anotations"'))
    says(refusal(lambda: drawn(tmp_path)), str(file), "'annotations'", "Did you mean 'anotations'?")
    file.unlink()
    says(refusal(lambda: drawn(tmp_path)), str(file), "does not exist")
    says(refusal(lambda: drawn(tmp_path, split="train")), "v2_mscoco_train2014_annotations.json", "does not exist")


def test_a_missing_picture_of_either_side_is_an_error_or_skipped(tmp_path: Path) -> None:
    vqa_v2(tmp_path, ASKED, PAIRS)
    coco_picture(tmp_path / "images", 8).unlink()
    says(refusal(lambda: drawn(tmp_path)), "entry[0]", "COCO_val2014_000000000008.jpg", "does not exist")
    assert drawn(tmp_path, on_error="skip").dropped["error: an image does not exist"] == 1


def test_a_preset_runs_on_its_files(tmp_path: Path) -> None:
    asked = {
        1000 * i: (i, f"What color is the {shape}?", "other", vqa_answers(color))
        for i, (shape, color) in enumerate((("ring", "red"), ("ring", "blue"), ("star", "green"), ("star", "yellow")))
    }
    pairs = {"dataset": "vqa_v2", "path": str(vqa_v2(tmp_path, asked, [[0, 1000], [2000, 3000]])), "n": 2}
    changes = {"pairs": {**pairs, "keep": "all"}, "patch.positions": ["last"]}
    ds = vp.run(vp.Experiment.from_spec("notice2024_llava_heads", changes), progress=False)
    assert ds.sizes["example"] == 2 and np.isfinite(ds["logit_difference"].values).all()
    assert {frozenset(pair) for pair in zip(ds["answer"].values, ds["foil"].values, strict=True)} == {
        frozenset(("red", "blue")),
        frozenset(("green", "yellow")),
    }
    assert not np.allclose(ds["probability_clean"], ds["probability_corrupted"])
