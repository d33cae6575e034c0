"""How often a model is right, by kind of question."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.stats import binomtest

from vlm_patching.analysis.effects import method_of
from vlm_patching.errors import SpecError, unknown


def accuracy(ds: xr.Dataset, by: str | None = "task", level: float = 0.95) -> xr.Dataset:
    """The share of pairs whose clean answer is right, and its interval.

    Parameters
    ----------
    ds
        What `vp.evaluate` gave.
    by
        A coordinate of the examples: `task`, `answer`, `foil`; None for all pairs together.
    level
        Of the interval, between 0 and 1.

    Returns
    -------
    xarray.Dataset
        Over `by`, in alphabetical order: `pairs`, `right` (counts), `accuracy` (a share), `lower` and `upper` (Wilson's
        interval of it); and, where the pairs were corrupted, `flipped`, the share (over draws too) of those that were
        right whose corrupted run says something else.

    Raises
    ------
    SpecError
        A dataset of something else than an evaluation, one without a pair that was run, a level that is none, or a
        coordinate that the examples have not got.

    References
    ----------
    Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if method_of(ds) != "evaluate":
        raise SpecError(f"accuracy counts what vp.evaluate gave, and this dataset's method is {method_of(ds)}.")
    if not 0 < level < 1:
        raise SpecError(f"level is a number between 0 and 1, not {level!r}.")
    known = [str(name) for name, coordinate in ds.coords.items() if coordinate.dims == ("example",)]
    if by is not None and by not in known:
        raise unknown("coordinate of the examples", by, known)
    ds = ds.sel(example=ds["right"].notnull())
    if not ds.sizes["example"]:
        raise SpecError("No pair of this dataset has been run yet.")
    if by is None:
        return _counted(ds, level)
    groups = ds[by].values.astype(str)
    names = sorted(set(groups.tolist()))
    parts = [_counted(ds.isel(example=np.flatnonzero(groups == name)), level) for name in names]
    return xr.concat(parts, by).assign_coords({by: np.array(names, dtype=object)})


def _counted(ds: xr.Dataset, level: float) -> xr.Dataset:
    right = ds["right"].values == 1
    pairs, count = len(right), int(right.sum())
    interval = binomtest(count, pairs).proportion_ci(level, method="wilson")
    found = {"pairs": pairs, "right": count, "accuracy": count / pairs, "lower": interval.low, "upper": interval.high}
    if "said_corrupted" in ds:
        flipped = (ds["said_corrupted"] != ds["said_clean"]).isel(example=np.flatnonzero(right))
        found["flipped"] = float(flipped.mean()) if count else float("nan")
    return xr.Dataset(found)
