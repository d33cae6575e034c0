"""Pairs and stores that cannot work are refused in one readable paragraph that says where and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image

import vlm_patching as vp
from tests.refusals import (
    BLIP,
    LLAVA,
    MISSING,
    RECORD,
    TEXT_PAIR,
    changed,
    folder_of,
    refusal,
    refused,
    says,
    second,
    shown,
    spec_of,
)
from vlm_patching.inputs import encode_pair

pytestmark = pytest.mark.usefixtures("weights_stay_where_they_are")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"anser": "red"}, ("'anser'", "Did you mean 'answer'?", "foil")),
        ({"clean.img": "x"}, ("clean", "'img'", "Did you mean 'image'?", "text")),
        ({"foil": MISSING}, ("'foil'", "missing")),
        ({"clean.text": MISSING}, ("clean", "'text'", "missing")),
        ({"clean.text": None}, ("clean.text", "text", "None")),
        ({"clean": "red.png"}, ("clean", "'red.png'", "image")),
        ({"answer": 3}, ("answer", "text", "3")),
        ({"answer": ""}, ("answer", "empty")),
        ({"answer": "blue "}, ("answer", "foil", "'blue '")),
        ({"id": "0"}, ("'0'", "line 1", "unique")),
        ({"id": None}, ("id", "None")),
        ({"id": {"a": 1}}, ("id", "{'a': 1}")),
        ({"spans": [12, 15]}, ("spans",)),
        ({"spans.answer_option": [1.5, 2]}, ("spans.answer_option", "whole numbers", "[1.5, 2]")),
        ({"spans.answer_option": [True, 2]}, ("spans.answer_option", "whole numbers")),
        ({"spans.answer_option": [12, 99]}, ("'answer_option'", "[12, 99]", "24", "is the ring red or blue?")),
        ({"spans.answer_option": [15, 12]}, ("'answer_option'", "[15, 12]", "start < end")),
        ({"spans_corrupted": {"answer_option": [0, 999]}}, ("'answer_option'", "[0, 999]", "is the ring green")),
        ({"regions.object": [1, 2, 3]}, ("regions.object", "4 whole numbers", "[1, 2, 3]")),
        ({"regions.object": [1, 1, 30, 300]}, ("'object'", "300", "96")),
        ({"regions.object": [-1, 1, 30, 30]}, ("'object'", "-1")),
        ({"regions.object": [30, 1, 3, 30]}, ("'object'", "[30, 1, 3, 30]", "x0 < x1")),
        ({"clean.image": "none.png"}, ("none.png", "does not exist")),
        ({"corrupted.image": "none.png"}, ("none.png", "does not exist")),
        ({"clean.image": "words.png"}, ("words.png", "picture")),
        ({"clean.image": "cut.png"}, ("cut.png", "picture")),
        ({"clean.image": "."}, ("cannot be read",)),
        ({"clean.image": "red\0.png"}, ("red",)),
    ],
    ids=shown,
)
def test_a_bad_line_of_pairs_is_refused_with_file_and_line(
    tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    folder = folder_of(tmp_path / "mypairs", RECORD, second(changes))
    (folder / "words.png").write_text("no picture")
    Image.effect_noise((96, 96), 50).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:3000])
    says(refused(spec_of(folder)), str(folder / "pairs.jsonl"), "line 2", *parts)


@pytest.mark.parametrize("changes", [{"answer": 3}, {"spans": [1, 2]}, {"regions.object": [1, 2, 3]}], ids=shown)
def test_the_line_is_named_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    message = refused(spec_of(folder_of(tmp_path / "mypairs", RECORD, second(changes))))
    assert message.count("line 2") == 1, message


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b"{oops", ("line 2", "JSON", "column 2")),
        (b"[1, 2]", ("line 2", "object", "[1, 2]")),
        (b"3", ("line 2", "object")),
        (b'{"id": "caf\xe9"}', ("UTF-8",)),
        (json.dumps(second({})).encode()[:-1] + b', "foil": "green"}', ("line 2", "foil", "twice")),
    ],
)
def test_a_line_that_is_no_json_object_is_refused(tmp_path: Path, line: bytes, parts: tuple[str, ...]) -> None:
    folder = folder_of(tmp_path / "mypairs", RECORD)
    (folder / "pairs.jsonl").write_bytes(json.dumps(RECORD).encode() + b"\n" + line)
    says(refused(spec_of(folder)), str(folder / "pairs.jsonl"), *parts)


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    text = "is the ring red\u2028or blue?"
    folder = folder_of(tmp_path / "mypairs")
    (folder / "pairs.jsonl").write_text(json.dumps(second({"clean.text": text}), ensure_ascii=False), encoding="utf-8")
    assert [pair.clean.text for pair in vp.load_pairs("folder", path=folder)] == [text]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_pairs_is_refused(tmp_path: Path, content: str) -> None:
    folder = folder_of(tmp_path / "mypairs")
    (folder / "pairs.jsonl").write_text(content)
    says(refused(spec_of(folder)), str(folder / "pairs.jsonl"), "no pair")


def test_a_folder_that_does_not_exist_is_refused_by_its_path(tmp_path: Path) -> None:
    says(refused(spec_of(tmp_path / "none")), str(tmp_path / "none" / "pairs.jsonl"), "does not exist")


def test_dataset_folder_without_a_path_is_refused() -> None:
    says(refused(changed(BLIP, {"pairs.dataset": "folder"})), "pairs.path", "missing")


def test_an_option_of_another_dataset_is_refused_with_the_datasets_own() -> None:
    says(refused(changed(BLIP, {"pairs.path": "x"})), "'pairs.path'", "'shapes'", "questions")
    spec = {**BLIP, "pairs": {"dataset": "folder", "path": "x", "questions": ["color"]}}
    says(refused(spec), "'pairs.questions'", "'folder'", "path")


# Pairs and a model's tokens


@pytest.mark.parametrize("spec", [BLIP, LLAVA], ids=["blip", "llava"])
@pytest.mark.parametrize(
    ("more", "changes", "parts"),
    [
        ({}, {"spans.answer_option": [11, 12]}, ("'answer_option'", "no token", "is the ring red or blue?")),
        (
            TEXT_PAIR,
            {"corrupted.text": "is the ring dark green or yellow?"},
            ("tokens", "is the ring red or blue?", "is the ring dark green or yellow?"),
        ),
        (TEXT_PAIR, {"corrupted.text": RECORD["clean"]["text"]}, ("symmetric_token_replacement", "ring red or blue?")),
        ({}, {"corrupted.image": "red.png"}, ("image", "same")),
        ({}, {"answer": "red ring", "foil": "red square"}, ("'red ring'", "'red square'", "first token")),
        ({}, {"answer": "Red", "foil": "red"}, ("'Red'", "'red'", "first token")),
        ({}, {"answer": "\u200b"}, ("answer", "token")),
        ({}, {"answer": "zebra"}, ("'zebra'", "token")),
        ({}, {"clean.text": "is the ring red or blue? " * 60}, ("tokens",)),
    ],
    ids=[
        "span-over-no-token",
        "texts-of-different-length",
        "same-text",
        "same-image",
        "same-first-token",
        "same-but-for-case",
        "answer-without-token",
        "answer-not-in-the-vocabulary",
        "text-longer-than-the-model",
    ],
)
def test_a_pair_that_a_model_cannot_be_measured_on_is_refused_by_its_id(
    tmp_path: Path, spec: dict[str, Any], more: dict[str, Any], changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    folder = folder_of(tmp_path / "mypairs", RECORD, second(changes))
    says(refused(changed(spec_of(folder, spec), more)), "'1'", *parts)


@pytest.mark.parametrize("name", ["last", "question", "text", "all"])
def test_a_span_with_the_name_of_a_position_group_is_refused(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "mypairs", RECORD, second({"spans": {name: [12, 15]}}))
    says(refused(spec_of(folder)), "'1'", repr(name))


def test_a_region_that_is_called_other_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mypairs", RECORD, second({"regions": {"other": [1, 1, 30, 30]}}))
    says(refused(spec_of(folder, LLAVA)), "'1'", "'other'")


def test_the_image_mark_inside_a_text_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mypairs", RECORD, second({"clean.text": "<image> red or blue?", "spans": {}}))
    says(refused(spec_of(folder, LLAVA)), "'1'", "'<image>'")


def test_a_span_is_found_in_the_users_text_even_if_the_template_holds_the_same_word(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mypairs")
    image, other = folder / "red.png", folder / "blue.png"
    word = "ASSISTANT"
    pair = vp.Pair(
        "0", vp.Prompt(image, word), vp.Prompt(other, word), "red", "blue", spans={"subject": (0, len(word))}
    )
    encoded = encode_pair(pair, vp.describe_model("shapes-llava"), ("clean",)).positions["language"]
    after_the_image = max(encoded.groups["image"]) + 1
    assert encoded.groups["subject"] == (after_the_image,)


# Stores


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs in mypairs and a store of a run on them."""
    place = tmp_path_factory.mktemp("finished")
    folder_of(place / "mypairs", RECORD, second({}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        vp.run(vp.Experiment.from_dict(spec_of("mypairs")), store="run.zarr", progress=False)
    return place


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `finished`, as the working directory."""
    place = Path(shutil.copytree(finished, tmp_path / "here"))
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"seed": 4}, ("seed", "0", "4")),
        ({"patch.sites": ["question_encoder.mlp_out"]}, ("patch.sites", "resid_post", "mlp_out")),
        ({"patch.window": 3}, ("patch.window", "1", "3")),
        ({"metrics": ["probability"]}, ("metrics", "logit_difference")),
        ({"model.name": "shapes-llava", "patch.sites": ["language.resid_post"]}, ("model.name", "shapes-llava")),
    ],
    ids=shown,
)
def test_a_store_of_another_experiment_is_refused_with_what_differs(
    here: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    says(refused(changed(spec_of("mypairs"), changes), store="run.zarr"), "run.zarr", "another experiment", *parts)


@pytest.mark.parametrize(
    "records",
    [
        (RECORD, second({"clean.text": "is the ring blue or red?"})),
        (RECORD, second({"id": "other"})),
        (RECORD, second({"answer": "green"})),
        (second({}), RECORD),
        (RECORD, second({}), second({"id": "2"})),
        (RECORD,),
    ],
    ids=["other-text", "other-id", "other-answer", "other-order", "one-more", "one-less"],
)
def test_a_store_of_other_pairs_is_refused(here: Path, records: tuple[dict[str, Any], ...]) -> None:
    folder_of(here / "mypairs", *records)
    says(refused(spec_of("mypairs"), store="run.zarr"), "run.zarr", "pair")


def test_a_store_of_other_pictures_is_refused(here: Path) -> None:
    Image.new("RGB", (96, 96), "green").save(here / "mypairs" / "red.png")
    says(refused(spec_of("mypairs"), store="run.zarr"), "run.zarr", "pair")


def test_a_store_of_other_inputs_is_refused(here: Path) -> None:
    says(refused(spec_of("mypairs"), store="run.zarr", inputs=vp.load_pairs("shapes", n=2)), "run.zarr", "pair")


def ordinary_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def ordinary_file(path: Path) -> None:
    path.write_text("years of work")


def foreign_group(path: Path) -> None:
    xr.Dataset({"a": ("x", np.zeros(3))}).to_zarr(path)


def foreign_array(path: Path) -> None:
    zarr.create_array(path, shape=(3,), dtype="f4")


def broken_store(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{oops")


@pytest.mark.parametrize(
    "make", [ordinary_folder, ordinary_file, Path.mkdir, foreign_group, foreign_array, broken_store]
)
def test_a_path_that_holds_no_store_is_refused_and_left_as_it_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "place"
    make(path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    says(refused(BLIP, store=path), str(path))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    says(refusal(lambda: vp.load_results(path)), str(path))


def test_a_store_that_does_not_exist_cannot_be_opened(tmp_path: Path) -> None:
    says(refusal(lambda: vp.load_results(tmp_path / "none.zarr")), str(tmp_path / "none.zarr"), "does not exist")
