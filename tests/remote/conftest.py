"""A real NDIF server that the tests share; without one they are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, BlipConfig, BlipForConditionalGeneration

import vlm_patching as vp
from vlm_patching.backends import local
from vlm_patching.backends.plan import Settings
from vlm_patching.serving import Loopback


@pytest.fixture(autouse=True, scope="package")
def _one_by_one() -> Iterator[None]:
    """Local runs take pairs one by one, as a server does, so that their numbers are the same to the bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "settings_on", lambda *_: Settings(join=False))
        yield


@pytest.fixture(scope="session")
def environment() -> Path:
    """The virtual environment that servers run in."""
    folder = os.environ.get("VLM_PATCHING_NDIF")
    if not folder:
        pytest.skip("needs an NDIF server's environment, named by VLM_PATCHING_NDIF: `make test-ndif` builds one")
    return Path(folder).absolute()


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random BLIP that captions: unlike BLIP-VQA, a stock server can load it."""
    folder = tmp_path_factory.mktemp("models") / "captioner"
    processor = AutoProcessor.from_pretrained(vp.bundled_models()["shapes-blip"])
    tokenizer = processor.tokenizer
    tokens = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        **tokens,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": processor.image_processor.size["height"],
        "patch_size": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def server(environment: Path, captioner: str) -> Iterator[Loopback]:
    """A server of the bundled models and the captioner that trusts its users."""
    models = ["shapes-llava", "shapes-blip", captioner]
    with Loopback(models, environment=environment, wrappers=True, deadline=600) as loopback:
        yield loopback
