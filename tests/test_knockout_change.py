"""The change in percent by a knockout, on hand-made numbers, and its interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import vlm_patching as vp
from vlm_patching.analysis import bootstrap, knockout_change

NAN = float("nan")


def knocked_out(
    blocked: Any, clean: Any, metric: str = "probability", kept: list[str] | None = None, method: str = "knockout"
) -> xr.Dataset:
    """blocked [example, edges, layer], clean [example]."""
    blocked, clean = np.asarray(blocked, dtype=np.float32), np.asarray(clean, dtype=np.float32)
    return xr.Dataset(
        {metric: (("example", "site", "edges", "layer"), blocked[:, None]), f"{metric}_clean": ("example", clean)},
        {
            "example": [f"pair-{i}" for i in range(len(blocked))],
            "site": ["language"],
            "edges": ["image -> question", "image -> last"][: blocked.shape[1]],
            "layer": np.arange(blocked.shape[2]),
            "kept": ("example", kept or ["kept"] * len(blocked)),
        },
        {"method": method},
    )


@pytest.mark.parametrize("method", ["knockout", "ablate"])
def test_it_is_the_change_in_percent_of_the_clean_runs_and_negative_where_the_answer_is_lost(method: str) -> None:
    ds = knocked_out([[[0.2, 0.8, 0.0]], [[0.5, 0.1, NAN]]], [0.8, 0.4], method=method)
    change = knockout_change(ds)
    np.testing.assert_allclose(change.values[:, 0, 0], [[-75, 0, -100], [25, -75, NAN]], atol=1e-4)
    assert change.dims == ds["probability"].dims and change.attrs["unit"] == "%"
    assert change.attrs["metric"] == "probability"
    assert (np.sign(change) == -np.sign(vp.effect(ds))).where(change.notnull(), True).all()


@pytest.mark.parametrize("metric", ["log_probability", "answer_log_probability"])
def test_of_a_log_probability_it_is_the_change_of_the_probability(metric: str) -> None:
    rng = np.random.default_rng(0)
    blocked, clean = rng.uniform(0.01, 1, (5, 2, 4)), rng.uniform(0.01, 1, 5)
    logs = knockout_change(knocked_out(np.log(blocked), np.log(clean), metric), metric)
    np.testing.assert_allclose(logs.values, knockout_change(knocked_out(blocked, clean)).values, rtol=1e-3, atol=1e-3)
    impossible = knocked_out([[[-np.inf]]], [-0.1], metric)
    assert knockout_change(impossible, metric).item() == -100


def test_where_the_clean_run_gives_the_answer_almost_nothing_it_is_nan_and_never_inf() -> None:
    clean = [0.0, 5e-7, 2e-6]
    change = knockout_change(knocked_out([[[0.1]]] * 3, clean))
    np.testing.assert_array_equal(np.isnan(change.values.ravel()), [True, True, False])
    with np.errstate(divide="ignore"):
        logs = knocked_out([[[-1.0]]] * 3, np.log(clean), "log_probability")
    np.testing.assert_array_equal(
        np.isnan(knockout_change(logs, "log_probability").values.ravel()), [True, True, False]
    )


def test_a_dropped_example_is_nan() -> None:
    change = knockout_change(knocked_out([[[0.1]], [[0.1]]], [0.5, 0.5], kept=["dropped: no", "kept"]))
    np.testing.assert_array_equal(np.isnan(change.values.ravel()), [True, False])


def test_its_bootstrap_is_the_mean_over_examples_with_an_interval_that_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    truth = np.linspace(-80, 10, 300)
    clean = rng.uniform(0.3, 0.9, 20)
    blocked = clean[:, None] * (1 + (truth + 5 * rng.normal(size=(20, 300))) / 100)
    change = knockout_change(knocked_out(blocked[:, None], clean))
    ds = bootstrap(change)
    assert ds["mean"].dims == ("site", "edges", "layer") and ds.attrs["unit"] == "%"
    np.testing.assert_allclose(ds["mean"].values, change.values.mean(axis=0))
    covered = ((ds["low"] <= truth) & (truth <= ds["high"])).mean()
    assert abs(covered - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 300)


def test_what_is_no_probability_and_other_methods_are_refused_and_told_what_to_use() -> None:
    ds = knocked_out([[[0.5]]], [0.8]).assign(logit_difference=("example", [1.0]), logit_difference_clean=2.0)
    with pytest.raises(vp.SpecError, match=r"logit_difference.*probability.*analysis\.effect"):
        knockout_change(ds, "logit_difference")
    with pytest.raises(vp.SpecError, match="Did you mean 'probability'"):
        knockout_change(ds, "probabilty")
    for method in ("patch", "steer", "lens"):
        with pytest.raises(vp.SpecError, match=f"knockout.*{method}"):
            knockout_change(knocked_out([[[0.5]]], [0.8], method=method))
