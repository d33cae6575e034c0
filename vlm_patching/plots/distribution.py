"""Every example's effect: what a mean does not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes

from vlm_patching.analysis.effects import mean_total, over_draws
from vlm_patching.analysis.uncertainty import mean_and_interval
from vlm_patching.errors import SpecError
from vlm_patching.plots.labels import Labeller, effect_label, position_labels
from vlm_patching.plots.panels import check_drawn, fitted, heading, scaled_effect, select
from vlm_patching.plots.style import Drawn, canvas, current, figure_of, inches, letters, most_inches, small, styled

_CELL = ("site", "layer", "head", "position", "window", "strength")


@styled
def distribution(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    position: str | None = None,
    window: int | None = None,
    strength: float | None = None,
    normalize: bool = False,
    top: int = 8,
    limit: float | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """The effects of single examples, a row for each cell: points, quartiles, and the mean with its 95 % interval.

    Parameters
    ----------
    ds
        What `vp.run` gave.
    metric
        One of the dataset's metrics.
    site, layer, head, position, window, strength
        Only cells of this one.
    normalize
        Shares of the total effect: each effect over the mean total effect.
    top
        How many cells, those with the largest mean effects in either direction; the strongest is at the top.
    limit
        Ends of the axis of effects.
    labeller, ax
        As in `heatmap`.

    Returns
    -------
    matplotlib.axes.Axes
        A point is an example, draws averaged; the box holds the middle half of them, with the median; the diamond is
        the mean, with its bootstrap interval (of two examples or more).

    Raises
    ------
    SpecError
        A method without effects, a name that the dataset does not have.
    """
    check_drawn(ds, "distribution")
    if top < 1:
        raise SpecError(f"top must be at least 1, not {top}.")
    labeller = labeller or Labeller()
    values, total = scaled_effect(ds, metric, normalize)
    if total is not None:
        values = values / mean_total(total, metric)
    wanted = {"site": site, "layer": layer, "head": head, "position": position, "window": window, "strength": strength}
    values = select(values, wanted)
    values = over_draws(values)
    dims = [name for name in _CELL if name in values.dims]
    flat = values.transpose("example", *dims).values.reshape(values.sizes["example"], -1)
    cells = _strongest(flat, top)
    places = [np.unravel_index(cell, [values.sizes[name] for name in dims]) for cell in cells]
    chosen = [{name: values[name].values[i] for name, i in zip(dims, place, strict=True)} for place in places]
    names = _names(ds, chosen, labeller)
    room = inches(4.6)
    if ax is None:
        longest = min(max(map(len, names)), 34) * small() * 0.6 / 72
        room = min(room, (current().width or most_inches()) - longest - inches(0.5))
        above = inches(0.9) if current().title else 0.1
        _, (ax_,) = canvas(1, 1, inches(4.6) + longest, len(names) * inches(0.36) + inches(0.8) + above)
    else:
        ax_ = ax
    strips(ax_, [flat[:, cell] for cell in cells], [fitted(name, inches(3), small()) for name in names])
    ax_.set_xlabel(fitted(effect_label(ds, metric, normalize, labeller), room))
    if limit is not None:
        ax_.set_xlim(-limit, limit)
    if ax is None:
        one = int((ds["kept"] == "kept").sum()) == 1
        notes = ["of one example" if one else "a point an example, diamond: mean and 95 % interval"]
        of = "strongest cells" if len(cells) < int(np.isfinite(flat).any(axis=0).sum()) else ""
        heading(figure_of(ax_), ds, metric, labeller, of, notes)
    return ax_


def _strongest(values: np.ndarray, top: int) -> list[int]:
    """The cells [example, cell] with the largest abs(mean), the strongest first."""
    there = np.flatnonzero(np.isfinite(values).any(axis=0))
    means = np.nanmean(values[:, there], axis=0)
    return [int(cell) for cell in there[np.argsort(-abs(means), kind="stable")[:top]]]


def _names(ds: xr.Dataset, chosen: Sequence[dict[str, Any]], labeller: Labeller) -> list[str]:
    """What each cell is called: layer (and head), where it is, and what else the dataset has several of."""
    known = (
        dict(zip(map(str, ds["position"].values), position_labels(ds, labeller), strict=True))
        if "position" in ds.dims
        else {}
    )
    found = []
    for cell in chosen:
        name = labeller.head(int(cell["layer"]), int(cell["head"])) if "head" in cell else f"L{int(cell['layer'])}"
        name += f" @ {known[str(cell['position'])]}" if "position" in cell else ""
        others = [n for n in ("site", "window", "strength") if n in cell and ds.sizes[n] > 1]
        # a name may be broken after a comma, and not before a number
        words = [labeller.chosen(n, cell[n]).replace(" ", "\N{NO-BREAK SPACE}") for n in others]
        found.append(", ".join([name, *words]))
    return found


def strips(ax: Axes, rows: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Rows of points, from the top: each with its quartiles, and the mean with its interval; NaN is left out."""
    color = sns.color_palette("colorblind")[0]
    at = np.arange(len(rows))[::-1]
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    for number, (y, row) in enumerate(zip(at, rows, strict=True)):
        values = row[np.isfinite(row)]
        if not len(values):
            continue
        jitter = np.random.default_rng(number).uniform(-0.22, 0.22, len(values))
        ax.boxplot(
            [values],
            positions=[y],
            widths=0.62,
            orientation="horizontal",
            showfliers=False,
            showcaps=False,
            manage_ticks=False,
            boxprops={"color": "0.55", "linewidth": 0.8},
            whiskerprops={"color": "0.55", "linewidth": 0.8},
            medianprops={"color": "0.25", "linewidth": 1.2},
        )
        ax.scatter(values, y + jitter, s=0.09 * letters() ** 2, color=color, alpha=0.5, linewidths=0, zorder=3)
        found = mean_and_interval(xr.DataArray(values, dims="example"))
        mean, low, high = (float(found[name]) for name in ("mean", "low", "high"))
        if np.isfinite([low, high]).all():
            ax.plot([low, high], [y, y], color="k", linewidth=0.16 * letters(), zorder=4)
        ax.plot(
            [mean],
            [y],
            marker="D",
            markersize=0.45 * letters(),
            color="k",
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=5,
        )
    ax.set_yticks(at, names)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.tick_params(axis="y", length=0)
    sns.despine(ax=ax, left=True)
