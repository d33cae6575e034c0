"""Bootstrap intervals and split-half reliability on data whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import vlm_patching as vp
from vlm_patching.analysis import uncertainty
from vlm_patching.analysis.uncertainty import bootstrap, split_half

NAN = float("nan")


def effect(values: Any, draws: bool = False) -> xr.DataArray:
    """Values [example, layer(, draw)] as an effect."""
    values = np.asarray(values, dtype=float)
    coords = {"example": [f"pair-{i}" for i in range(len(values))], "layer": np.arange(values.shape[1])}
    return xr.DataArray(values, coords, ("example", "layer", "draw")[: 3 if draws else 2], name="effect")


def coverage(values: np.ndarray, level: float, draws: bool = False) -> float:
    """Share of cells (each a simulation whose true mean is 0) with 0 inside their interval."""
    ds = bootstrap(effect(values, draws), level, resamples=1000)
    return float(((ds["low"] <= 0) & (ds["high"] >= 0)).mean())


def binomial_error(share: float, number: int) -> float:
    return 3 * float(np.sqrt(share * (1 - share) / number))


def test_the_mean_is_over_examples_each_the_mean_of_its_draws_and_nan_is_left_out() -> None:
    values = [[[1.0, 3.0]], [[5.0, NAN]], [[NAN, NAN]], [[NAN, 0.0]]]
    ds = bootstrap(effect(values, draws=True))
    np.testing.assert_allclose(ds["mean"].values, [(2 + 5 + 0) / 3])
    assert ds["low"].item() < ds["mean"].item() < ds["high"].item()


def test_with_many_examples_the_interval_is_scipys_bca() -> None:
    values = np.random.default_rng(0).exponential(size=(300, 3))
    ds = bootstrap(effect(values), 0.9, resamples=9999)
    reference = stats.bootstrap(
        (values,), np.mean, axis=0, confidence_level=0.9, n_resamples=9999, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = reference.high - reference.low
    np.testing.assert_array_less(abs(ds["low"].values - reference.low) / width, 0.03)
    np.testing.assert_array_less(abs(ds["high"].values - reference.high) / width, 0.03)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("examples", [8, 24])
def test_intervals_of_few_normal_examples_cover_at_their_level(examples: int, level: float) -> None:
    values = np.random.default_rng(examples).normal(size=(examples, 1500))
    assert abs(coverage(values, level) - level) < binomial_error(level, 1500)


def test_intervals_of_skewed_examples_cover_more_than_percentile_intervals() -> None:
    values = np.random.default_rng(1).exponential(size=(24, 1500)) - 1
    resampled = np.random.default_rng(2).integers(0, 24, (1000, 24))
    low, high = np.quantile(values[resampled].mean(axis=1), [0.025, 0.975], axis=0)
    percentile = ((low <= 0) & (high >= 0)).mean()
    found = coverage(values, 0.95)
    assert found > 0.95 - 0.015 - binomial_error(0.95, 1500)
    assert found > percentile + 0.01


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.3), (1.0, 2.0)])
def test_intervals_of_examples_with_noise_draws_cover_at_their_level(between: float, within: float) -> None:
    rng = np.random.default_rng(3)
    values = between * rng.normal(size=(16, 1500, 1)) + within * rng.normal(size=(16, 1500, 5))
    assert abs(coverage(values, 0.95, draws=True) - 0.95) < binomial_error(0.95, 1500)


def test_effects_that_differ_by_their_draws_alone_are_covered_at_least_at_the_level() -> None:
    found = coverage(np.random.default_rng(4).normal(size=(16, 1500, 5)), 0.95, draws=True)
    assert 0.95 - binomial_error(0.95, 1500) < found < 0.985


def test_missing_draws_and_examples_leave_the_coverage() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=(20, 1500, 1)) + rng.normal(size=(20, 1500, 4))
    values[rng.random(values.shape) < 0.2] = NAN
    values[rng.random(values.shape[:2]) < 0.2] = NAN
    assert abs(coverage(values, 0.95, draws=True) - 0.95) < binomial_error(0.95, 1500)


def test_draws_that_repeat_each_other_say_nothing_new() -> None:
    values = np.random.default_rng(6).normal(size=(12, 4))
    once, thrice = bootstrap(effect(values)), bootstrap(effect(np.repeat(values[..., None], 3, axis=2), draws=True))
    xr.testing.assert_allclose(once, thrice)


def test_cells_that_were_not_run_are_nan_and_one_example_has_no_interval() -> None:
    ds = bootstrap(effect([[1.0, NAN, 3.0], [2.0, NAN, NAN], [3.0, NAN, NAN]]))
    np.testing.assert_array_equal(ds["mean"].values, [2.0, NAN, 3.0])
    for end in ("low", "high"):
        np.testing.assert_array_equal(np.isnan(ds[end].values), [False, True, True])


def test_a_cell_whose_effect_is_always_the_same_has_an_interval_without_width() -> None:
    ds = bootstrap(effect([[0.0, 0.5]] * 5))
    np.testing.assert_array_equal([ds["low"].values, ds["high"].values], [[0.0, 0.5]] * 2)


def test_an_example_that_was_dropped_changes_nothing() -> None:
    values = np.random.default_rng(7).normal(size=(9, 5))
    dropped = np.insert(values, [0, 4], NAN, axis=0)
    xr.testing.assert_identical(bootstrap(effect(values)), bootstrap(effect(dropped)))
    xr.testing.assert_identical(split_half(effect(values)), split_half(effect(dropped)))


def test_the_seed_alone_decides_whatever_the_other_cells_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = effect(np.random.default_rng(8).normal(size=(10, 7)))
    ds = bootstrap(data, seed=1)
    xr.testing.assert_identical(ds, bootstrap(data, seed=1))
    assert not ds["low"].equals(bootstrap(data, seed=2)["low"])
    xr.testing.assert_allclose(ds.isel(layer=[3]), bootstrap(data.isel(layer=[3]), seed=1))
    xr.testing.assert_identical(split_half(data, seed=1), split_half(data, seed=1))
    assert not split_half(data, seed=1).equals(split_half(data, seed=2))
    halves = split_half(data, seed=1)
    monkeypatch.setattr(uncertainty, "MOST_NUMBERS", 4000)
    xr.testing.assert_allclose(ds, bootstrap(data, seed=1))
    xr.testing.assert_allclose(halves, split_half(data, seed=1))


def test_labels_of_cells_stay_and_labels_of_examples_go() -> None:
    data = effect(np.zeros((4, 3))).assign_coords(
        kept=("example", ["kept"] * 4), depth=("layer", [0.0, 0.5, 1.0]), token=(("example", "layer"), [["a"] * 3] * 4)
    )
    ds = bootstrap(data.assign_attrs(metric="probability"), 0.9)
    assert set(ds.coords) == {"layer", "depth"} and ds["mean"].dims == ("layer",)
    assert ds.attrs["metric"] == "probability" and ds.attrs["level"] == 0.9


@pytest.mark.parametrize(("examples", "noise"), [(20, 1.0), (20, 4.0), (50, 4.0)])
def test_the_reliability_is_signal_over_signal_and_noise(examples: int, noise: float) -> None:
    rng = np.random.default_rng(9)
    values = rng.normal(size=3000) + noise * rng.normal(size=(examples, 3000))
    half = 1 / (1 + noise**2 / (examples / 2))
    spearman = 6 / np.pi * np.arcsin(half / 2)
    ds = split_half(effect(values), splits=20)
    assert abs(ds["spearman"].item() - spearman) < 0.03
    assert abs(ds["spearman_brown"].item() - 2 * spearman / (1 + spearman)) < 0.03


def test_a_map_of_noise_is_not_reliable_and_one_without_noise_is() -> None:
    rng = np.random.default_rng(10)
    assert abs(split_half(effect(rng.normal(size=(20, 3000))), splits=20)["spearman"].item()) < 0.06
    alike = np.tile(rng.normal(size=30), (6, 1))
    alike[2, 5] = NAN
    alike[:, 7] = NAN
    np.testing.assert_allclose(split_half(effect(alike), splits=5)["spearman_brown"].item(), 1.0)
    assert np.isnan(split_half(effect(np.zeros((4, 5))), splits=5)["spearman"].item())


@pytest.mark.parametrize("of", [bootstrap, split_half])
def test_what_has_too_few_examples_or_none_is_refused(of: Any) -> None:
    with pytest.raises(vp.SpecError, match="`example` dimension"):
        of(effect(np.ones((3, 4))).mean("example"))
    with pytest.raises(vp.SpecError, match="At least 2 examples"):
        of(effect(np.ones((1, 4))))
    with pytest.raises(vp.SpecError, match="1 of 2 have"):
        of(effect([[1.0] * 4, [NAN] * 4]))
    with pytest.raises(vp.SpecError, match="infinite"):
        of(effect([[1.0] * 4, [np.inf] * 4]))


def test_levels_and_numbers_out_of_range_are_refused() -> None:
    data = effect(np.random.default_rng(0).normal(size=(5, 2)))
    for level in (0.0, 1.0, -0.5, 95, NAN):
        with pytest.raises(vp.SpecError, match="level must be between 0 and 1"):
            bootstrap(data, level)
    with pytest.raises(vp.SpecError, match="resamples must be at least 1"):
        bootstrap(data, resamples=0)
    with pytest.raises(vp.SpecError, match="at least 3 cells, not 2"):
        split_half(data)
