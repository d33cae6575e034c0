"""What corruptions do: flips, total effects, and how far activations move, against plain hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vlm_patching as vp
from tests.oracle import patching as oracle

SPEC = {
    "name": "diagnosis",
    "pairs": {"dataset": "shapes", "n": 6, "seed": 2, "questions": ["place"]},
    "metrics": ["probability", "logit_difference", "kl_divergence"],
    "lens": {},
}
STACKS = {"shapes-llava": ("vision", "language"), "shapes-blip": ("vision", "question_encoder", "answer_decoder")}


def experiment(model: str, **changes: Any) -> vp.Experiment:
    return vp.Experiment.from_dict(SPEC | {"model": {"name": model}} | changes)


def inputs_of(model: Any, image: Any, text: str) -> dict[str, torch.Tensor]:
    processor = model.description.processor
    blip = hasattr(model.envoy._module, "text_encoder")
    made = dict(
        processor(images=image, text=text if blip else f"USER: <image>\n{text} ASSISTANT:", return_tensors="pt")
    )
    return made | ({"decoder_input_ids": torch.tensor([[processor.tokenizer.bos_token_id]])} if blip else {})


@pytest.mark.parametrize("name", list(STACKS))
def test_distances_are_those_of_activations_read_by_hooks(name: str, loaded: dict[str, Any]) -> None:
    model = loaded[name]
    module = model.envoy._module
    ds = vp.diagnose(experiment(name), [{"kind": "semantic_image_pair"}], model=model).isel(corruption=0)
    pairs = vp.load_pairs("shapes", n=6, seed=2, questions=["place"])
    for stack in STACKS[name]:
        for layer in range(oracle.layer_count(module, f"{stack}.resid_post")):
            key = (f"{stack}.resid_post", layer)
            read: dict[str, list[torch.Tensor]] = {"clean": [], "corrupted": []}
            for pair in pairs:
                for run, image in (("clean", pair.clean.image), ("corrupted", pair.corrupted.image)):
                    _, found = oracle.run(module, inputs_of(model, image, pair.clean.text), read=[key])
                    read[run].append(found[key][0].double())
            clean, corrupted = torch.cat(read["clean"]), torch.cat(read["corrupted"])
            deviation = clean.std(0, correction=0)
            deviation = torch.where(deviation > 0, deviation, 1.0)
            moved = ((corrupted - clean) / deviation).square().mean().sqrt()
            spread = ((corrupted - clean.mean(0)) / deviation).square().mean().sqrt()
            here = ds.sel(site=key[0], layer=layer)
            np.testing.assert_allclose(here["moved"].item(), moved.item(), rtol=1e-4)
            np.testing.assert_allclose(here["spread"].item(), spread.item(), rtol=1e-4)
    assert float(ds["moved"].max()) > 0.05


def test_flips_and_total_effects_are_those_of_the_runs(loaded: dict[str, Any]) -> None:
    model = loaded["shapes-llava"]
    kinds = [
        {"kind": "semantic_image_pair"},
        {"kind": "symmetric_token_replacement"},
        {"kind": "gaussian_noise", "draws": 3},
    ]
    ds = vp.diagnose(experiment("shapes-llava"), kinds, model=model)
    assert ds.sizes["corruption"] == 3 and "draws=3" in str(ds["corruption"].values[2])
    for settings, name in zip(kinds, ds["corruption"].values, strict=True):
        patch = {"sites": ["language.resid_post"], "layers": [0]}
        changes = {"lens": None, "corruption": settings, "patch": patch}
        run = vp.run(experiment("shapes-llava", **changes), model=model, progress=False)
        one = ds.sel(corruption=name)
        for metric in SPEC["metrics"]:
            total = vp.total_effect(run, metric)
            total = total.mean("draw") if "draw" in total.dims else total
            np.testing.assert_allclose(one[f"{metric}_total_effect"], total, atol=1e-5)
        flipped = (run["said_corrupted"] != run["said_clean"]).astype(float)
        flipped = flipped.mean("draw") if "draw" in flipped.dims else flipped
        np.testing.assert_allclose(one["flipped"], flipped, atol=1e-7)
    assert float(ds["flipped"].sel(corruption="semantic_image_pair").mean()) == 1.0


def test_noise_leaves_the_distribution_and_exchanging_pictures_does_not(loaded: dict[str, Any]) -> None:
    kinds = [{"kind": "semantic_image_pair"}, {"kind": "gaussian_noise", "draws": 2}]
    ds = vp.diagnose(experiment("shapes-llava"), kinds, model=loaded["shapes-llava"]).sel(site="language.resid_post")
    assert float(ds["spread"].isel(corruption=0).max()) < 1.1
    assert float(ds["spread"].isel(corruption=1).max()) > 3


@pytest.mark.parametrize(
    ("corruptions", "part"),
    [
        (None, "has no corruption"),
        ([], "empty"),
        ([{"kind": "semantic_image_pairs"}], "Did you mean 'semantic_image_pair'?"),
        ([{"kind": "blank_image"}, {"kind": "blank_image"}], "twice"),
    ],
)
def test_corruptions_that_say_nothing_are_refused(corruptions: Any, part: str, loaded: dict[str, Any]) -> None:
    with pytest.raises(vp.SpecError) as caught:
        vp.diagnose(experiment("shapes-llava"), corruptions, model=loaded["shapes-llava"])
    assert part in str(caught.value)
