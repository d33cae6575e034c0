"""Tests of cells: their p against scipy's, and the share of errors they make on simulated data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import vlm_patching as vp
from vlm_patching.analysis import uncertainty
from vlm_patching.analysis.thresholds import benjamini_hochberg, cell_p, permutation_max_t

NAN = float("nan")


def effect(values: Any) -> xr.DataArray:
    """Values [example, layer(, head)] as an effect."""
    values = np.asarray(values, dtype=float)
    return xr.DataArray(values, dims=("example", "layer", "head")[: values.ndim], name="effect")


def with_holes(shape: tuple[int, ...], share: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, size=shape)
    values[rng.random(shape) < share] = NAN
    return values


def test_t_and_uncorrected_p_are_scipys() -> None:
    values = with_holes((15, 4, 6))
    reference = stats.ttest_1samp(values, 0, nan_policy="omit")
    p = cell_p(effect(values))
    np.testing.assert_allclose(p.values, reference.pvalue)
    assert p.dims == ("layer", "head")
    np.testing.assert_allclose(permutation_max_t(effect(values), 10)["t"].values, reference.statistic)


def test_of_one_cell_and_few_examples_all_flips_are_taken_as_scipy_does() -> None:
    values = np.random.default_rng(1).normal(0.5, size=9)
    reference = stats.permutation_test(
        (values,), lambda x, axis: x.mean(axis) / x.std(axis, ddof=1), permutation_type="samples", n_resamples=np.inf
    )
    ds = permutation_max_t(effect(values[:, None]), 2000)
    np.testing.assert_allclose(ds["p"].item(), reference.pvalue)
    assert ds.attrs["permutations"] == 2**8


def test_the_corrected_p_is_the_share_of_flips_whose_largest_t_reaches_the_cells() -> None:
    values = np.random.default_rng(2).normal(0.4, size=(7, 5))
    ds = permutation_max_t(effect(values))
    every = np.array(np.meshgrid(*[[1, -1]] * 7)).reshape(7, -1).T
    largest = [abs(stats.ttest_1samp(flip[:, None] * values, 0).statistic).max() for flip in every]
    share = [np.mean(np.array(largest) >= abs(t) - 1e-9) for t in ds["t"].values]
    np.testing.assert_allclose(ds["p"].values, share)


@pytest.mark.parametrize("examples", [8, 20])
def test_in_a_map_without_effects_the_family_wise_error_is_at_most_the_level(examples: int) -> None:
    rng = np.random.default_rng(3)
    simulations, level, corrected, uncorrected = 400, 0.1, 0, 0
    for seed in range(simulations):
        values = rng.laplace(size=(examples, 1)) + rng.laplace(size=(examples, 30)) * rng.uniform(0.1, 3, 30)
        data = effect(values)
        corrected += bool(permutation_max_t(data, 200, seed, level)["significant"].any())
        uncorrected += bool((cell_p(data) <= level).any())
    error = 3 * np.sqrt(level * (1 - level) / simulations)
    assert level - 0.04 - error < corrected / simulations <= level + error
    assert uncorrected / simulations > 0.4


def test_a_true_effect_is_found_and_its_neighbours_are_not() -> None:
    rng = np.random.default_rng(4)
    found, false = 0, 0
    for seed in range(100):
        values = rng.normal(size=(24, 40))
        values[:, 7] += 1.2
        significant = permutation_max_t(effect(values), 200, seed)["significant"].values
        found += significant[7]
        false += np.delete(significant, 7).any()
    assert found > 90 and false <= 5 + 3 * np.sqrt(100 * 0.05 * 0.95)


def test_the_false_discovery_rate_of_a_mixture_is_at_most_the_level_and_more_is_found_than_by_max_t() -> None:
    rng = np.random.default_rng(5)
    simulations, cells, true, level = 300, 100, 20, 0.1
    values = rng.normal(size=(16, simulations, cells)) + (np.arange(cells) < true)
    p = cell_p(effect(values))
    shares, found = [], []
    for simulation in range(simulations):
        chosen = benjamini_hochberg(p.isel(layer=simulation), level).values <= level
        shares.append(chosen[true:].sum() / max(1, chosen.sum()))
        found.append(chosen[:true].mean())
    expected = level * (cells - true) / cells
    error = 3 * float(np.std(shares)) / np.sqrt(simulations)
    assert abs(np.mean(shares) - expected) < error
    by_max_t = permutation_max_t(effect(values[:, 0]), 500, level=level)["significant"].values[:true].mean()
    assert np.mean(found) > max(0.7, by_max_t)


def test_q_is_scipys_and_nan_stays_nan() -> None:
    p = np.random.default_rng(6).uniform(size=(5, 8)) ** 2
    p[1, 2] = p[4, 7] = NAN
    q = benjamini_hochberg(xr.DataArray(p, {"layer": range(5)}, ("layer", "head")))
    present = ~np.isnan(p)
    np.testing.assert_allclose(q.values[present], stats.false_discovery_control(p[present]))
    assert np.isnan(q.values[~present]).all() and q.dims == ("layer", "head") and "layer" in q.coords
    assert q.attrs["discoveries"] == (q <= 0.05).sum()
    assert np.isnan(benjamini_hochberg(xr.DataArray([NAN, NAN])).values).all()


def test_cells_without_examples_are_nan_and_cells_without_an_effect_have_p_1() -> None:
    values = np.random.default_rng(7).normal(1, size=(12, 5))
    values[:, 1] = NAN
    values[1:, 2] = NAN
    values[:, 3] = 0.0
    for p in (permutation_max_t(effect(values))["p"], cell_p(effect(values))):
        np.testing.assert_array_equal(np.isnan(p.values), [False, True, True, False, False])
        assert p.values[3] == 1.0
    ds = permutation_max_t(effect(values))
    assert np.isnan(ds["t"].values[1:3]).all() and not ds["significant"].values[1:3].any()


def test_a_cell_too_few_examples_have_to_be_significant_does_not_hide_the_others() -> None:
    values = np.random.default_rng(8).normal(3, size=(12, 3))
    values[:2, 0], values[2:, 0] = [1.0, 1.0001], NAN
    ds = permutation_max_t(effect(values))
    np.testing.assert_array_equal(ds["significant"].values, [False, True, True])
    assert ds["p"].values[0] == 1.0
    np.testing.assert_array_equal(ds["p"].values[1:], permutation_max_t(effect(values[:, 1:]))["p"].values)
    assert not permutation_max_t(effect(values[:5]))["significant"].any()


@pytest.mark.parametrize("examples", [7, 30])
def test_significant_is_p_at_most_the_level_and_t_beyond_the_critical_one(examples: int) -> None:
    values = np.random.default_rng(9).normal(size=(examples, 200)) + np.linspace(-2, 2, 200)
    ds = permutation_max_t(effect(values), 500)
    assert 0 < ds["significant"].sum() < 200
    np.testing.assert_array_equal(ds["significant"], ds["p"] <= 0.05)
    np.testing.assert_array_equal(ds["significant"], abs(ds["t"]) > ds.attrs["critical_t"])
    assert ds["p"].min() > 0 and (ds["t"].where(ds["significant"]) < 0).any()


def test_draws_are_averaged_inside_their_example() -> None:
    values = np.random.default_rng(10).normal(size=(10, 4, 3))
    draws = xr.DataArray(values, dims=("example", "layer", "draw"))
    for of in (cell_p, permutation_max_t):
        xr.testing.assert_allclose(of(draws), of(draws.mean("draw")))


def test_the_seed_alone_decides_whatever_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = effect(np.random.default_rng(11).normal(0.5, size=(20, 9)))
    ds = permutation_max_t(data, 300, seed=1)
    xr.testing.assert_identical(ds, permutation_max_t(data, 300, seed=1))
    assert not ds["p"].equals(permutation_max_t(data, 300, seed=2)["p"])
    monkeypatch.setattr(uncertainty, "MOST_NUMBERS", 700)
    xr.testing.assert_allclose(ds, permutation_max_t(data, 300, seed=1))


def test_more_than_a_thousand_examples_can_be_tested() -> None:
    values = np.random.default_rng(12).normal([0.0, 0.3], size=(1500, 2))
    np.testing.assert_array_equal(permutation_max_t(effect(values), 100)["significant"].values, [False, True])


@pytest.mark.parametrize("of", [permutation_max_t, cell_p])
def test_what_has_too_few_examples_or_none_is_refused(of: Any) -> None:
    with pytest.raises(vp.SpecError, match="`example` dimension"):
        of(effect(np.ones((3, 4))).mean("example"))
    with pytest.raises(vp.SpecError, match="At least 2 examples"):
        of(effect([[1.0] * 4, [NAN] * 4]))


def test_levels_and_p_out_of_range_are_refused() -> None:
    data = effect(np.random.default_rng(13).normal(size=(5, 2)))
    for level in (0.0, 1.0, 5):
        with pytest.raises(vp.SpecError, match="level must be between 0 and 1"):
            permutation_max_t(data, level=level)
        with pytest.raises(vp.SpecError, match="level must be between 0 and 1"):
            benjamini_hochberg(xr.DataArray([0.1]), level)
    with pytest.raises(vp.SpecError, match="permutations must be at least 1"):
        permutation_max_t(data, 0)
    with pytest.raises(vp.SpecError, match="p must be between 0 and 1"):
        benjamini_hochberg(xr.DataArray([0.1, 1.2]))
