"""Maps of cells in colours: layer × position, layer × head. Every figure that has such a map draws it here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap
from matplotlib.patches import Rectangle

from vlm_patching.errors import unknown
from vlm_patching.plots.labels import Labeller
from vlm_patching.plots.panels import fitted, present
from vlm_patching.plots.style import canvas, current, figure_of, inches, letters, most_inches, printed, small

DIVERGING = "RdBu_r"
"""Blue, white, red: told apart by all who see colours otherwise."""
SEQUENTIAL = "Purples"
LAYERS = ("y", "x")
NOT_RUN = "hatched: not run"
_HATCH = "////"


@dataclass(frozen=True)
class Map:
    """A table of values as it is drawn.

    Attributes
    ----------
    values
        [row, column], the uppermost row first; NaN is hatched.
    rows, columns
        What they are called.
    names
        Of the vertical and of the horizontal axis.
    marked
        [row, column]: cells with a frame.
    """

    title: str
    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    names: tuple[str, str]
    marked: np.ndarray | None = None

    @property
    def has_gaps(self) -> bool:
        return bool(np.isnan(self.values).any())


@dataclass(frozen=True)
class Scale:
    """Colours of values.

    Attributes
    ----------
    low, high
        The ends.
    label
        What the colour bar says: quantity, unit, sign.
    extend
        On which sides values lie beyond the ends, as matplotlib calls it.
    """

    low: float
    high: float
    label: str
    colors: str | Colormap = DIVERGING
    extend: str = "neither"


def symmetric(values: Sequence[np.ndarray], label: str, limit: float | None = None) -> Scale:
    """Diverging colours from -limit to limit, where none is given the largest absolute value; 0 is white."""
    largest = max((float(np.nanmax(np.abs(v), initial=0.0)) for v in values), default=0.0) or 1.0
    end = limit or largest
    return Scale(-end, end, label, extend="both" if largest > end * (1 + 1e-6) else "neither")


def map_of(
    title: str,
    values: xr.DataArray,
    across: str,
    labels: Sequence[str],
    layers: str,
    labeller: Labeller,
    marked: xr.DataArray | None = None,
) -> Map:
    """The map of values over `layer` and another dimension, without what has no value at all.

    Parameters
    ----------
    labels
        What the entries of `across` are called.
    layers
        Which axis the layers are on: `y`, the lowest at the bottom; `x`, with the others in their order from the top.
    """
    if layers not in LAYERS:
        raise unknown("axis of the layers", layers, LAYERS)
    keep, runs = (np.flatnonzero(present(values, name)).tolist() for name in (across, "layer"))
    picked = {across: keep, "layer": runs}
    numbers = values.isel(picked).transpose("layer", across).values
    frames = None if marked is None else marked.isel(picked).transpose("layer", across).values
    depth = [labeller.layer(int(layer)) for layer in values["layer"].values[runs]]
    names = [labels[i] for i in keep]
    if layers == "x":
        return Map(title, numbers.T, names, depth, (across, "layer"), None if frames is None else frames.T)
    return Map(title, numbers[::-1], depth[::-1], names, ("layer", across), None if frames is None else frames[::-1])


def draw_maps(maps: Sequence[Map], scale: Scale, ax: Axes | None) -> list[Axes]:
    """Draw maps in one scale with one colour bar: in the given axes, or as the panels of a new figure."""
    if ax is not None:
        draw_map(ax, maps[0], scale)
        color_bar([ax], scale, ax.get_window_extent().height / ax.figure.dpi)
        return [ax]
    axes = _panels(maps, scale)
    color_bar(axes, scale, figure_of(axes[0]).get_figheight() * 0.8)
    return axes


def color_bar(axes: Sequence[Axes], scale: Scale, height: float) -> Colorbar:
    """The colour bar of maps in one scale, beside all of them; `height` inches are there for its label."""
    mesh = next(c for c in axes[0].collections if isinstance(c, QuadMesh))
    beside = list(axes) if len(axes) > 1 else axes[0]
    bar = axes[0].figure.colorbar(mesh, ax=beside, extend=scale.extend, aspect=bar_aspect(height), pad=0.02)
    say(bar, scale.label, height)
    bar.ax.tick_params(labelsize=small())
    bar.outline.set_visible(False)
    return bar


def bar_aspect(height: float) -> float:
    """Length of a colour bar over its width, where it is so many inches long."""
    return float(np.clip(height / inches(0.16), 12, 80))


def say(bar: Colorbar, label: str, height: float) -> None:
    """Label a colour bar with `height` inches beside it, in smaller letters where it needs many lines."""
    high = max(height, 1.5)
    text = fitted(label, high)
    if text.count("\n") > 1:
        bar.set_label(fitted(label, high, small()), fontsize=small())
    else:
        bar.set_label(text)


def _panels(maps: Sequence[Map], scale: Scale) -> list[Axes]:
    """A new figure: as many panels in a row as fit."""
    around = inches(1.3)
    widest = most_inches() - around
    wide = max(len(m.columns) for m in maps)
    cell = inches(0.45 if wide <= 16 else 0.3)
    least = small() * 1.1 / 72 if printed() else 0.8 * cell
    counts = [max(len(m.columns), 3) for m in maps]
    labels = [beside(m) for m in maps]
    in_row = next((n for n in range(len(maps), 1, -1) if _pitch(counts, labels, n, widest) >= least), 1)
    rows = math.ceil(len(maps) / in_row)
    in_row = math.ceil(len(maps) / rows)
    pitch = min(cell, _pitch(counts, labels, in_row, widest))
    total = around + sum(max(counts[i::in_row]) * pitch + max(labels[i::in_row]) for i in range(in_row))
    high = [max(_height(m, pitch) for m in maps[i : i + in_row]) for i in range(0, len(maps), in_row)]
    _, axes = canvas(
        rows,
        in_row,
        max(total, inches(5.5)),
        sum(high) + (inches(0.8) if current().title else 0),
        [max(max(len(m.columns) for m in maps[i::in_row]), 3) for i in range(in_row)],
    )
    for ax in axes[len(maps) :]:
        ax.remove()
    for i, (ax, one) in enumerate(zip(axes, maps, strict=False)):
        left = i % in_row > 0 and tuple(maps[i - 1].rows) == tuple(one.rows)
        title = fitted(one.title, max(len(one.columns), 3) * pitch + inches(0.5))
        draw_map(ax, replace(one, title=title, names=("" if i % in_row else one.names[0], one.names[1])), scale, pitch)
        if left:
            ax.tick_params(axis="y", labelleft=False, left=False)
    return axes[: len(maps)]


def _pitch(counts: Sequence[int], labels: Sequence[float], in_row: int, most: float) -> float:
    """Inches that a column may have at most, where so many panels are in a row."""
    beside_ = sum(max(labels[i::in_row]) for i in range(in_row))
    return (most - beside_) / sum(max(counts[i::in_row]) for i in range(in_row))


def beside(one: Map) -> float:
    """Inches that the labels of rows take."""
    return inches(0.35) + min(max(map(len, one.rows), default=1), 26) * small() * 0.6 / 72


def below(one: Map) -> float:
    """Inches that the labels of columns take."""
    longest = max((len(line) for label in one.columns for line in label.split("\n")), default=1)
    return inches(0.2) + (min(longest, 30) * small() * 0.6 / 72 * 0.72 if longest > 2 else inches(0.15))


def _height(one: Map, pitch: float) -> float:
    """Inches that a panel takes, with what stands around it."""
    cell = min(inches(0.38 if len(one.rows) <= 16 else 0.26), max(pitch * 1.3, inches(0.16)))
    return max(len(one.rows) * cell, inches(1.2)) + below(one) + inches(0.7)


def draw_map(ax: Axes, one: Map, scale: Scale, pitch: float | None = None) -> None:
    """Draw one map, without a colour bar; a column will be `pitch` inches wide, where the axes do not say it yet."""
    if pitch is None:
        pitch = ax.get_window_extent().width / ax.figure.dpi / max(len(one.columns), 1)
    size, step = _ticks(pitch, one)
    shown = {"linewidths": min(0.06 * letters(), pitch * 2), "linecolor": "white"}
    sns.heatmap(
        one.values,
        ax=ax,
        cmap=scale.colors,
        vmin=scale.low,
        vmax=scale.high,
        cbar=False,
        xticklabels=False,
        yticklabels=False,
        **(shown if pitch > 0.1 else {}),
    )
    ax.patch.set(facecolor="0.95", hatch=_HATCH, edgecolor="0.65")
    ax.set_title(one.title)
    ax.set_ylabel(one.names[0])
    ax.set_xlabel(one.names[1])
    ax.set_xticks(np.arange(0, len(one.columns), step) + 0.5, list(one.columns)[::step], fontsize=size)
    rows_step = max(1, math.ceil(len(one.rows) / 40))
    ax.set_yticks(np.arange(len(one.rows))[::rows_step] + 0.5, list(one.rows)[::rows_step], fontsize=small())
    ax.tick_params(length=2, pad=2)
    if max(map(len, one.columns), default=0) > 2:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    frame(ax, one.marked)


def _ticks(pitch: float, one: Map) -> tuple[float, int]:
    """Size of the columns' labels, and every how many-th column has one."""
    points = pitch * 72
    numbers = max(map(len, one.columns), default=0) <= 2
    needed = 1.35 if numbers else 1.05
    size = min(small(), max(points / needed, 5.0, small() * 0.7))
    return size, max(1, math.ceil(size * needed / points - 0.05))


def frame(ax: Axes, marked: Any) -> None:
    """A black frame around every marked cell of a map."""
    if marked is None:
        return
    for row, column in np.argwhere(np.asarray(marked, dtype=bool)):
        ax.add_patch(
            Rectangle(
                (column + 0.06, row + 0.06), 0.88, 0.88, fill=False, edgecolor="black", linewidth=0.11 * letters()
            )
        )
