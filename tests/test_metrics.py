"""Every metric against its definition, written out, and through a run against the oracle's logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import vlm_patching as vp
from tests.oracle import patching as oracle
from vlm_patching.metrics import METRICS

FIRST_TOKEN = [name for name, row in METRICS.items() if "scores" not in row]
CONTINUOUS = [name for name in FIRST_TOKEN if "steps" not in METRICS[name]]


def by_hand(name: str, logits: list[float], answer: int, foil: int, clean: list[float]) -> float:
    def softmax(x: list[float]) -> list[float]:
        top = max(x)
        total = sum(math.exp(v - top) for v in x)
        return [math.exp(v - top) / total for v in x]

    p, q = softmax(clean), softmax(logits)
    better = sum(v > logits[answer] for v in logits)
    return {
        "probability": q[answer],
        "log_probability": math.log(q[answer]),
        "logit_difference": logits[answer] - logits[foil],
        "kl_divergence": sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
        "answer_rank": better + 1,
        "top1_accuracy": float(better == 0),
        "top5_accuracy": float(better < 5),
    }[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FIRST_TOKEN)
def test_a_metric_is_what_its_definition_says(name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, clean = (3 * torch.randn(n, 12, generator=generator) for n in (20, 1))
    logits, clean = logits.to(dtype), clean.to(dtype)
    found = METRICS[name]["of"](logits, 4, 7, clean)
    assert found.dtype == torch.float32 and found.shape == (20,)
    wanted = [by_hand(name, row, 4, 7, clean[0].tolist()) for row in logits.tolist()]
    assert np.ptp(wanted) > 0.2
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", ["shapes-blip", "random-blip", "shapes-llava", "random-llava"])
def test_every_metric_of_a_run_is_that_of_the_oracles_logits(name: str, direction: str, loaded: dict[str, Any]) -> None:
    model = loaded[name]
    module, processor = model.envoy._module, model.description.processor
    blip = "blip" in name
    site = "question_encoder.resid_post" if blip else "language.resid_post"
    pair = vp.load_pairs("shapes", n=1, seed=2)[0]
    spec = {
        "name": "metrics",
        "model": {"name": "shapes-blip"},
        "pairs": {"dataset": "shapes", "keep": "all"},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": [site], "positions": ["question", "last"], "direction": direction},
        "metrics": FIRST_TOKEN,
    }
    ds = vp.run(vp.Experiment.from_dict(spec), model=model, inputs=[pair], progress=False)
    inputs = []
    for prompt in (pair.clean, pair.corrupted):
        text = pair.clean.text if blip else f"USER: <image>\n{pair.clean.text} ASSISTANT:"
        made = dict(processor(images=prompt.image, text=text, return_tensors="pt"))
        if blip:
            made["decoder_input_ids"] = torch.tensor([[processor.tokenizer.bos_token_id]])
        inputs.append(made)
    clean, corrupted = (oracle.run(module, made)[0] for made in inputs)
    base, source = inputs[::-1] if direction == "denoise" else inputs
    ids = inputs[0]["input_ids"][0].tolist()
    words = [processor.tokenizer.convert_tokens_to_ids(w) for w in pair.clean.text.removesuffix("?").split()]
    first = next(i for i in range(len(ids)) if ids[i : i + len(words)] == words)
    positions = {"question": list(range(first, first + len(words) + 1)), "last": [len(ids) - 1]}
    answer, foil = (processor.tokenizer.convert_tokens_to_ids(word) for word in (pair.answer, pair.foil))
    for layer in range(ds.sizes["layer"]):
        for label, where in positions.items():
            logits = oracle.patched(module, base, source, site, layer, where)
            for metric in CONTINUOUS:
                wanted = by_hand(metric, logits.tolist(), answer, foil, clean.tolist())
                found = float(ds[metric].sel(layer=layer, position=label)[0, 0])
                assert abs(found - wanted) <= (1e-5 if metric == "probability" else 1e-4), (metric, layer, label)
    for metric in FIRST_TOKEN:
        for kind, logits in (("clean", clean), ("corrupted", corrupted)):
            wanted = by_hand(metric, logits.tolist(), answer, foil, clean.tolist())
            assert abs(float(ds[f"{metric}_{kind}"][0]) - wanted) <= 1e-4, (metric, kind)


@pytest.mark.parametrize("metric", list(METRICS))
def test_restoring_everything_has_the_whole_total_effect_whichever_way_a_metric_counts(metric: str) -> None:
    spec = {
        "name": "signs",
        "model": {"name": "shapes-llava"},
        "pairs": {"dataset": "shapes", "n": 4},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": ["language.resid_post"], "layers": [0, 5], "positions": ["last"]},
        "metrics": [metric],
    }
    ds = vp.run(vp.Experiment.from_dict(spec), progress=False)
    total = vp.total_effect(ds, metric)
    if metric != "top5_accuracy":  # the answer stays among the five likeliest
        assert (total > 0).all()
        restored = vp.effect(ds, metric, normalize=True).sel(layer=5, position="last")
        np.testing.assert_allclose(restored.values, 1, atol=1e-3)
    assert '"passed": true' in ds.attrs["checks"]
