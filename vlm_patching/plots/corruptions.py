"""What corruptions do before anything is patched: what `vp.diagnose` found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes

from vlm_patching.errors import SpecError, unknown
from vlm_patching.plots.distribution import strips
from vlm_patching.plots.labels import Labeller
from vlm_patching.plots.lines import finish, legend, line_panels
from vlm_patching.plots.panels import check_drawn, fitted
from vlm_patching.plots.style import (
    Drawn,
    canvas,
    current,
    figure_of,
    inches,
    letters,
    most_inches,
    returned,
    small,
    styled,
)

QUANTITIES = ("flipped", "total_effect", "moved", "spread")
_FIXED = {
    "moved": ("how far activations move\n(clean standard deviations)", math.sqrt(2), "two unrelated pairs", "--"),
    "spread": ("distance from the clean mean\n(clean standard deviations)", 1.0, "clean runs", ":"),
}


@styled
def corruptions(
    ds: xr.Dataset,
    metric: str | None = None,
    *,
    quantity: str | None = None,
    site: str | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Corruptions held against each other: answers flipped, total effects, and how far activations move at each layer.

    Parameters
    ----------
    ds
        What `vp.diagnose` gave.
    metric
        Total effects on this metric only.
    quantity
        Only this one: `flipped`, `total_effect`, `moved`, `spread`.
    site
        Activations of this site only.
    labeller, ax
        As in `heatmap`; `ax` needs what leaves one panel.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them: for every pair the share of draws that flip its answer, and its total effect (points,
        quartiles, mean with 95 % interval); for every site, over layers, how far the residual stream moves (dashed: as
        far as two unrelated pairs are apart) and how far it is from the mean of clean runs (dashed: as far as clean
        runs are; above it, out of distribution).

    Raises
    ------
    SpecError
        A dataset that `vp.diagnose` did not give, an unknown quantity, metric or site, several panels and one `ax`.

    Notes
    -----
    Zhang & Nanda (2023), "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods".
    """
    check_drawn(ds, "corruptions")
    labeller = labeller or Labeller()
    if quantity is not None and quantity not in QUANTITIES:
        raise unknown("quantity of a diagnosis", quantity, QUANTITIES)
    rows = _contents(ds, metric, quantity, site)
    if ax is not None and sum(map(len, rows)) > 1:
        raise SpecError("One axes holds one panel; name a quantity, and its metric or site.")
    names = [labeller.word(str(name)) for name in ds["corruption"].values]
    axes = [ax] if ax is not None else _axes(rows, names)
    colors = sns.color_palette("colorblind", len(names))
    for one, (kind, which) in zip(axes, (cell for row in rows for cell in row), strict=True):
        if kind in _FIXED:
            _over_layers(one, ds[kind].sel(site=which), names, colors, kind, labeller)
        else:
            _of_pairs(one, ds, kind, which, names, labeller)
    if rows[-1][0][0] in _FIXED:
        legend(axes, "corruption", ax)
    if ax is None and current().title:
        figure = figure_of(axes[0])
        pairs = ds.sizes["example"]
        model = labeller.model(str(ds.attrs.get("model", "")))
        text = f"{ds.attrs.get('name', '')}: corruptions of {model}, {pairs} pairs"
        figure.suptitle(fitted(text, figure.get_figwidth() - 0.2))
    return returned(axes)


def _contents(
    ds: xr.Dataset, metric: str | None, quantity: str | None, site: str | None
) -> list[list[tuple[str, str]]]:
    """Rows of panels: what each shows, and of which metric or site."""
    metrics = [str(name).removesuffix("_total_effect") for name in ds.data_vars if str(name).endswith("_total_effect")]
    sites = [str(name) for name in ds["site"].values]
    for what, one, known in (("metric in this dataset", metric, metrics), ("site in this dataset", site, sites)):
        if one is not None and one not in known:
            raise unknown(what, one, known)
    metrics, sites = [metric] if metric else metrics, [site] if site else sites
    rows = [
        [("flipped", ""), *(("total_effect", name) for name in metrics)],
        *([(kind, name) for name in sites] for kind in _FIXED),
    ]
    rows = [[cell for cell in row if quantity in (None, cell[0])] for row in rows]
    return [row for row in rows if row]


def _axes(rows: Sequence[Sequence[tuple[str, str]]], names: Sequence[str]) -> list[Axes]:
    """A new figure: a row of panels for pairs, and one for each quantity of activations."""
    if len(rows) == 1 and rows[0][0][0] in _FIXED:
        return line_panels(len(rows[0]), None)
    count = max(map(len, rows))
    width = min(count * inches(3.2) + inches(3.2), most_inches())
    above = inches(0.5) if current().title else 0.1
    heights = [inches(0.9) + len(names) * inches(0.55) if row[0][0] not in _FIXED else inches(2.7) for row in rows]
    _, grid = canvas(len(rows), count, width, sum(heights) + above)
    spec = grid[0].get_subplotspec()
    assert spec is not None
    spec.get_gridspec().set_height_ratios(heights)
    axes = []
    for i, row in enumerate(rows):
        axes += grid[i * count : i * count + len(row)]
        for spare in grid[i * count + len(row) : (i + 1) * count]:
            spare.remove()
    return axes


def _of_pairs(ax: Axes, ds: xr.Dataset, kind: str, metric: str, names: Sequence[str], labeller: Labeller) -> None:
    """A point for every pair, in a row for every corruption."""
    values = ds["flipped" if kind == "flipped" else f"{metric}_total_effect"].transpose("corruption", "example").values
    first = ax.get_subplotspec() is None or ax.get_subplotspec().is_first_col()  # type: ignore[union-attr]
    strips(ax, list(values), [fitted(name, inches(1.6), small()) if first else "" for name in names])
    if kind == "flipped":
        ax.set_xlim(-0.05, 1.05)
        ax.set_xlabel("answers flipped (share of draws)")
    else:
        width = ax.get_window_extent().width / ax.figure.dpi
        ax.set_xlabel(fitted(f"total effect on {labeller.metric(metric)}\n+ harm was done", max(width, inches(1.8))))


def _over_layers(
    ax: Axes, values: xr.DataArray, names: Sequence[str], colors: Sequence[Any], kind: str, labeller: Labeller
) -> None:
    """A line for every corruption."""
    label, usual, called, dashes = _FIXED[kind]
    ax.axhline(usual, color="0.5", linewidth=0.1 * letters(), linestyle=dashes, zorder=1, label=called)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        one = values.isel(corruption=i).dropna("layer")
        marker = "osD^vPX*"[i % 8]
        size: dict[str, Any] = {"markersize": 0.35 * letters(), "linewidth": 0.15 * letters()}
        ax.plot(one["layer"].values, one.values, color=color, marker=marker, label=name, **size)
    finish(ax, labeller.site(str(values["site"].item())), label)
    ax.set_ylim(bottom=0)
    low, high = ax.get_ylim()
    ax.set_ylim(low, max(high, usual * 1.12))
