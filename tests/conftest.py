"""Models that the tests share: the two bundled ones, and randomly initialised ones of other shapes, with real
processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

import vlm_patching as vp
from tests.oracle.patching import build_blip, build_llava
from vlm_patching import pipeline
from vlm_patching.models import Model

BUNDLED = ("shapes-blip", "shapes-llava")
RANDOM = ("random-blip", "random-llava")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name of a test model → what `load_model` takes."""
    root = tmp_path_factory.mktemp("models")
    return {
        **{name: name for name in BUNDLED},
        "random-blip": _random_blip(root / "random-blip"),
        "random-llava": _random_llava(root / "random-llava"),
    }


@pytest.fixture(scope="session")
def loaded(model_folders: dict[str, str]) -> dict[str, Model]:
    """Name of a test model → the loaded model."""
    return {name: vp.load_model(folder) for name, folder in model_folders.items()}


@pytest.fixture
def weights_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which weights are loaded: what cannot work must be refused before."""

    def load(*args: object, **kwargs: object) -> None:
        pytest.fail("the weights were loaded before the input was refused")

    monkeypatch.setattr(pipeline, "load_model", load)


def _random_blip(folder: Path) -> str:
    processor = AutoProcessor.from_pretrained(vp.bundled_models()["shapes-blip"])
    processor.image_processor.size = {"height": 60, "width": 60}
    tokenizer = processor.tokenizer
    model = build_blip(
        seed=3,
        layers=3,
        heads=2,
        width=32,
        mlp_width=48,
        vision_layers=3,
        vision_heads=2,
        vision_mlp_width=48,
        image_size=60,
        patch_size=20,
        vocab=len(tokenizer),
        max_positions=32,
    )
    text = model.config.text_config
    text.bos_token_id, text.sep_token_id, text.pad_token_id = (
        tokenizer.bos_token_id,
        tokenizer.sep_token_id,
        tokenizer.pad_token_id,
    )
    return _save(model, processor, folder)


def _random_llava(folder: Path) -> str:
    processor = AutoProcessor.from_pretrained(vp.bundled_models()["shapes-llava"])
    processor.image_processor.size = {"shortest_edge": 60}
    processor.image_processor.crop_size = {"height": 60, "width": 60}
    processor.patch_size = 20
    tokenizer = processor.tokenizer
    model = build_llava(
        seed=4,
        layers=4,
        heads=4,
        num_key_value_heads=2,
        width=32,
        head_dim=8,
        mlp_width=48,
        vision_layers=3,
        vision_heads=2,
        vision_width=32,
        vision_mlp_width=48,
        image_size=60,
        patch_size=20,
        vocab=len(tokenizer),
        vision_feature_layer=-2,
        max_positions=128,
    )
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    return _save(model, processor, folder)


def _save(model: Any, processor: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
