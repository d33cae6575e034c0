"""Every site × corruption × metric × direction equals the straight-line oracle: plain hooks, one forward pass per cell.

The oracle gets its own inputs from the processor, its own token positions and its own noise; the package is only
asked for results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vlm_patching as vp
from tests.cases import CORRUPTIONS, NAMES, TOLERANCE, Case, experiment, make_case
from tests.oracle import patching as oracle

POSITIONS = {
    "question_encoder": ["subject", "answer_option", "last"],
    "answer_decoder": ["decoding"],
    "language": ["image:object", "answer_option", "last"],
    "vision": ["cls", "image:object"],
}


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[tuple[str, str], Case]:
    return {(name, kind): make_case(model, kind) for name, model in loaded.items() for kind in CORRUPTIONS}


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("corruption", list(CORRUPTIONS))
@pytest.mark.parametrize("name", NAMES)
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
            continue  # the oracle has no such site; the entries are in test_joint_sites
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
    positions = [p for p in POSITIONS[stack] if p in case.pair.spans or p not in ("subject", "answer_option")]
    section = {"patch": {"sites": [site], "positions": positions, "direction": direction}}
    return experiment(section, case.settings(corruption))


def _by_oracle(case: Case, ds: Any, site: str, corruption: str, direction: str) -> dict[str, np.ndarray]:
    """Metric → the patched metric of every cell, in the dataset's order of dimensions."""
    noisy = corruption == "gaussian_noise"
    clean = case.inputs["clean"]
    other = clean if noisy else case.inputs[corruption]
    noises: list[Any] = case.draws() if noisy else [None]
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


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
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
