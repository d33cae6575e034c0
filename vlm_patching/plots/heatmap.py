"""Heatmaps of effects: layer × position, and layer × head."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from vlm_patching.analysis import permutation_max_t
from vlm_patching.analysis.uncertainty import with_numbers
from vlm_patching.errors import SpecError, unknown
from vlm_patching.plots.columns import gather
from vlm_patching.plots.labels import Labeller, effect_label
from vlm_patching.plots.maps import NOT_RUN, SEQUENTIAL, Scale, draw_maps, map_of, symmetric
from vlm_patching.plots.panels import (
    Panel,
    check_drawn,
    heading,
    mean_over_pairs,
    scaled_effect,
    select,
    split,
    titles,
)
from vlm_patching.plots.style import Drawn, figure_of, returned, styled

SCALES = ("effect", "metric", "minmax")
LEVEL = 0.05
"""Family-wise error rate of the test that outlines cells."""


@styled
def heatmap(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    window: int | None = None,
    strength: float | None = None,
    normalize: bool = False,
    scale: str = "effect",
    layers: str = "y",
    patches: str = "auto",
    mark: bool = False,
    limit: float | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Mean effect of each layer × position; a panel for every site (and window, and strength).

    Parameters
    ----------
    ds
        What `vp.run` gave, of a sweep without heads.
    metric
        One of the dataset's metrics.
    site, window, strength
        Only this one; needed with `ax` where the dataset has several.
    normalize
        Show shares of the total effect: mean effect over mean total effect.
    scale
        `effect`; `metric`: the mean of the metric itself, colours beginning at what it is in the run that was patched;
        `minmax`: each panel's effects from its smallest, 0, to its largest, 1.
    layers
        `y`: layers upwards, positions across. `x`: layers across, positions in reading order downwards.
    patches
        What becomes of the picture's single patches, see `gather`: `expanded`, `block`, `rows`, `regions`, `auto`.
    mark
        Outline cells whose effect stands out: max-T permutation test over all cells of the figure
        (`analysis.permutation_max_t`).
    limit
        End of the colour scale; the largest absolute value where not given.
    labeller
        What things are called.
    ax
        Axes to draw in; a new figure where not given.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them, one for each panel. Red where a cell carries the answer, blue where it works against it,
        hatched where a cell was not run. All panels have one colour scale, symmetric about 0 (of a `scale` that begins
        at 0 or at a run's metric, sequential).

    Raises
    ------
    SpecError
        A method or heads that another figure draws, a name that the dataset does not have, several panels and one `ax`,
        and what `effect` refuses.

    Notes
    -----
    The form of Meng et al. (2022) and Palit et al. (2023) is `layers="x", scale="metric"`, that of Golovanevsky et al.
    (2024) `layers="x", scale="minmax"`.
    """
    check_drawn(ds, "heatmap")
    if "head" in ds.dims:
        raise SpecError("This dataset is of heads; plot.heads draws it.")
    labeller = labeller or Labeller()
    wanted = {"site": site, "window": window, "strength": strength}
    values, total = scaled_effect(ds, metric, normalize)
    arrays = [select(array, wanted) for array in (values, *_beside(ds, values, total, scale, metric))]
    gathered, labels = gather(arrays, ds, patches, labeller)
    return _maps(ds, gathered, "position", labels, metric, normalize, scale, layers, mark, limit, labeller, ax)


@styled
def heads(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    position: str | None = None,
    window: int | None = None,
    strength: float | None = None,
    normalize: bool = False,
    scale: str = "effect",
    layers: str = "y",
    mark: bool | xr.DataArray = True,
    limit: float | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Mean effect of each layer × head, a panel for every site and position; those that stand out are outlined.

    Parameters
    ----------
    ds
        What `vp.run` gave, of a sweep over heads.
    position
        Only this one; needed with `ax` where the dataset has several.
    mark
        Outline heads whose effect stands out: max-T permutation test over all heads of the figure, family-wise error
        5 % (`analysis.permutation_max_t`); none where the pairs are too few for one to. Or an array of bool over
        `layer` and `head` (and others of the effect's dimensions), as `universal` of `analysis.universal_heads`.
    metric, site, window, strength, normalize, scale, layers, limit, labeller, ax
        As in `heatmap`, with heads in the place of positions.

    Returns
    -------
    matplotlib.axes.Axes
        As `heatmap`.

    Raises
    ------
    SpecError
        As `heatmap`.

    Notes
    -----
    Golovanevsky et al. (2024), "What Do VLMs NOTICE?", show heads this way.
    """
    check_drawn(ds, "heads")
    if "head" not in ds.dims:
        raise SpecError("This dataset has no heads; plot.heatmap draws it.")
    labeller = labeller or Labeller()
    wanted = {"site": site, "position": position, "window": window, "strength": strength}
    values, total = scaled_effect(ds, metric, normalize)
    arrays = [select(array, wanted) for array in (values, *_beside(ds, values, total, scale, metric))]
    numbers = [str(head) for head in ds["head"].values]
    return _maps(ds, arrays, "head", numbers, metric, normalize, scale, layers, mark, limit, labeller, ax)


def _beside(
    ds: xr.Dataset, values: xr.DataArray, total: xr.DataArray | None, scale: str, metric: str
) -> list[xr.DataArray]:
    """What is drawn or divided by besides the effects: the metric itself, or the total effect of the cells."""
    if scale not in SCALES:
        raise unknown("scale of a map", scale, SCALES)
    if scale == "metric":
        if total is not None:
            raise SpecError(
                "scale 'metric' shows the metric itself, which normalize has no share of; give one of them."
            )
        return [ds[metric].where(ds["kept"] == "kept").transpose(*values.dims)]
    return [] if total is None else [total.transpose(*values.dims)]


def _maps(
    ds: xr.Dataset,
    arrays: list[xr.DataArray],
    across: str,
    labels: list[str],
    metric: str,
    normalize: bool,
    scale: str,
    layers: str,
    mark: bool | xr.DataArray,
    limit: float | None,
    labeller: Labeller,
    ax: Axes | None,
) -> Drawn:
    values = arrays[0]
    shown = arrays[1] if scale == "metric" else values
    mean = mean_over_pairs(shown, arrays[1] if normalize else None, metric)
    facets = [name for name in ("site", "position", "window", "strength") if name != across]
    panels = split(mean, facets, ax)
    if scale == "minmax":
        panels = [Panel(panel.chosen, _from_0_to_1(panel.values)) for panel in panels]
    marked, note = _marked(values, mark)
    frames = [None if marked is None else _there(marked, panel.chosen) for panel in panels]
    tables = [
        map_of(title, panel.values, across, labels, layers, labeller, frames_)
        for title, panel, frames_ in zip(titles(panels, labeller), panels, frames, strict=True)
    ]
    numbers = [table.values for table in tables]
    if scale == "effect":
        colors = symmetric(numbers, effect_label(ds, metric, normalize, labeller), limit)
    elif scale == "metric":
        colors = _of_metric(ds, metric, numbers, limit, labeller)
    else:
        quantity = effect_label(ds, metric, normalize, labeller).split("\n")[0]
        colors = Scale(0, 1, f"{quantity},\n0 the least and 1 the most of each panel", SEQUENTIAL)
    axes = draw_maps(tables, colors, ax)
    drawn = returned(axes)
    if ax is None:
        notes = [note] if note else []
        notes += [NOT_RUN] if any(table.has_gaps for table in tables) else []
        at = {str(panel.chosen["position"]) for panel in panels if "position" in panel.chosen}
        of = f"heads at {labeller.word(at.pop())}" if across == "head" and len(at) == 1 else ""
        heading(figure_of(drawn), ds, metric, labeller, of, notes)
    return drawn


def _from_0_to_1(values: xr.DataArray) -> xr.DataArray:
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else values * 0


def _of_metric(ds: xr.Dataset, metric: str, values: list[np.ndarray], limit: float | None, labeller: Labeller) -> Scale:
    """Colours that begin at the mean of the run that was patched, where any value is above it."""
    restored = ds.attrs.get("base", "corrupted") == "corrupted" and f"{metric}_corrupted" in ds
    run = "corrupted" if restored else "clean"
    base = float(ds[f"{metric}_{run}"].where(ds["kept"] == "kept").mean())
    least = min(float(np.nanmin(v)) for v in values if np.isfinite(v).any())
    most = max(float(np.nanmax(v)) for v in values if np.isfinite(v).any())
    low = base if restored and base < most else least
    high = limit or max(most, base)
    label = f"{labeller.metric(metric)}\n{run} run {base:.3g}"
    return Scale(low, high, label, SEQUENTIAL, extend="min" if least < low else "neither")


def _marked(values: xr.DataArray, mark: bool | xr.DataArray) -> tuple[xr.DataArray | None, str]:
    """Which cells are outlined, and the words for it."""
    if isinstance(mark, xr.DataArray):
        if mark.dtype != bool:
            raise SpecError(f"mark must be true or false for every cell, not {mark.dtype}.")
        foreign = [str(name) for name in mark.dims if name not in values.dims]
        if foreign:
            raise SpecError(f"mark has the dimension {foreign[0]}, which the map does not have; select one of it.")
        there = mark.reindex_like(values.isel(example=0, drop=True), fill_value=False)
        return there, f"outlined: {mark.name or 'marked'}"
    if not mark:
        return None, ""
    if with_numbers(values).sum() < 2:
        return None, "not tested: one example"
    found = permutation_max_t(values, level=LEVEL)
    if not bool(found["significant"].any()):
        return found["significant"], f"no cell stands out (max-T, family-wise {LEVEL:.0%})"
    return found["significant"], f"outlined: stands out (max-T, family-wise {LEVEL:.0%})"


def _there(marked: xr.DataArray, chosen: Any) -> xr.DataArray:
    """The outlines of one panel."""
    return marked.sel({name: label for name, label in chosen.items() if name in marked.dims}, drop=True)
