"""A spec, or a model it names, that cannot work is refused in one readable paragraph that says where and why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import vlm_patching as vp
from tests.refusals import (
    BLIP,
    HEADS,
    LLAVA,
    MISSING,
    changed,
    refusal,
    refused,
    says,
    shown,
)

pytestmark = pytest.mark.usefixtures("weights_stay_where_they_are")

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


def test_which_run_is_steered_can_be_said_in_a_spec_file(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    steer = {"sites": ["question_encoder.resid_post"], "on": "clean"}
    file.write_text(vp.Experiment.from_dict(changed(BLIP, {"patch": MISSING}) | {"steer": steer}).to_yaml())
    file.write_text(file.read_text().replace("'on'", "on").replace('"on"', "on"))
    read = vp.Experiment.from_yaml(file).steer
    assert read is not None and read.on == "clean"


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
