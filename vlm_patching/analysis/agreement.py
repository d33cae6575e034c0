"""Do two maps rank the cells alike? Two metrics, two corruptions, two models, or a screen and what it stands for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import xarray as xr
from scipy import stats

from vlm_patching.analysis.effects import over_draws
from vlm_patching.analysis.uncertainty import (
    blocks,
    check_cells,
    check_count,
    check_level,
    nan_mean,
    rank_correlation,
    weighted_means,
)
from vlm_patching.errors import SpecError

STATISTICS = ("spearman", "kendall", "top_k")


def agreement(
    a: xr.DataArray,
    b: xr.DataArray,
    k: int | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Rank agreement of two maps of effects, over the cells that both have.

    Parameters
    ----------
    a, b
        Effects with the same dimensions apart from `example` and `draw`, which are averaged over where they are there
        (draws inside their example). Cells are matched by their coordinates, whatever their order.
    k
        How many top cells are compared; a tenth of the shared cells, rounded up, where not given. The top cells have
        the largest signed effects: they carry the answer most.
    level
        Coverage that the intervals aim at, of the agreement that maps of this many examples have on average.
    resamples
        Bootstrap resamples of the examples.
    seed
        Same seed, same intervals.

    Returns
    -------
    xarray.Dataset
        Scalars: `spearman` and `kendall` (tau-b), in [-1, 1], 1 where both rank the cells alike; `top_k`, the share of
        the k top cells of one that are among those of the other, in [0, 1], k / cells by chance. For each `_low` and
        `_high`, NaN unless both maps have the same `example` labels, and at least 2 of them with numbers. Attributes:
        `cells`, `k`, `examples`.

    Raises
    ------
    SpecError
        Other dimensions, coordinates that do not overlap, fewer than 3 shared cells, k or level out of range.

    Notes
    -----
    Zhang & Nanda (2023), "Towards Best Practices of Activation Patching in Language Models", compare maps under two
    metrics or corruptions. Noise in either map lowers a rank correlation: set it against the `split_half` reliability
    of both. For the same reason resampled maps, noisier still, agree less than the maps themselves and their quantiles
    lie too low; so the interval is the estimate ± Student's quantile · bootstrap standard error (Efron & Tibshirani
    1993, chapter 12), cut at the statistic's range. Both maps take the same resampled examples.
    """
    check_level(level)
    check_count("resamples", resamples)
    a, b, paired = _aligned(a, b)
    maps = [_examples_by_cells(x) for x in (a, b)]
    shared = np.logical_and(*(np.isfinite(x).any(axis=0) for x in maps))
    cells = int(shared.sum())
    check_cells(cells)
    k = -(-cells // 10) if k is None else k
    if not 1 <= k <= cells:
        raise SpecError(f"k must be between 1 and the {cells} shared cells, not {k}.")
    maps = [x[:, shared] for x in maps]
    estimate = _statistics([nan_mean(x, axis=0)[None] for x in maps], k)[:, 0]
    present = np.logical_or(*(np.isfinite(x).any(axis=1) for x in maps)) if paired else np.zeros(0, dtype=bool)
    count = int(present.sum())
    half = np.full(len(STATISTICS), np.nan)
    if count >= 2:
        maps = [x[present] for x in maps]
        weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        found = [
            _statistics([weighted_means(weights[block], x) for x in maps], k)
            for block in blocks(np.arange(resamples), cells)
        ]
        # sqrt(n / (n - 1)): a resample spreads by the variance with n in the denominator.
        student = stats.t.ppf((1 + level) / 2, count - 1) * np.sqrt(count / (count - 1))
        half = student * _spread(np.concatenate(found, axis=1))
    values = {}
    for name, value, by, least in zip(STATISTICS, estimate, half, (-1, -1, 0), strict=True):
        low, high = np.clip([value - by, value + by], least, 1)
        values.update({name: value, f"{name}_low": low, f"{name}_high": high})
    settings = {"level": level, "resamples": resamples, "seed": seed}
    return xr.Dataset(values, attrs={"cells": cells, "k": k, "examples": count, **settings})


def _aligned(a: xr.DataArray, b: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray, bool]:
    """Both on their shared cells, in one order, and whether both are of the same examples, then in one order too."""
    inside = {"example", "draw"}
    over = [d for d in a.dims if d not in inside]
    if set(over) != set(b.dims) - inside:
        raise SpecError(
            f"The maps have other dimensions: {', '.join(map(str, a.dims))}, and {', '.join(map(str, b.dims))}. Select "
            "or average until they are the same."
        )
    for name in over:
        if name in a.indexes and name in b.indexes:
            mine, other = a.indexes[name], b.indexes[name]
            if mine.intersection(other).empty:
                raise SpecError(f"The maps share no {name}: {_some(mine)}, and {_some(other)}.")
        elif a.sizes[name] != b.sizes[name]:
            raise SpecError(f"Dimension {name} has no labels, and sizes {a.sizes[name]} and {b.sizes[name]}.")
    labelled = all("example" in x.dims and "example" in x.indexes for x in (a, b))
    paired = labelled and a.indexes["example"].is_unique and set(a.indexes["example"]) == set(b.indexes["example"])
    try:
        a, b = xr.align(a, b, join="inner", exclude={"draw"} if paired else inside)
    except ValueError as error:
        raise SpecError(f"The maps cannot be matched by their coordinates: {error}") from error
    return a, b.transpose(..., *over), paired


def _some(labels: Iterable[object]) -> str:
    known = [str(label) for label in labels]
    return ", ".join(known[:5]) + (f", … ({len(known)})" if len(known) > 5 else "")


def _examples_by_cells(effect: xr.DataArray) -> np.ndarray:
    """[example, cell], draws averaged; one row where there are no examples."""
    if np.isinf(effect.values).any():
        raise SpecError("The effect has infinite values.")
    effect = over_draws(effect)
    if "example" not in effect.dims:
        effect = effect.expand_dims("example")
    return effect.transpose("example", ...).values.reshape(effect.sizes["example"], -1).astype(np.float64)


def _statistics(maps: list[np.ndarray], k: int) -> np.ndarray:
    """[statistic, row] of two maps [row, cell]; a cell that either lacks in a row is left out of that row."""
    kendall, top = [], []
    for x, y in zip(*maps, strict=True):
        both = np.isfinite(x) & np.isfinite(y)
        kendall.append(stats.kendalltau(x[both], y[both]).statistic)
        first, second = (set(np.argsort(-z[both], kind="stable")[:k].tolist()) for z in (x, y))
        top.append(len(first & second) / k)
    return np.array([rank_correlation(*maps), kendall, top])


def _spread(resampled: np.ndarray) -> np.ndarray:
    """Standard deviation [statistic] over resamples; those in which a map came out constant are left out."""
    mean = nan_mean(resampled, axis=1)
    return np.sqrt(nan_mean((resampled - mean[:, None]) ** 2, axis=1))
