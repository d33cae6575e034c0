"""What heads attend to in the picture, in numbers."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.special import xlogy

from vlm_patching.analysis.effects import method_of
from vlm_patching.errors import SpecError, unknown

_DIMENSIONS = ("example", "site", "layer", "head", "position", "key")


def head_functions(
    ds: xr.Dataset, top_k: int = 5, position: str | int | None = None, *, region: str = "object"
) -> xr.Dataset:
    """How every head spreads its attention over the patches of the picture.

    Parameters
    ----------
    ds
        What `vp.run` gave for a reading of attention (method `attention`).
    top_k
        How many of the patches attended to most `top_k_share` is of.
    position
        Label of the attending (query) position; all of them where not given.
    region
        Role of the patches that `pointing_ratio` is about: a region's name.

    Returns
    -------
    xarray.Dataset
        Over `example`, `site`, `layer`, `head` (and `position` where none was chosen). The keys are an example's image
        patches; a class token has no place in the picture and is left out.

        - `mass`: attention on all patches, in [0, 1]; the rest went to text or to the class token;
        - `pointing_ratio`: share of it on the region's patches, over their share of the patches. 1 where the head does
          not mind the region, above 1 where it looks at it (object detection), under 1 where it looks past it;
        - `top_k_share`: share of it on the k patches attended to most, k / patches to 1; near 1 for outliers;
        - `entropy` of the attention renormalised over the patches, in nats: 0 (one patch) to ln(patches) (even);
        - `above_mean`, with `key` too: see `above_mean`.

        NaN for examples that were not kept and heads that were not read; all but `mass` and `above_mean` also where
        the mass is 0; `pointing_ratio` where an example has no patch in the region.

    Raises
    ------
    SpecError
        Another method, a position or region that no kept example has, top_k that is not between 1 and the number of
        patches.

    Notes
    -----
    Golovanevsky et al. (2024), "What Do VLMs NOTICE?", read object detection, object suppression and outlier
    suppression by eye off maps of `above_mean`; the numbers are ours.
    """
    _check(ds)
    if position is not None:
        labels = [str(label) for label in ds["position"].values]
        if str(position) not in labels:
            raise unknown("position in this dataset", str(position), labels)
        ds = ds.isel(position=[labels.index(str(position))])
    patches = patch_keys(ds)
    inside = patches & (ds["key_role"] == region)
    if not inside.any():
        raise unknown("region of the patches", region, sorted(set(ds["key_role"].values[patches.values])))
    attention = ds["attention"].transpose(*_DIMENSIONS)
    counts = (attention.notnull() & patches).sum("key")
    fewest = int(counts.where(counts > 0).min()) if counts.any() else 0
    if not 1 <= top_k <= fewest:
        raise SpecError(f"top_k must be between 1 and {fewest}, the fewest patches of an example, not {top_k}.")
    names = ("mass", "pointing_ratio", "top_k_share", "entropy")
    numbers = np.full((len(names), *attention.shape[:-1]), np.nan)
    for i in np.flatnonzero(patches.any("key").values):
        keys = np.flatnonzero(patches.values[i])
        numbers[:, i] = _numbers(attention.values[i][..., keys].astype(np.float64), inside.values[i, keys], top_k)
    blank = attention.isel(key=0, drop=True).drop_attrs()
    result = xr.Dataset({name: blank.copy(data=found) for name, found in zip(names, numbers, strict=True)})
    result["above_mean"] = above_mean(ds).isel(key=np.flatnonzero(patches.any("example").values))
    result.attrs = {**ds.attrs, "top_k": top_k, "region": region}
    return result if position is None else result.isel(position=0)


def above_mean(ds: xr.Dataset) -> xr.DataArray:
    """Attention on every image patch minus the mean of all heads of all layers, in [-1, 1].

    Positive where a head attends to a patch more than the others do. The mean is over the layers and heads of the same
    site and attending position that the dataset has, so let it have all. NaN for keys that are not patches of the
    example (the class token, text) and where only one head was read.

    Parameters
    ----------
    ds
        As in `head_functions`.

    Raises
    ------
    SpecError
        Another method.

    Notes
    -----
    Golovanevsky et al. (2024): the average that their code takes off is of all heads of all layers, class token left
    out, without renormalising.
    """
    _check(ds)
    attention = ds["attention"].transpose(*_DIMENSIONS).where(patch_keys(ds))
    read = attention.notnull().sum(("layer", "head"))
    result = attention - attention.mean(("layer", "head")).where(read >= 2)
    return result.rename("above_mean").drop_attrs(deep=False)


def patch_keys(ds: xr.Dataset) -> xr.DataArray:
    """Which keys are a patch of the picture, [example, key]; of examples that were not kept, none."""
    patches = (ds["key_modality"] == "image") & (ds["key_row"] >= 0) & (ds["kept"] == "kept")
    return patches.transpose("example", "key").drop_vars(patches.coords)


def _check(ds: xr.Dataset) -> None:
    if method_of(ds) != "attention" or "attention" not in ds:
        raise SpecError(
            f"This needs a dataset of attention, and this one's method is {method_of(ds)}; analysis.effect is of it."
        )
    missing = [name for name in _DIMENSIONS if name not in ds["attention"].dims]
    if missing:
        raise SpecError(f"The attention has no dimension {', '.join(missing)}; select with lists: ds.sel(site=[...]).")


def _numbers(attention: np.ndarray, inside: np.ndarray, top_k: int) -> np.ndarray:
    """Mass, pointing ratio, top-k share and entropy, [number, ...] of attention [..., patch] and the region [patch]."""
    present = np.isfinite(attention)
    attention = np.where(present, attention, 0.0)
    counts = present.sum(axis=-1)
    mass = np.where(counts > 0, attention.sum(axis=-1), np.nan)
    shares = _divide(attention, mass[..., None])
    pointing = _divide(shares[..., inside].sum(axis=-1), _divide(present[..., inside].sum(axis=-1), counts))
    top = np.sort(shares, axis=-1)[..., -top_k:].sum(axis=-1)
    return np.stack([mass, pointing, top, -xlogy(shares, shares).sum(axis=-1)])


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b; NaN, without a warning, where b is not positive."""
    return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)
