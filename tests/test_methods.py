"""Every method by its section of the spec: the layout of what comes back, stores, resuming, batches, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import vlm_patching as vp
from vlm_patching import sweep
from vlm_patching.graph import InterventionGraph

SIP = {"kind": "semantic_image_pair"}
NOISE = {"kind": "gaussian_noise", "draws": 2}
RECEIVER = {"site": "language.attn_head", "layer": 4, "head": 1}
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "windows": (
        {"corruption": SIP, "patch": {"sites": ["language.mlp_out+language.attn_out"], "window": [1, 3]}},
        ("example", "site", "layer", "window", "position"),
        ("", "_clean", "_corrupted"),
    ),
    "severed": (
        {"corruption": SIP, "patch": {"sites": ["language.resid_post"], "sever": "mlp_out"}},
        ("example", "site", "layer", "position"),
        ("", "_clean", "_corrupted"),
    ),
    "placebo": (
        {"corruption": NOISE, "patch": {"sites": ["language.attn_head"], "layers": [1, 2], "placebo": True}},
        ("example", "site", "layer", "head", "position", "draw"),
        ("", "_clean", "_corrupted", "_placebo"),
    ),
    "attribution": (
        {"corruption": SIP, "patch": {"sites": ["language.attn_head"], "method": "attribution", "verify": 4}},
        ("example", "site", "layer", "head", "position"),
        ("", "_clean", "_corrupted", "_exact"),
    ),
    "integrated": (
        {
            "corruption": NOISE,
            "patch": {
                "sites": ["language.mlp_out"],
                "method": "integrated_gradients",
                "steps": 3,
                "direction": "noise",
            },
        },
        ("example", "site", "layer", "position", "draw"),
        ("", "_clean", "_corrupted"),
    ),
    "knockout": (
        {"knockout": {"edges": ["image -> last", "question -> last"], "window": [1, 3]}},
        ("example", "site", "edges", "layer", "window"),
        ("", "_clean"),
    ),
    "ablate": (
        {"ablate": {"sites": ["language.attn_head"], "kind": "mean", "layers": [0, 4]}},
        ("example", "site", "layer", "head", "position"),
        ("", "_clean"),
    ),
    "resample": (
        {"ablate": {"sites": ["language.mlp_out"], "kind": "resample", "positions": ["each:subject", "last"]}},
        ("example", "site", "layer", "position"),
        ("", "_clean"),
    ),
    "steer": (
        {"corruption": SIP, "steer": {"sites": ["language.resid_post"], "strengths": [-1, 0.5]}},
        ("example", "site", "layer", "position", "strength"),
        ("", "_clean", "_corrupted"),
    ),
    "path": (
        {"corruption": SIP, "path": {"sites": ["language.attn_head"], "layers": "0:3", "receiver": RECEIVER}},
        ("example", "site", "layer", "head", "position"),
        ("", "_clean", "_corrupted"),
    ),
    "lens": (
        {"lens": {"positions": ["subject_last", "last"]}},
        ("example", "site", "layer", "position"),
        ("", "_clean"),
    ),
    "attention": (
        {"attention": {"sites": ["language.attn_pattern"], "positions": ["last"], "keys": "image"}},
        ("example", "site", "layer", "head", "position", "key"),
        ("_clean",),
    ),
}


def experiment(case: str) -> vp.Experiment:
    start = {"name": case, "model": {"name": "shapes-llava"}, "pairs": {"dataset": "shapes", "n": 3, "seed": 1}}
    return vp.Experiment.from_dict(start | CASES[case][0])


@pytest.fixture(scope="module")
def results(loaded: dict[str, Any]) -> dict[str, xr.Dataset]:
    return {case: vp.run(experiment(case), model=loaded["shapes-llava"], progress=False) for case in CASES}


@pytest.mark.parametrize("case", list(CASES))
def test_dimensions_and_variables_are_those_of_the_method(case: str, results: dict[str, xr.Dataset]) -> None:
    ds, (_, dims, suffixes) = results[case], CASES[case]
    named = {f"{metric}{suffix}" for metric in ("probability", "logit_difference") for suffix in suffixes}
    assert set(map(str, ds.data_vars)) == named | ({"attention"} if case == "attention" else set())
    swept = ds["attention"] if case == "attention" else ds["probability"]
    assert swept.dims == dims and swept.dtype == np.float32
    assert np.isfinite(swept.values).all()
    assert ds.attrs["examples_kept"] == 3 and '"passed": true' in ds.attrs["checks"]
    assert ds.attrs["method"] == experiment(case).method


@pytest.mark.parametrize("case", list(CASES))
def test_an_experiment_and_its_graph_survive_yaml_and_json(case: str) -> None:
    spec = experiment(case)
    assert vp.Experiment.from_json(spec.to_json()) == spec
    graph = spec.graph()
    assert InterventionGraph.from_json(graph.to_json()) == graph
    lines = str(graph).splitlines()
    assert max(map(len, lines)) <= 118 and len(lines) <= 24
    assert all(f"run {run.name}" in str(graph) and run.name in graph.to_mermaid() for run in graph.runs)


@pytest.mark.parametrize("case", list(CASES))
def test_a_graph_runs_as_its_experiment_does(case: str, loaded: dict[str, Any], results: dict[str, xr.Dataset]) -> None:
    graph = InterventionGraph.from_json(experiment(case).graph().to_json())
    ds = vp.run(graph, model=loaded["shapes-llava"], inputs=vp.load_pairs("shapes", n=3, seed=1), progress=False)
    xr.testing.assert_equal(ds, results[case])


@pytest.mark.parametrize("case", list(CASES))
def test_a_run_that_is_cut_off_goes_on_to_the_same_numbers(
    case: str,
    loaded: dict[str, Any],
    results: dict[str, xr.Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written, real = [], sweep.example_values

    def fails_on_the_second(*arguments: Any, **named: Any) -> Any:
        written.append(1)
        if len(written) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    store, model = tmp_path / "cut.zarr", loaded["shapes-llava"]
    monkeypatch.setattr(sweep, "example_values", fails_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        vp.run(experiment(case), model=model, store=store, progress=False)
    monkeypatch.setattr(sweep, "example_values", real)
    assert (vp.load_results(store)["kept"].values != "").sum() == 1
    ds = vp.run(experiment(case), model=model, store=store, progress=False)
    xr.testing.assert_equal(ds, results[case])


@pytest.mark.parametrize("case", list(CASES))
def test_the_numbers_of_a_method_do_not_depend_on_the_size_of_a_batch(
    case: str, loaded: dict[str, Any], results: dict[str, xr.Dataset]
) -> None:
    ds = vp.run(experiment(case), model=loaded["shapes-llava"], batch_rows=5, progress=False, checks=False)
    for name in results[case].data_vars:
        tolerance = 1e-6 if "probability" in str(name) or name == "attention" else 1e-4
        np.testing.assert_allclose(ds[name].values, results[case][name].values, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", list(CASES))
def test_every_method_has_a_figure(case: str, results: dict[str, xr.Dataset]) -> None:
    figures = vp.plot.draw(results[case])
    assert len(figures) == 1
    for figure in figures.values():
        figure.canvas.draw()
        assert case in figure.get_suptitle()
        plt.close(figure)


def test_keys_say_what_they_are(results: dict[str, xr.Dataset]) -> None:
    ds = results["attention"]
    pairs = vp.load_pairs("shapes", n=3, seed=1)
    assert ds["key_box"].dims == ("example", "key", "corner")
    for i, pair in enumerate(pairs):
        x0, y0, x1, y1 = pair.regions["object"]
        boxes = ds["key_box"].values[i]
        inside = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
        assert (ds["key_role"].values[i] == np.where(inside, "object", "image")).all() and inside.any()
    total = ds["attention"].sum("key")
    assert (total <= 1 + 1e-5).all() and float(total.max()) > 0.5


def test_tasks_are_the_kinds_of_question(loaded: dict[str, Any]) -> None:
    spec = experiment("steer").to_dict()
    spec["pairs"] = {"dataset": "shapes", "n": 6, "questions": ["color_choice", "place"]}
    ds = vp.run(vp.Experiment.from_dict(spec), model=loaded["shapes-llava"], progress=False)
    assert ds["task"].values.tolist() == ["color_choice", "place"] * 3
    effects = vp.analysis.by_task(vp.effect(ds))
    assert list(effects) == ["color_choice", "place"]
    assert all(effect.sizes["example"] == 3 for effect in effects.values())
    with pytest.raises(vp.SpecError, match="task"):
        vp.analysis.by_task(vp.effect(ds).drop_vars("task"))
