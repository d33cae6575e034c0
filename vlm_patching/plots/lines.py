"""Lines over layers, with the 95 % interval of their mean: knockouts, and the lens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vlm_patching.analysis import bootstrap, knockout_change
from vlm_patching.analysis.effects import check_metric, method_of
from vlm_patching.errors import SpecError, unknown
from vlm_patching.metrics import METRICS
from vlm_patching.plots.labels import position_labels, subtitle

MOST_LINES = 8
"""A lens of more positions than this is a heatmap."""
MOST_INCHES = 17.0
"""Columns of a heatmap get narrower before it gets wider than this."""


def knockout(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    window: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Change of the answer's probability, in percent, by the layer around which attention was blocked.

    Parameters
    ----------
    ds
        What `vp.run` gave for a knockout.
    metric
        `probability` or a logarithm of it; see `knockout_change`.
    site, window
        Only this one; needed with `ax` where the dataset has several.
    ax
        Axes to draw in; a new figure, with a panel for every site and window, where not given.

    Returns
    -------
    matplotlib.figure.Figure
        A line for each set of blocked edges, mean over kept examples, and the band of its 95 % bootstrap interval (each
        layer alone; none of a single example). Below 0 the blocked edges carried the answer.

    Raises
    ------
    SpecError
        Another method, no kept example, and what `knockout_change` refuses.

    Notes
    -----
    The figure of Zhang et al. (2024), "Cross-modal Information Flow in Multimodal Large Language Models".
    """
    if method_of(ds) != "knockout":
        raise SpecError(f"plot.knockout draws knockouts, and this dataset's method is {method_of(ds)}.")
    values = knockout_change(ds, metric)
    _check_kept(ds)
    cells = _cells(ds, {"site": site, "window": window}, ax)
    names = [str(edges) for edges in ds["edges"].values]
    colors = _colors(len(names))
    figure, axes = _axes(len(cells), 3.4, ax)
    for panel, cell in zip(axes, cells, strict=True):
        panel.axhline(0, color="0.6", linewidth=0.8, zorder=1)
        for i, name in enumerate(names):
            _line(panel, _interval(values.sel(cell).isel(edges=i)), name, colors[i])
        _finish(panel, cell, "change of the answer's probability (%)")
    _legend(figure, axes, "blocked", ax)
    if ax is None:
        figure.suptitle(f"{ds.attrs.get('name', '')}\n{subtitle(ds, metric)}", fontsize=10)
    return figure


def lens(ds: xr.Dataset, metric: str = "probability", *, site: str | None = None, ax: Axes | None = None) -> Figure:
    """The metric that the lens reads at each layer and position, beside what the model itself says.

    Parameters
    ----------
    ds
        What `vp.run` gave for a lens.
    metric
        One of the dataset's metrics, drawn as it is: where less of it is better, lower is better here too.
    site
        Only this one; needed with `ax` where the dataset has several.
    ax
        Axes to draw in; a new figure, with a panel for every site, where not given.

    Returns
    -------
    matplotlib.figure.Figure
        Up to `MOST_LINES` positions: a line for each, mean over kept examples, with the band of its 95 % bootstrap
        interval (each layer alone; none of a single example), and dashed the mean of the model's own output. More: a
        heatmap of the means, layer × position, grey where nothing was read.

    Raises
    ------
    SpecError
        Another method, a metric that the dataset lacks, no kept example.

    Notes
    -----
    nostalgebraist (2020), "interpreting GPT: the logit lens".
    """
    if method_of(ds) != "lens":
        raise SpecError(f"plot.lens draws lenses, and this dataset's method is {method_of(ds)}.")
    check_metric(ds, metric)
    _check_kept(ds)
    kept = ds["kept"] == "kept"
    values = ds[metric].where(kept).astype(np.float64)
    cells = _cells(ds, {"site": site}, ax)
    present = [values.sel(cell).notnull().any(("example", "layer")).values for cell in cells]
    names, label = position_labels(ds), METRICS[metric]["label"]
    if max(read.sum() for read in present) > MOST_LINES:
        figure = _lens_heatmap(values.mean("example"), cells, present, names, label, ax)
    else:
        colors = _colors(len(names))
        figure, axes = _axes(len(cells), 3.4, ax)
        own = float(ds[f"{metric}_clean"].where(kept).mean())
        for panel, cell, read in zip(axes, cells, present, strict=True):
            panel.axhline(own, color="0.4", linewidth=1, linestyle="--", zorder=1, label="the model")
            for i in np.flatnonzero(read):
                _line(panel, _interval(values.sel(cell).isel(position=i)), names[i], colors[i])
            _finish(panel, cell, label)
        _legend(figure, axes, "lens at", ax)
    if ax is None:
        figure.suptitle(f"{ds.attrs.get('name', '')}\n{subtitle(ds, metric)}", fontsize=10)
    return figure


def _check_kept(ds: xr.Dataset) -> None:
    if not (ds["kept"] == "kept").any():
        raise SpecError("No pair of this dataset was kept, so there is nothing to draw; `kept` says why of each.")


def _cells(ds: xr.Dataset, wanted: dict[str, Any], ax: Axes | None) -> list[dict[str, Any]]:
    """What each panel shows: a label of every one of these dimensions that the dataset has."""
    cells: list[dict[str, Any]] = [{}]
    for name, label in wanted.items():
        if name not in ds.dims:
            if label is not None:
                raise SpecError(f"This dataset has no dimension {name}, so {name} must not be given.")
            continue
        known = ds[name].values.tolist()
        if label is not None and label not in known:
            raise unknown(f"{name} in this dataset", label, known)
        if ax is not None and label is None and len(known) > 1:
            raise SpecError(f"One axes holds one {name}; name it: {', '.join(map(str, known))}.")
        cells = [{**cell, name: one} for cell in cells for one in ([label] if label is not None else known)]
    return cells


def _axes(panels: int, height: float, ax: Axes | None) -> tuple[Figure, list[Axes]]:
    if ax is not None:
        whole = ax.get_figure(root=True)
        assert whole is not None
        return whole, [ax]
    size = (max(4.2 * panels, 4.5) + 1.8, height + 0.6)
    figure, axes = plt.subplots(1, panels, figsize=size, squeeze=False, sharey=True, layout="constrained")
    return figure, list(axes[0])


def _colors(number: int) -> Any:
    return sns.color_palette("colorblind", number) if number <= 10 else sns.husl_palette(number)


def _interval(values: xr.DataArray) -> xr.Dataset:
    """Mean, low and high of the layers that have any number; low and high NaN where there is one example."""
    layers = values.notnull().any("example").values
    values = values.isel(layer=np.flatnonzero(layers))
    if int(values.notnull().any("layer").sum()) >= 2:
        return bootstrap(values)
    mean = values.mean("example")
    return xr.Dataset({"mean": mean, "low": mean * np.nan, "high": mean * np.nan})


def _line(ax: Axes, interval: xr.Dataset, label: str, color: Any) -> None:
    layers = interval["layer"].values
    ax.plot(layers, interval["mean"].values, color=color, label=label, marker="o", markersize=3, linewidth=1.6)
    ax.fill_between(layers, interval["low"].values, interval["high"].values, color=color, alpha=0.18, linewidth=0)


def _finish(ax: Axes, cell: dict[str, Any], label: str) -> None:
    ax.set_title(_title(cell), fontsize=10)
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    first = ax.get_subplotspec()
    if first is None or first.is_first_col():
        ax.set_ylabel(label)
    sns.despine(ax=ax)


def _title(cell: dict[str, Any]) -> str:
    return ", ".join(str(label) if name == "site" else f"{name} {label}" for name, label in cell.items())


def _legend(figure: Figure, axes: Sequence[Axes], title: str, given: Axes | None) -> None:
    """Each line once, beside the panels of a figure of ours or inside the axes that were given."""
    once: dict[tuple[str, str], Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            once.setdefault((label, str(plt.getp(handle, "color"))), handle)
    labels = [label for label, _ in once]
    style: dict[str, Any] = {"title": title, "frameon": False, "fontsize": 8, "title_fontsize": 8}
    if given is None:
        figure.legend(list(once.values()), labels, loc="outside right center", **style)
    else:
        given.legend(list(once.values()), labels, loc="best", **style)


def _lens_heatmap(
    values: xr.DataArray,
    cells: Sequence[dict[str, Any]],
    present: Sequence[np.ndarray],
    names: list[str],
    label: str,
    ax: Axes | None,
) -> Figure:
    low, high = float(values.min()), float(values.max())
    signed = low < 0 < high
    if signed:
        low, high = -max(-low, high), max(-low, high)
    columns = [max(int(read.sum()), 3) for read in present]
    if ax is None:
        around = 0.6 * len(columns) + 1.6
        cell_width = min(0.45, max(0.2, (MOST_INCHES - around) / sum(columns)))
        figure, grid = plt.subplots(
            1,
            len(cells),
            figsize=(max(cell_width * sum(columns) + around, 6), 0.3 * values.sizes["layer"] + 2.2),
            squeeze=False,
            layout="constrained",
            gridspec_kw={"width_ratios": columns},
        )
        axes = list(grid[0])
    else:
        figure, axes = _axes(1, 0, ax)
    for panel, cell, read in zip(axes, cells, present, strict=True):
        table = values.sel(cell).isel(position=np.flatnonzero(read)).transpose("layer", "position")
        table = table.isel(layer=np.flatnonzero(table.notnull().any("position").values))
        bar: dict[str, Any] = {"cbar_kws": {"label": label}} if panel is axes[-1] else {"cbar": False}
        sns.heatmap(
            table.values[::-1],
            ax=panel,
            cmap="RdBu_r" if signed else "viridis",
            vmin=low,
            vmax=high,
            xticklabels=[name for name, wanted in zip(names, read, strict=True) if wanted],
            yticklabels=[str(layer) for layer in table["layer"].values[::-1]],
            **bar,
        )
        panel.set_facecolor("0.85")
        panel.set_title(_title(cell), fontsize=10)
        panel.set_xlabel("position")
        panel.set_ylabel("layer" if panel is axes[0] else "")
        panel.tick_params(axis="y", rotation=0)
        plt.setp(panel.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    return figure
