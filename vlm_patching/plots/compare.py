"""Two maps side by side, and cell against cell: do they rank the cells alike?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vlm_patching.analysis import agreement
from vlm_patching.analysis.effects import linearised
from vlm_patching.errors import SpecError
from vlm_patching.plots.columns import gather
from vlm_patching.plots.labels import Labeller, effect_label
from vlm_patching.plots.maps import Map, Scale, below, beside, color_bar, draw_map, map_of, symmetric
from vlm_patching.plots.panels import Panel, check_drawn, fitted, scaled_effect, select, split, titles
from vlm_patching.plots.style import (
    Drawn,
    canvas,
    check_width,
    current,
    inches,
    letters,
    most_inches,
    returned,
    small,
    styled,
)

_MOST_ROWS = 6


@dataclass(frozen=True)
class _Side:
    """One of the two: what it is called, its effects, and what they are."""

    name: str
    values: xr.DataArray
    label: str
    columns: dict[str, str]


@styled
def compare(
    ds: xr.Dataset,
    other: xr.Dataset | None = None,
    metric: str = "probability",
    *,
    other_metric: str | None = None,
    site: str | None = None,
    position: str | None = None,
    window: int | None = None,
    strength: float | None = None,
    normalize: bool = False,
    names: tuple[str, str] | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Two maps of mean effects, and every cell of one against the same cell of the other, with their rank agreement.

    Parameters
    ----------
    ds, other
        What `vp.run` gave, twice, with at least 3 cells in common: other corruptions, methods or models. Without
        `other`, two metrics of one dataset.
    metric, other_metric
        Of `ds`, and of the other side; the same where not given.
    site, position, window, strength
        Only this one; sites are rows of the figure.
    normalize
        Shares of the total effect, so that both sides have one unit.
    names
        What the two sides are called.
    labeller
        As in `heatmap`.
    ax
        Only the cells against each other, in these axes.

    Returns
    -------
    numpy.ndarray
        Of Axes: for every row the two maps and the cells. With `ax`, that. Where both sides have one unit, the maps
        have one scale, and a dashed line is where both are equal. Colours of the cells are layers. Above the cells
        Spearman's and Kendall's correlation and the share of the top tenth that both have (`analysis.agreement`), with
        intervals where both sides are of the same examples.

    Raises
    ------
    SpecError
        Nothing to compare with, fewer than 3 shared cells, other dimensions, and what `effect` refuses.

    Notes
    -----
    Zhang & Nanda (2023), "Towards Best Practices of Activation Patching in Language Models", compare corruptions and
    metrics this way.
    """
    check_drawn(ds, "compare")
    if other is None and other_metric in (None, metric):
        raise SpecError(
            "plot.compare needs another dataset, or another metric of this one (other_metric), to compare with."
        )
    labeller = labeller or Labeller()
    second = ds if other is None else other
    check_drawn(second, "compare")
    last = other_metric or metric
    wanted = {"site": site, "position": position, "window": window, "strength": strength}
    names = names or _told_apart(ds, second, (metric, last), normalize, labeller)
    sides = [
        _side(each, name, m, wanted, normalize, labeller)
        for each, name, m in ((ds, names[0], metric), (second, names[1], last))
    ]
    across = "head" if "head" in ds.dims else "position"
    rows = _rows(sides, across, ax)
    same_unit = normalize or metric == last
    if ax is not None:
        _cells(ax, rows[0], sides, same_unit, "")
        return ax
    return _figure(rows, sides, across, same_unit, labeller)


def _told_apart(
    a: xr.Dataset, b: xr.Dataset, metrics: tuple[str, str], normalize: bool, labeller: Labeller
) -> tuple[str, str]:
    """By metric where that differs, else by name."""
    if metrics[0] != metrics[1]:
        first, second = (labeller.metric(metric, unit=not normalize) for metric in metrics)
        return first, second
    first, second = (labeller.word(str(ds.attrs.get("name", ""))) for ds in (a, b))
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")


def _side(
    ds: xr.Dataset, name: str, metric: str, wanted: Mapping[str, object], normalize: bool, labeller: Labeller
) -> _Side:
    values, total = scaled_effect(ds, metric, normalize)
    arrays = [values] if total is None else [values, total.transpose(*values.dims)]
    columns = {str(head): str(head) for head in ds["head"].values} if "head" in ds.dims else {}
    if not columns:
        arrays, shown = gather(arrays, ds, "auto", labeller)
        columns = dict(zip(map(str, arrays[0]["position"].values), shown, strict=True))
    values = arrays[0] if total is None else linearised(arrays[0], arrays[1], metric)
    foreign = [c for c in values.coords if c not in values.dims]
    return _Side(
        name, select(values, wanted).drop_vars(foreign), effect_label(ds, metric, normalize, labeller), columns
    )


def _rows(sides: Sequence[_Side], across: str, ax: Axes | None) -> list[tuple[Panel, Panel]]:
    """The panels that both sides have."""
    first, second = (
        split(side.values, [n for n in ("site", "position", "window", "strength") if n != across], ax, _MOST_ROWS)
        for side in sides
    )
    if len(first) == 1 and len(second) == 1:
        return [(first[0], second[0])]
    found = [(a, b) for a in first for b in second if a.chosen == b.chosen]
    if not found:
        shown = [[str(dict(panel.chosen)) for panel in panels] for panels in (first, second)]
        raise SpecError(f"The two have no panel in common: {'; '.join(shown[0])}, and {'; '.join(shown[1])}.")
    return found


def _mean(values: xr.DataArray) -> xr.DataArray:
    return values.mean([d for d in ("example", "draw") if d in values.dims])


def _figure(
    rows: Sequence[tuple[Panel, Panel]], sides: Sequence[_Side], across: str, same_unit: bool, labeller: Labeller
) -> Drawn:
    check_width(inches(7), "compare")
    called = titles([a for a, _ in rows], labeller) if len(rows) > 1 else [""] * len(rows)
    tables = [[_map(panel, side, across, labeller) for panel, side in zip(row, sides, strict=True)] for row in rows]
    flat = [table for row in tables for table in row]
    scales = _scales(tables, sides, same_unit)
    wide = max(len(table.columns) for table in flat)
    cell = inches(0.36)
    widths = [max(wide, 4) * cell + max(map(beside, flat)), inches(2.9)]
    total = min(2 * widths[0] + widths[1] + inches(2.4), most_inches())
    pitch = cell * min(1.0, total / (2 * widths[0] + widths[1] + inches(2.4)))
    cells = max(len(table.rows) for table in flat) * inches(0.34)
    tall = max(cells, inches(2.2)) + max(map(below, flat)) + inches(0.9)
    above = inches(0.4) if current().title else 0.1
    figure, axes = canvas(len(rows), 3, total, len(rows) * tall + above, [widths[0], widths[0], widths[1]])
    for i, (row, row_tables) in enumerate(zip(rows, tables, strict=True)):
        left, right, cells_ax = axes[3 * i : 3 * i + 3]
        for ax, table, side, scale in zip((left, right), row_tables, sides, scales, strict=True):
            title = fitted(f"{side.name}\n{called[i]}" if called[i] else side.name, widths[0] * total / (total + 1e-9))
            draw_map(ax, replace(table, title=title), scale, pitch)
        right.set_ylabel("")
        if same_unit:
            color_bar([left, right], scales[0], tall * 0.8)
        else:
            color_bar([left], scales[0], tall * 0.8)
            color_bar([right], scales[1], tall * 0.8)
        _cells(cells_ax, row, sides, same_unit, "")
    if current().title:
        figure.suptitle(fitted(f"{sides[0].name} against {sides[1].name}", figure.get_figwidth()))
    return returned(axes)


def _map(panel: Panel, side: _Side, across: str, labeller: Labeller) -> Map:
    labels = [side.columns[str(label)] for label in panel.values[across].values]
    return map_of("", _mean(panel.values), across, labels, "y", labeller)


def _scales(tables: Sequence[Sequence[Map]], sides: Sequence[_Side], same_unit: bool) -> list[Scale]:
    """One for each side, over all rows; the same where both have one unit."""
    numbers = [[row[i].values for row in tables] for i in (0, 1)]
    if same_unit:
        numbers = [numbers[0] + numbers[1]] * 2
    return [symmetric(values, side.label) for values, side in zip(numbers, sides, strict=True)]


def _cells(ax: Axes, row: tuple[Panel, Panel], sides: Sequence[_Side], same_unit: bool, title: str) -> None:
    """Every cell's mean effect on one side against that on the other, and how far their ranks agree."""
    found = agreement(row[0].values, row[1].values)
    a, b = xr.align(*(_mean(panel.values) for panel in row), join="inner")
    b = b.transpose(*a.dims)
    layers = np.broadcast_to(a["layer"].values.reshape([-1 if d == "layer" else 1 for d in a.dims]), a.shape)
    there = np.isfinite(a.values) & np.isfinite(b.values)
    x, y = a.values[there], b.values[there]
    ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    if same_unit:
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="0.5", linewidth=0.8, linestyle="--", zorder=1)
    points = ax.scatter(
        x, y, c=layers[there], cmap="viridis", s=0.18 * letters() ** 2, linewidths=0.3, edgecolors="white", zorder=2
    )
    ticks = MaxNLocator(integer=True, nbins=6)
    bar = ax.figure.colorbar(points, ax=ax, label="layer", ticks=ticks, aspect=20, pad=0.02)
    bar.ax.tick_params(labelsize=small())
    bar.outline.set_visible(False)
    words = {"spearman": "Spearman", "kendall": "Kendall", "top_k": f"share of top {found.attrs['k']}"}
    lines = [f"{word} {_interval(found, name)}" for name, word in words.items()]
    ax.set_title("\n".join([title, *lines] if title else lines), fontsize=small(), loc="left")
    for set_label, side in ((ax.set_xlabel, sides[0]), (ax.set_ylabel, sides[1])):
        set_label(fitted(side.name, inches(2.4)))
    for axis in (ax.xaxis, ax.yaxis):  # whole numbers on each tick: a common factor would stand on the label
        axis.set_major_locator(MaxNLocator(nbins=4))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.spines[["top", "right"]].set_visible(False)


def _interval(found: xr.Dataset, name: str) -> str:
    value, low, high = (float(found[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(low) else f"{value:.2f}"
