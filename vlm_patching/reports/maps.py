"""Dataset → the numbers of the interactive map, packed: for every site a block of means, interval ends, and pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from vlm_patching.analysis.effects import over_draws
from vlm_patching.analysis.uncertainty import mean_and_interval, with_numbers
from vlm_patching.metrics import METRICS
from vlm_patching.reports.packing import number, packed, packed_size
from vlm_patching.reports.quantities import Quantity

SELECTORS = ("window", "strength", "head", "position")
"""Dimensions that are chosen, where they are not drawn."""


def columns_of(values: xr.DataArray) -> str:
    """The dimension that is drawn beside the layers."""
    return next(name for name in ("edges", "key", "head", "position") if name in values.dims)


def maps(found: Sequence[Quantity], room: int) -> dict[str, Any]:
    """What the map needs, in about so many characters: means first, then as many pairs as there is room for.

    Returns
    -------
    dict
        `columns` and `selectors` (dimension and labels), `blocks` (a site's layers and columns, as indices), and
        `quantities`: for each block `mean`, `low`, `high` and `pairs` (number of the pair → its numbers), all packed,
        of the selectors' dimensions, then layer, then column. A pair's share of the total effect is its number of the
        quantity `of`, over its own of `totals`. `absent` counts the kept pairs whose
        own numbers found no room, `dropped` names the quantities that did not.
    """
    across = columns_of(found[0].values)
    labels = found[0].values
    selectors = [name for name in SELECTORS if name in labels.dims and name != across]
    blocks = _blocks(found, across, selectors)
    drawn: list[dict[str, Any]] = []
    dropped: list[str] = []
    cells = sum(block.size for block in blocks)
    for quantity in found:
        size = (3 if quantity.total is None else 6) * packed_size(cells)
        if drawn and size > room:
            dropped.append(named(quantity))
            continue
        room -= size
        drawn.append(_summary(quantity, blocks))
        if quantity.total is not None:
            drawn.append(_share(quantity, len(drawn) - 1, blocks))
    kept = [i for i, there in enumerate(with_numbers(found[0].values)) if there]
    own = [quantity for quantity in found if named(quantity) not in dropped]
    fit = kept[: max(0, room // max(1, len(own) * packed_size(cells)))]
    _add_pairs([entry for entry in drawn if "of" not in entry], own, blocks, fit)
    return {
        "across": across,
        "columns": [str(label) for label in labels[across].values],
        "selectors": [{"dim": name, "labels": [_label(v) for v in labels[name].values]} for name in selectors],
        "blocks": [block.record() for block in blocks],
        "quantities": drawn,
        "absent": len(kept) - len(fit),
        "dropped": dropped,
    }


def named(quantity: Quantity) -> str:
    """A quantity in words: its label and its metric's."""
    if not quantity.metric or quantity.kind == "value" or (quantity.kind, quantity.metric) == ("change", "probability"):
        return quantity.label
    return f"{quantity.label} ({METRICS[quantity.metric]['label']})"


class _Block:
    """The cells of one site: the layers and columns that any quantity has a number at."""

    def __init__(self, site: str, present: xr.DataArray, across: str, selectors: Sequence[str]) -> None:
        self.site, self._order = site, (*selectors, "layer", across)
        self._layers = np.flatnonzero(present.any([d for d in present.dims if d != "layer"]).values)
        self._columns = np.flatnonzero(present.any([d for d in present.dims if d != across]).values)
        self._across, self._names = across, [int(layer) for layer in present["layer"].values[self._layers]]
        self.size = int(np.prod([present.sizes[d] for d in selectors])) * len(self._layers) * len(self._columns)

    def record(self) -> dict[str, Any]:
        return {"site": self.site, "layers": self._names, "columns": self._columns.tolist()}

    def cut(self, values: xr.DataArray) -> np.ndarray:
        """The block's numbers of values over site, selectors, layer and column."""
        labels = [str(site) for site in values["site"].values]
        part = values.isel({"site": labels.index(self.site), "layer": self._layers, self._across: self._columns})
        return part.transpose(*self._order).values


def _blocks(found: Sequence[Quantity], across: str, selectors: Sequence[str]) -> list[_Block]:
    present = None
    for quantity in found:
        here = quantity.values.notnull()
        here = here.any([d for d in here.dims if d in ("example", "draw")])
        present = here if present is None else present | here
    assert present is not None
    sites = [str(site) for site in present["site"].values]
    blocks = [_Block(site, present.isel(site=i), across, selectors) for i, site in enumerate(sites)]
    return [block for block in blocks if block.size]


def _summary(quantity: Quantity, blocks: Sequence[_Block]) -> dict[str, Any]:
    return {
        "kind": quantity.kind,
        "metric": quantity.metric,
        "label": quantity.label,
        "title": named(quantity),
        "unit": quantity.unit,
        "meaning": quantity.meaning,
        "middle": quantity.middle,
        "blocks": _packed(quantity.summary, blocks),
    }


def _share(quantity: Quantity, of: int, blocks: Sequence[_Block]) -> dict[str, Any]:
    """Mean effect over mean total effect, with the interval of that ratio; of a pair, its effect over its total."""
    assert quantity.total is not None and quantity.shares is not None
    return {
        "kind": "share",
        "metric": quantity.metric,
        "label": "share of the total effect",
        "title": f"share of the total effect ({METRICS[quantity.metric]['label']})",
        "unit": "",
        "meaning": "Effect / total effect. 0: as the run that is patched, 1: as the run that the values come from. Of "
        "the mean: mean effect over mean total effect.",
        "middle": 0.0,
        "of": of,
        "totals": [number(value) for value in quantity.total.values],
        "blocks": _packed(mean_and_interval(quantity.shares), blocks),
    }


def _packed(summary: xr.Dataset, blocks: Sequence[_Block]) -> list[dict[str, Any]]:
    return [{name: packed(block.cut(summary[name])) for name in ("mean", "low", "high")} for block in blocks]


def _add_pairs(
    drawn: Sequence[dict[str, Any]], own: Sequence[Quantity], blocks: Sequence[_Block], fit: Sequence[int]
) -> None:
    """Each pair's own numbers, into the records of the quantities."""
    for entry, quantity in zip(drawn, own, strict=True):
        values = over_draws(quantity.values.astype(np.float64))
        for part, block in zip(entry["blocks"], blocks, strict=True):
            part["pairs"] = {str(i): packed(block.cut(values.isel(example=i))) for i in fit}


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def strongest(quantity: Quantity, most: int) -> Iterator[dict[str, Any]]:
    """The cells whose mean is furthest from the middle: their labels, mean and interval."""
    summary = quantity.summary
    mean = summary["mean"]
    distance = abs(mean.values.ravel() - (quantity.middle or 0.0))
    order = np.argsort(np.where(np.isfinite(distance), -distance, np.inf), kind="stable")
    for flat in order[:most]:
        at = dict(zip(mean.dims, np.unravel_index(flat, mean.shape), strict=True))
        if np.isfinite(distance[flat]):
            labels = {str(name): _label(mean[name].values[i]) for name, i in at.items()}
            yield {"labels": labels, **{str(name): number(summary[name].values.ravel()[flat]) for name in summary}}
