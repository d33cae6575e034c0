"""The static figures of a report: the one place where reports call plots."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import xarray as xr

from vlm_patching.pairs import Pair

DPI = 130


@dataclass(frozen=True)
class StaticFigure:
    """A picture of a figure, as a data link, and what it is of."""

    title: str
    link: str


def axis_names(ds: xr.Dataset) -> list[str]:
    """What positions are called on an axis."""
    from vlm_patching.plots import position_labels

    return position_labels(ds)


def opening_metric(ds: xr.Dataset) -> str | None:
    """The metric of the first figure that the experiment names one for."""
    from vlm_patching.plots.draw import figures_of

    return next((spec.metric for spec in figures_of(ds).values() if spec.metric is not None), None)


def static_figures(ds: xr.Dataset, metric: str | None, pairs: Sequence[Pair] | None) -> tuple[list[StaticFigure], str]:
    """The figures that a dataset calls for, and a sentence on those that cannot be drawn."""
    import matplotlib.pyplot as plt

    from vlm_patching.plots.draw import draw_each, figures_of, not_drawn, without_pictures

    specs = figures_of(ds, changes={"metric": metric})
    found: list[StaticFigure] = []
    failed: dict[str, list[str]] = {}
    for name, figure in draw_each(ds, without_pictures(specs) if pairs is None else specs, failed, pairs=lambda: pairs):
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
        plt.close(figure)
        link = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
        found.append(StaticFigure(name, link))
    return found, not_drawn(failed)
