"""Where in the picture heads look: over the picture, and in one number a head."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from vlm_patching.analysis import above_mean, head_functions
from vlm_patching.analysis.attention import patch_keys
from vlm_patching.errors import SpecError, unknown
from vlm_patching.pairs.pair import Box
from vlm_patching.plots.labels import Labeller
from vlm_patching.plots.maps import NOT_RUN, Scale, draw_maps, map_of, symmetric
from vlm_patching.plots.overlay import Pictures, check_region, headline, one_example, paint, painted
from vlm_patching.plots.panels import check_drawn, heading, pick, select, split, titles
from vlm_patching.plots.style import Drawn, figure_of, returned, styled

_STATISTICS = {
    "mass": "attention on the picture, of 1",
    "pointing_ratio": "pointing ratio - 1\n+ looks at the {region} more than its area asks for, − past it",
    "top_k_share": "share of the attention on the picture\nthat the top {top_k} patches have",
    "entropy": "entropy of the attention on the picture (nats)",
}


@styled
def attention(
    ds: xr.Dataset,
    example: str,
    picture: Pictures,
    *,
    site: str | None = None,
    position: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    top: int = 4,
    minus_mean: bool = True,
    region: str | None = "object",
    boxes: Mapping[str, Box] | None = None,
    limit: float | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """One example's attention over the patches of its picture, a panel for every head.

    Parameters
    ----------
    ds
        What `vp.run` gave for a reading of attention.
    example, picture
        As in `image`.
    site, position
        The site and the attending position; needed where there are several.
    layer, head
        Only these heads.
    top
        Where those are more than so many: only the ones that, over all kept examples, attend to the region's patches
        most, over the mean of all heads. Without a region, to the whole picture.
    minus_mean
        Take from a head's attention the mean of all heads (`analysis.above_mean`).
    region
        Role of the patches to draw a dashed frame around; None for no frame.
    boxes, limit, labeller, ax
        As in `image`.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them. Red where the head attends to a patch more than others do, blue where less; the picture, in
        grey, where as much. The colour scale is symmetric about 0; it begins at 0 for attention from which no mean was
        taken.

    Raises
    ------
    SpecError
        An example that is not there or was not kept, a dimension to choose a label of, several heads and one `ax`,
        patches without boxes or outside of the picture.

    Notes
    -----
    Golovanevsky et al. (2024), "What Do VLMs NOTICE?", draw attention minus its mean over heads this way.
    """
    check_drawn(ds, "attention")
    labeller = labeller or Labeller()
    one = one_example(ds, example)
    if minus_mean and ds.sizes["layer"] * ds.sizes["head"] < 2:
        raise SpecError("Of a single head there is no mean over heads to take off; say minus_mean=False.")
    if top < 1:
        raise SpecError(f"top must be at least 1, not {top}.")
    check_region(ds, "key_", region)
    values = above_mean(one) if minus_mean else one["attention"]
    wanted = {"site": site, "position": position, "layer": layer, "head": head}
    values, chosen = pick(values.isel(example=0), ("layer", "head", "key"), wanted)
    candidates = _candidates(ds, chosen, values, region)
    if ax is not None and len(candidates) > 1:
        raise SpecError("One axes holds one head; name its layer and head.")
    heads = sorted(candidates[:top])
    named = [labeller.head(*each) for each in heads]
    words = ", ".join(
        [labeller.chosen("site", chosen["site"]), f"at {labeller.chosen('position', chosen['position'])}"]
    )
    titles_ = [f"{words}, {name}" for name in named] if ax is not None else named
    rows = [values.sel(layer=a, head=b).values for a, b in heads]
    panels = painted(one, "key_", list(zip(titles_, rows, strict=True)), region)
    label = "attention minus the mean of all heads\n+ looks there more, − less" if minus_mean else "attention"
    drawn = paint(panels, picture, label, signed=minus_mean, limit=limit, boxes=boxes, ax=ax)
    if ax is None:
        headline(drawn, one, words, labeller)
    return drawn


def _candidates(
    ds: xr.Dataset, chosen: Mapping[str, str], values: xr.DataArray, region: str | None
) -> list[tuple[int, int]]:
    """Heads that were read and may be shown; those first that attend most to the region, over the mean of all."""
    there = {name: [label] for name, label in chosen.items()}
    every = ds.sel(there)
    attended = above_mean(every) if ds.sizes["layer"] * ds.sizes["head"] > 1 else every["attention"]
    patches = patch_keys(every)
    inside = patches & (every["key_role"] == region) if region is not None else patches
    strength = attended.where(inside if bool(inside.any()) else patches).sum("key").mean("example")
    found = [
        (int(layer), int(head))
        for layer in values["layer"].values
        for head in values["head"].values
        if bool(values.sel(layer=layer, head=head).notnull().any())
    ]
    by = {each: float(strength.sel(layer=each[0], head=each[1]).squeeze()) for each in found}
    return sorted(found, key=lambda each: -by[each])


@styled
def head_function(
    ds: xr.Dataset,
    statistic: str = "pointing_ratio",
    *,
    site: str | None = None,
    position: str | None = None,
    region: str = "object",
    layers: str = "y",
    limit: float | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Mean of a statistic of `vp.analysis.head_functions` for each layer × head, a panel for every site and position.

    Parameters
    ----------
    ds
        What `vp.run` gave for a reading of attention.
    statistic
        `pointing_ratio`, drawn as its distance from 1: red where a head looks at the region more than its area asks
        for; `mass`, `top_k_share`, `entropy`.
    site, position
        Only this one; needed with `ax` where the dataset has several.
    region
        Role of the patches that the pointing ratio is about.
    layers, limit, labeller, ax
        As in `heatmap`.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them.

    Raises
    ------
    SpecError
        Another method, an unknown statistic, and what `head_functions` refuses.
    """
    check_drawn(ds, "head_function")
    if statistic not in _STATISTICS:
        raise unknown("statistic of head_functions", statistic, _STATISTICS)
    labeller = labeller or Labeller()
    top_k = {"top_k": 1} if statistic != "top_k_share" else {}  # others ask for no number of patches
    roles = sorted(set(ds["key_role"].values[patch_keys(ds).values]))
    about = region if statistic == "pointing_ratio" or region in roles else next(iter(roles), region)
    found = head_functions(ds, region=about, **top_k)
    values = found[statistic].where(ds["kept"] == "kept").mean("example")
    values = select(values, {"site": site, "position": position})
    if statistic == "pointing_ratio":
        values = values - 1
    panels = split(values, ("site", "position"), ax)
    numbers = [str(head) for head in ds["head"].values]
    tables = [
        map_of(title, panel.values, "head", numbers, layers, labeller)
        for title, panel in zip(titles(panels, labeller), panels, strict=True)
    ]
    drawn_values = [table.values for table in tables]
    label = _STATISTICS[statistic].format(**found.attrs)
    if statistic == "pointing_ratio":
        scale = symmetric(drawn_values, label, limit)
    else:
        most = max(float(np.nanmax(v, initial=0.0)) for v in drawn_values)
        scale = Scale(0.0, limit or most or 1.0, label, "viridis")
    drawn = returned(draw_maps(tables, scale, ax))
    if ax is None:
        at = {str(panel.chosen["position"]) for panel in panels}
        of = f"heads at {labeller.word(at.pop())}" if len(at) == 1 else ""
        notes = [NOT_RUN] if any(table.has_gaps for table in tables) else []
        heading(figure_of(drawn), ds, None, labeller, of, notes)
    return drawn
