"""Experiments give on a real server what they give here: bit for bit where both count with one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import pytest
import torch
import xarray as xr
from nnsight import save
from nnsight.intervention.backends.remote import RemoteBackend

import vlm_patching as vp
from vlm_patching.backends import local
from vlm_patching.backends.deployed import client_envoy, find_deployment
from vlm_patching.backends.jobs import SHIPPED
from vlm_patching.backends.kernels import run_programs
from vlm_patching.backends.wire import Server
from vlm_patching.errors import SpecError
from vlm_patching.models import Model
from vlm_patching.serving import Loopback

IN_A_SANDBOX = {
    "zhang_nanda2023_str": {"patch.layers": [0, 5]},
    "palit2023": {"patch.layers": [0, 5]},
    "heads_llava_direct": {},
    "heads_llava_ablation": {"ablate.layers": [0, 5]},
    "steering_llava": {"steer.layers": [0, 5]},
    "lens_llava": {},
    "zhang2024_flow_llava": {},
}
"""One preset of each method."""
NOT_IN_A_SANDBOX = {
    "heads_llava_attribution": "attribution takes gradients",
    "heads_llava_integrated": "integrated_gradients takes gradients",
    "notice2024_llava_head_functions": "switching its attention to 'eager'",
}


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: vp.load_model(name) for name in vp.bundled_models()}


@pytest.fixture(scope="module")
def sandboxed(environment: Path) -> Iterator[Loopback]:
    """A server that runs what it is sent in a sandbox, as a public one does."""
    models = ["shapes-llava", "shapes-blip"]
    with Loopback(models, environment=environment, wrappers=True, sandboxed=True, deadline=600) as loopback:
        yield loopback


def small(name: str, **changes: Any) -> vp.Experiment:
    pairs = 8 if name.startswith("basu2024") else 2  # phrases are replaced by those of other pairs
    return vp.Experiment.from_spec(name, {"pairs.n": pairs, **changes})


def assert_equal(found: xr.Dataset, wanted: xr.Dataset) -> None:
    assert set(found.data_vars) == set(wanted.data_vars)
    assert (found["kept"].values == wanted["kept"].values).all()
    for name in wanted.data_vars:
        left, right = found[name].values, wanted[name].values
        if os.environ.get("OMP_NUM_THREADS") == "1" or left.dtype.kind != "f":
            assert left.tobytes() == right.tobytes() or (left == right).all(), name
        else:
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(vp.presets()))
def test_a_preset_gives_there_what_it_gives_here(server: Loopback, models: dict[str, Model], name: str) -> None:
    experiment = small(name)
    model = models[experiment.model.name]
    wanted = vp.run(experiment, model=model, progress=False, checks=False)
    found = vp.run(experiment, model=model, backend="ndif", host=server.host, progress=False, checks=False)
    assert_equal(found, wanted)


@pytest.mark.parametrize(
    "section",
    [
        {"patch": {"sites": ["language.attn_head", "language.cross_attn_head"], "positions": ["last"]}},
        {"knockout": {"edges": ["image -> last", "question -> last"]}},
        {"attention": {"sites": ["language.cross_attn_pattern"], "positions": ["last"], "keys": "image"}},
    ],
)
def test_a_captioner_runs_on_a_server_that_lacks_our_wrapper(
    server: Loopback, captioner: str, section: dict[str, Any]
) -> None:
    corruption = {"corruption": {"kind": "semantic_image_pair"}} if "patch" in section else {}
    pairs = {"dataset": "shapes", "n": 2, "keep": "all"}
    spec = {"name": "captions", "model": {"name": captioner}, "pairs": pairs, **corruption, **section}
    experiment = vp.Experiment.from_dict(spec)
    found = vp.run(experiment, backend="ndif", host=server.host, progress=False)
    assert found.attrs["model_key"].startswith("nnsight.modeling.transformers.TransformersModel:")
    assert_equal(found, vp.run(experiment, progress=False))


def test_a_bundle_is_replayed_on_a_server(server: Loopback, models: dict[str, Model], tmp_path: Path) -> None:
    experiment = small("zhang2024_flow_llava")
    ds = vp.run(experiment, model=models["shapes-llava"], progress=False)
    path = vp.bundle.save(experiment, ds, tmp_path / "flow.vlmp.zip")
    replayed = vp.bundle.replay(path, backend="ndif", host=server.host, progress=False)
    assert replayed.ok and all(one.largest == 0 for one in replayed.comparisons)
    assert replayed.environment["backend"] == ("local", "ndif")


@pytest.mark.parametrize("name", ["zhang_nanda2023_str", "palit2023"])
def test_trust_checks_are_made_there_too(server: Loopback, models: dict[str, Model], name: str) -> None:
    experiment = small(name)
    model = models[experiment.model.name]
    found = vp.run(experiment, model=model, backend="ndif", host=server.host, progress=False)
    wanted = vp.run(experiment, model=model, progress=False)
    assert found.attrs["checks"] == wanted.attrs["checks"] and '"passed": true' in found.attrs["checks"]
    assert found.attrs["backend"] == "ndif" and "weights_sha256" not in found.attrs


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_A_SANDBOX)
def test_a_sandbox_gives_the_same_numbers(sandboxed: Loopback, models: dict[str, Model], name: str) -> None:
    experiment = small(name, **IN_A_SANDBOX[name])
    model = models[experiment.model.name]
    remote = vp.Remote(sandboxed.host, sandboxed=True)
    found = vp.run(experiment, model=model, backend="ndif", remote=remote, progress=False, checks=False)
    assert_equal(found, vp.run(experiment, model=model, progress=False, checks=False))


@pytest.mark.parametrize("name", NOT_IN_A_SANDBOX)
def test_what_a_sandbox_refuses_is_not_sent(server: Loopback, models: dict[str, Model], name: str) -> None:
    experiment = small(name)
    remote = vp.Remote(server.host, sandboxed=True)
    with pytest.raises(SpecError, match=rf"{NOT_IN_A_SANDBOX[name]}.*which a sandboxed NDIF job may not do"):
        vp.run(experiment, model=models["shapes-llava"], backend="ndif", remote=remote, progress=False)


def test_nnsights_own_way_to_wait_gives_the_same_numbers(
    server: Loopback, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sent = models["shapes-llava"], []
    real = local.shipped

    def noted(*arguments: Any) -> list[dict[str, Any]]:
        sent.append(real(*arguments))
        return sent[-1]

    monkeypatch.setattr(local, "shipped", noted)
    vp.run(small("notice2024_llava_heads"), model=model, progress=False, checks=False)
    programs = [program for some in sent for program in some]
    with model.envoy.session():
        wanted = save(run_programs(model.envoy, programs))

    for module in SHIPPED:
        nnsight.register(module)
    deployment = find_deployment(Server(vp.Remote(server.host)), model.description)
    envoy = client_envoy(model.description, deployment)
    with envoy.session(backend=RemoteBackend(deployment.key, host=server.host, blocking=True)):
        found = save(run_programs(envoy, programs))

    assert len(found) == len(wanted) == 2
    for there, here in zip(found, wanted, strict=True):
        assert set(there) == set(here)
        for name, value in here.items():
            assert torch.equal(there[name], value) if isinstance(value, torch.Tensor) else there[name] == value, name
