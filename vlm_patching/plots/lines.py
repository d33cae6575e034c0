"""Lines over layers, with the 95 % interval of their mean: effects, knockouts, windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vlm_patching.analysis import knockout_change
from vlm_patching.analysis.effects import linearised
from vlm_patching.analysis.uncertainty import mean_and_interval
from vlm_patching.backends.cells import window as layers_of_window
from vlm_patching.errors import SpecError, unknown
from vlm_patching.plots.columns import gather
from vlm_patching.plots.labels import Labeller, effect_label
from vlm_patching.plots.panels import (
    Panel,
    check_drawn,
    fitted,
    heading,
    scaled_effect,
    select,
    split,
    titles,
)
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

MOST_LINES = 8
"""More lines than this cannot be told apart: a heatmap shows them."""
NARROW = 5.0
"""Inches; a figure that is not wider has its legend under it."""
_MARKERS = "osD^vPX*"
_BY = ("position", "edges", "window", "strength", "site", "head")


@styled
def lines(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    by: str | None = None,
    site: str | None = None,
    position: str | Sequence[str] | None = None,
    window: int | None = None,
    strength: float | None = None,
    head: int | None = None,
    normalize: bool = False,
    patches: str = "regions",
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Mean effect over layers with its 95 % interval, a line for each position (or what `by` says).

    Parameters
    ----------
    ds
        What `vp.run` gave; a knockout is drawn as `knockout` does.
    metric
        One of the dataset's metrics.
    by
        The dimension that lines are for: `position`, `site`, `window`, `strength`, `head`; the first that has several
        labels where not given. The others become panels.
    site, position, window, strength, head
        Only this one (of positions also several).
    normalize
        Shares of the total effect: mean effect over mean total effect, and the interval of that ratio.
    patches
        What becomes of the picture's single patches, see `heatmap`.
    labeller, ax
        As in `heatmap`.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them. Mean over kept examples, and the band of its 95 % bootstrap interval (each layer alone;
        none of a single example).

    Raises
    ------
    SpecError
        A method that another figure draws, more than `MOST_LINES` lines, a name that the dataset does not have, several
        panels and one `ax`.

    Notes
    -----
    Meng et al. (2022) show roles of positions this way, beside their maps.
    """
    if ds.attrs.get("method") == "knockout" and by in (None, "edges") and position is None:
        return knockout(ds, metric, site=site, window=window, labeller=labeller, ax=ax)
    check_drawn(ds, "lines")
    labeller = labeller or Labeller()
    if by is not None and by not in _BY:
        raise unknown("dimension of lines", by, _BY)
    wanted = {"site": site, "window": window, "strength": strength, "head": head}
    values, names = _effects(ds, metric, wanted, position, normalize, patches, labeller)
    several = [name for name in _BY if values.sizes.get(name, 1) > 1]
    by = by or next(iter(several), "position")
    if by not in values.dims:
        raise SpecError(f"This dataset has no dimension {by} that lines could be for; it has {', '.join(several)}.")
    panels = split(values, [name for name in ("site", *_BY) if name != by], ax)
    return _lines(ds, panels, by, names, metric, effect_label(ds, metric, normalize, labeller), labeller, ax)


@styled
def knockout(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    window: int | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Change of the answer's probability, in percent, by the layer around which attention was blocked.

    Parameters
    ----------
    ds
        What `vp.run` gave for a knockout.
    metric
        `probability` or a logarithm of it; see `knockout_change`.
    site, window
        Only this one; needed with `ax` where the dataset has several.
    labeller, ax
        As in `heatmap`.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them, a panel for every site and window. A line for each set of blocked edges, mean over kept
        examples, and the band of its 95 % bootstrap interval (each layer alone; none of a single example). Below 0 the
        blocked edges carried the answer.

    Raises
    ------
    SpecError
        Another method, no kept example, and what `knockout_change` refuses.

    Notes
    -----
    The figure of Zhang et al. (2024), "Cross-modal Information Flow in Multimodal Large Language Models".
    """
    check_drawn(ds, "knockout")
    labeller = labeller or Labeller()
    values = select(knockout_change(ds, metric), {"site": site, "window": window})
    panels = split(values, ("site", "window"), ax)
    label = "change of p(answer) (%)\n−\N{NO-BREAK SPACE}what was blocked carried it"
    return _lines(ds, panels, "edges", None, metric, label, labeller, ax, "blocked")


@styled
def windows(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    position: str | Sequence[str] | None = None,
    normalize: bool = False,
    sums: bool = True,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Mean effect over layers, a line for each width of the window; a panel for every site and position.

    Parameters
    ----------
    ds
        What `vp.run` gave for a list of windows.
    sums
        Dashed beside each line: the sum of the effects of the window's layers, each changed alone. Where it differs,
        the layers work together. Only where the dataset has window 1 and every layer.
    metric, site, position, normalize, labeller, ax
        As in `lines`.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them, as `lines`.

    Raises
    ------
    SpecError
        A dataset with one window, and what `lines` refuses.

    Notes
    -----
    Basu et al. (2024) show ΔP over layers for each window this way; Zhang & Nanda (2023) hold windows against sums.
    """
    check_drawn(ds, "windows")
    if ds.sizes.get("window", 1) < 2:
        raise SpecError("plot.windows compares widths of the window, and this dataset has one: plot.lines draws it.")
    labeller = labeller or Labeller()
    values, names = _effects(ds, metric, {"site": site}, position, normalize, "regions", labeller)
    panels = split(values, ("site", "position", "strength", "head"), ax)
    label = effect_label(ds, metric, normalize, labeller)
    beside = None
    if sums and 1 in ds["window"].values.tolist() and "layers_covered" in ds.coords:

        def beside(panel_ax: Axes, panel: Panel, colors: Mapping[Any, Any]) -> None:
            _sums(panel_ax, panel, ds["layers_covered"], colors)

    return _lines(ds, panels, "window", names, metric, label, labeller, ax, beside=beside)


def _sums(ax: Axes, panel: Panel, covered: xr.DataArray, colors: Mapping[Any, Any]) -> None:
    """Dashed, for each window, the mean effects of its single layers added up, where all of them were run."""
    single = panel.values.sel(window=1)
    single = single.mean([d for d in ("example", "draw") if d in single.dims])
    alone = dict(zip(single["layer"].values.tolist(), single.values.tolist(), strict=True))
    covered = covered.sel(site=panel.chosen["site"]) if "site" in covered.dims else covered
    depth = 1 + max((layer for layer, value in alone.items() if np.isfinite(value)), default=0)
    label = "sum of single layers"
    for width in (w for w in panel.values["window"].values.tolist() if w > 1):
        inside = {layer: layers_of_window(layer, width, depth) for layer in alone}
        sums = {
            layer: sum(alone.get(j, np.nan) for j in members)
            for layer, members in inside.items()
            if members and len(members) == int(covered.sel(window=width, layer=layer))
        }
        if np.isfinite(list(sums.values())).any():
            ax.plot(list(sums), list(sums.values()), color=colors[width], linestyle="--", linewidth=0.1 * letters())
            if label:
                ax.plot([], [], color="0.4", linestyle="--", linewidth=0.1 * letters(), label=label)
            label = ""


def _effects(
    ds: xr.Dataset,
    metric: str,
    wanted: dict[str, Any],
    position: str | Sequence[str] | None,
    normalize: bool,
    patches: str,
    labeller: Labeller,
) -> tuple[xr.DataArray, list[str]]:
    """Effects of every example, or shares of the total effect; and what their positions are called."""
    values, total = scaled_effect(ds, metric, normalize)
    arrays = [select(values, wanted)]
    if total is not None:
        arrays.append(select(total.transpose(*values.dims), wanted))
    names: list[str] = []
    if "position" in values.dims:
        arrays, names = gather(arrays, ds, patches, labeller)
        known = [str(label) for label in arrays[0]["position"].values]
        if position is not None:
            arrays = [select(array, {"position": position}) for array in arrays]
            names = [names[known.index(str(label))] for label in arrays[0]["position"].values]
    found = arrays[0] if total is None else linearised(arrays[0], arrays[1], metric)
    return found, names


def _lines(
    ds: xr.Dataset,
    panels: list[Panel],
    by: str,
    names: list[str] | None,
    metric: str,
    label: str,
    labeller: Labeller,
    ax: Axes | None,
    title: str = "",
    beside: Callable[[Axes, Panel, Mapping[Any, Any]], None] | None = None,
) -> Drawn:
    """A line for each label of `by`, in the same colour in all panels; `beside` draws what belongs to those colours."""
    known = panels[0].values[by].values.tolist()
    shown = [i for i in range(len(known)) if any(bool(p.values.isel({by: i}).notnull().any()) for p in panels)]
    if len(shown) > MOST_LINES:
        raise SpecError(
            f"These would be {len(shown)} lines, and more than {MOST_LINES} cannot be told apart: name some by {by}=, "
            "or let plot.heatmap draw them."
        )
    words = names if by == "position" and names else [_word(by, one, labeller) for one in known]
    colors = _colors(len(shown))
    axes = line_panels(len(panels), ax)
    for panel_ax, panel, text in zip(axes, panels, titles(panels, labeller), strict=True):
        panel_ax.axhline(0, color="0.6", linewidth=0.8, zorder=1)
        for color, i in zip(colors, shown, strict=True):
            values = panel.values.isel({by: i})
            if bool(values.notnull().any()):
                draw_line(panel_ax, interval(values), words[i], color, shown.index(i))
        if beside is not None:
            beside(panel_ax, panel, {known[i]: color for color, i in zip(colors, shown, strict=True)})
        finish(panel_ax, text, label)
    legend(axes, title or by, ax)
    drawn = returned(axes)
    if ax is None:
        heading(figure_of(drawn), ds, metric, labeller, notes=band_notes(ds))
    return drawn


def _word(by: str, label: Any, labeller: Labeller) -> str:
    """What a line is called in a legend whose title is already the dimension's name."""
    return labeller.chosen(by, label) if by in ("site", "edges", "position") else labeller.word(f"{label:g}")


def line_panels(number: int, ax: Axes | None, width: float = 3.4, height: float = 2.9, **more: Any) -> list[Axes]:
    """The given axes, or a new figure's panels, as many in a row as fit, with room for a legend beside them."""
    if ax is not None:
        return [ax]
    narrow = most_inches() < NARROW
    beside = 0.0 if narrow else inches(1.9)
    each = inches(width + 0.6 if number == 1 else width)
    in_row = min(number, max(1, int((most_inches() - beside) / each)))
    rows = math.ceil(number / in_row)
    in_row = math.ceil(number / rows)
    above = (inches(0.8) if current().title else 0.1) + (inches(1.2) if narrow else 0)
    more = {"sharey": True, "sharex": False, **more}
    _, axes = canvas(rows, in_row, max(in_row * each + beside, inches(5)), rows * inches(height) + above, **more)
    for spare in axes[number:]:
        spare.remove()
    return axes[:number]


def _colors(number: int) -> Any:
    return sns.color_palette("colorblind", number)


def interval(values: xr.DataArray) -> xr.Dataset:
    """Mean, low and high of the layers that have any number; low and high NaN where there is one example."""
    layers = values.notnull().any([d for d in values.dims if d != "layer"]).values
    return mean_and_interval(values.isel(layer=np.flatnonzero(layers)))


def band_notes(ds: xr.Dataset) -> list[str]:
    """What the band around a line is; of one example there is none."""
    return ["band: 95 % interval of the mean"] if int((ds["kept"] == "kept").sum()) > 1 else []


def draw_line(ax: Axes, found: xr.Dataset, label: str, color: Any, number: int = 0) -> None:
    """The mean, and the band of its interval."""
    layers = found["layer"].values
    marker = _MARKERS[number % len(_MARKERS)]
    size: dict[str, Any] = {"markersize": 0.35 * letters(), "linewidth": 0.15 * letters()}
    ax.plot(layers, found["mean"].values, color=color, label=label, marker=marker, **size)
    ax.fill_between(layers, found["low"].values, found["high"].values, color=color, alpha=0.18, linewidth=0)


def finish(ax: Axes, title: str, label: str) -> None:
    """Titles and axes of a panel over layers."""
    width = ax.get_window_extent().width / ax.figure.dpi
    ax.set_title(fitted(title, max(width, inches(2.6))))
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    first = ax.get_subplotspec()
    if first is None or first.is_first_col():
        text = fitted(label, inches(2.4))
        if text.count("\n") > 1:
            ax.set_ylabel(fitted(label, inches(2.4), small()), fontsize=small())
        else:
            ax.set_ylabel(text)
    sns.despine(ax=ax)


def legend(axes: Sequence[Axes], title: str, given: Axes | None) -> None:
    """Each line once, beside the panels of a figure of ours or inside the axes that were given."""
    once: dict[tuple[str, str], Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            once.setdefault((label, str(plt.getp(handle, "color"))), handle)
    narrow = most_inches() < NARROW
    names = [fitted(label, inches(1.9 if narrow else 1.7), small()) for label, _ in once]
    style: dict[str, Any] = {"title": title, "frameon": False}
    if given is None:
        figure = figure_of(axes[0])
        if narrow:
            figure.legend(list(once.values()), names, loc="outside lower center", ncols=2, **style)
            lines = sum(name.count("\n") + 1.2 for name in names[: math.ceil(len(names) / 2)])
            more = lines * small() * 1.25 / 72 - inches(0.8)
            figure.set_figheight(figure.get_figheight() + max(more, 0))
        else:
            figure.legend(list(once.values()), names, loc="outside right center", **style)
    else:
        given.legend(list(once.values()), names, loc="best", **style)
