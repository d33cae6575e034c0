"""How far a map of effects would move with other examples: bootstrap intervals and split-half reliability.

Examples are the unit of every statistic here. Noise draws are repetitions inside an example, never more examples.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from scipy import stats

from vlm_patching.analysis.effects import over_draws
from vlm_patching.errors import SpecError

MOST_NUMBERS = 2**22
"""Numbers in one working array (32 MiB); cells are taken in blocks that stay under it."""


def bootstrap(effect: xr.DataArray, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> xr.Dataset:
    """Mean effect of every cell with its bootstrap confidence interval.

    Parameters
    ----------
    effect
        What `vp.effect` gave: `example`, any of `site`, `layer`, `head`, `position`, and `draw` where there was noise.
        Its sign stays: positive means that the cell carries the answer.
    level
        Coverage that each cell's interval aims at. The intervals are not simultaneous: `permutation_max_t` is.
    resamples
        Bootstrap resamples.
    seed
        Same seed, same numbers, for a cell whatever other cells there are.

    Returns
    -------
    xarray.Dataset
        `mean`, `low`, `high` over the effect's dimensions without `example` and `draw`, in its unit. The mean is over
        examples, each the mean of its draws. NaN where no example has the cell, the ends also where only one has it.

    Raises
    ------
    SpecError
        No `example` dimension, fewer than 2 examples with numbers, infinite effects, a level outside (0, 1).

    Notes
    -----
    BCa intervals (Efron 1987), not percentile ones: effects are skewed (most examples near 0, a few large), and there
    percentile intervals miss on one side. Three corrections for few examples: deviations are stretched by sqrt(n / (n -
    1)) and the level's normal quantiles are Student's, as in Hesterberg (2015), "What Teachers Should Know About the
    Bootstrap"; and since the spread of the examples' means already holds that of their draws, resampling both levels
    would count the draws twice, so the examples' deviations are shrunk until the variance is right (Davison & Hinkley
    1997, section 3.8).

    The examples that have a cell are resampled, so a cell is treated as if the others were missing at random.
    """
    check_level(level)
    check_count("resamples", resamples)
    values, blank = examples_and_cells(effect)
    counts = np.isfinite(values).any(axis=1).sum(axis=0)
    result = np.full((3, values.shape[2]), np.nan)
    for count in np.unique(counts[counts > 0]):
        rng = np.random.default_rng([seed, int(count)])
        examples = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
        draws = rng.multinomial(examples * values.shape[1], np.full(values.shape[1], 1 / values.shape[1]))
        for block in blocks(np.flatnonzero(counts == count), max(resamples, count * values.shape[1])):
            result[:, block] = _interval(_present_first(values[:, :, block], count), examples, draws, level)
    mean, low, high = result
    return cells_dataset(
        effect,
        blank,
        {"mean": mean, "low": low, "high": high},
        {"method": "BCa bootstrap over examples", "level": level, "resamples": resamples, "seed": seed},
    )


def split_half(effect: xr.DataArray, splits: int = 200, seed: int = 0) -> xr.Dataset:
    """Split-half reliability of the map of mean effects: would other examples rank the cells alike?

    Parameters
    ----------
    effect
        What `vp.effect` gave, with at least 2 examples and 3 cells.
    splits
        Random splits of the examples into two halves.
    seed
        Same seed, same splits.

    Returns
    -------
    xarray.Dataset
        Scalars in [-1, 1]. `spearman`: Spearman rank correlation of the two halves' mean maps, over the cells that both
        have, mean over splits. `spearman_brown`: 2r / (1 + r), what it would be for two maps of *all* examples each; a
        correlation that is not positive stays as it is. NaN where a map is constant.

    Raises
    ------
    SpecError
        No `example` dimension, fewer than 2 examples with numbers, infinite effects, fewer than 3 cells.

    Notes
    -----
    Spearman (1910) and Brown (1910). High reliability says that the map is stable, not that its effects are large: test
    those with `permutation_max_t`.
    """
    check_count("splits", splits)
    maps, _ = example_means(effect)
    check_cells(int(np.isfinite(maps).any(axis=0).sum()))
    first = np.arange(len(maps)) < len(maps) // 2
    halves = np.random.default_rng(seed).permuted(np.tile(first, (splits, 1)), axis=1)
    found = [
        rank_correlation(weighted_means(halves[block], maps), weighted_means(~halves[block], maps))
        for block in blocks(np.arange(splits), maps.shape[1])
    ]
    mean = float(nan_mean(np.concatenate(found), axis=0))
    corrected = 2 * mean / (1 + mean) if mean > 0 else mean
    return xr.Dataset(
        {"spearman": mean, "spearman_brown": corrected}, attrs={**effect.attrs, "splits": splits, "seed": seed}
    )


def check_level(level: float) -> None:
    """Refuse a level that is not between 0 and 1."""
    if not 0 < level < 1:
        raise SpecError(f"level must be between 0 and 1 (exclusive), not {level}.")


def check_count(what: str, number: int) -> None:
    """Refuse a number of resamples, permutations or splits that is not positive."""
    if number < 1:
        raise SpecError(f"{what} must be at least 1, not {number}.")


def check_cells(number: int) -> None:
    """Refuse to rank fewer than 3 cells."""
    if number < 3:
        raise SpecError(f"A rank correlation needs at least 3 cells, not {number}.")


def with_numbers(values: xr.DataArray) -> np.ndarray:
    """Which examples have any number."""
    return np.asarray(values.notnull().any([d for d in values.dims if d != "example"]).values)


def mean_and_interval(values: xr.DataArray) -> xr.Dataset:
    """`bootstrap`'s mean, low and high; where fewer than two examples have a number, the ends are NaN."""
    if with_numbers(values).sum() >= 2:
        return bootstrap(values)
    mean = over_draws(values.astype(np.float64)).mean("example")
    return xr.Dataset({"mean": mean, "low": mean * np.nan, "high": mean * np.nan})


def examples_and_cells(effect: xr.DataArray) -> tuple[np.ndarray, xr.DataArray]:
    """Effects as [example, draw, cell] without the examples that have no number, and a labelled map without values."""
    if "example" not in effect.dims:
        raise SpecError(f"The effect has no `example` dimension, only {', '.join(map(str, effect.dims)) or 'none'}.")
    inside = [name for name in ("example", "draw") if name in effect.dims]
    values = effect.transpose(*inside, ...).values.reshape(effect.sizes["example"], effect.sizes.get("draw", 1), -1)
    if np.isinf(values).any():
        raise SpecError("The effect has infinite values.")
    present = np.isfinite(values).any(axis=(1, 2))
    if present.sum() < 2:
        raise SpecError(f"At least 2 examples with numbers are needed; {present.sum()} of {len(present)} have any.")
    labels = [name for name, coord in effect.coords.items() if set(coord.dims) & set(inside)]
    blank = effect.drop_vars(labels).isel({name: 0 for name in inside})
    return values[present], blank


def example_means(effect: xr.DataArray) -> tuple[np.ndarray, xr.DataArray]:
    """As `examples_and_cells`, mean over draws: [example, cell]."""
    values, blank = examples_and_cells(effect)
    return nan_mean(values, axis=1), blank


def cells_dataset(
    effect: xr.DataArray, blank: xr.DataArray, variables: dict[str, np.ndarray], attributes: dict[str, str | float]
) -> xr.Dataset:
    """Flat values per cell → variables on the effect's dimensions without `example` and `draw`."""
    blank = blank.drop_attrs(deep=False)
    shaped = {name: blank.copy(data=values.reshape(blank.shape)) for name, values in variables.items()}
    return xr.Dataset(shaped, attrs={**effect.attrs, **attributes})


def blocks(items: np.ndarray, numbers_each: int) -> Iterator[np.ndarray]:
    """Items in blocks of at most `MOST_NUMBERS` working numbers."""
    step = max(1, MOST_NUMBERS // max(1, numbers_each))
    for start in range(0, len(items), step):
        yield items[start : start + step]


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean in float64 over what is not NaN; NaN, without a warning, where nothing is left."""
    counts = np.isfinite(values).sum(axis=axis)
    sums = np.nansum(values, axis=axis, dtype=np.float64)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def weighted_means(weights: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Mean maps [resample, cell] of maps [example, cell] with weights [resample, example], over what is not NaN."""
    present = np.isfinite(maps)
    sums = weights.astype(float) @ np.where(present, maps, 0.0)
    counts = weights.astype(float) @ present.astype(float)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman correlation of every row of a with the same row of b, over the cells that both have; [row]."""
    both = np.isfinite(a) & np.isfinite(b)
    ranks = [stats.rankdata(np.where(both, x, np.nan), axis=1, nan_policy="omit") for x in (a, b)]
    x, y = (np.where(both, rank - nan_mean(rank, 1)[:, None], 0.0) for rank in ranks)
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.full(len(scale), np.nan), where=scale > 0)


def _present_first(values: np.ndarray, count: int) -> np.ndarray:
    """Of every cell the examples that have it, [count, draw, cell]."""
    absent = ~np.isfinite(values).any(axis=1, keepdims=True)
    order = np.argsort(absent, axis=0, kind="stable")[:count]
    return np.take_along_axis(values, order, axis=0).astype(np.float64)


def _interval(values: np.ndarray, examples: np.ndarray, draws: np.ndarray, level: float) -> np.ndarray:
    """Mean, low, high [3, cell] of values [example, draw, cell]; draws are NaN where absent, examples never.

    `examples` [resample, example] and `draws` [resample, example, draw] say how often each was resampled.
    """
    count, repeats, _ = values.shape
    means = nan_mean(values, axis=1)
    mean = means.mean(axis=0)
    if count < 2:
        return np.stack([mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)])
    deviations = means - mean
    noise = np.nan_to_num(values - means[:, None])
    variance = (deviations**2).sum(axis=0) / (count - 1)
    variance_of_draws = (noise**2).sum(axis=(0, 1)) / (count * repeats**2)
    share = np.divide(variance_of_draws, variance, out=np.zeros_like(variance), where=variance > 0)
    stretch = np.sqrt(np.maximum(1 - share, 0.0) * count / (count - 1))
    moved = examples / count @ (stretch * deviations)
    if repeats > 1:
        moved += draws.reshape(len(draws), -1) / (count * repeats) @ noise.reshape(count * repeats, -1)
    moved.sort(axis=0)
    zero = 1e-9 * np.sqrt(variance)  # a resample whose mean is the same up to rounding counts half
    below = ((moved < -zero).mean(axis=0) + (moved <= zero).mean(axis=0)) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(moved), 1 - 0.5 / len(moved)))
    cubed, scale = (deviations**3).sum(axis=0), 6 * (deviations**2).sum(axis=0) ** 1.5
    acceleration = np.divide(cubed, scale, out=np.zeros_like(scale), where=scale > 0)
    ends = [
        _bca(moved, bias, acceleration, stats.t.ppf(tail, count - 1)) for tail in ((1 - level) / 2, (1 + level) / 2)
    ]
    return np.stack([mean, mean + ends[0], mean + ends[1]])


def _bca(ordered: np.ndarray, bias: np.ndarray, acceleration: np.ndarray, quantile: float) -> np.ndarray:
    """The resampled deviation [cell] at the BCa-adjusted quantile of `ordered` [resample, cell]."""
    shifted = bias + quantile
    left = 1 - acceleration * shifted
    adjusted = bias + np.divide(shifted, left, out=np.sign(shifted) * np.inf, where=left > 0)
    place = stats.norm.cdf(adjusted) * (len(ordered) - 1)
    under = np.floor(place).astype(int)
    over = np.minimum(under + 1, len(ordered) - 1)
    at = np.arange(ordered.shape[1])
    return ordered[under, at] + (place - under) * (ordered[over, at] - ordered[under, at])
