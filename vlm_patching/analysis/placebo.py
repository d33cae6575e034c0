"""Is an effect what it seems? Against a placebo, and a gradient's estimate against the exact value."""

from __future__ import annotations

import numpy as np
import xarray as xr

from vlm_patching.analysis.effects import check_metric, effect, over_draws
from vlm_patching.analysis.thresholds import permutation_max_t
from vlm_patching.analysis.uncertainty import bootstrap, check_cells, nan_mean, rank_correlation
from vlm_patching.errors import SpecError


def against_placebo(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    level: float = 0.05,
    resamples: int = 2000,
    permutations: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Which cells do more with the pair's own value than with a placebo: the value of the same cell in another pair.

    Parameters
    ----------
    ds
        What `vp.run` gave for a patch with a placebo: the metric's variable and, beside it, `{metric}_placebo`.
    metric
        One of the dataset's metrics.
    level
        Family-wise error rate of the test over all cells, two-sided; the intervals cover 1 - level, each cell alone.
    resamples, permutations, seed
        As in `bootstrap` and `permutation_max_t`.

    Returns
    -------
    xarray.Dataset
        Over the metric's dimensions without `example` and `draw`, of the examples (and draws) that have both values:

        - `effect`, `placebo`: mean effect of the pair's own and of the placebo's value, as `effect` has it;
        - `mean`, `low`, `high`: effect minus placebo effect of the same example, with its `bootstrap` interval.
          Positive means that the cell carries *this pair's* answer, and 0 that any pair's value does the same;
        - `t`, `p`, `significant`: `permutation_max_t` of that difference.

        In the metric's unit. NaN where a cell was not run.

    Raises
    ------
    SpecError
        A metric without a placebo, and what `effect`, `bootstrap` and `permutation_max_t` refuse.

    Notes
    -----
    Putting back any natural value can move a metric, for instance because the corrupted one was out of distribution;
    `permutation_max_t` of the effect alone takes that for a finding, and the difference does not.

    Null hypothesis: it makes no difference from which of the two pairs a cell's value comes. Then own and placebo value
    may be exchanged within an example, which turns the sign of its differences in all cells at once: the very flips of
    the test, however skewed the effects are. The test takes examples to be independent. Two of which one is the other's
    donor are not quite; where every example has another donor that hardly matters, while a single donor for all would
    lend them its peculiarities, and must not be used.
    """
    own, placebo = effect(ds, metric), effect(_swapped(ds, metric, "placebo", "were run with a placebo"), metric)
    both = own.notnull() & placebo.notnull()
    own, placebo = own.where(both), placebo.where(both)
    difference = (own - placebo).rename("effect_against_placebo").assign_attrs(own.attrs)
    result = bootstrap(difference, 1 - level, resamples, seed).merge(
        permutation_max_t(difference, permutations, seed, level), compat="override", combine_attrs="drop"
    )
    for name, values in (("effect", own), ("placebo", placebo)):
        result[name] = over_draws(values).astype(np.float64).mean("example").drop_attrs(deep=False)
    settings = {"level": level, "resamples": resamples, "permutations": permutations, "seed": seed}
    return result.assign_attrs({**own.attrs, **settings})


def verification(ds: xr.Dataset, metric: str = "probability") -> xr.Dataset:
    """How well gradients' estimates of effects agree with the exact effects, over the cells that were verified.

    Parameters
    ----------
    ds
        What `vp.run` gave for an attribution: the metric's variable holds estimates, `{metric}_exact` the values of
        patching each example's top cells, NaN elsewhere.
    metric
        One of the dataset's metrics.

    Returns
    -------
    xarray.Dataset
        Correlations in [-1, 1] of estimated with exact effects, draws averaged inside their example:

        - `pearson`, `spearman`, over `example`: over the example's verified cells; NaN under 3 of them, and where
          either is constant;
        - `pearson_mean`, `spearman_mean`: mean of those over examples;
        - `pearson_pooled`, `spearman_pooled`: over all verified cells of all examples, so that differences between
          examples count too;
        - `cells` over `example`, `cells_pooled`: how many cells that is.

    Raises
    ------
    SpecError
        A metric without exact values, fewer than 3 verified cells in all, and what `effect` refuses.

    Notes
    -----
    Verified cells are those with the largest estimates, not a random sample: over so narrow a range correlations come
    out lower than over the whole map, and cells that the estimate misses (a large exact effect with a small estimate)
    are not among them. Attribution patching: Nanda (2023); Kramár et al. (2024), "AtP*".
    """
    exact = effect(_swapped(ds, metric, "exact", "were verified exactly"), metric)
    estimated = effect(ds, metric)
    both = exact.notnull() & estimated.notnull()
    maps = []
    for values in (estimated.where(both), exact.where(both)):
        flat = over_draws(values).transpose("example", ...).values.reshape(ds.sizes["example"], -1)
        maps.append(flat.astype(np.float64))
    cells = np.isfinite(maps[0]).sum(axis=1)
    check_cells(int(cells.sum()))
    pooled = [x.reshape(1, -1) for x in maps]
    found: dict[str, object] = {}
    for name, correlation in (("pearson", _pearson), ("spearman", rank_correlation)):
        each = np.where(cells >= 3, correlation(*maps), np.nan)
        found[name] = ("example", each)
        found[f"{name}_mean"] = float(nan_mean(each, axis=0))
        found[f"{name}_pooled"] = float(correlation(*pooled)[0])
    found |= {"cells": ("example", cells), "cells_pooled": int(cells.sum())}
    coordinates = {name: coord for name, coord in ds.coords.items() if coord.dims == ("example",)}
    return xr.Dataset(found, coordinates, attrs=estimated.attrs)


def _swapped(ds: xr.Dataset, metric: str, ending: str, done: str) -> xr.Dataset:
    """The dataset with `{metric}_{ending}` in the place of the metric."""
    check_metric(ds, metric)
    name = f"{metric}_{ending}"
    if name not in ds:
        raise SpecError(f"This dataset has no {name}: none of its cells {done}.")
    return ds.assign({metric: ds[name]})


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of every row of a with the same row of b, over the cells that both have; [row]."""
    both = np.isfinite(a) & np.isfinite(b)
    x, y = (np.where(both, z, np.nan) for z in (a, b))
    x, y = (np.where(both, z - nan_mean(z, axis=1)[:, None], 0.0) for z in (x, y))
    varied = [
        np.linalg.norm(z, axis=1) > 1e-9 * np.linalg.norm(np.where(both, whole, 0.0), axis=1)
        for z, whole in ((x, a), (y, b))
    ]
    scale = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.divide((x * y).sum(axis=1), scale, out=np.full(len(scale), np.nan), where=varied[0] & varied[1])
