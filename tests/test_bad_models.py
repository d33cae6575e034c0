"""A model folder that does not hang together is refused in one paragraph, not run on what is left of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import (
    IMAGE_PROCESSOR_MAPPING,
    Cohere2VisionConfig,
    Phi4MultimodalConfig,
    ViltConfig,
    ViltImageProcessorPil,
    ViltProcessor,
)
from transformers.utils import is_torchvision_available

import vlm_patching as vp
from tests.families import cohere2_vision
from tests.families.git import word_pieces
from tests.refusals import BLIP, LLAVA, RECORD, changed, folder_of, refusal, refused, says, spec_of
from vlm_patching.models import describe_model
from vlm_patching.models.families import families, find_family


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(vp.bundled_models()[name], folder))


def configured(folder: Path, **changes: Any) -> dict[str, Any]:
    """The spec of a model folder whose configuration is changed at dotted paths."""
    config = json.loads((folder / "config.json").read_text())
    paths = {path.replace("__", "."): value for path, value in changes.items()}
    (folder / "config.json").write_text(json.dumps(changed(config, paths)))
    spec = LLAVA if config["model_type"] == "llava" else BLIP
    return {**spec, "model": {"name": str(folder)}}


@pytest.mark.parametrize("name", ["shapes-blip", "shapes-llava"])
def test_weights_that_lack_a_layer_are_not_run_on_random_numbers(tmp_path: Path, name: str) -> None:
    spec = configured(copied(name, tmp_path / "model"), text_config__num_hidden_layers=8)
    says(refused(spec), str(tmp_path / "model"), "lack", "layer", "6")


@pytest.mark.parametrize("size", ["big", -3])
def test_a_configuration_of_wrong_types_is_refused(tmp_path: Path, size: Any) -> None:
    spec = configured(copied("shapes-blip", tmp_path / "model"), vision_config__image_size=size)
    says(refused(spec), str(tmp_path / "model"))


def test_an_image_mark_that_the_processor_does_not_have_is_refused(
    tmp_path: Path, weights_stay_where_they_are: None
) -> None:
    spec = configured(copied("shapes-llava", tmp_path / "model"), image_token_index=7)
    says(refused(spec), "image_token_id 7", "'<image>'", "4")


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there")
def test_an_image_processor_that_needs_torchvision_is_refused_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_stay_where_they_are: None
) -> None:
    cohere2_vision.KNOWN.build(tmp_path)
    monkeypatch.delitem(IMAGE_PROCESSOR_MAPPING._extra_content, Cohere2VisionConfig)
    said = refused({**LLAVA, "model": {"name": str(tmp_path)}})
    says(said, str(tmp_path), "Cohere2VisionImageProcessor", "torchvision")


@pytest.mark.parametrize("layer", [99, -3, 0])
def test_a_vision_feature_layer_that_there_is_not_is_refused(
    tmp_path: Path, weights_stay_where_they_are: None, layer: int
) -> None:
    spec = configured(copied("shapes-llava", tmp_path / "model"), vision_feature_layer=layer)
    says(refused(spec), f"vision_feature_layer {layer}", "2 vision layers")


@pytest.mark.parametrize("family", [None, "git"])
def test_a_model_that_shuffles_its_patches_is_refused_whatever_file_is_given(
    tmp_path: Path, family: str | None, weights_stay_where_they_are: None
) -> None:
    ViltProcessor(ViltImageProcessorPil(), word_pieces()).save_pretrained(tmp_path)
    ViltConfig().save_pretrained(tmp_path)
    message = refusal(lambda: describe_model(str(tmp_path), family=families()[family] if family else None))
    says(message, str(tmp_path), "vilt", "order of a picture's patches")


def test_a_model_whose_attention_depends_on_the_batch_is_refused() -> None:
    says(refusal(lambda: find_family(Phi4MultimodalConfig())), "phi4_multimodal", "padding", "adapter")


@pytest.mark.parametrize("template", ["{% for %}", "hello"])
def test_a_chat_template_that_does_not_work_is_refused(
    tmp_path: Path, weights_stay_where_they_are: None, template: str
) -> None:
    folder = copied("shapes-llava", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    says(refused({**LLAVA, "model": {"name": str(folder)}}), "shapes-0-0")


def test_a_picture_too_large_to_open_safely_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_stay_where_they_are: None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    says(refused(spec_of(folder_of(tmp_path / "pairs", RECORD))), "line 1", ".png", "exceeds limit")


def test_a_region_that_the_crop_cuts_off_is_refused_as_such(tmp_path: Path, weights_stay_where_they_are: None) -> None:
    folder = folder_of(tmp_path / "pairs", changed(RECORD, {"regions": {"object": [0, 20, 20, 137]}}))
    for color in ("red", "blue"):
        Image.new("RGB", (200, 137), color).save(folder / f"{color}.png")
    spec = spec_of(folder, LLAVA) | {"patch": {"sites": ["language.resid_post"], "positions": ["image:object"]}}
    says(refused(spec), "image:object", "image processor leaves")


def test_an_index_is_refused_where_it_means_another_token_in_each_stack(weights_stay_where_they_are: None) -> None:
    sites = ["vision.resid_post", "question_encoder.resid_post"]
    says(refused(BLIP | {"patch": {"sites": sites, "positions": [3]}}), "Position 3", "vision, question_encoder")


@pytest.mark.parametrize("corruption", ["gaussian_noise", "symmetric_token_replacement"])
def test_a_sweep_that_can_have_no_effect_says_so(corruption: str) -> None:
    spec = BLIP | {"corruption": {"kind": corruption}, "patch": {"sites": ["vision.resid_post"], "positions": ["cls"]}}
    with pytest.warns(UserWarning, match="does not pass through the vision stack"):
        vp.Experiment.from_dict(spec).graph()
