"""Agreement of two maps: against scipy, and how often its intervals are right on simulated maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import vlm_patching as vp
from vlm_patching.analysis.agreement import agreement

NAN = float("nan")


def effect(values: Any) -> xr.DataArray:
    """Values [example, layer, head] as an effect."""
    values = np.asarray(values, dtype=float)
    coords = {"example": [f"pair-{i}" for i in range(len(values))]}
    coords |= {name: np.arange(n) for name, n in zip(("layer", "head"), values.shape[1:], strict=True)}
    return xr.DataArray(values, coords, ("example", "layer", "head"), name="effect")


def two_maps(seed: int = 0, examples: int = 12) -> tuple[xr.DataArray, xr.DataArray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(6, 5))
    first, second = (truth + 0.7 * rng.normal(size=(6, 5)) + rng.normal(size=(examples, 6, 5)) for _ in range(2))
    return effect(first), effect(second)


def test_correlations_of_the_mean_maps_are_scipys() -> None:
    a, b = two_maps()
    ds = agreement(a, b, resamples=20)
    x, y = a.mean("example").values.ravel(), b.mean("example").values.ravel()
    np.testing.assert_allclose(ds["spearman"], stats.spearmanr(x, y).statistic)
    np.testing.assert_allclose(ds["kendall"], stats.kendalltau(x, y).statistic)
    top = set(np.argsort(-x)[:3]) & set(np.argsort(-y)[:3])
    assert ds["top_k"] == len(top) / 3 and ds.attrs["k"] == 3 and ds.attrs["cells"] == 30
    for name in ("spearman", "kendall", "top_k"):
        assert ds[f"{name}_low"] <= ds[name] <= ds[f"{name}_high"]


def test_cells_and_examples_are_matched_by_their_labels_whatever_their_order() -> None:
    a, b = two_maps()
    shuffled = b.transpose("head", "example", "layer").isel(layer=[3, 1, 5, 0, 2, 4], example=slice(None, None, -1))
    xr.testing.assert_identical(agreement(a, b, resamples=50), agreement(a, shuffled, resamples=50))
    overlap = agreement(a, b.isel(layer=slice(2, None)).assign_coords(layer=[2, 3, 4, 9]), resamples=50)
    inside = agreement(a.sel(layer=[2, 3, 4]), b.sel(layer=[2, 3, 4]), resamples=50)
    xr.testing.assert_allclose(overlap, inside)
    assert overlap.attrs["cells"] == 15


def test_a_map_agrees_with_itself_and_with_what_orders_alike_and_not_with_its_opposite() -> None:
    a, _ = two_maps()
    for other, sign in ((a, 1), (a.mean("example") ** 3, 1), (-a, -1)):
        ds = agreement(a, other, resamples=20)
        np.testing.assert_allclose([ds["spearman"], ds["kendall"]], sign)
        assert ds["top_k"] == (1.0 if sign > 0 else 0.0)
    assert agreement(a, a, resamples=20)["spearman_low"].item() == pytest.approx(1.0)


def test_the_top_is_of_signed_effects() -> None:
    a = xr.DataArray([3.0, 2.0, 0.0, -9.0], {"layer": range(4)}, ("layer",))
    b = xr.DataArray([1.0, -3.0, 2.0, -9.0], {"layer": range(4)}, ("layer",))
    assert [agreement(a, b, k)["top_k"].item() for k in (1, 2, 3, 4)] == [0.0, 0.5, 1.0, 1.0]
    assert agreement(abs(a), abs(b), 1)["top_k"] == 1.0


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_intervals_cover_what_maps_of_so_many_examples_agree_on_average(noise: float) -> None:
    rng = np.random.default_rng(1)
    examples, simulations, level = 20, 200, 0.9
    truth = rng.normal(size=(2, 1, 8, 5))
    truth[1] += truth[0]

    def maps() -> list[xr.DataArray]:
        shared = rng.normal(size=(examples, 8, 5))
        return [effect(m + noise * (shared + rng.normal(size=shared.shape))) for m in truth]

    def estimate(a: xr.DataArray, b: xr.DataArray) -> float:
        means = (x.values.mean(axis=0).ravel() for x in (a, b))
        return float(stats.spearmanr(*means).statistic)

    expected = np.mean([estimate(*maps()) for _ in range(500)])
    covered = 0
    for seed in range(simulations):
        ds = agreement(*maps(), level=level, resamples=60, seed=seed)
        covered += bool(ds["spearman_low"] <= expected <= ds["spearman_high"])
    assert abs(covered / simulations - level) <= 0.02 + 3 * np.sqrt(level * (1 - level) / simulations)


def test_without_the_same_examples_there_is_no_interval_and_the_same_estimate() -> None:
    a, b = two_maps()
    paired = agreement(a, b, resamples=20)
    apart = (
        b.assign_coords(example=[f"other-{i}" for i in range(12)]),
        b.drop_vars("example"),
        b.mean("example"),
    )
    for other in apart:
        ds = agreement(a, other, resamples=20)
        assert ds["spearman"].item() == pytest.approx(paired["spearman"].item())
        assert np.isnan([ds["spearman_low"], ds["kendall_high"], ds["top_k_low"]]).all()
    one = agreement(a.isel(example=[0]), b.isel(example=[0]))
    assert np.isfinite(one["spearman"]) and np.isnan(one["spearman_low"])


def test_nan_cells_and_dropped_examples_are_left_out() -> None:
    a, b = two_maps()
    x, y = a.copy(deep=True), b.copy(deep=True)
    x[:, 0], y[:, :, 4] = NAN, NAN
    ds = agreement(x, y, resamples=50)
    xr.testing.assert_allclose(ds, agreement(a[:, 1:, :4], b[:, 1:, :4], resamples=50))
    x[3], y[3] = NAN, NAN
    kept = [i for i in range(12) if i != 3]
    dropped = agreement(a[kept, 1:, :4], b[kept, 1:, :4], resamples=50)
    xr.testing.assert_allclose(agreement(x, y, resamples=50), dropped)


def test_draws_are_averaged_inside_their_example() -> None:
    a, b = two_maps()
    draws = xr.concat([a + 1, a - 1], dim="draw")
    xr.testing.assert_allclose(agreement(draws, b, resamples=50), agreement(a, b, resamples=50))


def test_a_constant_map_has_no_rank_correlation() -> None:
    a, b = two_maps()
    ds = agreement(xr.zeros_like(a), b, resamples=20)
    assert np.isnan([ds["spearman"], ds["kendall"], ds["spearman_low"]]).all()


def test_the_seed_alone_decides() -> None:
    a, b = two_maps()
    xr.testing.assert_identical(agreement(a, b, seed=1, resamples=50), agreement(a, b, seed=1, resamples=50))
    assert (
        agreement(a, b, seed=1, resamples=50)["spearman_low"] != agreement(a, b, seed=2, resamples=50)["spearman_low"]
    )


def test_maps_that_cannot_be_compared_are_refused() -> None:
    a, b = two_maps()
    with pytest.raises(vp.SpecError, match="share no layer: 0, 1, 2, 3, 4, … \\(6\\), and 10, "):
        agreement(a, b.assign_coords(layer=np.arange(10, 16)))
    with pytest.raises(vp.SpecError, match="other dimensions: example, layer, head, and example, layer"):
        agreement(a, b.isel(head=0))
    with pytest.raises(vp.SpecError, match="Dimension head has no labels, and sizes 5 and 4"):
        agreement(a.drop_vars("head"), b.drop_vars("head").isel(head=slice(4)))
    with pytest.raises(vp.SpecError, match="cannot be matched"):
        agreement(a.assign_coords(layer=[0, 0, 1, 2, 3, 4]), b)
    with pytest.raises(vp.SpecError, match="at least 3 cells, not 2"):
        agreement(a.isel(layer=[0], head=[0, 1]), b)
    with pytest.raises(vp.SpecError, match="share no layer"):
        agreement(a, b.isel(layer=[]))


def test_levels_and_numbers_out_of_range_are_refused() -> None:
    a, b = two_maps()
    for k in (0, 31):
        with pytest.raises(vp.SpecError, match="k must be between 1 and the 30 shared cells"):
            agreement(a, b, k)
    for level in (0.0, 1.0):
        with pytest.raises(vp.SpecError, match="level must be between 0 and 1"):
            agreement(a, b, level=level)
    with pytest.raises(vp.SpecError, match="resamples must be at least 1"):
        agreement(a, b, resamples=0)
    with pytest.raises(vp.SpecError, match="infinite"):
        agreement(a, b.where(b["layer"] != 2, np.inf))
