"""Every site × corruption × metric × direction equals the straight-line oracle: plain hooks, one forward pass per cell.

The oracle gets its own inputs from the processor, its own token positions and its own noise; the package is only
asked for results.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import vlm_patching as vp
from tests.conftest import BUNDLED, RANDOM
from tests.oracle import patching as oracle

TOLERANCE = {"probability": 1e-5, "log_probability": 1e-4, "logit_difference": 1e-4}
CORRUPTIONS: dict[str, dict[str, Any]] = {
    "semantic_image_pair": {"kind": "semantic_image_pair"},
    "symmetric_token_replacement": {"kind": "symmetric_token_replacement"},
    "gaussian_noise": {"kind": "gaussian_noise", "draws": 2},
}
QUESTION = {"semantic_image_pair": "color_choice", "symmetric_token_replacement": "place", "gaussian_noise": "color"}
NOISE = 3.0
POSITIONS = {
    "question_encoder": ["subject", "answer_option", "last"],
    "answer_decoder": ["decoding"],
    "language": ["image:object", "answer_option", "last"],
    "vision": ["cls", "image:object"],
}


@dataclass
class Case:
    """One model and one pair, prepared for the oracle without the package's help.

    Answer and foil are the words most likely in the clean and the corrupted run, so that effects are large whatever the
    weights; `noise` is in absolute units.
    """

    module: Any
    pair: vp.Pair
    inputs: dict[str, dict[str, torch.Tensor]]
    answer: int
    foil: int
    columns: int
    tokenizer: Any
    noise: float

    def indices(self, stack: str, label: str) -> list[int]:
        """Where a position group is, found by looking."""
        ids = self.inputs["clean"]["input_ids"][0].tolist()
        grid = [(i // self.columns, i % self.columns) for i in range(self.columns**2)]
        x0, y0, x1, y1 = self.pair.regions["object"]
        width, height = self.pair.clean.picture().size
        patch_w, patch_h = width / self.columns, height / self.columns
        patches = [
            i
            for i, (r, c) in enumerate(grid)
            if c * patch_w < x1 and (c + 1) * patch_w > x0 and r * patch_h < y1 and (r + 1) * patch_h > y0
        ]
        if stack == "vision":
            return [0] if label == "cls" else [1 + i for i in patches]
        if stack == "answer_decoder":
            return [0]
        if label == "image:object":
            return [ids.index(4) + i for i in patches]
        if label == "last":
            return [len(ids) - 1]
        word = self.pair.clean.text[slice(*self.pair.spans[label])]
        other = self.word_ids(word)
        start = max(i for i in range(len(ids)) if ids[i : i + len(other)] == other)
        return list(range(start, start + len(other)))

    def word_ids(self, word: str) -> list[int]:
        return list(self.tokenizer(word, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[tuple[str, str], Case]:
    return {(name, kind): _case(model, kind) for name, model in loaded.items() for kind in CORRUPTIONS}


def _case(model: Any, corruption: str) -> Case:
    module, processor = model.envoy._module, model.description.processor
    blip = hasattr(module, "text_encoder")
    pair = vp.load_pairs("shapes", n=1, seed=5, questions=[QUESTION[corruption]])[0]

    def prepare(image: Any, text: str) -> dict[str, torch.Tensor]:
        prompt = text if blip else f"USER: <image>\n{text} ASSISTANT:"
        made = processor(images=image, text=prompt, return_tensors="pt")
        inputs = {name: made[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        if blip:
            inputs["decoder_input_ids"] = torch.tensor([[processor.tokenizer.bos_token_id]])
        return inputs

    inputs = {
        "clean": prepare(pair.clean.image, pair.clean.text),
        "semantic_image_pair": prepare(pair.corrupted.image, pair.clean.text),
        "symmetric_token_replacement": prepare(pair.clean.image, pair.corrupted.text),
    }
    clean, read = oracle.run(module, inputs["clean"], read=[("image_embeds", None)])
    embeds = next(iter(read.values()))
    noise = NOISE * embeds.std().item()
    if corruption == "gaussian_noise":
        added = noise * _noise(pair.id, 11, 1, embeds.shape)[0]
        other, _ = oracle.run(module, inputs["clean"], edits=[("add", "image_embeds", None, None, None, added)])
    else:
        other, _ = oracle.run(module, inputs[corruption])
    words = [i for w, i in processor.tokenizer.get_vocab().items() if w.isalpha()]
    first = max(words, key=lambda i: float(clean[i]))
    likely = [first, max((i for i in words if i != first), key=lambda i: float(other[i]))]
    answer, foil = (processor.tokenizer.convert_ids_to_tokens(i) for i in likely)
    pair = vp.Pair(pair.id, pair.clean, pair.corrupted, answer, foil, pair.spans, pair.spans_corrupted, pair.regions)
    grid = inputs["clean"]["pixel_values"].shape[-1] // module.config.vision_config.patch_size
    return Case(module, pair, inputs, likely[0], likely[1], grid, processor.tokenizer, noise)


def _noise(pair_id: str, seed: int, draws: int, shape: torch.Size) -> list[torch.Tensor]:
    """Draw d of a pair is seeded by the first 7 bytes of SHA-256 of "seed/purpose/pair/draw"."""
    drawn = []
    for draw in range(draws):
        text = f"{seed}/image_embeds noise/{pair_id}/{draw}"
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
        drawn.append(torch.randn(shape[1:], generator=generator)[None])
    return drawn


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("corruption", list(CORRUPTIONS))
@pytest.mark.parametrize("name", [*BUNDLED, *RANDOM])
def test_every_site_equals_the_oracle(
    name: str, corruption: str, direction: str, loaded: dict[str, Any], cases: dict[tuple[str, str], Case]
) -> None:
    case, model = cases[name, corruption], loaded[name]
    spread: dict[str, float] = dict.fromkeys(TOLERANCE, 0.0)
    compared = 0
    sites = model.description.architecture.sites()
    assert set(sites) >= set(oracle.all_sites(case.module)) - {"image_embeds"}
    for site in sites:
        if site in ("vision.mlp_neuron", "token_embeds", "image_embeds"):
            continue  # the oracle has no such site; the entries are in test_edits
        ds = vp.run(_experiment(case, site, corruption, direction), model=model, inputs=[case.pair], progress=False)
        wanted = _by_oracle(case, ds, site, corruption, direction)
        for metric, tolerance in TOLERANCE.items():
            found = ds[metric].values[0, 0]
            assert np.isfinite(found).all(), f"{site} {metric}: a cell was not run"
            np.testing.assert_allclose(found, wanted[metric], rtol=0, atol=tolerance, err_msg=f"{site} {metric}")
            spread[metric] = max(spread[metric], float(np.ptp(wanted[metric])))
            compared += found.size
    for metric, tolerance in TOLERANCE.items():
        assert spread[metric] >= 100 * tolerance, f"{metric}: effects of {spread[metric]:.2g} could not show an error"
    assert compared > 300


def _experiment(case: Case, site: str, corruption: str, direction: str) -> vp.Experiment:
    stack = site.split(".")[0]
    settings = CORRUPTIONS[corruption] | ({"std": case.noise} if corruption == "gaussian_noise" else {})
    positions = [p for p in POSITIONS[stack] if p in case.pair.spans or p not in ("subject", "answer_option")]
    return vp.Experiment.from_dict(
        {
            "name": "oracle",
            "model": {"name": "shapes-blip"},
            "pairs": {"dataset": "shapes", "keep": "all"},
            "corruption": settings,
            "patch": {"sites": [site], "positions": positions, "direction": direction},
            "metrics": list(TOLERANCE),
            "seed": 11,
        }
    )


def _by_oracle(case: Case, ds: Any, site: str, corruption: str, direction: str) -> dict[str, np.ndarray]:
    """Metric → the patched metric of every cell, in the dataset's order of dimensions."""
    noisy = corruption == "gaussian_noise"
    clean = case.inputs["clean"]
    other = clean if noisy else case.inputs[corruption]
    noises: list[Any] = [None]
    if noisy:
        _, read = oracle.run(case.module, clean, read=[("image_embeds", None)])
        shape = next(iter(read.values())).shape
        noises = [case.noise * n for n in _noise(case.pair.id, 11, 2, shape)]
    base, source = (other, clean) if direction == "denoise" else (clean, other)
    stack, heads = site.split(".")[0], list(range(ds.sizes.get("head", 1)))
    table: dict[str, list[float]] = {metric: [] for metric in TOLERANCE}
    for layer in ds["layer"].values.tolist():
        for head in heads:
            for label in ds["position"].values.tolist():
                for noise in noises:
                    logits = oracle.patched(
                        case.module,
                        base,
                        source,
                        site,
                        layer,
                        case.indices(stack, label),
                        head=head if "head" in ds.dims else None,
                        base_noise=noise if direction == "denoise" else None,
                        source_noise=noise if direction == "noise" else None,
                    )
                    for metric, value in oracle.metrics(logits, case.answer, case.foil).items():
                        table[metric].append(value)
    shape = tuple(n for d, n in ds["probability"].sizes.items() if d not in ("example", "site"))
    return {metric: np.array(values).reshape(shape) for metric, values in table.items()}


@pytest.mark.parametrize("name", [*BUNDLED, *RANDOM])
def test_a_window_of_layers_equals_the_oracle(
    name: str, loaded: dict[str, Any], cases: dict[tuple[str, str], Case]
) -> None:
    case, model = cases[name, "semantic_image_pair"], loaded[name]
    site = "question_encoder.mlp_out" if "blip" in name else "language.mlp_out"
    stack = site.split(".")[0]
    layers = oracle.layer_count(case.module, site)
    for width in (2, 3):
        spec = _experiment(case, site, "semantic_image_pair", "denoise").to_dict()
        spec["patch"]["window"] = width
        ds = vp.run(vp.Experiment.from_dict(spec), model=model, inputs=[case.pair], progress=False)
        for layer in range(layers):
            first, stop = (layer - 1, layer + 1) if width == 2 else (layer - 1, layer + 2)
            joint = [i for i in range(layers) if first <= i < stop]
            assert int(ds["layers_covered"][0, layer]) == len(joint)
            for i, label in enumerate(ds["position"].values.tolist()):
                logits = oracle.patched(
                    case.module,
                    case.inputs["semantic_image_pair"],
                    case.inputs["clean"],
                    site,
                    joint,
                    case.indices(stack, label),
                )
                wanted = oracle.metrics(logits, case.answer, case.foil)
                for metric, tolerance in TOLERANCE.items():
                    assert abs(float(ds[metric][0, 0, layer, i]) - wanted[metric]) <= tolerance


@pytest.mark.parametrize("name", [*BUNDLED, *RANDOM])
def test_restoring_the_last_layer_at_the_readout_is_the_clean_run(
    name: str, loaded: dict[str, Any], cases: dict[tuple[str, str], Case]
) -> None:
    model = loaded[name]
    site = "answer_decoder.resid_post" if "blip" in name else "language.resid_post"
    position = "decoding" if "blip" in name else "last"
    for corruption in CORRUPTIONS:
        case = cases[name, corruption]
        spec = _experiment(case, site, corruption, "denoise").to_dict()
        spec["patch"]["positions"] = [position]
        ds = vp.run(vp.Experiment.from_dict(spec), model=model, inputs=[case.pair], progress=False)
        for metric in TOLERANCE:
            restored = ds[metric].isel(layer=-1, position=0, site=0, example=0).values
            # the same values through the same unembedding; only the batch's size differs
            np.testing.assert_allclose(restored, float(ds[f"{metric}_clean"][0]), rtol=0, atol=TOLERANCE[metric] / 10)


def test_the_noise_is_relative_to_the_clean_embeddings_of_all_pairs(
    loaded: dict[str, Any], cases: dict[tuple[str, str], Case]
) -> None:
    model = loaded["shapes-llava"]
    pairs = vp.load_pairs("shapes", n=5, seed=2)
    case = cases["shapes-llava", "gaussian_noise"]
    spec = _experiment(case, "language.resid_post", "gaussian_noise", "denoise").to_dict()
    spec["corruption"] = {"kind": "gaussian_noise", "k": 2.0, "draws": 1}
    ds = vp.run(vp.Experiment.from_dict(spec), model=model, inputs=pairs, progress=False)
    processor = model.description.processor
    read = []
    for pair in pairs:
        inputs = processor(images=pair.clean.image, text="USER: <image>\nis ASSISTANT:", return_tensors="pt")
        _, values = oracle.run(model.envoy._module, dict(inputs), read=[("image_embeds", None)])
        read.append(next(iter(values.values())).double())
    wanted = 2.0 * torch.cat(read).std(correction=0).item()
    assert ds.attrs["noise_std"] == pytest.approx(wanted, rel=1e-6)
