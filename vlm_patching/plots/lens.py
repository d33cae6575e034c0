"""What the lens reads: lines over layers, or a map where there are many positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes

from vlm_patching.analysis.effects import check_metric
from vlm_patching.plots.labels import Labeller, position_labels
from vlm_patching.plots.lines import MOST_LINES, band_notes, draw_line, finish, interval, legend, line_panels
from vlm_patching.plots.maps import NOT_RUN, Scale, draw_maps, map_of, symmetric
from vlm_patching.plots.panels import Panel, check_drawn, heading, present, select, split, titles
from vlm_patching.plots.style import Drawn, figure_of, letters, returned, styled


@styled
def lens(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    position: str | Sequence[str] | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """The metric that the lens reads at each layer and position, beside what the model itself says.

    Parameters
    ----------
    ds
        What `vp.run` gave for a lens.
    metric
        One of the dataset's metrics, drawn as it is: where less of it is better, lower is better here too.
    site, position
        Only this one (of positions also several); a site is needed with `ax` where the dataset has several.
    labeller, ax
        As in `heatmap`.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them, a panel for every site. Up to `MOST_LINES` positions: a line for each, mean over kept
        examples, with the band of its 95 % bootstrap interval (each layer alone; none of a single example), and dashed
        the mean of the model's own output. More: a heatmap of the means, layer × position, hatched where nothing was
        read.

    Raises
    ------
    SpecError
        Another method, a metric that the dataset lacks, no kept example.

    Notes
    -----
    nostalgebraist (2020), "interpreting GPT: the logit lens".
    """
    check_drawn(ds, "lens")
    check_metric(ds, metric)
    labeller = labeller or Labeller()
    kept = ds["kept"] == "kept"
    every = position_labels(ds, labeller)
    values = select(ds[metric].where(kept).astype(np.float64), {"site": site, "position": position})
    known = ds["position"].values.tolist()
    names = [every[known.index(label)] for label in values["position"].values]
    panels = split(values, ("site",), ax)
    own = float(ds[f"{metric}_clean"].where(kept).mean())
    label = labeller.metric(metric)
    if max(int(present(panel.values, "position").sum()) for panel in panels) > MOST_LINES:
        axes, notes = _map(panels, names, label, own, labeller, ax)
    else:
        axes, notes = _lines(panels, names, label, own, labeller, ax), band_notes(ds)
    drawn = returned(axes)
    if ax is None:
        heading(figure_of(drawn), ds, metric, labeller, notes=notes)
    return drawn


def _lines(
    panels: Sequence[Panel], names: Sequence[str], label: str, own: float, labeller: Labeller, ax: Axes | None
) -> list[Axes]:
    colors = sns.color_palette("colorblind", len(names))
    axes = line_panels(len(panels), ax)
    for panel_ax, panel, title in zip(axes, panels, titles(panels, labeller), strict=True):
        panel_ax.axhline(own, color="0.4", linewidth=0.1 * letters(), linestyle="--", zorder=1, label="the model")
        for i in np.flatnonzero(panel.values.notnull().any(("example", "layer")).values).tolist():
            draw_line(panel_ax, interval(panel.values.isel(position=i)), names[i], colors[i], i)
        finish(panel_ax, title, label)
    legend(axes, "lens at", ax)
    return axes


def _map(
    panels: Sequence[Panel], names: Sequence[str], label: str, own: float, labeller: Labeller, ax: Axes | None
) -> tuple[list[Axes], list[str]]:
    tables = [
        map_of(title, panel.values.mean("example"), "position", names, "y", labeller)
        for title, panel in zip(titles(panels, labeller), panels, strict=True)
    ]
    numbers = [table.values for table in tables]
    low, high = (float(f([f(n[np.isfinite(n)]) for n in numbers])) for f in (np.min, np.max))
    label = f"{label}\nthe model: {own:.3g}"
    scale = symmetric(numbers, label) if low < 0 < high else Scale(low, high, label, "viridis")
    return draw_maps(tables, scale, ax), [NOT_RUN] if any(table.has_gaps for table in tables) else []
