"""What single heads look at: maps of attention over the picture, as many as there is room for."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from vlm_patching.analysis import above_mean
from vlm_patching.analysis.attention import patch_keys
from vlm_patching.reports.packing import packed, packed_size
from vlm_patching.reports.quantities import Quantity

_ORDER = ("example", "site", "layer", "head", "position", "key")


def looks(ds: xr.Dataset, found: Quantity, room: int) -> dict[str, Any] | None:
    """Attention minus the mean of all heads, for the heads whose statistic is furthest from the middle.

    Parameters
    ----------
    found
        The statistic of `head_functions` that chooses, with its middle.
    room
        About how many characters they may take.

    Returns
    -------
    dict or None
        `keys` (indices of the keys that are patches), `heads` ("site|layer|head" → `pairs`: number of the pair → its
        numbers, packed, of position, then key), `all` (how many heads there are) and `minus_mean`: False where only one
        head was read, whose attention is then given as it is. None where no key is a patch.
    """
    patches = patch_keys(ds)
    if not patches.any():
        return None
    minus_mean = ds.sizes["layer"] * ds.sizes["head"] >= 2
    values = (above_mean(ds) if minus_mean else ds["attention"].where(patches)).transpose(*_ORDER)
    keys = np.flatnonzero(patches.any("example").values)
    kept = np.flatnonzero((ds["kept"] == "kept").values)
    each = packed_size(values.sizes["position"] * len(keys)) * max(1, len(kept))
    labels = _by_distance(found)
    heads = {}
    for site, layer, head in labels[: room // each]:
        part = values.isel(site=site, layer=layer, head=head, key=keys).values
        name = f"{ds['site'].values[site]}|{ds['layer'].values[layer]}|{ds['head'].values[head]}"
        heads[name] = {str(i): packed(part[i]) for i in kept.tolist()}
    return {"keys": keys.tolist(), "heads": heads, "all": len(labels), "minus_mean": minus_mean}


def _by_distance(found: Quantity) -> list[tuple[int, int, int]]:
    """Indices (site, layer, head) of the heads that have a number, the most telling ones first."""
    values = found.values.mean("example").transpose("site", "layer", "head", ...)
    distance = abs(values - (found.middle or 0.0))
    distance = distance.max([d for d in distance.dims if d not in ("site", "layer", "head")])
    order = np.argsort(-np.nan_to_num(distance.values.ravel(), nan=-1.0), kind="stable")
    places = np.unravel_index(order, distance.shape)
    there = np.isfinite(distance.values[places])
    return [(int(s), int(layer), int(h)) for s, layer, h, has in zip(*places, there, strict=True) if has]
