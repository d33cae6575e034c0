"""Heatmaps of effects: layer × position, and layer × head."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlm_patching.analysis import effect, head_functions, total_effect
from vlm_patching.analysis.effects import LEAST_TOTAL_EFFECT
from vlm_patching.errors import SpecError, unknown
from vlm_patching.plots.labels import effect_label, position_labels, subtitle

_COLORS = "RdBu_r"
MOST_INCHES = 17.0
"""Cells get narrower before a figure gets wider than this."""


def heatmap(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    normalize: bool = False,
    limit: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Mean effect of each layer × position; a panel for every site (and window, and strength).

    Parameters
    ----------
    ds
        What `vp.run` gave, of a sweep without heads.
    metric
        One of the dataset's metrics.
    site
        Only this one; needed with `ax` where the dataset has several.
    normalize
        Show shares of the total effect: mean effect over mean total effect.
    limit
        End of the colour scale; the largest absolute value where not given.
    ax
        Axes to draw in; a new figure where not given.

    Returns
    -------
    matplotlib.figure.Figure
        Red where a cell carries the answer, blue where it works against it, grey where a cell was not run. All panels
        have one colour scale, symmetric about 0.
    """
    if "head" in ds.dims:
        raise SpecError("This dataset is of heads; plot.heads draws it.")
    if "position" not in ds.dims:
        raise SpecError("This dataset is of blocked edges; plot.knockout draws it.")
    values = mean_effect(ds, metric, normalize)
    return _panels(
        ds, values, "position", position_labels(ds), effect_label(ds, metric, normalize), metric, site, limit, ax
    )


def heads(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    position: str | None = None,
    normalize: bool = False,
    limit: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Mean effect of each layer × head at one position (the only one where not given); see `heatmap`."""
    if "head" not in ds.dims:
        raise SpecError("This dataset has no heads; plot.heatmap draws it.")
    labels = [str(label) for label in ds["position"].values]
    if position is None and len(labels) > 1:
        raise SpecError(f"Name one position of {', '.join(labels)}.")
    if position is not None and position not in labels:
        raise unknown("position in this dataset", position, labels)
    values = mean_effect(ds, metric, normalize).sel(position=position or labels[0])
    numbers = [str(head) for head in ds["head"].values]
    return _panels(ds, values, "head", numbers, effect_label(ds, metric, normalize), metric, site, limit, ax)


def head_function(
    ds: xr.Dataset,
    statistic: str = "pointing_ratio",
    *,
    site: str | None = None,
    position: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Mean of a statistic of `vp.analysis.head_functions` for each layer × head, of a dataset of attention.

    `pointing_ratio` is drawn as its distance from 1: red where a head looks at the region more than its area asks for.
    """
    found = head_functions(ds, position=position)
    known = [str(name) for name in found.data_vars if "key" not in found[name].dims]
    if statistic not in known:
        raise unknown("statistic of head_functions", statistic, known)
    values = found[statistic].where(ds["kept"] == "kept").mean("example")
    if "position" in values.dims:
        labels = [str(label) for label in values["position"].values]
        if len(labels) > 1:
            raise SpecError(f"Name one position of {', '.join(labels)}.")
        values = values.isel(position=0)
    shown = statistic.replace("_", " ")
    if statistic == "pointing_ratio":
        values, shown = values - 1, "pointing ratio - 1"
    numbers = [str(head) for head in ds["head"].values]
    return _panels(ds, values, "head", numbers, shown, _measured(ds), site, None, ax)


def _measured(ds: xr.Dataset) -> str:
    """A metric of the clean run."""
    return next(str(name).removesuffix("_clean") for name in ds.data_vars if str(name).endswith("_clean"))


def mean_effect(ds: xr.Dataset, metric: str, normalize: bool) -> xr.DataArray:
    """Effect, mean over kept examples and draws; NaN where no kept example has the cell.

    Normalised, it is the mean effect over the mean total effect of the examples that have the cell: a mean of ratios
    would be ruled by the few draws whose total effect is near 0.
    """
    if not (ds["kept"] == "kept").any():
        raise SpecError("No pair of this dataset was kept, so there is nothing to draw; `kept` says why of each.")
    values = effect(ds, metric)
    over = [d for d in ("example", "draw") if d in values.dims]
    mean = values.mean(over, skipna=True)
    if not normalize:
        return mean
    total = total_effect(ds, metric).where(values.notnull()).mean(over, skipna=True)
    return mean / total.where(abs(total) > LEAST_TOTAL_EFFECT[metric])


def _panels(
    ds: xr.Dataset,
    values: xr.DataArray,
    across: str,
    labels: list[str],
    shown_as: str,
    metric: str,
    site: str | None,
    limit: float | None,
    ax: Axes | None,
) -> Figure:
    sites = [str(s) for s in ds["site"].values]
    if site is not None and site not in sites:
        raise unknown("site in this dataset", site, sites)
    values = _side_by_side(values.sel(site=[site] if site else sites))
    shown = [str(s) for s in values["site"].values]
    if ax is not None and len(shown) > 1:
        raise SpecError(f"One axes holds one panel; select one of {', '.join(shown)}.")
    if limit is None:
        limit = float(np.nanmax(np.abs(values.sel(site=shown).values), initial=0.0)) or 1.0
    present = {s: _present(values.sel(site=s), across) for s in shown}
    if ax is None:
        figure, axes = _axes(present, ds.sizes["layer"])
    else:
        whole = ax.get_figure(root=True)
        assert whole is not None
        figure, axes = whole, [ax]
    for i, (name, panel) in enumerate(zip(shown, axes, strict=True)):
        keep = present[name]
        kept_labels = [label for label, wanted in zip(labels, keep, strict=True) if wanted]
        bar = shown_as if i == len(shown) - 1 else None
        _panel(panel, values.sel(site=name).isel({across: np.flatnonzero(keep)}), across, kept_labels, limit, bar)
        if i:
            panel.set_ylabel("")
    if ax is None:
        at = f", heads at {values['position'].values}" if across == "head" and "position" in values.coords else ""
        below = textwrap.fill(subtitle(ds, metric), int(figure.get_figwidth() * 12))
        figure.suptitle(f"{ds.attrs.get('name', '')}{at}\n{below}", fontsize=10)
    return figure


def _side_by_side(values: xr.DataArray) -> xr.DataArray:
    """Windows and strengths as further panels: "site, window 3"."""
    for name in ("window", "strength"):
        if name in values.dims:
            parts = []
            for label in values[name].values.tolist():
                part = values.sel({name: label}, drop=True)
                names = [f"{site}, {name} {label:g}" for site in part["site"].values]
                parts.append(part.assign_coords(site=np.array(names, dtype=object)))
            values = xr.concat(parts, "site", combine_attrs="override")
    return values


def _axes(present: dict[str, np.ndarray], layers: int) -> tuple[Figure, list[Axes]]:
    """A row of panels, as wide as what they hold."""
    columns = [max(int(keep.sum()), 3) for keep in present.values()]
    around = 0.6 * len(columns) + 1.6
    cell = min(0.55, max(0.3, (MOST_INCHES - around) / sum(columns)))
    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(max(cell * sum(columns) + around, 6), 0.42 * layers + 2.4),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"width_ratios": columns},
    )
    return figure, list(axes[0])


def _present(values: xr.DataArray, across: str) -> np.ndarray:
    """Which entries of a dimension a site has any value at; all of them where it has none."""
    present = np.asarray(values.notnull().any("layer").transpose(across).values)
    return present if present.any() else np.ones_like(present)


def _panel(ax: Axes, values: xr.DataArray, across: str, labels: list[str], limit: float, bar: str | None) -> None:
    table = values.transpose("layer", across)
    table = table.isel(layer=np.flatnonzero(table.notnull().any(across).values)) if table.notnull().any() else table
    options: dict[str, Any] = {"cbar_kws": {"label": bar}} if bar else {}
    sns.heatmap(
        table.values[::-1],
        ax=ax,
        cmap=_COLORS,
        vmin=-limit,
        vmax=limit,
        cbar=bool(bar),
        xticklabels=labels,
        yticklabels=[str(v) for v in table["layer"].values[::-1]],
        linewidths=0.4,
        linecolor="white",
        **options,
    )
    ax.set_facecolor("0.85")
    ax.set_title(str(values["site"].values), fontsize=10)
    ax.set_xlabel(across)
    ax.set_ylabel("layer")
    ax.tick_params(axis="y", rotation=0)
    if max(map(len, labels), default=0) > 2:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
