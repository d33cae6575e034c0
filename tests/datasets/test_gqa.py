"""GQA's six tasks: questions as tables and as GQA's own files have them, with the boxes of what they ask about."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from tests.datasets.kit_questions import GQA_FILES, gqa, gqa_question, gqa_table
from tests.refusals import refusal, says
from vlm_patching.pairs.gqa import TASKS

ATTRIBUTES = [
    ("Is the jar full or empty?", "empty", "full", "jar"),
    ("Is the wall dry or maybe wet?", "dry", "wet", "wall"),
    ("Is the bowl white or is it blue?", "white", "blue", "bowl"),
    ("Is this a chocolate or vanilla cake?", "vanilla", "chocolate", "cake"),
]
THINGS = [
    ("Which kind of animal is this, a cat or an owl?", "owl", "cat", "animal"),
    ("What device is black, the laptop computer or the screen?", "screen", "laptop", "device"),
    ("What fruits are that, grapes or plums?", "grapes", "plums", "fruit"),
]
SIDES = [
    ("Is the red bag to the left or to the right of the box?", "left", "right", "box,bag"),
    ("Is the net on the {left} or on the right of the house?", "right", "left", "house,net"),
    ("Is the net in front or behind the house?", "behind", "front", "house,net"),
]


def drawn(folder: Path, **options: Any) -> vp.pairs.Pairs:
    return vp.load_pairs("gqa", path=folder, **options)


def words_of(pair: vp.Pair) -> dict[str, str]:
    return {name: pair.clean.text[slice(*span)] for name, span in pair.spans.items()}


def test_two_options_change_places_where_the_sentence_allows_it_and_each_comes_first_as_often(tmp_path: Path) -> None:
    for number in range(2):
        gqa_table(tmp_path, "ChooseAttr", ATTRIBUTES * 5, "choose color")
        pairs = drawn(tmp_path, tasks=["ChooseAttr"], seed=number)
        asked = Counter((pair.clean.text, pair.answer, pair.foil) for pair in pairs)
        either = {
            ("Is the jar full or empty?", "Is the jar empty or full?"),
            ("Is the wall dry or maybe wet?", "Is the wall wet or maybe dry?"),
            ("Is the bowl white or is it blue?", "Is the bowl blue or is it white?"),
        }
        assert {text for text, *_ in asked} <= {"Is this a chocolate or vanilla cake?"} | {
            t for two in either for t in two
        }
        assert asked["Is this a chocolate or vanilla cake?", "vanilla", "chocolate"] == 5
        choices = [pair for pair in pairs if "vanilla" not in pair.clean.text]
        first = sum(pair.spans["answer_option"] < pair.spans["foil_option"] for pair in choices)
        assert 5 <= first <= 10  # of 15, among 20 of which every second has the answer first
        for pair in pairs:
            said = words_of(pair)
            assert (said["answer_option"], said["foil_option"]) == (pair.answer, pair.foil)
            assert said["subject"] in ("jar", "wall", "bowl", "cake")


def test_published_texts_stay_as_they_are(tmp_path: Path) -> None:
    gqa_table(tmp_path, "ChooseAttr", ATTRIBUTES)
    gqa_table(tmp_path, "ChooseCat", THINGS, "choose name")
    pairs = drawn(tmp_path, tasks=["ChooseAttr", "ChooseCat"], order="published")
    assert {(p.clean.text, p.answer, p.foil) for p in pairs} == {row[:3] for row in ATTRIBUTES + THINGS}
    assert all(words_of(pair)["answer_option"] == pair.answer for pair in pairs)


def test_articles_follow_their_words_and_compounds_stay_together(tmp_path: Path) -> None:
    gqa_table(tmp_path, "ChooseCat", THINGS, "choose name")
    texts = {pair.clean.text for seed in range(12) for pair in drawn(tmp_path, tasks=["ChooseCat"], seed=seed)}
    assert texts == {
        "Which kind of animal is this, a cat or an owl?",
        "Which kind of animal is this, an owl or a cat?",
        "What device is black, the laptop computer or the screen?",
        "What fruits are that, grapes or plums?",
        "What fruits are that, plums or grapes?",
    }
    vocabulary = drawn(tmp_path, tasks=["ChooseCat"]).vocabulary.words
    assert {role: set(words) for role, words in vocabulary.items()} == {
        "thing": {"cat", "owl"},
        "thing, plural": {"grapes", "plums"},
    }


def test_two_things_are_told_apart_and_front_stays_where_it_is(tmp_path: Path) -> None:
    gqa_table(tmp_path, "ChooseRel", SIDES, "choose rel")
    texts = set()
    for seed in range(12):
        for pair in drawn(tmp_path, tasks=["ChooseRel"], seed=seed):
            said = words_of(pair)
            texts.add(pair.clean.text)
            assert pair.regions == {"object_1": (10, 20, 40, 60), "object_2": (50, 60, 70, 80)}
            first, second = ("box", "bag") if "bag" in pair.clean.text else ("house", "net")
            assert (said["object_1"], said["object_2"]) == (first, second)
    assert texts == {
        "Is the red bag to the left or to the right of the box?",
        "Is the red bag to the right or to the left of the box?",
        "Is the net on the {left} or on the right of the house?",  # a text with braces is no template
        "Is the net in front or behind the house?",
    }


def test_a_foil_is_the_opposite_or_another_answer_of_the_task(tmp_path: Path) -> None:
    gqa_table(tmp_path, "QueryAttr", [("On which side is the jar?", "right", "", "jar")], "query")
    gqa_table(
        tmp_path,
        "LogicalObj",
        [("Are there jars or mugs that are red?", "yes", "", "jar,mug")],
        "or",
        ((0, 0, 9, 9), None),
    )
    compare = [
        ("What do the cup and the pan have in common?", a, "", "cup,pan") for a in ("color", "material", "color")
    ]
    gqa_table(tmp_path, "CompareAttr", compare, "common")
    pairs = drawn(tmp_path, tasks=["QueryAttr", "LogicalObj", "CompareAttr"])
    assert {(pair.task, pair.answer, pair.foil) for pair in pairs} == {
        ("QueryAttr", "right", "left"),
        ("LogicalObj", "yes", "no"),
        ("CompareAttr", "color", "material"),
        ("CompareAttr", "material", "color"),
    }
    logical = next(pair for pair in pairs if pair.task == "LogicalObj")
    assert logical.regions == {"object_1": (0, 0, 9, 9)}  # no mug is in the picture
    assert words_of(logical) == {"object_1": "jars", "object_2": "mugs"}
    assert all(pair.corrupted == pair.clean for pair in pairs)


def test_boxes_are_cut_at_the_picture_s_edge_or_left_out(tmp_path: Path) -> None:
    rows = [("On which side is the jar?", "right", "", "jar")]
    gqa_table(tmp_path, "QueryAttr", rows, "query", ((90, 70, 30, 30),))
    assert drawn(tmp_path, tasks=["QueryAttr"]).pairs[0].regions == {"object": (90, 70, 96, 80)}
    gqa_table(tmp_path, "QueryAttr", rows, "query", ((96, 70, 30, 30),))
    assert drawn(tmp_path, tasks=["QueryAttr"]).pairs[0].regions == {}


def test_a_task_without_its_table_or_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    says(refusal(lambda: drawn(tmp_path)), "val_balanced_questions.json", "_ChooseAttr.csv", str(tmp_path))
    path = gqa_table(tmp_path, "ChooseAttr", ATTRIBUTES)
    says(refusal(lambda: drawn(tmp_path)), "no table of ChooseCat", "It has ChooseAttr")
    says(refusal(lambda: drawn(tmp_path, split="train")), "pairs.split", "of val", "'train'")
    says(refusal(lambda: drawn(tmp_path, tasks=["ChooseAtr"])), "pairs.tasks", "'ChooseAttr'")
    path.write_text(path.read_text().replace("central object x", "x"))
    says(refusal(lambda: drawn(tmp_path, tasks=["ChooseAttr"])), "line 1", "no column 'central object x'")


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("image_w", "wide", "'image_w' is no whole number"),
        ("central object x", "3.5", "'central object x' is no whole number"),
        ("true option", "full", "its answer is not its true option"),
        ("question", "", "'question' is empty"),
        ("false option", "empty", "its two options are the same"),
    ],
)
def test_a_row_that_is_wrong_is_an_error_with_its_line(tmp_path: Path, column: str, value: str, reason: str) -> None:
    path = gqa_table(tmp_path, "ChooseAttr", ATTRIBUTES)
    header, first, *others = path.read_text().splitlines()
    at = header.split(",").index(column)
    cells = first.split('"')[0].split(",")  # no comma is quoted before the operations
    if at < len(cells) - 1:
        cells[at] = value
        first = ",".join(cells) + first[len(first.split('"')[0]) :]
    else:
        back = at - len(header.split(","))
        behind = first.split(",")
        behind[back] = value
        first = ",".join(behind)
    path.write_text("\n".join([header, first, *others]) + "\n")
    message = refusal(lambda: drawn(tmp_path, tasks=["ChooseAttr"]))
    says(message, f"{path}, line 2")
    assert drawn(tmp_path, tasks=["ChooseAttr"], on_error="skip").dropped == {f"error: {reason}": 1}


# GQA's own files

OWN = {
    "01": gqa_question(1, "Is the jar red or blue?", "red", "chooseAttr",
        ("select", "jar (11)"), ("choose color", "red|blue")),
    "02": gqa_question(
        2, "Is the bag to the right or to the left of the box?", "left", "relChooser",
        ("select", "box (11)"), ("choose rel", "bag,to the left of|to the right of,s (12)"),
    ),
    "03": gqa_question(
        3, "Is the house in front of or behind the tree?", "behind", "relChooser",
        ("select", "tree (11)"), ("choose rel", "house,behind|in front of,s (12)"),
    ),
    "04": gqa_question(
        1, "Are there jars or mugs that are red?", "no", "existThatOrC",
        ("select", "jar (11)"), ("filter color", "red"), ("exist", "?"),
        ("select", "mug (-) "), ("filter color", "red"), ("exist", "?"), ("or", ""),
    ),
    "05": gqa_question(1, "What animal is big, the cat or the dog?", "cat", "categoryThatChoose",
        ("select", "animal (12)"), ("filter size", "big"), ("choose name", "cat|dog")),
    "06": gqa_question(1, "Which side is the jar on?", "right", "positionQuery",
        ("select", "jar (11)"), ("query", "hposition")),
    "07": gqa_question(1, "What do the jar and the lid have in common?", "color", "twoCommon",
        ("select", "jar (11)"), ("select", "lid (12) "), ("common", "")),
    "08": gqa_question(2, "What do the box and the bag have in common?", "material", "twoCommon",
        ("select", "box (11)"), ("select", "bag (99)"), ("common", "")),
    "09": gqa_question(1, "Is the jar red?", "yes", "verifyAttr", ("select", "jar (11)"), ("verify color", "red")),
    "10": gqa_question(1, "Is the jar on the table red or blue?", "red", "chooseAttr",
        ("select", "table (12)"), ("relate", "jar,on,s (11)"), ("choose color", "red|blue")),
}  # fmt: skip
BOXES = {"11": (10, 20, 30, 40), "12": (50, 60, 80, 10), "13": (0, 0, 5, 5)}


def test_gqa_s_own_questions_are_those_that_the_tables_have(tmp_path: Path) -> None:
    pairs = drawn(gqa(tmp_path, OWN, BOXES), order="published")
    by_id = {pair.id: pair for pair in pairs}
    assert {name: (pair.task, pair.answer, pair.foil) for name, pair in by_id.items()} == {
        "01": ("ChooseAttr", "red", "blue"),
        "02": ("ChooseRel", "left", "right"),
        "03": ("ChooseRel", "behind", "front"),
        "04": ("LogicalObj", "no", "yes"),
        "05": ("ChooseCat", "cat", "dog"),
        "06": ("QueryAttr", "right", "left"),
        "07": ("CompareAttr", "color", "material"),
        "08": ("CompareAttr", "material", "color"),
    }
    assert pairs.dropped == {"it is of no task that is asked for": 2}  # of another kind, and with a step more
    jar, bag = (10, 20, 40, 60), (50, 60, 96, 70)
    assert by_id["01"].regions == by_id["06"].regions == {"object": jar}
    assert by_id["02"].regions == {"object_1": jar, "object_2": bag}
    assert by_id["04"].regions == by_id["08"].regions == {"object_1": jar}  # no mug, and a bag without a box
    assert words_of(by_id["02"])["object_1"] == "box" and words_of(by_id["02"])["object_2"] == "bag"
    assert by_id["03"].clean.image == tmp_path / "images" / "3.jpg"
    assert {pair.task for pair in drawn(tmp_path, tasks=["ChooseRel"])} == {"ChooseRel"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"semantic": "select"}, "'semantic' is no program"),
        ({"semantic": [{"operation": "select"}]}, "'semantic' is no program"),
        ({"types": {}, "semantic": []}, "'semantic' is no program"),
        ({"answer": "green"}, "its answer is none of two options"),
        ({"imageId": 3}, "'imageId' is no text"),
    ],
)
def test_a_question_of_gqa_that_is_wrong_is_an_error_with_its_key(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    folder = gqa(tmp_path, {**OWN, "01": OWN["01"] | change} if "imageId" not in change else OWN, BOXES)
    if "imageId" in change:
        file = folder / "questions1.2" / "val_balanced_questions.json"
        file.write_text(json.dumps({**OWN, "01": OWN["01"] | change}))
    says(refusal(lambda: drawn(folder)), "val_balanced_questions.json", "'01'", reason)
    assert drawn(folder, on_error="skip").dropped[f"error: {reason}"] == 1


def test_scene_graphs_that_are_missing_or_cut_off_are_refused(tmp_path: Path) -> None:
    file = gqa(tmp_path, OWN, BOXES) / "sceneGraphs" / "val_sceneGraphs.json"
    whole = file.read_text()
    file.write_text(whole[:-20])
    says(refusal(lambda: drawn(tmp_path)), str(file), "cut off")
    file.unlink()
    says(refusal(lambda: drawn(tmp_path)), "val_sceneGraphs.json", "does not exist")


def test_tables_come_before_gqa_s_own_files(tmp_path: Path) -> None:
    gqa_table(gqa(tmp_path, OWN, BOXES), "ChooseAttr", ATTRIBUTES)
    assert drawn(tmp_path, tasks=["ChooseAttr"]).considered == len(ATTRIBUTES)
    assert set(GQA_FILES) == set(TASKS)


def test_a_preset_runs_on_its_files_and_knocks_attention_to_regions_out(tmp_path: Path) -> None:
    rows = [("Is the ring to the left or to the right of the star?", "left", "right", "star,ring")] * 3
    gqa_table(tmp_path, "ChooseRel", rows, "choose rel", ((0, 0, 20, 20), (60, 50, 30, 30)))
    pairs = {"dataset": "gqa", "path": str(tmp_path), "tasks": ["ChooseRel"], "n": 2, "keep": "all"}
    edges = [
        "image:regions -> asked",
        "image:other -> asked",
        "image:object_1+image:object_2 -> asked",
        "asked -> last",
    ]
    changes = {"pairs": {**pairs, "suffix": " in one word"}, "knockout.edges": edges}
    ds = vp.run(vp.Experiment.from_spec("zhang2024_flow_llava", changes), progress=False)
    assert ds.sizes["example"] == 2 and np.isfinite(ds["probability"].values).all()
    assert np.allclose(ds["probability"].sel(edges=edges[0]), ds["probability"].sel(edges=edges[2]))
    assert not np.allclose(ds["probability"].sel(edges=edges[0]), ds["probability"].sel(edges=edges[1]))
    first = [text.index("left") < text.index("right") for text in ds["text"].values]
    assert sorted(first) == [False, True]
