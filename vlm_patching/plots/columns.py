"""The columns of a map over positions: hundreds of single patches are shown as they are, or as a few means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from vlm_patching.errors import unknown
from vlm_patching.plots.labels import Labeller, is_one_position, position_labels

PATCHES = ("auto", "expanded", "block", "rows", "regions")
MOST_PATCHES = 20
"""More single patches than this are not shown one by one where nobody asks for it."""


def gather(
    values: Sequence[xr.DataArray], ds: xr.Dataset, patches: str = "auto", labeller: Labeller | None = None
) -> tuple[list[xr.DataArray], list[str]]:
    """Values of every example with the columns that a map is to have, and what those are called.

    Parameters
    ----------
    values
        Arrays with the dimensions `example` and `position`, gathered alike.
    ds
        The dataset that they are of; says which positions are patches of a picture.
    patches
        What becomes of single patches: all of them as they are (`expanded`), one mean over them (`block`), over each
        row of the grid (`rows`), or over each region, with what is in none as `image:other` (`regions`); `auto`: as
        they are up to `MOST_PATCHES`, else `regions`. A mean is over an example's own patches, each patched alone; it
        stands where the first of them did.

    Raises
    ------
    SpecError
        Another word for `patches`.
    """
    if patches not in PATCHES:
        raise unknown("way to show patches", patches, PATCHES)
    labeller = labeller or Labeller()
    names = position_labels(ds, labeller)
    single = _single_patches(ds)
    if patches == "auto":
        patches = "expanded" if single.any(axis=0).sum() <= MOST_PATCHES else "regions"
    if patches == "expanded" or not single.any():
        return list(values), names
    groups = _groups(ds, single, patches)
    first = int(np.flatnonzero(single.any(axis=0))[0])
    stays = ~single[_kept(ds)].all(axis=0)
    order = [i for i in range(first) if stays[i]], [i for i in range(first, len(names)) if stays[i]]
    found = []
    for array in values:
        examples = xr.DataArray(single, dims=("example", "position"))
        rest = array.where(~examples)
        parts = [rest.isel(position=order[0])]
        for group, members in groups.items():
            mean = array.where(xr.DataArray(members, dims=("example", "position"))).mean("position", skipna=True)
            parts.append(mean.expand_dims(position=np.array([group], dtype=object)))
        parts.append(rest.isel(position=order[1]))
        plain = [part.drop_vars([c for c in part.coords if c not in ("example", *part.dims)]) for part in parts]
        joined = xr.concat(plain, "position", coords="minimal", compat="override", join="override")
        found.append(joined.transpose(*array.dims).assign_attrs(array.attrs))
    shown = [*(names[i] for i in order[0]), *map(labeller.mean_of, groups), *(names[i] for i in order[1])]
    return found, shown


def _kept(ds: xr.Dataset) -> np.ndarray:
    return np.asarray(ds["kept"].values == "kept")


def _single_patches(ds: xr.Dataset) -> np.ndarray:
    """Which positions of which example are one patch of a picture, [example, position]."""
    if not {"modality", "row"} <= set(ds.coords):
        return np.zeros((ds.sizes["example"], ds.sizes["position"]), dtype=bool)
    patch = ((ds["modality"] == "image") & (ds["row"] >= 0)).transpose("example", "position").values
    alone = np.array([is_one_position(label) for label in ds["position"].values])
    return np.asarray(patch & alone & _kept(ds)[:, None])


def _groups(ds: xr.Dataset, single: np.ndarray, patches: str) -> dict[str, np.ndarray]:
    """Name → which patches of which example it has, [example, position]."""
    if patches == "block":
        return {"image": single}
    of = ds["row" if patches == "rows" else "role"].transpose("example", "position").values
    labels = sorted(set(of[single].tolist()), key=lambda label: (label == "image", label))
    if patches == "rows":
        return {f"image row {label}": single & (of == label) for label in labels}
    if labels == ["image"]:
        return {"image": single}
    names = {"image": "image:other"}
    return {names.get(label, f"image:{label}"): single & (of == label) for label in labels}
