"""The engine gives the numbers of one pass a cell, whatever it reuses and however it cuts a sweep into batches."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import vlm_patching as vp
from tests.conftest import BUNDLED, RANDOM
from vlm_patching.backends import kernels, local
from vlm_patching.backends.plan import NAIVE, Settings

FLAGS = ("reuse_image", "layers", "cross_keys", "fold", "pack", "cone")
SIP, NOISE = {"kind": "semantic_image_pair"}, {"kind": "gaussian_noise", "draws": 2}
TEXT = {"llava": "language", "blip": "question_encoder"}


def drawn(rng: random.Random, name: str, sites: list[str]) -> dict[str, Any]:
    """A section and its corruption, drawn: sites, positions, windows, direction, method."""
    stack = TEXT[name.split("-")[1]]
    groups = ["image:object", "subject", "each:question", "last", "question"]
    usual = {
        "sites": rng.sample([site for site in sites if "head" not in site], 2),
        "positions": rng.sample([*groups, "image", "decoding", "cls", "image:other"], 6),
        "window": rng.choice([1, 2, 3, [1, 3]]),
        "layers": rng.choice(["all", [0], [1, 2], [2]]),
    }
    heads = usual | {"sites": [rng.choice([site for site in sites if "head" in site])]}
    corruption = {"corruption": rng.choice([SIP, NOISE])}
    sever = {"sites": [f"{stack}.resid_post"], "positions": ["subject", "last"], "sever": "mlp_out"}
    metrics = {"metrics": ["answer_log_probability", "probability"]} if rng.random() < 0.3 else {}
    direction = {"direction": rng.choice(["denoise", "noise"])}
    path = {"sites": [f"{stack}.attn_head"], "positions": ["subject", "last"], "layers": [0, 1], **direction}
    receiver = {"site": f"{stack}.mlp_out", "layer": 2, "position": "last"}
    return rng.choice(
        [
            corruption | {"patch": usual | direction} | metrics,
            corruption | {"patch": heads | direction | {"placebo": rng.random() < 0.3}} | metrics,
            corruption | {"patch": sever | direction} | metrics,
            corruption | {"path": path | rng.choice([{}, {"receiver": receiver}])},
            corruption | {"steer": usual | {"strengths": [-1, 2]}},
            {"ablate": heads | {"kind": rng.choice(["zero", "mean"])}} | metrics,
            {"ablate": usual | {"kind": rng.choice(["zero", "resample", "mean"])}},
            {"knockout": {"edges": ["image -> question", "question -> last", "all -> last"], "window": [1, 2]}}
            | metrics,
        ]
    )


def run(spec: vp.Experiment, model: Any, pairs: list[vp.Pair], **more: Any) -> xr.Dataset:
    return vp.run(spec, model=model, inputs=pairs, progress=False, checks=False, **more)


def differences(found: xr.Dataset, wanted: xr.Dataset) -> dict[str, float]:
    assert set(found.data_vars) == set(wanted.data_vars)
    for name in found.data_vars:
        assert (found[name].isnull() == wanted[name].isnull()).all()
    return {str(name): float(abs(found[name] - wanted[name]).max().fillna(0)) for name in found.data_vars}


@pytest.mark.parametrize("draw", range(12))
@pytest.mark.parametrize("name", [*BUNDLED, *RANDOM])
def test_a_drawn_sweep_is_that_of_one_pass_a_cell_with_any_reuse(
    name: str, draw: int, loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, model = random.Random(f"{name}/{draw}"), loaded[name]
    pairs = vp.load_pairs("shapes", n=2, seed=draw, questions=["color_choice"])
    head = {"name": "drawn", "model": {"name": name}, "pairs": {"dataset": "shapes", "keep": "all"}}
    wanted = None
    while wanted is None:
        spec = vp.Experiment.from_dict(head | drawn(rng, name, model.description.architecture.sites()))
        try:
            wanted = run(spec, model, pairs, engine="naive")
        except vp.SpecError:  # positions that these sites have not got, windows too wide: draw again
            continue
    flags = {flag: rng.random() < 0.6 for flag in FLAGS}
    settings = Settings(rows=rng.choice([None, 1, 3, 7]), tokens=rng.choice([1, 20, 128, 1000]), **flags)
    monkeypatch.setattr(local, "settings_on", lambda *_: settings)
    for metric, difference in differences(run(spec, model, pairs), wanted).items():
        tolerance = 1e-5 if metric.startswith("probability") else 1e-4
        assert difference <= tolerance, f"{metric} {difference:.2g} {settings}: {spec.to_yaml()}"


@pytest.mark.parametrize("name", BUNDLED)
def test_every_single_reuse_gives_the_same_numbers_and_effects_are_large(
    name: str, loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = TEXT[name.split("-")[1]]
    patch = {"sites": [f"{stack}.resid_post", f"{stack}.mlp_out"], "positions": ["subject", "question", "last"]}
    head = {"name": "each", "model": {"name": name}, "pairs": {"dataset": "shapes", "keep": "all"}}
    spec = vp.Experiment.from_dict(head | {"corruption": NOISE, "patch": patch})
    pairs = vp.load_pairs("shapes", n=2, seed=5)
    wanted = run(spec, loaded[name], pairs, engine="naive")
    assert float(np.nanmax(wanted["logit_difference"]) - np.nanmin(wanted["logit_difference"])) > 1
    for on in itertools.chain([()], [(flag,) for flag in FLAGS], [FLAGS]):
        settings = dataclasses.replace(NAIVE, rows=None, **dict.fromkeys(on, True))
        monkeypatch.setattr(local, "settings_on", lambda *_, chosen=settings: chosen)
        found = differences(run(spec, loaded[name], pairs), wanted)
        assert found["probability"] <= 1e-5 and found["logit_difference"] <= 1e-4, (on, found)


@pytest.mark.parametrize("metrics", [["probability", "logit_difference"], ["probability", "answer_log_odds"]])
@pytest.mark.parametrize("name", BUNDLED)
def test_running_out_of_memory_in_the_middle_costs_only_the_batch(
    name: str, metrics: list[str], loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = TEXT[name.split("-")[1]]
    head = {"name": "memory", "model": {"name": name}, "pairs": {"dataset": "shapes", "n": 2}, "metrics": metrics}
    patch = {"sites": [f"{stack}.attn_head"], "positions": "each:question"}
    spec = vp.Experiment.from_dict(head | {"corruption": SIP, "patch": patch})
    pairs, model, real = vp.load_pairs("shapes", n=2), loaded[name], kernels.run_trace
    layer = model.description.architecture.stack(stack).taps["resid_post"].path.format(layer=5)
    started: list[int] = []
    cells: list[int] = []

    def counted(model: Any, program: Any, trace: dict[str, Any], *more: Any) -> None:
        started.append(len(trace.get("cells", ())))
        real(model, program, trace, *more)
        cells.append(started[-1])

    def runs_out(*_: Any) -> None:
        if len(started) == 5:  # a few passes after the first pair's base runs, in the middle of the model
            raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(kernels, "run_trace", counted)
    wanted = run(spec, model, pairs, batch_rows=16)
    usual = sum(cells), cells.count(0)
    started.clear(), cells.clear()
    hook = model.envoy._module.get_submodule(layer).register_forward_pre_hook(runs_out)
    try:
        found = differences(run(spec, model, pairs, batch_rows=16), wanted)
    finally:
        hook.remove()
    assert len(started) == len(cells) + 1 and found["probability"] <= 1e-6 and max(found.values()) <= 1e-4
    answers = 1 if "logit_difference" in metrics else 2  # whole answers are teacher-forced one by one
    assert (sum(cells), cells.count(0)) == (usual[0], usual[1] + 2 * answers)
    monkeypatch.setattr(kernels, "run_trace", lambda *arguments: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(vp.RunError, match="Pair 'shapes-0-0' failed: Memory does not suffice"):
        run(spec, model, pairs)


def test_cells_that_reach_nothing_are_what_the_base_run_is_without_being_run(
    loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = {"name": "idle", "model": {"name": "shapes-llava"}, "pairs": {"dataset": "shapes", "n": 1}}
    patch = {"sites": ["language.mlp_out"], "layers": [5], "positions": ["image", "subject"]}
    spec = vp.Experiment.from_dict(head | {"corruption": SIP, "patch": patch})
    swept, real = [], kernels.run_trace

    def counted(model: Any, program: Any, trace: dict[str, Any], *more: Any) -> None:
        swept.append(trace["run"])
        real(model, program, trace, *more)

    monkeypatch.setattr(kernels, "run_trace", counted)
    ds = run(spec, loaded["shapes-llava"], vp.load_pairs("shapes", n=1))
    assert "patched" not in swept
    assert (ds["logit_difference"] == ds["logit_difference_corrupted"]).all()


def test_a_plan_counts_what_is_run(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ran, real = [], kernels.run_trace

    def counted(*arguments: Any) -> None:
        ran.append(1)
        real(*arguments)

    monkeypatch.setattr(kernels, "run_trace", counted)
    for preset, model in (("notice2024_llava_heads", "shapes-llava"), ("answer_path_blip", "shapes-blip")):
        spec = vp.Experiment.from_spec(preset, {"pairs.n": 3})
        plan = vp.plan(spec)
        ran.clear()
        vp.run(spec, model=loaded[model], progress=False, checks=False)
        assert len(ran) == plan.engine.forward_passes < plan.naive.forward_passes
        assert plan.naive.token_layers > plan.engine.token_layers
        assert plan.pairs == 3 and "token-layers" in str(plan) and plan.to_dict()["cells"] == plan.cells
    assert vp.plan(spec, model=loaded["shapes-blip"]).seconds > 0


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(vp.SpecError, match="Did you mean 'naive'"):
        vp.run("palit2023", engine="naiv")
