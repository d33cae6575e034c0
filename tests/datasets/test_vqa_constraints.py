"""VQA-Constraints: where the phrase stands that the picture explains, and answers out of other files."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from tests.datasets.kit import table
from tests.datasets.kit_questions import constraints_table, dump, known_facts, ok_vqa, vqa_answers
from tests.refusals import refusal, says

KNOWN = [
    ("This mountain is located in the continent of", "This mountain", "./A photo of Blue Peak", "Blue Peak"),
    ("This river belongs to the continent of", "this river,", "./A photo of Long River", "Long River"),
    ("In this place, the language spoken is", "this place,", "./A photo of José Town", "José Town"),
    ("The language of this paper is", "this paper", "./A photo of Long River", "Long River"),
    ("This song was written by", "This film", "./A photo of Blue Peak", "Blue Peak"),
    ("This person was born in", "This person", "./A photo of Nobody", "Nobody"),
]
FACTS = [
    ("Blue Peak", "Asia", "Blue Peak is located in the continent of", "P30"),
    ("Long River", "French", "The language of Long River is", "P37"),
    ("Long River", "Europe", "Long River belongs to the continent of", "P30"),
    ("José Town", "Spanish", "In José Town, the language spoken is", "P37"),
]
COCO = "./val2014/COCO_val2014_{:012d}.jpg"
OK = [
    ("What toy is this?", "this", COCO.format(5), ""),
    ("What toy is in the bag?", "bag?", COCO.format(6), ""),
    ("What toy do these animals like?", "these animals", COCO.format(7), ""),
    ("Who rides this?", "this", COCO.format(8), ""),
    ("Who made the clock?", "this clock", COCO.format(9), ""),
]
ANSWERS = {
    50: (5, "What toy is this?", vqa_answers("teddy bear")),
    60: (6, "What toy is in the bag?", vqa_answers("doll", 6, "puppet")),
    70: (7, "what toy do these animals like?", vqa_answers("ball", 4, "puppet")),
    80: (8, "Who rides this?", [{**each, "answer": f"a{i // 2}"} for i, each in enumerate(vqa_answers("x"))]),
    90: (9, "Who made the clock?", vqa_answers("man")),
}


def drawn(folder: Path, source: str, **options: Any) -> vp.pairs.Pairs:
    return vp.load_pairs("vqa_constraints", path=folder, source=source, **options)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    constraints_table(tmp_path, "known", KNOWN)
    known_facts(tmp_path, FACTS)
    return tmp_path


def test_a_constraint_is_a_span_and_the_fact_most_like_the_question_its_answer(known: Path) -> None:
    pairs = drawn(known, "known")
    told = {
        pair.clean.text: (pair.clean.text[slice(*pair.spans["constraint"])], pair.answer, pair.foil) for pair in pairs
    }
    assert told == {
        "This mountain is located in the continent of": ("This mountain", "Asia", "Europe"),
        "This river belongs to the continent of": ("This river", "Europe", "Asia"),
        "In this place, the language spoken is": ("this place", "Spanish", "French"),
        "The language of this paper is": ("this paper", "French", "Spanish"),
    }
    assert pairs.dropped == {"its constraint does not stand in its question": 1, "it has no answer": 1}
    assert {pair.task for pair in pairs} == {"known"}
    for pair in pairs:
        assert pair.corrupted == pair.clean and pair.spans["subject"] == pair.spans["constraint"]


def test_the_first_picture_of_a_row_s_folder_is_taken_in_the_order_of_its_numbers(known: Path) -> None:
    assert {pair.clean.image.name for pair in drawn(known, "known")} == {"Image_2.jpg"}
    folder = known / "images" / "A photo of José Town"
    folder.rename(folder.with_name(unicodedata.normalize("NFD", folder.name)))  # as a Mac writes it
    assert len(drawn(known, "known")) == 4
    for file in (known / "images" / "A photo of Blue Peak").iterdir():
        file.unlink()
    says(refusal(lambda: drawn(known, "known")), "multimodal_known.csv, line 2", "holds no picture", "Blue Peak")
    assert drawn(known, "known", on_error="skip").dropped["error: its folder holds no picture"] == 1
    (known / "images" / "A photo of Blue Peak").rmdir()
    says(refusal(lambda: drawn(known, "known")), "line 2", "A photo of Blue Peak", "does not exist")


def test_answers_of_ok_vqa_are_the_most_frequent_of_the_same_picture_and_question(tmp_path: Path) -> None:
    ok_vqa(tmp_path, ANSWERS)
    constraints_table(tmp_path, "okvqa", OK)
    pairs = {pair.clean.text: pair for pair in drawn(tmp_path, "okvqa")}
    answers = {question: pair.answer for question, pair in pairs.items()}
    assert answers == {
        "What toy is this?": "teddy bear",
        "What toy is in the bag?": "doll",
        "What toy do these animals like?": "puppet",
    }
    assert drawn(tmp_path, "okvqa").dropped == {
        "fewer than 3 of its answers agree": 1,
        "its constraint does not stand in its question": 1,
    }
    bag = pairs["What toy is in the bag?"]
    assert bag.clean.text[slice(*bag.spans["constraint"])] == "bag"
    assert bag.clean.image == tmp_path / "images" / "val2014" / "COCO_val2014_000000000006.jpg"
    foils = Counter((pair.answer, pair.foil) for seed in range(20) for pair in drawn(tmp_path, "okvqa", seed=seed))
    assert ("doll", "teddy bear") in foils and ("teddy bear", "puppet") in foils
    assert ("doll", "puppet") not in foils  # some said so of the bag


def test_a_table_of_answers_takes_the_place_of_the_published_ones(tmp_path: Path) -> None:
    rows = [
        ("Name a movie directed by this director?", "this director", f"./A photo of {name}", name)
        for name in ("A B", "C D")
    ]
    constraints_table(tmp_path, "movies", rows)
    says(refusal(lambda: drawn(tmp_path, "movies")), "pairs.answers", "image_url, question, answer")
    question = rows[0][0]
    lines = [[rows[0][2], question, "Heat", ""], [rows[1][2], question, "Alien", "Jaws"]]
    answers = table(tmp_path / "mine.csv", ["image_url", "question", "answer", "foil"], lines)
    pairs = drawn(tmp_path, "movies", answers=answers)
    assert {(pair.answer, pair.foil) for pair in pairs} == {("Heat", "Alien"), ("Alien", "Jaws")}
    table(answers, ["image_url", "question", "answer"], [lines[0][:3]])
    says(refusal(lambda: drawn(tmp_path, "movies", answers=answers)), "no pair left", "it has no answer (1)")
    table(answers, ["image_url", "question", "answers"], [lines[0][:3]])
    says(refusal(lambda: drawn(tmp_path, "movies", answers=answers)), "mine.csv, line 1", "'answer'")
    table(answers, ["image_url", "question", "answer"], [[rows[0][2], question, ""]])
    says(refusal(lambda: drawn(tmp_path, "movies", answers=answers)), "mine.csv, line 2", "'answer' is empty")


def test_a_source_must_be_named_and_its_files_be_there(known: Path) -> None:
    says(refusal(lambda: vp.load_pairs("vqa_constraints", path=known)), "pairs.source")
    says(refusal(lambda: drawn(known, "film")), "pairs.source", "'film'", "'movies'")
    says(refusal(lambda: drawn(known, "okvqa")), "OpenEnded_mscoco_val2014_questions.json", "does not exist")
    (known / "known_1000.json").rename(known / "known_100.json")
    says(refusal(lambda: drawn(known, "known")), "known_1000.json", "Did you mean 'known_100.json'?")


@pytest.mark.parametrize("change", [{"attribute": None}, {"prompt": ""}, {"subject": 4}], ids=str)
def test_a_fact_that_is_wrong_is_an_error_with_its_place(known: Path, change: dict[str, Any]) -> None:
    facts = json.loads((known / "known_1000.json").read_text())
    dump(known / "known_1000.json", [facts[0], facts[1] | change])
    says(refusal(lambda: drawn(known, "known")), "known_1000.json, entry[1]", repr(next(iter(change))))
    dump(known / "known_1000.json", [*facts, facts[1] | change])
    assert len(drawn(known, "known", on_error="skip")) == 4


def test_annotations_that_are_wrong_are_refused_with_their_place(tmp_path: Path) -> None:
    ok_vqa(tmp_path, {**ANSWERS, 60: (6, "What toy is in the bag?", [])})
    constraints_table(tmp_path, "okvqa", OK)
    says(refusal(lambda: drawn(tmp_path, "okvqa")), "mscoco_val2014_annotations.json", "annotations[1]", "'answers'")
    assert drawn(tmp_path, "okvqa", on_error="skip").dropped["it has no answer"] == 1


def test_rows_that_are_wrong_are_errors_with_their_line(known: Path) -> None:
    rows = [KNOWN[2], ("", "this river", "./A photo of Long River", "Long River"), KNOWN[3], KNOWN[3]]
    file = constraints_table(known, "known", rows)
    says(refusal(lambda: drawn(known, "known")), f"{file}, line 3", "'question' is empty")
    assert drawn(known, "known", on_error="skip").dropped == {
        "error: 'question' is empty": 1,
        "the same row is there before": 1,
    }
    file.write_text(file.read_text().replace("main_entity", "entity"))
    says(refusal(lambda: drawn(known, "known")), f"{file}, line 1", "no column 'main_entity'", "entity")


def test_a_preset_runs_on_its_files_with_constraints_replaced(tmp_path: Path) -> None:
    rows = [(f"what color is this {s} ?", f"this {s}", f"./A photo of {s}", s) for s in ("ring", "star")]
    constraints_table(tmp_path, "known", rows)
    known_facts(tmp_path, [(s, c, f"{s} is", "P1") for s, c in (("ring", "red"), ("star", "blue"))])
    pairs = {"dataset": "vqa_constraints", "source": "known", "path": str(tmp_path), "n": 2, "keep": "all"}
    ds = vp.run(vp.Experiment.from_spec("basu2024_single", {"pairs": pairs}), progress=False)
    assert ds.sizes["example"] == 2 and set(ds["answer"].values) == {"red", "blue"}
    assert np.isfinite(ds["probability"].values).all()
    assert not np.allclose(ds["probability_clean"], ds["probability_corrupted"])
    changes = {"pairs": pairs, "corruption.phrase": "paris city", "patch.window": [1]}
    ds = vp.run(vp.Experiment.from_spec("basu2024_single", changes), progress=False)
    assert np.isfinite(ds["logit_difference"].values).all()
