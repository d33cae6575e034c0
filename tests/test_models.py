"""The bundled models: what they are, that they load offline, and that they answer as their cards say."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import vlm_patching as vp
from vlm_patching.pairs.shapes import KINDS, sample

FOLDER = Path(__file__).parents[1] / "experiments" / "shapes"
EACH = 60


@pytest.fixture(scope="module")
def evaluate() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("evaluate", FOLDER / "evaluate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FOLDER))
    return module


@pytest.mark.parametrize("name", ["shapes-blip", "shapes-llava"])
def test_a_bundled_model_is_small_and_has_layers_and_heads(name: str) -> None:
    folder = vp.bundled_models()[name]
    assert (folder / "model.safetensors").stat().st_size <= 4 * 2**20
    for stack in vp.describe_model(name).architecture.stacks:
        assert stack.heads >= 4
        assert stack.name == "vision" or stack.layers >= 6


@pytest.mark.parametrize("name", ["shapes-blip", "shapes-llava"])
def test_the_card_reports_what_the_issue_of_these_models_asks(name: str) -> None:
    folder = vp.bundled_models()[name]
    measured = json.loads((folder / "evaluation.json").read_text())
    assert measured["images"] >= 2_000
    for kind in KINDS:
        assert measured["accuracy"][kind] >= (0.90 if kind == "count" else 0.97), kind
        assert measured["words alone"][kind] <= measured["chance"][kind] + 0.15, kind
        assert f"| {kind} | {measured['accuracy'][kind]:.1%} |" in (folder / "README.md").read_text()
    assert measured["picture alone, at most"] < 0.35


@pytest.mark.parametrize("name", ["shapes-blip", "shapes-llava"])
def test_a_fresh_sample_agrees_with_the_card(name: str, evaluate: ModuleType) -> None:
    rng = random.Random("test sample")
    fresh = {kind: [sample(rng, kind) for _ in range(EACH)] for kind in KINDS}
    measured = json.loads((vp.bundled_models()[name] / "evaluation.json").read_text())["accuracy"]
    for kind, share in evaluate.accuracy(name, fresh).items():
        error = (measured[kind] * (1 - measured[kind]) / EACH) ** 0.5
        assert share >= measured[kind] - 4 * error - 1 / EACH, kind


def test_bundled_models_load_without_a_network() -> None:
    code = "import vlm_patching as vp; [vp.load_model(name) for name in vp.bundled_models()]"
    blocked = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=blocked)


def test_generate_answers_with_one_word() -> None:
    pair = vp.load_pairs("shapes", n=1, seed=1)[0]
    model = vp.load_model("shapes-llava")
    processor, module = model.description.processor, model.envoy._module
    inputs = processor(
        images=pair.clean.picture(), text=f"USER: <image>\n{pair.clean.text} ASSISTANT:", return_tensors="pt"
    )
    made = module.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(made, skip_special_tokens=True).strip() == pair.answer
