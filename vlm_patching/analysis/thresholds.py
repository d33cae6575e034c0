"""Which cells have an effect at all: tests of a mean of 0, corrected for the number of cells that were looked at."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats

from vlm_patching.analysis.uncertainty import (
    blocks,
    cells_dataset,
    check_count,
    check_level,
    example_means,
    nan_mean,
)
from vlm_patching.errors import SpecError


def permutation_max_t(effect: xr.DataArray, permutations: int = 2000, seed: int = 0, level: float = 0.05) -> xr.Dataset:
    """Max-T permutation test of every cell: the probability of even one false discovery in the map is at most `level`.

    Parameters
    ----------
    effect
        What `vp.effect` gave; all its cells are one family, so select first what you want to ask about. Draws are
        averaged inside their example.
    permutations
        Random sign flips; all of them are taken where there are no more than this (up to 11 examples for 2000).
    seed
        Same seed, same flips.
    level
        Family-wise error rate, two-sided.

    Returns
    -------
    xarray.Dataset
        Over the effect's dimensions without `example` and `draw`: `t`, the one-sample t statistic (positive means that
        the cell carries the answer), `p`, corrected for all cells, and `significant`, p ≤ level. A cell that too few
        examples have to reach the level even alone (2^(1 - n) > level) is no part of the family: its p is 1. NaN, and
        not significant, where fewer than 2 examples have the cell. Attribute `critical_t`: in the family, abs(t) above
        it is significant.

    Raises
    ------
    SpecError
        No `example` dimension, fewer than 2 examples with numbers, infinite effects, a level outside (0, 1).

    Notes
    -----
    Null hypothesis: an example's effect is as likely x as -x, in all cells at once, and examples are independent. That
    is more than a mean of 0, and skewed effects break it: in maps of 50 cells of 24 exponential effects with mean 0,
    48 % have a false discovery at level 0.05 (of symmetric ones, 5 %). So look at a cell's effects before you trust
    its p.

    Every flip turns a whole example round, so the dependence between cells is kept; a cell's abs(t) is compared with
    the largest of each flip (Westfall & Young 1993; Nichols & Holmes 2002, "Nonparametric permutation tests for
    functional neuroimaging"). p counts the data themselves as one flip, so it is never 0 (Phipson & Smyth 2010). Cells
    that few examples have widen the largest t: leave out what you do not ask about.
    """
    check_level(level)
    check_count("permutations", permutations)
    maps, blank = example_means(effect)
    counts = np.isfinite(maps).sum(axis=0)
    signs = _signs(len(maps), permutations, np.random.default_rng(seed))
    family = np.flatnonzero((counts >= 2) & (2.0 ** (1 - counts) <= level))
    largest = np.zeros(len(signs))
    for block in blocks(family, len(signs)):
        largest = np.maximum(largest, abs(_t(signs, maps[:, block])).max(axis=1))
    t = np.concatenate([_t(signs[:1], maps[:, block])[0] for block in blocks(np.arange(len(counts)), len(maps))])
    ordered = np.sort(largest)
    p = np.where(counts >= 2, 1.0, np.nan)
    # Flips that give the same t give it up to rounding.
    p[family] = (len(ordered) - np.searchsorted(ordered, abs(t[family]) * (1 - 1e-9))) / len(ordered)
    allowed = int(level * len(ordered) + 1e-9)
    attributes: dict[str, str | float] = {
        "method": "sign-flip max-T permutation test",
        "level": level,
        "permutations": len(signs),
        "seed": seed,
        "critical_t": float(ordered[len(ordered) - 1 - allowed]) if len(family) else float("inf"),
    }
    return cells_dataset(effect, blank, {"t": t, "p": p, "significant": p <= level}, attributes)


def cell_p(effect: xr.DataArray) -> xr.DataArray:
    """Two-sided p of every cell alone, from a one-sample t-test over examples; not corrected for the number of cells.

    Parameters
    ----------
    effect
        What `vp.effect` gave. Draws are averaged inside their example.

    Returns
    -------
    xarray.DataArray
        p over the effect's dimensions without `example` and `draw`; 1 where every effect is 0, NaN where fewer than
        2 examples have the cell. Correct it with `benjamini_hochberg` before you call a cell found.

    Raises
    ------
    SpecError
        No `example` dimension, fewer than 2 examples with numbers, infinite effects.

    Notes
    -----
    A t-test and not sign flips: with few examples flips cannot give p small enough to outlast a correction for many
    cells. It takes the mean over examples as normal.
    """
    maps, blank = example_means(effect)
    counts = np.isfinite(maps).sum(axis=0)
    mean = nan_mean(maps, axis=0)
    variance = nan_mean((maps - mean) ** 2, axis=0) * counts / np.maximum(counts - 1, 1)
    t = _ratio(mean, np.sqrt(variance / np.maximum(counts, 1)))
    p = np.where(counts >= 2, 2 * stats.t.sf(abs(t), np.maximum(counts - 1, 1)), np.nan)
    return cells_dataset(effect, blank, {"p": p}, {"method": "one-sample t-test"})["p"]


def benjamini_hochberg(p: xr.DataArray, level: float = 0.05) -> xr.DataArray:
    """q of every cell: of those with q ≤ level, a share of at most `level` is expected to be false.

    Parameters
    ----------
    p
        Uncorrected p of any shape, such as from `cell_p`; all that are not NaN are one family.
    level
        False discovery rate at which the attribute `discoveries` counts the cells; q themselves do not depend on it.

    Returns
    -------
    xarray.DataArray
        q with p's dimensions and coordinates, equal to `scipy.stats.false_discovery_control`; NaN where p is.

    Raises
    ------
    SpecError
        p or the level out of range.

    Notes
    -----
    Benjamini & Hochberg (1995). Holds for independent cells and for positively dependent ones (Benjamini & Yekutieli
    2001), which cells that share examples mostly are.
    """
    check_level(level)
    values = np.asarray(p.values, dtype=np.float64)
    present = ~np.isnan(values)
    if ((values[present] < 0) | (values[present] > 1)).any():
        raise SpecError("p must be between 0 and 1.")
    q = np.full(values.shape, np.nan)
    if present.any():
        q[present] = stats.false_discovery_control(values[present], method="bh")
    attributes = {"method": "Benjamini-Hochberg", "level": level, "discoveries": int((q <= level).sum())}
    return p.copy(data=q).rename("q").assign_attrs(attributes)


def _signs(examples: int, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Flips [flip, example], the data themselves first."""
    # Turning every example round leaves abs(t) as it is, so half of all flips will do.
    if examples - 1 <= np.log2(permutations):
        flips = np.arange(2 ** (examples - 1))[:, None] >> np.arange(examples) & 1
        return 1.0 - 2.0 * flips
    flips = rng.integers(0, 2, size=(permutations, examples))
    return np.concatenate([np.ones((1, examples)), 1.0 - 2.0 * flips])


def _t(signs: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """One-sample t [flip, cell] of maps [example, cell], over examples that have the cell; NaN where fewer than 2."""
    counts = np.isfinite(maps).sum(axis=0)
    filled = np.nan_to_num(maps)
    mean = signs @ filled / np.maximum(counts, 1)
    # A flip changes the mean and leaves the squares.
    variance = np.maximum((filled**2).sum(axis=0) - counts * mean**2, 0.0) / np.maximum(counts - 1, 1)
    return np.where(counts >= 2, _ratio(mean, np.sqrt(variance / np.maximum(counts, 1))), np.nan)


def _ratio(mean: np.ndarray, error: np.ndarray) -> np.ndarray:
    """mean / error; 0 / 0 is 0, since a cell whose effect is always 0 has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mean == 0, 0.0, mean / error)
