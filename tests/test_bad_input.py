"""What cannot work is refused in one readable paragraph that says where and why, before a model's weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from PIL import Image

import vlm_patching as vp
from vlm_patching import pipeline
from vlm_patching.inputs import encode_pair

BLIP: dict[str, Any] = {
    "name": "bad-input",
    "model": {"name": "shapes-blip"},
    "pairs": {"dataset": "shapes", "n": 2, "keep": "all"},
    "corruption": {"kind": "semantic_image_pair"},
    "patch": {"sites": ["question_encoder.resid_post"], "positions": ["last"]},
}
LLAVA = {**BLIP, "model": {"name": "shapes-llava"}, "patch": {"sites": ["language.resid_post"], "positions": ["last"]}}
TEXT_PAIR = {"corruption.kind": "symmetric_token_replacement"}
HEADS = {"patch.sites": ["question_encoder.attn_head"]}
RECORD: dict[str, Any] = {
    "id": "0",
    "clean": {"image": "red.png", "text": "is the ring red or blue?"},
    "corrupted": {"image": "blue.png", "text": "is the ring green or yellow?"},
    "answer": "red",
    "foil": "blue",
    "spans": {"answer_option": [12, 15]},
    "regions": {"object": [1, 1, 30, 30]},
}
MISSING = object()


@pytest.fixture(autouse=True)
def _weights_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> None:
        pytest.fail("the weights were loaded before the input was refused")

    monkeypatch.setattr(pipeline, "load_model", load)


def changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with values at dotted paths replaced, or left out where they are MISSING."""
    copy: dict[str, Any] = json.loads(json.dumps(data))
    for path, value in changes.items():
        *sections, key = path.split(".")
        inside: Any = copy
        for section in sections:
            inside = inside[int(section) if isinstance(inside, list) else section]
        place = int(key) if isinstance(inside, list) else key
        if value is MISSING:
            del inside[place]
        else:
            inside[place] = value
    return copy


def refusal(attempt: Callable[[], object]) -> str:
    with pytest.raises(vp.SpecError) as caught:
        attempt()
    message = str(caught.value)
    assert message.strip() and "\n" not in message, f"not one paragraph: {message!r}"
    return message


def refused(spec: Mapping[str, Any], **options: Any) -> str:
    return refusal(lambda: vp.run(vp.Experiment.from_dict(spec), progress=False, **options))


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


def shown(value: object) -> str:
    """How a case is called: its changes."""
    if not isinstance(value, dict):
        return ""
    return ", ".join(f"{path}={'missing' if change is MISSING else change!r}" for path, change in value.items())


# The spec: names


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model.name": "shapes-blp"}, ("model", "'shapes-blp'", "Did you mean 'shapes-blip'?", "shapes-llava")),
        ({"model.dtype": "float23"}, ("model.dtype", "'float23'", "Did you mean 'float32'?", "bfloat16")),
        ({"pairs.dataset": "shape"}, ("pairs.dataset", "'shape'", "Did you mean 'shapes'?", "folder")),
        ({"pairs.keep": "clean_corect"}, ("pairs.keep", "'clean_corect'", "Did you mean 'clean_correct'?", "all")),
        ({"pairs.questions": ["color_choic"]}, ("pairs.questions", "'color_choic'", "Did you mean 'color_choice'?")),
        (
            {"corruption.kind": "gausian_noise"},
            ("corruption.kind", "'gausian_noise'", "Did you mean 'gaussian_noise'?", "semantic_image_pair"),
        ),
        (
            {"patch.sites": ["question_encoder.resid_pst"]},
            ("site", "'resid_pst'", "Did you mean 'resid_post'?", "mlp_out", "cross_attn_head"),
        ),
        (
            {"patch.sites": ["question_encodr.resid_post"]},
            ("stack", "'question_encodr'", "Did you mean 'question_encoder'?", "vision", "answer_decoder"),
        ),
        ({"patch.sites": ["resid_post"]}, ("ite", "'resid_post'", "stack.component", "question_encoder.resid_post")),
        ({"patch.direction": "denoize"}, ("patch.direction", "'denoize'", "Did you mean 'denoise'?")),
        ({"metrics": ["probabilty"]}, ("metrics", "'probabilty'", "Did you mean 'probability'?", "logit_difference")),
    ],
    ids=shown,
)
def test_an_unknown_name_is_refused_with_field_value_nearest_match_and_what_is_allowed(
    changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    says(refused(changed(BLIP, changes)), *parts)


@pytest.mark.parametrize(
    ("key", "near", "known"),
    [
        ("patches", "patch", "corruption"),
        ("model.nam", "name", "revision"),
        ("pairs.sed", "seed", "questions"),
        ("corruption.kinds", "kind", "draws"),
        ("patch.site", "sites", "positions"),
    ],
)
def test_an_unknown_key_is_refused_at_every_level_with_the_nearest_and_all_known_ones(
    key: str, near: str, known: str
) -> None:
    says(refused(changed(BLIP, {key: 1})), repr(key), f"Did you mean {near!r}?", known)


@pytest.mark.parametrize("key", ["str", "int", "pairs.literal", "patch.int", "patch.sites[0]", "patch.tuple[int]"])
def test_an_unknown_key_that_looks_like_a_type_is_refused_by_its_whole_name(key: str) -> None:
    says(refused(changed(BLIP, {key: 1})), "nknown key", repr(key))


def test_a_key_that_is_no_text_is_refused() -> None:
    says(refusal(lambda: vp.Experiment.from_dict({**BLIP, 7: 1})), "7")


@pytest.mark.parametrize("key", ["name", "model", "model.name", "pairs.dataset", "corruption.kind", "patch.sites"])
def test_a_missing_key_is_named(key: str) -> None:
    says(refused(changed(BLIP, {key: MISSING})), key, "missing")


def test_a_site_that_the_architecture_lacks_is_refused_with_those_it_has() -> None:
    spec = changed(LLAVA, {"patch.sites": ["language.cross_attn_head"]})
    says(refused(spec), "llava", "'cross_attn_head'", "Did you mean 'attn_head'?", "resid_post", "mlp_neuron")


def test_a_stack_that_the_architecture_lacks_is_refused_with_those_it_has() -> None:
    spec = changed(LLAVA, {"patch.sites": ["question_encoder.resid_post"]})
    says(refused(spec), "llava", "'question_encoder'", "vision", "language")


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    says(refused(BLIP, backend="lokal"), "backend", "'lokal'", "Did you mean 'local'?")


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    says(refusal(lambda: vp.run("palit2032")), "'palit2032'", "Did you mean 'palit2023'?", "notice2024_blip_heads")


# The spec: values


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"patch.layers": [6]}, ("patch.layers", "6", "question_encoder", "0 to 5")),
        ({"patch.layers": [-1]}, ("patch.layers", "-1", "0 to 5")),
        ({"patch.layers": "3:9"}, ("patch.layers", "6", "0 to 5")),
        ({"patch.layers": "3:2"}, ("patch.layers", "'3:2'", "start < stop")),
        ({"patch.layers": "many"}, ("patch.layers", "'many'", "'all'", "start:stop")),
        ({**HEADS, "patch.heads": [4]}, ("patch.heads", "4", "question_encoder", "0 to 3")),
        ({**HEADS, "patch.heads": "2:8"}, ("patch.heads", "4", "0 to 3")),
        ({"patch.window": 7}, ("patch.window", "7", "6 layers", "question_encoder")),
        ({"patch.sites": ["vision.resid_post"], "patch.window": 3}, ("patch.window", "3", "2 layers", "vision")),
        ({"patch.window": 0}, ("patch.window", "0", "1")),
        ({"pairs.n": 0}, ("pairs.n", "0", "1")),
    ],
    ids=shown,
)
def test_a_number_out_of_range_is_refused_with_the_range(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    says(refused(changed(BLIP, changes)), *parts)


@pytest.mark.parametrize(("heads", "shown"), [([0], "[0]"), ("0:2", "0:2")])
def test_heads_of_a_site_without_heads_are_refused(heads: Any, shown: str) -> None:
    says(refused(changed(BLIP, {"patch.heads": heads})), "patch.heads", shown, "question_encoder.resid_post")


def test_sites_with_and_without_heads_in_one_sweep_are_refused() -> None:
    sites = ["question_encoder.attn_head", "question_encoder.resid_post"]
    says(refused(changed(BLIP, {"patch.sites": sites})), "patch.sites", *sites)


@pytest.mark.parametrize(
    "field", ["patch.sites", "patch.layers", "patch.heads", "patch.positions", "pairs.questions", "metrics"]
)
def test_an_empty_list_is_refused(field: str) -> None:
    says(refused(changed(BLIP, {field: []})), field)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"patch.sites": ["question_encoder.resid_post"] * 2}, ("patch.sites", "question_encoder.resid_post", "twice")),
        ({"patch.positions": ["last", "last"]}, ("patch.positions", "last", "twice")),
        ({"patch.layers": [0, 0]}, ("patch.layers", "0", "twice")),
        ({**HEADS, "patch.heads": [1, 1]}, ("patch.heads", "1", "twice")),
    ],
    ids=shown,
)
def test_a_repeated_value_of_a_sweep_is_refused(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    says(refused(changed(BLIP, changes)), *parts)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pairs.n", "many"),
        ("pairs.n", 2.5),
        ("pairs.n", True),
        ("pairs.seed", "zero"),
        ("pairs.aligned", "yes"),
        ("patch.window", "wide"),
        ("seed", "a"),
        ("name", 3),
        ("model.name", 5),
        ("pairs", 5),
        ("patch.layers", {"a": 1}),
    ],
)
def test_a_wrong_type_is_refused_with_the_field_and_the_value(field: str, value: Any) -> None:
    says(refused(changed(BLIP, {field: value})), field, repr(value))


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("patch.layers", 3, "list"),
        ("patch.positions", 3, "list"),
        ("patch.sites", "question_encoder.resid_post", "list"),
        ("pairs.questions", "color", "list"),
        ("metrics", "probability", "list"),
        ("model", "shapes-blip", "mapping"),
    ],
)
def test_a_wrong_type_is_explained_in_the_words_of_yaml(field: str, value: Any, wanted: str) -> None:
    message = refused(changed(BLIP, {field: value}))
    says(message, field, wanted)
    assert "tuple" not in message and "instance of" not in message, message


@pytest.mark.parametrize(
    ("corruption", "parts"),
    [
        ({"kind": "semantic_image_pair", "k": 3.0}, ("corruption", "k", "gaussian_noise", "semantic_image_pair")),
        ({"kind": "symmetric_token_replacement", "draws": 2}, ("corruption", "draws", "gaussian_noise")),
        ({"kind": "gaussian_noise", "k": 1.0, "std": 1.0}, ("corruption", "k", "std", "both")),
        ({"kind": "gaussian_noise", "k": -1}, ("corruption.k", "-1", "0")),
        ({"kind": "gaussian_noise", "std": float("nan")}, ("corruption.std", "nan")),
        ({"kind": "gaussian_noise", "draws": 0}, ("corruption.draws", "0", "1")),
        ({"kind": "gaussian_noise", "site": "image_embed"}, ("corruption.site", "'image_embed'", "'image_embeds'")),
    ],
    ids=shown,
)
def test_settings_of_the_noise_that_do_not_fit_are_refused(corruption: dict[str, Any], parts: tuple[str, ...]) -> None:
    says(refused({**BLIP, "corruption": corruption}), *parts)


@pytest.mark.parametrize(
    ("spec", "positions", "parts"),
    [
        (BLIP, ["answer_optoin"], ("question_encoder", "'answer_optoin'", "Did you mean 'answer_option'?", "subject")),
        (BLIP, ["each:imag"], ("question_encoder", "'imag'", "last")),
        (BLIP, [99], ("99", "question_encoder", "9 positions")),
        (BLIP, [-10], ("-10", "question_encoder", "9 positions")),
        (LLAVA, ["image:objct"], ("language", "'image:objct'", "Did you mean 'image:object'?", "image:other")),
        (LLAVA, [999], ("999", "language")),
    ],
)
def test_a_position_that_a_pair_lacks_is_refused_with_the_pair_and_what_it_has(
    spec: dict[str, Any], positions: list[Any], parts: tuple[str, ...]
) -> None:
    says(refused(changed(spec, {"patch.positions": positions})), "shapes-0-0", *parts)


# The spec: files


def test_a_spec_file_that_does_not_exist_is_refused_by_its_path(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    says(refusal(lambda: vp.Experiment.from_yaml(missing)), str(missing), "does not exist")
    says(refusal(lambda: vp.Experiment.from_spec(missing)), str(missing))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"name: [oops\nmodel: }", "not YAML"),
        (b"name: x\n\tmodel: y", "not YAML"),
        (b"!!python/object/apply:os.system ['true']", "not YAML"),
        (b"name: caf\xe9", "UTF-8"),
        (b"", "mapping"),
        (b"- a\n- b", "mapping"),
        (b"just words", "mapping"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_refused_by_its_path(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_bytes(content)
    says(refusal(lambda: vp.Experiment.from_spec(file)), str(file), part)


def test_a_key_that_a_spec_file_gives_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(vp.Experiment.from_dict(BLIP).to_yaml() + "\nseed: 1\n", encoding="utf-8")
    says(refusal(lambda: vp.Experiment.from_spec(file)), str(file), "seed", "twice")


def test_an_unquoted_range_in_a_spec_file_is_a_range_and_not_a_number_to_the_base_60(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(
        vp.Experiment.from_dict(BLIP).to_yaml().replace("layers: all", "layers: 3:6"),
        encoding="utf-8",
    )
    layers = vp.Experiment.from_yaml(file).graph().dimension("layer")
    assert layers is not None and layers.values == (3, 4, 5)


# Models


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(vp.bundled_models()["shapes-blip"], tmp_path / "model"))


@pytest.mark.parametrize("config", ["{oops", '{"model_type": "bert"}', "{}"])
def test_a_model_folder_with_a_configuration_that_cannot_be_used_is_refused(model_folder: Path, config: str) -> None:
    (model_folder / "config.json").write_text(config)
    refused(changed(BLIP, {"model.name": str(model_folder)}))


def test_weights_that_are_cut_off_are_refused_with_the_model(model_folder: Path) -> None:
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    says(refusal(lambda: vp.load_model(str(model_folder))), str(model_folder))


def test_a_device_map_that_does_not_exist_is_refused() -> None:
    says(refusal(lambda: vp.load_model("shapes-blip", device_map="nonsense")), "device_map", "nonsense")


# Pairs in a folder


def folder_of(path: Path, *records: Mapping[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    for color in ("red", "blue"):
        Image.new("RGB", (96, 96), color).save(path / f"{color}.png")
    (path / "pairs.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def spec_of(folder: Path | str, spec: Mapping[str, Any] = BLIP) -> dict[str, Any]:
    return {**spec, "pairs": {"dataset": "folder", "path": str(folder), "keep": "all"}}


def second(changes: Mapping[str, Any]) -> dict[str, Any]:
    return changed(RECORD, {"id": "1", **changes})


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
    says(refused(changed(BLIP, {"pairs.path": "x"})), "'path'", "shapes", "questions")
    says(refused({**BLIP, "pairs": {"dataset": "folder", "questions": ["color"]}}), "'questions'", "folder", "path")


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


# Graphs


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    return vp.Experiment.from_dict(BLIP).graph().to_dict()


@pytest.fixture(scope="module")
def pairs() -> list[vp.Pair]:
    return vp.load_pairs("shapes", n=2)


@pytest.mark.parametrize("given", [{}, {"model": "shapes-blip"}, {"inputs": ()}])
def test_a_graph_without_a_model_or_inputs_is_refused(graph: dict[str, Any], given: dict[str, Any]) -> None:
    read = vp.InterventionGraph.from_json(json.dumps(graph))
    says(refusal(lambda: vp.run(read, **given)), "model", "inputs")


def test_a_graph_on_a_model_that_lacks_its_site_is_refused(graph: dict[str, Any], pairs: list[vp.Pair]) -> None:
    read = vp.InterventionGraph.from_json(json.dumps(graph))
    says(refusal(lambda: vp.run(read, model="shapes-llava", inputs=pairs)), "llava", "'question_encoder'", "language")


def test_no_pairs_repeated_pairs_and_things_that_are_no_pairs_are_refused(
    graph: dict[str, Any], pairs: list[vp.Pair]
) -> None:
    read = vp.InterventionGraph.from_json(json.dumps(graph))
    says(refusal(lambda: vp.run(read, model="shapes-blip", inputs=[])), "no pairs")
    says(refusal(lambda: vp.run(read, model="shapes-blip", inputs=[*pairs, pairs[0]])), "'shapes-0-0'", "unique")
    refusal(lambda: vp.run(read, model="shapes-blip", inputs=["a", "b"]))  # type: ignore[list-item]


@pytest.mark.parametrize("what", [BLIP, ["palit2023"], None, 3], ids=["dict", "list", "None", "number"])
def test_something_that_is_neither_experiment_nor_graph_is_refused(what: Any) -> None:
    refusal(lambda: vp.run(what))


@pytest.mark.parametrize("text", ["", "{oops", "[]", "null", "3"])
def test_text_that_is_no_graph_is_refused(text: str) -> None:
    says(refusal(lambda: vp.InterventionGraph.from_json(text)), "graph")


REPLACE = "runs.2.edits.0"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"name": MISSING}, ("name", "missing")),
        ({"runs": MISSING}, ("runs", "missing")),
        ({"runs": 5}, ("runs", "5")),
        ({"runs": None}, ("runs", "None")),
        ({"runs": []}, ("clean, corrupted and patched",)),
        ({"dimensions": 5}, ("dimensions", "5")),
        ({"metrics": 5}, ("metrics", "5")),
        ({"metrics": "probability"}, ("metrics", "list")),
        ({"runs.0.name": 3}, ("name", "3")),
        ({"runs.2.over": 5}, ("over", "5")),
        ({"rnus": []}, ("'rnus'", "Did you mean 'runs'?")),
        ({"runs.1.edit": []}, ("'runs[1].edit'", "Did you mean 'edits'?")),
        ({f"{REPLACE}.at.sites": "x"}, ("edits[0].at.sites", "Did you mean 'site'?")),
        ({f"{REPLACE}.at": {}}, ("edits[0].at", "site", "missing")),
        ({f"{REPLACE}.kind": "swap"}, ("'swap'", "replace", "add_noise")),
        ({"runs.1.on": "corupted"}, ("corrupted", "'corupted'", "Did you mean 'corrupted'?")),
        ({"direction": "denoize"}, ("direction", "'denoize'", "Did you mean 'denoise'?")),
        ({"runs.2.over": ["laier"]}, ("patched", "'laier'", "layer")),
        ({"runs.0.reads": []}, ("patched", "'clean.z'", "no earlier run has read", "nothing")),
        ({f"{REPLACE}.source": "clean.y"}, ("patched", "'clean.y'", "no earlier run has read", "clean.z")),
        ({f"{REPLACE}.source": "patched.z"}, ("patched", "'patched.z'", "no earlier run has read")),
    ],
    ids=shown,
)
def test_a_malformed_graph_is_refused_with_where_and_why(
    graph: dict[str, Any], changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    text = json.dumps(changed(graph, changes))
    says(refusal(lambda: vp.InterventionGraph.from_json(text)), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"metrics": ["probabilty"]}, ("metric", "'probabilty'", "Did you mean 'probability'?")),
        ({"keep": "clean_corect"}, ("keep", "'clean_corect'", "Did you mean 'clean_correct'?")),
        ({"seed": "zero"}, ("seed", "'zero'")),
        ({"dimensions.1.values": [0, 99]}, ("layer", "99", "0 to 5")),
        ({"dimensions.1.values": [-1]}, ("layer", "-1", "whole numbers from 0")),
        ({"dimensions.1.values": ["a"]}, ("layer", "'a'")),
        ({"dimensions.1.values": []}, ("layer", "empty")),
        ({f"{REPLACE}.at.layer": "laier"}, ("'laier'",)),
        ({f"{REPLACE}.at.window": 0}, ("window", "0")),
        ({f"{REPLACE}.at.window": 7}, ("window", "7")),
        ({f"{REPLACE}.at.head": 0}, ("head", "question_encoder.resid_post")),
        ({f"{REPLACE}.at.site": "question_encoder.resid_pst"}, ("'resid_pst'", "Did you mean 'resid_post'?")),
        ({f"{REPLACE}.at.position": "lst"}, ("shapes-0-0", "'lst'")),
        ({"runs.2.over": []}, ("patched", "layer")),
    ],
    ids=shown,
)
def test_a_graph_that_cannot_run_on_a_model_is_refused_with_why(
    graph: dict[str, Any], pairs: list[vp.Pair], changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    if f"{REPLACE}.at.position" in changes:
        changes = {**changes, "dimensions.2": MISSING, "runs.2.over": ["site", "layer"]}
    if f"{REPLACE}.at.site" in changes:
        changes = {**changes, "dimensions.0": MISSING, "runs.2.over": ["layer", "position"]}
    read = {key.replace(REPLACE, "runs.0.reads.0"): value for key, value in changes.items() if REPLACE in key}
    changes = {**changes, **read}
    text = json.dumps(changed(graph, changes))
    message = refusal(
        lambda: vp.run(vp.InterventionGraph.from_json(text), model="shapes-blip", inputs=pairs, progress=False)
    )
    says(message, *parts)


def test_a_graph_that_reads_at_one_site_and_replaces_at_another_is_not_run_as_if_it_read_there(
    graph: dict[str, Any], pairs: list[vp.Pair]
) -> None:
    text = json.dumps(changed(graph, {"runs.0.reads.0.at.site": "question_encoder.mlp_out"}))
    message = refusal(
        lambda: vp.run(vp.InterventionGraph.from_json(text), model="shapes-blip", inputs=pairs, progress=False)
    )
    says(message, "question_encoder.mlp_out", "question_encoder.resid_post")
