"""CLEVR: one question, two scenes that its program answers differently, and what its phrases name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vlm_patching as vp
from tests.datasets.kit_questions import clevr, clevr_program, clevr_question, clevr_scene
from tests.refusals import refusal, says
from vlm_patching.pairs.clevr import ATTRIBUTES, Scene, outputs, phrases_of, program_of, said, spans_of
from vlm_patching.pairs.reading.rows import Row

SCENES = [
    clevr_scene(0, ["large red rubber cube", "small blue metal sphere", "small green metal cylinder"]),
    clevr_scene(1, ["large yellow rubber cube", "small blue metal sphere", "large green metal cylinder"]),
    clevr_scene(2, ["small blue metal sphere", "large brown rubber cube", "small blue metal cylinder"]),
]
RED = clevr_question(
    0,
    0,
    "What color is the big block that is left of the tiny shiny ball?",
    "red",
    *("scene", "filter_size small", "filter_material metal", "filter_shape sphere", "unique", "relate left"),
    *("filter_size large", "filter_shape cube", "unique", "query_color"),
)
COUNT = clevr_question(
    1,
    0,
    "How many small metallic things are there?",
    "2",
    "scene",
    "filter_size small",
    "filter_material metal",
    "count",
)
EXIST = clevr_question(
    2, 2, "Are there any brown blocks?", "yes", "scene", "filter_color brown", "filter_shape cube", "exist"
)
EITHER = clevr_question(
    3,
    1,
    "What number of large things are either yellow cubes or green cylinders?",
    "2",
    *("scene", "filter_color yellow", "filter_shape cube", "scene", "filter_color green", "filter_shape cylinder"),
    *(("union", [2, 5]), "filter_size large", "count"),
)
SAME = clevr_question(
    4,
    0,
    "Do the large cube and the green thing have the same material?",
    "no",
    *("scene", "filter_size large", "filter_shape cube", "unique", "query_material"),
    *("scene", "filter_color green", "unique", "query_material", ("equal_material", [4, 8])),
)
MORE = clevr_question(
    5,
    0,
    "Are there more small things than rubber things?",
    "yes",
    *("scene", "filter_size small", "count", "scene", "filter_material rubber", "count", ("greater_than", [2, 5])),
)
ALL = [RED, COUNT, EXIST, EITHER, SAME, MORE]


def drawn(folder: Path, **options: Any) -> vp.pairs.Pairs:
    return vp.load_pairs("clevr", path=folder, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return clevr(tmp_path, SCENES, ALL)


def test_the_other_scene_answers_the_same_question_otherwise(folder: Path) -> None:
    pairs = drawn(folder, seed=1)
    by_question = {pair.clean.text: pair for pair in pairs}
    for question in (RED, COUNT):
        pair = by_question[question["question"]]
        assert pair.answer == question["answer"]
        assert pair.clean.image == folder / "images" / "val" / question["image_filename"]
        assert pair.corrupted.text == pair.clean.text
    assert by_question[RED["question"]].foil == "yellow"  # scene 2 has no big block left of the ball
    assert by_question[RED["question"]].corrupted.image.name == "CLEVR_val_000001.png"
    assert by_question[COUNT["question"]].foil == "1"
    assert {pair.task for pair in pairs} == {"query", "count", "exist", "compare_number"}
    assert pairs.dropped == {"no scene of as many things, of those that were drawn, answers it otherwise": 1}
    assert SAME["question"] not in by_question  # in no scene are both of one material


def test_an_answer_and_a_foil_are_what_the_program_gives_on_their_scenes(folder: Path) -> None:
    scenes = {scene["image_filename"]: Scene.of(Row("", scene)) for scene in SCENES}
    programs = {question["question"]: program_of(Row("", question)) for question in ALL}
    for seed in range(5):
        for pair in drawn(folder, seed=seed):
            for prompt, word in ((pair.clean, pair.answer), (pair.corrupted, pair.foil)):
                assert said(outputs(programs[prompt.text], scenes[prompt.image.name])[-1]) == word


def test_phrases_become_spans_in_the_order_of_the_text_and_the_one_asked_about_has_a_name(folder: Path) -> None:
    pairs = {pair.clean.text: pair for pair in drawn(folder)}
    words = {
        question: {name: question[slice(*span)] for name, span in pair.spans.items()}
        for question, pair in pairs.items()
    }
    assert words[RED["question"]] == {
        "constraint_1": "big block",
        "constraint_2": "tiny shiny ball",
        "constraint": "big block",
        "subject": "big block",
    }
    assert words[EITHER["question"]] == {
        "constraint_1": "large things",
        "constraint_2": "yellow cubes",
        "constraint_3": "green cylinders",
        "constraint": "large things",
        "subject": "large things",
    }
    assert {pair.clean.text for pair in drawn(folder, constraints=2)} == {RED["question"], MORE["question"]}


def test_regions_are_boxes_around_the_things_that_phrases_name(folder: Path) -> None:
    pair = next(pair for pair in drawn(folder) if pair.clean.text == RED["question"])
    assert set(pair.regions) == {"object", "object_1", "object_2"}
    assert pair.regions["object"] == pair.regions["object_1"]
    for name, number in (("object_1", 0), ("object_2", 1)):
        x, y, _ = SCENES[0]["objects"][number]["pixel_coords"]
        x0, y0, x1, y1 = pair.regions[name]
        assert x0 < x < x1 and y0 < y < y1
    large, small = ((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (pair.regions["object_1"], pair.regions["object_2"]))
    assert large > 4 * small
    count = next(pair for pair in drawn(folder) if pair.clean.text == COUNT["question"])
    assert not count.regions  # its phrase names two things


def test_a_box_is_as_large_as_the_camera_shows_the_thing() -> None:
    scene = clevr_scene(0, ["large red metal sphere"])
    scene["objects"][0] |= {"pixel_coords": [200, 150, 10.5], "3d_coords": [0.0, 0.0, 0.7]}
    assert Scene.of(Row("", scene)).box(0) == (165, 115, 235, 185)  # 525 pixels · 0.7 / 10.5 on every side
    scene["objects"][0]["pixel_coords"] = [470, 10, 10.5]
    assert Scene.of(Row("", scene)).box(0) == (435, 0, 480, 45)
    scene["objects"][0]["pixel_coords"] = [900, 10, 10.5]
    assert Scene.of(Row("", scene)).box(0) is None


def test_kinds_of_question_are_asked_for(folder: Path) -> None:
    assert {pair.answer for pair in drawn(folder, kinds=["query"])} == {"red"}
    assert drawn(folder, kinds=["exist"]).dropped == {"its kind is not asked for": 5}
    says(refusal(lambda: drawn(folder, kinds=["colour"])), "pairs.kinds", "'colour'", "'compare_number'")


things = st.tuples(
    st.sampled_from(["small", "large"]),
    st.sampled_from(["red", "blue", "gray"]),
    st.sampled_from(["rubber", "metal"]),
    st.sampled_from(["cube", "sphere", "cylinder"]),
).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(things, min_size=1, max_size=10), st.sampled_from(range(4)), st.data())
def test_programs_give_what_counting_by_hand_gives(scene: list[str], attribute: int, data: st.DataObject) -> None:
    made = Scene.of(Row("", clevr_scene(0, scene)))
    all_words = [thing.split() for thing in scene]
    value = data.draw(st.sampled_from([words[attribute] for words in all_words]))
    name = ATTRIBUTES[attribute]

    def result(*steps: Any) -> Any:
        given = outputs(program_of(Row("", {"program": clevr_program(*steps)})), made)
        return None if given is None else given[-1]

    having = [i for i, words in enumerate(all_words) if words[attribute] == value]
    filtered = ("scene", f"filter_{name} {value}")
    assert result(*filtered, "count") == len(having)
    assert result(*filtered, "exist") is True
    assert result("scene", "count") == len(scene)
    both = ("scene", "filter_size small", "scene", f"filter_{name} {value}")
    small = [i for i, words in enumerate(all_words) if words[0] == "small"]
    assert result(*both, ("intersect", [1, 3]), "count") == len(set(small) & set(having))
    assert result(*both, ("union", [1, 3]), "count") == len(set(small) | set(having))
    counts = ("scene", "filter_size small", "count", *filtered, "count")
    inputs = [2, 5]
    counts = (*counts[:4], (counts[4], [3]), counts[5])
    assert result(*counts, ("less_than", inputs)) == (len(small) < len(having))
    assert result(*counts, ("equal_integer", inputs)) == (len(small) == len(having))
    if len(having) != 1:
        assert result(*filtered, "unique", "query_color") is None
        return
    (one,) = having
    assert result(*filtered, "unique", "query_color") == all_words[one][1]
    assert (
        result(*filtered, "unique", "same_shape", "count")
        == sum(words[3] == all_words[one][3] for words in all_words) - 1
    )
    assert result(*filtered, "unique", "relate left", "count") == one
    assert result(*filtered, "unique", "relate front", "count") == len(scene) - one - 1


def test_two_phrases_that_say_the_same_are_not_told_apart(tmp_path: Path) -> None:
    twice = clevr_question(
        9,
        0,
        "What color is the tiny thing right of the small object?",
        "green",
        *("scene", "filter_size small", "unique", "relate right", "filter_size small", "unique", "query_color"),
    )
    scenes = [clevr_scene(0, ["small red metal cube", "small green metal cube"]), *SCENES]
    program = program_of(Row("", twice))
    assert spans_of(twice["question"], phrases_of(program)) is None
    one = clevr_question(8, 1, "How many red things are there?", "1", "scene", "filter_color red", "count")
    scenes[0]["objects"][1]["size"] = "large"
    twice |= {
        "program": [*twice["program"][:4], *clevr_program("scene", "filter_size large")[1:], *twice["program"][5:]]
    }
    twice["program"][4]["inputs"] = [3]
    one |= {"image_filename": "CLEVR_val_000000.png", "answer": "1"}
    folder = clevr(
        tmp_path, [scenes[0], clevr_scene(1, ["small blue metal cube", "large gray metal cube"])], [twice, one]
    )
    assert drawn(folder).dropped == {"its phrases cannot be told from each other by its program": 1}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"answer": "gray"}, ("its program does not give its answer", "CLEVR_val_000000.png", "'red'", "'gray'")),
        ({"image_filename": "CLEVR_val_000077.png"}, ("its scene cannot be used", "CLEVR_val_000077.png")),
        ({"program": []}, ("'program' is no program of CLEVR",)),
        ({"program": "scene"}, ("'program' is no program of CLEVR",)),
        ({"program": clevr_program("scene", "filter_color pink", "count")}, ("no program of CLEVR", "pink")),
        ({"program": clevr_program("scene", "paint_color red", "count")}, ("no program of CLEVR", "paint")),
        ({"program": clevr_program("scene", "unique", "count")}, ("no program of CLEVR", "count takes")),
        ({"program": clevr_program("scene", ("count", [5]))}, ("no program of CLEVR", "count takes")),
        ({"program": clevr_program("scene", "unique")}, ("no program of CLEVR", "unique, gives no answer")),
        ({"question": " "}, ("'question' is empty",)),
    ],
)
def test_a_question_that_is_wrong_is_an_error_with_its_place(
    tmp_path: Path, change: dict[str, Any], parts: tuple[str, ...]
) -> None:
    clevr(tmp_path, SCENES, [COUNT, RED | change])
    says(refusal(lambda: drawn(tmp_path)), "CLEVR_val_questions.json, questions[1]", *parts)
    pairs = drawn(tmp_path, on_error="skip")
    assert len(pairs) == 1 and [name.startswith("error: ") for name in pairs.dropped] == [True]


def test_questions_without_a_program_say_so(tmp_path: Path) -> None:
    test = {key: value for key, value in RED.items() if key not in ("program", "answer")}
    clevr(tmp_path, SCENES, [test])
    says(refusal(lambda: drawn(tmp_path)), "questions[0]", "'program' is missing")
    says(refusal(lambda: drawn(tmp_path, split="test")), "pairs.split", "'test'", "'val'")


@pytest.mark.parametrize("change", [{"objects": [{"size": "large"}]}, {"relationships": {"left": []}}, {"objects": 3}])
def test_a_scene_that_is_wrong_is_an_error_of_the_questions_about_it(tmp_path: Path, change: dict[str, Any]) -> None:
    clevr(tmp_path, [SCENES[0] | change, *SCENES[1:]], [COUNT, EXIST])
    says(refusal(lambda: drawn(tmp_path)), "questions[0]", "scenes[0]", "no scene of CLEVR")


def test_files_of_the_public_generator_say_type_and_true(tmp_path: Path) -> None:
    made = json.loads(json.dumps(EXIST | {"answer": True}).replace('"function"', '"type"'))
    pair = drawn(clevr(tmp_path, SCENES, [made]))[0]
    assert (pair.answer, pair.foil) == ("yes", "no")


def test_a_question_that_is_there_twice_is_one_pair(tmp_path: Path) -> None:
    pairs = drawn(clevr(tmp_path, SCENES, [COUNT, RED, COUNT]))
    assert len(pairs) == 2 and pairs.dropped == {"the same row is there before": 1}


def test_a_preset_runs_on_its_files_with_their_pictures_constraints_and_regions(tmp_path: Path) -> None:
    folder = clevr(tmp_path, SCENES, [RED, COUNT])
    pairs = {"dataset": "clevr", "path": str(folder), "n": 2, "keep": "all"}
    ds = vp.run(
        vp.Experiment.from_spec("notice2024_blip_heads", {"pairs": pairs, "patch.positions": ["constraint"]}),
        progress=False,
    )
    assert ds.sizes["example"] == 2 and set(ds["answer"].values) == {"red", "2"}
    assert np.isfinite(ds["probability"].values).all()
    swapped = {"corruption": {"kind": "constraint_replacement", "phrase": "green star"}, "pairs": pairs}
    ds = vp.run(vp.Experiment.from_spec("basu2024_single", swapped), progress=False)
    assert np.isfinite(ds["probability"].values).all()
    flow = {
        "pairs": {**pairs, "n": 1, "kinds": ["query"]},
        "knockout.edges": ["image:object -> question", "image:regions -> last"],
    }
    ds = vp.run(vp.Experiment.from_spec("zhang2024_flow_llava", flow), progress=False)
    assert np.isfinite(ds["probability"].values).all()
