"""Placebos and verification on simulated data: the share of errors, the power, and scipy's correlations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import vlm_patching as vp
from vlm_patching.analysis import against_placebo, bootstrap, permutation_max_t, verification

NAN = float("nan")


def dataset(
    patched: Any, other: Any, ending: str = "placebo", kept: list[str] | None = None, **attrs: str
) -> xr.Dataset:
    """patched and other (placebo or exact) [example, layer(, draw)]; the clean run has 5, the corrupted -1."""
    patched, other = (np.asarray(x, dtype=np.float32)[:, None] for x in (patched, other))
    dims = ("example", "site", "layer", "draw")[: patched.ndim]
    metric, ones = "logit_difference", np.ones(len(patched), dtype=np.float32)
    return xr.Dataset(
        {
            metric: (dims, patched),
            f"{metric}_{ending}": (dims, other),
            f"{metric}_clean": ("example", 5 * ones),
            f"{metric}_corrupted": ("example", -ones),
        },
        {
            "example": [f"pair-{i}" for i in range(len(patched))],
            "site": ["language.mlp_out"],
            "kept": ("example", kept or ["kept"] * len(patched)),
        },
        {"direction": "denoise", **attrs},
    )


def significant(ds: xr.Dataset, seed: int, level: float) -> np.ndarray:
    found = against_placebo(ds, "logit_difference", level=level, resamples=1, permutations=200, seed=seed)
    return found["significant"].values[0]


def test_the_difference_is_the_effect_minus_the_placebo_effect_with_its_interval_and_test() -> None:
    rng = np.random.default_rng(0)
    patched, placebo = rng.normal(1, size=(10, 3)), rng.normal(size=(10, 3))
    ds = against_placebo(dataset(patched, placebo), "logit_difference", seed=4)
    difference = xr.DataArray(np.float32(patched) - np.float32(placebo), dims=("example", "layer"))
    for name, wanted in (("effect", patched + 1), ("placebo", placebo + 1), ("mean", patched - placebo)):
        np.testing.assert_allclose(ds[name].values[0], wanted.mean(axis=0), atol=1e-6)
    tested = permutation_max_t(difference, seed=4)
    interval = bootstrap(difference, seed=4)
    for name, wanted in (("low", interval), ("high", interval), ("t", tested), ("p", tested)):
        np.testing.assert_allclose(ds[name].values[0], wanted[name].values, rtol=1e-4, atol=1e-5)
    assert ds.attrs["metric"] == "logit_difference" and ds.attrs["level"] == 0.05


@pytest.mark.parametrize(("attrs", "sign"), [({"direction": "noise"}, -1), ({"method": "path"}, 1)])
def test_the_sign_is_the_effects(attrs: dict[str, str], sign: int) -> None:
    ds = against_placebo(dataset([[2.0], [2.0]], [[1.0], [1.0]], **attrs), "logit_difference")
    assert ds["mean"].item() == sign


def test_where_any_value_does_as_much_as_the_pairs_own_the_family_wise_error_is_at_most_the_level() -> None:
    """Own and placebo value restore the metric alike, in skewed amounts: the plain test of the effect finds that."""
    rng = np.random.default_rng(1)
    simulations, level, false, fooled = 300, 0.1, 0, 0
    for seed in range(simulations):
        restored = rng.exponential(size=(2, 16, 20)) + rng.exponential(size=(1, 16, 1))
        ds = dataset(*restored)
        false += significant(ds, seed, level).any()
        fooled += permutation_max_t(vp.effect(ds, "logit_difference"), 200, seed, level)["significant"].values.any()
    assert false / simulations <= level + 3 * np.sqrt(level * (1 - level) / simulations)
    assert false > 0 and fooled == simulations


def test_donors_that_are_pairs_of_the_same_dataset_leave_the_error_at_the_level() -> None:
    """Each pair's answer moves along its own direction of the patched value; the donor is the next pair."""
    rng = np.random.default_rng(2)
    simulations, level, false = 300, 0.1, 0
    for seed in range(simulations):
        values, slopes = rng.normal(size=(16, 20, 4)), rng.normal(size=(16, 1, 4))
        ds = dataset(*((slopes * x).sum(axis=-1) for x in (values, np.roll(values, 1, axis=0))))
        false += significant(ds, seed, level).any()
    assert false / simulations <= level + 3 * np.sqrt(level * (1 - level) / simulations)


def test_a_cell_that_carries_the_pairs_own_answer_is_found_and_its_neighbours_are_not() -> None:
    rng = np.random.default_rng(3)
    found, false = 0, 0
    for seed in range(100):
        own, placebo = rng.normal(size=(2, 24, 20))
        own[:, 7] += 1.7
        cells = significant(dataset(own, placebo), seed, 0.05)
        found += cells[7]
        false += np.delete(cells, 7).any()
    assert found > 90 and false <= 5 + 3 * np.sqrt(100 * 0.05 * 0.95)


def test_only_examples_and_draws_with_both_values_count_and_draws_are_averaged_inside_their_example() -> None:
    own = [[[2.0, 4.0]], [[6.0, NAN]], [[9.0, 9.0]], [[1.0, 1.0]]]
    placebo = [[[1.0, 1.0]], [[1.0, 1.0]], [[NAN, NAN]], [[0.0, 0.0]]]
    ds = against_placebo(dataset(own, placebo, kept=["kept"] * 3 + ["dropped: no"]), "logit_difference")
    np.testing.assert_allclose([ds["effect"].item(), ds["placebo"].item(), ds["mean"].item()], [5.5, 2.0, 3.5])


def test_pearson_and_spearman_are_scipys_per_example_and_pooled() -> None:
    rng = np.random.default_rng(4)
    exact = rng.normal(size=(6, 15))
    estimated = exact + 0.5 * rng.normal(size=(6, 15)) + np.arange(6)[:, None]
    exact[rng.random(exact.shape) < 0.4] = NAN
    exact[5] = NAN
    ds = verification(dataset(estimated, exact, "exact", estimate="attribution"), "logit_difference")
    each = {"pearson": [], "spearman": []}
    for i in range(5):
        both = np.isfinite(exact[i])
        for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
            each[name].append(of(estimated[i, both], exact[i, both]).statistic)
    both = np.isfinite(exact)
    for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        np.testing.assert_allclose(ds[name].values, [*each[name], NAN], atol=1e-5)
        np.testing.assert_allclose(ds[f"{name}_mean"].item(), np.mean(each[name]), atol=1e-5)
        np.testing.assert_allclose(ds[f"{name}_pooled"].item(), of(estimated[both], exact[both]).statistic, atol=1e-5)
    np.testing.assert_array_equal(ds["cells"].values, both.sum(axis=1))
    assert ds["cells_pooled"].item() == both.sum()
    assert ds.attrs["estimate"] == "attribution" and ds["example"].values[0] == "pair-0"


def test_an_estimate_that_is_exact_correlates_perfectly_and_one_of_the_wrong_sign_inversely() -> None:
    exact = np.random.default_rng(5).normal(size=(4, 8))
    for estimated, wanted in ((exact, 1), (-2 - exact, -1)):
        ds = verification(dataset(estimated, exact, "exact"), "logit_difference")
        for name in ("pearson", "pearson_mean", "pearson_pooled", "spearman", "spearman_mean", "spearman_pooled"):
            np.testing.assert_allclose(ds[name].values, wanted, atol=1e-5)


def test_an_example_with_few_verified_cells_or_constant_ones_has_no_correlation_and_is_pooled() -> None:
    exact = [[1.0, 2.0, NAN, NAN], [0.1, 0.1, 0.1, 0.1], [1.0, 2.0, 4.0, NAN]]
    ds = verification(dataset(np.arange(12.0).reshape(3, 4), exact, "exact"), "logit_difference")
    for name in ("pearson", "spearman"):
        np.testing.assert_array_equal(np.isnan(ds[name].values), [True, True, False])
        assert np.isfinite(ds[f"{name}_pooled"].item())
    assert ds["cells"].values.tolist() == [2, 4, 3] and ds["cells_pooled"].item() == 9


def test_what_was_run_without_placebo_or_verification_is_refused() -> None:
    ds = dataset([[1.0], [2.0]], [[1.0], [2.0]], "something")
    with pytest.raises(vp.SpecError, match="logit_difference_placebo"):
        against_placebo(ds, "logit_difference")
    with pytest.raises(vp.SpecError, match="logit_difference_exact"):
        verification(ds, "logit_difference")
    with pytest.raises(vp.SpecError, match="Did you mean 'logit_difference'"):
        against_placebo(ds, "logit_diference")
    with pytest.raises(vp.SpecError, match="3 cells"):
        verification(dataset([[1.0], [2.0]], [[1.0], [2.0]], "exact"), "logit_difference")
