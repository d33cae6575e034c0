"""IconQA: questions with choices; what is wrong about one diagram is right about another."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from tests.datasets.kit import picture
from tests.refusals import refusal, says
from vlm_patching.pairs import loading

LIKELY = "How likely is it that you will pick a green one?"
CHANCES = ["certain", "probable", "unlikely"]


def problem(folder: Path, number: int, question: str, choices: list[str], answer: int, /, **changes: Any) -> Path:
    """The folder of a problem, with the keys of the original data.json."""
    task = "choose_img" if choices[0].endswith(".png") else "choose_txt"
    path = folder / "iconqa" / "val" / task / str(number)
    picture(path / "image.png", number)
    for i, choice in enumerate(choices):
        if choice.endswith(".png"):
            picture(path / choice, 100 + 10 * number + i)
    data = {"question": question, "choices": choices, "answer": answer, "ques_type": task}
    data |= {"grade": "grade1", "label": "S2", **changes}
    (path / "data.json").write_text(json.dumps(data, indent=2))
    return path


def likely(folder: Path) -> Path:
    """Five problems of one question, whose choices stand in other orders, and one that asks something else."""
    for number, answer in enumerate(["certain", "certain", "unlikely", "unlikely", "unlikely"]):
        choices = CHANCES[number % 3 :] + CHANCES[: number % 3]
        problem(folder, number, LIKELY, choices, choices.index(answer))
    problem(folder, 5, "Which one is lighter?", ["cup", "bed"], 0)
    return folder


def load(folder: Path, **options: Any) -> vp.Pairs:
    return vp.load_pairs("iconqa", path=folder, **options)


def said(pair: vp.Pair) -> dict[str, str]:
    return {name: pair.clean.text[slice(*span)] for name, span in pair.spans.items()}


def test_the_foil_is_right_about_the_corrupted_diagram(tmp_path: Path) -> None:
    pairs = load(likely(tmp_path))
    assert pairs.dropped == {"no other picture is asked the same with another answer": 1} and len(pairs) == 5
    right = {"0": "certain", "1": "certain", "2": "unlikely", "3": "unlikely", "4": "unlikely"}
    for pair in pairs:
        assert pair.answer == right[pair.clean.image.parent.name]
        assert pair.foil == right[pair.corrupted.image.parent.name] != pair.answer
        assert pair.clean.text in (f"{LIKELY} certain or unlikely?", f"{LIKELY} unlikely or certain?")
        assert said(pair) == {"answer_option": pair.answer, "foil_option": pair.foil}
        assert pair.id == f"choose_txt/{pair.clean.image.parent.name}" and pair.task == "grade1 S2"
    assert sum(pair.spans["answer_option"] < pair.spans["foil_option"] for pair in pairs) == 3


def test_any_wrong_choice_may_be_the_foil_where_the_corruption_makes_its_own_picture(tmp_path: Path) -> None:
    likely(tmp_path)
    drawn = [pair for seed in range(12) for pair in load(tmp_path, foils="any", seed=seed)]
    assert {pair.foil for pair in drawn if pair.answer == "certain"} == {"probable", "unlikely"}
    assert all(pair.clean.image == pair.corrupted.image for pair in drawn)
    words = load(tmp_path, foils="any").vocabulary.words
    assert set(words) == {"grade1 S2"} and set(words["grade1 S2"]) >= {"certain", "unlikely", "cup", "bed"}


def test_a_question_that_names_its_choices_is_not_asked_twice(tmp_path: Path) -> None:
    for number in (0, 1):
        problem(tmp_path, number, "Is the number of ovals {even} Even or odd?", ["odd", "even"], number)
    for pair in load(tmp_path):
        words = ("even", "odd")[:: 1 if pair.spans["answer_option"] < pair.spans["foil_option"] else -1]
        words = words if pair.answer == "even" else words[::-1]
        assert pair.clean.text == f"Is the number of ovals {{even}} {' or '.join(words)}?"


def test_pictures_to_choose_from_change_places(tmp_path: Path) -> None:
    files = ["choice_0.png", "choice_1.png", "choice_2.png"]
    for number in range(12):
        problem(tmp_path, number, "Which shape has more sides?", files, number % 3)
    pairs = load(tmp_path, task="choose_img")
    assert len(pairs) == 12
    for pair in pairs:
        image, *shown = pair.clean.images
        number = int(image.parent.name)
        assert image.name == "image.png" and pair.corrupted.images == (image, *shown[::-1])
        place = ("second", "third").index(pair.answer)
        assert shown[place].name == files[number % 3] and shown[1 - place].name != files[number % 3]
        first, second = sorted(said(pair).values(), key=pair.clean.text.index)
        assert pair.clean.text == f"Which shape has more sides? The {first} picture or the {second}?"
    places = Counter(pair.answer for pair in pairs)
    assert min(places["second"], places["third"]) > 2


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"answer": 3}, ("'answer'", "3 of 3")),
        ({"answer": "x"}, ("'answer'", "'x'")),
        ({"answer": -1}, ("'answer'", "-1 of 3")),
        ({"choices": "certain"}, ("'choices'", "list of texts")),
        ({"choices": ["certain", None]}, ("'choices[1]'", "None")),
        ({"question": " "}, ("'question' is empty",)),
        ({"ques_type": "fill_in_blank"}, ("'ques_type'", "choose_txt", "fill_in_blank")),
        ({"label": 7}, ("'label'", "7")),
    ],
)
def test_a_problem_that_is_not_as_it_was_is_named_or_skipped(
    tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    path = problem(likely(tmp_path), 2, LIKELY, CHANCES, 2, **changes)
    says(refusal(lambda: load(tmp_path)), str(path / "data.json"), *parts, "on_error")
    pairs = load(tmp_path, on_error="skip")
    assert len(pairs) == 4 and pairs.considered == 6 and sum(pairs.dropped.values()) == 2


def test_a_problem_without_its_files_is_named(tmp_path: Path) -> None:
    path = likely(tmp_path) / "iconqa" / "val" / "choose_txt" / "3"
    (path / "data.json").write_text('{"question": "a"')
    says(refusal(lambda: load(tmp_path)), str(path / "data.json"), "not JSON")
    (path / "data.json").unlink()
    says(refusal(lambda: load(tmp_path)), str(path / "data.json"), "does not exist")
    assert load(tmp_path, on_error="skip").dropped["error: data.json cannot be read"] == 1
    problem(tmp_path, 3, LIKELY, CHANCES, 2)
    (path / "image.png").unlink()
    says(refusal(lambda: load(tmp_path)), str(path / "image.png"), "does not exist")
    assert load(tmp_path, on_error="skip").dropped[f"error: {loading.NO_FILE}"] >= 1
    problem(tmp_path, 7, "Which?", ["choice_0.png", "choice_1.png"], 1)
    gone = tmp_path / "iconqa" / "val" / "choose_img" / "7" / "choice_0.png"
    gone.unlink()
    says(refusal(lambda: load(tmp_path, task="choose_img")), str(gone), "does not exist")


def test_another_folder_split_or_task_is_refused(tmp_path: Path) -> None:
    says(refusal(lambda: load(tmp_path)), str(tmp_path), "train, val or test")
    likely(tmp_path)
    says(refusal(lambda: load(tmp_path, split="test")), str(tmp_path / "iconqa" / "test"), "does not exist")
    says(refusal(lambda: load(tmp_path, split="dev")), "pairs.split", "'dev'", "val")
    says(refusal(lambda: load(tmp_path, task="fill_in_blank")), "pairs.task", "'fill_in_blank'", "choose_txt")
    assert load(tmp_path / "iconqa") == load(tmp_path)


def test_a_preset_runs_on_its_files(tmp_path: Path) -> None:
    for number, color in enumerate(["red", "blue", "green", "blue"]):
        problem(tmp_path, number, "what color is the circle?", ["red", "green", "blue"], "rgb".index(color[0]))
    pairs = {"dataset": "iconqa", "path": str(tmp_path), "n": 2, "keep": "all"}
    ds = vp.run(vp.Experiment.from_spec("notice2024_blip_heads", {"pairs": pairs}), progress=False)
    assert ds.sizes["example"] == 2 and ds.attrs["pairs_considered"] == 4
    assert all(np.isfinite(ds[metric]).all() for metric in ("probability", "logit_difference"))
    assert [str(token) for token in ds["token"].sel(position="answer_option").values] == ds["answer"].values.tolist()
