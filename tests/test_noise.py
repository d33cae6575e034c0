"""Noise of every kind at every place equals the oracle's, cell by cell."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

import vlm_patching as vp
from tests.conftest import BUNDLED, RANDOM
from tests.oracle import patching as oracle
from tests.oracle.noise import run_perturbed

SITES = ("pixels", "image_embeds", "token_embeds")
STRENGTHS: dict[str, dict[str, Any]] = {
    "added": {"std": 2.0, "draws": 2},
    "multiplied": {"multiplicative": {"mean": 1.0, "std": 5.0}, "draws": 2},
    "scaled": {"scale": -0.7691},
}
TOLERANCE = {"probability": 1e-5, "logit_difference": 1e-4}
SEED = 7


def _spec(corruption: dict[str, Any], site: str, positions: list[str], direction: str = "denoise") -> vp.Experiment:
    return vp.Experiment.from_dict(
        {
            "name": "noise",
            "model": {"name": "shapes-blip"},
            "pairs": {"dataset": "shapes", "keep": "all"},
            "corruption": {"kind": "gaussian_noise", **corruption},
            "patch": {"sites": [site], "positions": positions, "direction": direction},
            "metrics": list(TOLERANCE),
            "seed": SEED,
        }
    )


def _inputs(model: Any, pair: vp.Pair) -> dict[str, torch.Tensor]:
    processor, blip = model.description.processor, model.description.architecture.family.startswith("blip")
    text = pair.clean.text if blip else f"USER: <image>\n{pair.clean.text} ASSISTANT:"
    made = dict(processor(images=pair.clean.image, text=text, return_tensors="pt"))
    return {**made, "decoder_input_ids": torch.tensor([[processor.tokenizer.bos_token_id]])} if blip else made


def _draw(site: str, pair: vp.Pair, draw: int, shape: tuple[int, ...]) -> torch.Tensor:
    digest = hashlib.sha256(f"{SEED}/{site} noise/{pair.id}/{draw}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator)[None]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("kind", list(STRENGTHS))
@pytest.mark.parametrize("where", SITES)
@pytest.mark.parametrize("name", [*BUNDLED, *RANDOM])
def test_noise_equals_the_oracle(name: str, where: str, kind: str, direction: str, loaded: dict[str, Any]) -> None:
    model = loaded[name]
    module, tokenizer = model.envoy._module, model.description.processor.tokenizer
    pair = vp.load_pairs("shapes", n=1, seed=4, questions=["shape_choice"])[0]
    inputs = _inputs(model, pair)
    clean, _ = oracle.run(module, inputs)
    words = [i for w, i in tokenizer.get_vocab().items() if w.isalpha()]
    answer, foil = sorted(words, key=lambda i: -float(clean[i]))[:2]
    names = [tokenizer.convert_ids_to_tokens(i) for i in (answer, foil)]
    pair = vp.Pair(pair.id, pair.clean, pair.corrupted, *names, pair.spans, pair.spans_corrupted, pair.regions)
    ids = inputs["input_ids"][0].tolist()
    subject = tokenizer(pair.clean.text[slice(*pair.spans["subject"])], add_special_tokens=False)["input_ids"]
    start = max(i for i in range(len(ids)) if ids[i : i + len(subject)] == subject)
    tokens = list(range(start, start + len(subject)))
    if where == "pixels":
        shape = tuple(inputs["pixel_values"].shape[1:])
    elif where == "image_embeds":
        _, read = oracle.run(module, inputs, read=[("image_embeds", None)])
        shape = tuple(next(iter(read.values())).shape[1:])
    else:
        shape = (len(tokens), module.config.text_config.hidden_size)
    strength = STRENGTHS[kind]
    mean = {"added": None, "multiplied": 1.0, "scaled": -0.7691}[kind]
    spread = {"added": 2.0, "multiplied": 5.0, "scaled": 0.0}[kind]
    drawn = [spread * _draw(where, pair, d, shape) for d in range(2)] if kind != "scaled" else [None]

    site = "question_encoder.resid_post" if "blip" in name else "language.resid_post"
    ds = vp.run(_spec({"site": where, **strength}, site, ["subject", "last"], direction), model=model, inputs=[pair])
    found = ds.squeeze(["example", "site"], drop=True)
    assert ("draw" in ds.dims) == (kind != "scaled")
    wanted: dict[str, list[float]] = {metric: [] for metric in TOLERANCE}
    effects = []
    for layer in range(ds.sizes["layer"]):
        for positions in (tokens, [len(ids) - 1]):
            for noise in drawn:
                key = (site, layer)
                noisy = (module, inputs, where, noise, mean, tokens)
                if direction == "denoise":
                    _, source = oracle.run(module, inputs, read=[key])
                    edit = ("replace", site, layer, None, positions, source[key])
                    logits, _ = run_perturbed(*noisy, edits=[edit])
                else:
                    _, source = run_perturbed(*noisy, read=[key])
                    logits, _ = oracle.run(module, inputs, [("replace", site, layer, None, positions, source[key])])
                for metric, value in oracle.metrics(logits, answer, foil).items():
                    if metric in TOLERANCE:
                        wanted[metric].append(value)
                effects.append(oracle.metrics(logits, answer, foil)["logit_difference"])
    for metric, tolerance in TOLERANCE.items():
        values = found[metric].transpose("layer", "position", ..., missing_dims="ignore").values
        np.testing.assert_allclose(values.ravel(), wanted[metric], rtol=0, atol=tolerance, err_msg=metric)
    corrupted, _ = run_perturbed(module, inputs, where, drawn[0], mean, tokens)
    total = oracle.metrics(corrupted, answer, foil)["logit_difference"] - float(clean[answer] - clean[foil])
    assert max(np.ptp(effects), abs(total)) >= 100 * TOLERANCE["logit_difference"]


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("where", ["pixels", "token_embeds"])
def test_relative_noise_is_in_standard_deviations_of_all_pairs_clean_values(
    name: str, where: str, loaded: dict[str, Any]
) -> None:
    model, pairs = loaded[name], vp.load_pairs("shapes", n=4, seed=9)
    site = "question_encoder.resid_post" if "blip" in name else "language.resid_post"
    ds = vp.run(_spec({"site": where, "k": 1.5, "draws": 1}, site, ["last"]), model=model, inputs=pairs)
    module, tokenizer = model.envoy._module, model.description.processor.tokenizer
    if where == "pixels":
        values = torch.cat([_inputs(model, pair)["pixel_values"] for pair in pairs])
    else:
        words = [pair.clean.text[slice(*pair.spans["subject"])] for pair in pairs]
        table = module.text_encoder.embeddings.word_embeddings if "blip" in name else module.get_input_embeddings()
        values = table.weight[[tokenizer.convert_tokens_to_ids(word) for word in words]]
    assert ds.attrs["noise_std"] == pytest.approx(1.5 * values.double().std(correction=0).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("corruption", "said"),
    [
        ({"k": 1.0, "scale": 0.5}, "k and scale"),
        ({"scale": 0.5, "draws": 3}, "draws nothing"),
        ({"span": "subject"}, "token_embeds"),
        ({"site": "token_embds"}, "Did you mean 'token_embeds'?"),
        ({"multiplicative": {"mean": 1.0}}, "corruption.multiplicative.std is missing"),
        ({"multiplicative": {"mean": 1.0, "sdt": 2.0, "std": 1.0}}, "Did you mean 'std'?"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(corruption: dict[str, Any], said: str) -> None:
    with pytest.raises(vp.SpecError) as error:
        _spec(corruption, "question_encoder.resid_post", ["last"])
    assert said in str(error.value)


def test_noise_on_a_span_that_a_pair_lacks_is_refused_by_the_pair(weights_stay_where_they_are: None) -> None:
    spec = _spec({"site": "token_embeds", "span": "subjct"}, "question_encoder.resid_post", ["last"])
    with pytest.raises(vp.SpecError, match=r"shapes-0-0.*subjct.*Did you mean 'subject'"):
        vp.run(spec)
