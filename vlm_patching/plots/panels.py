"""Which panels a figure has: one for every label of the dimensions that are not on its axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlm_patching.analysis import effect, total_effect
from vlm_patching.analysis.effects import METHODS, drawn_over, mean_total
from vlm_patching.errors import SpecError, unknown
from vlm_patching.figures import FIGURES
from vlm_patching.plots.labels import Labeller, subtitle
from vlm_patching.plots.style import current, letters

MOST_PANELS = 24


@dataclass(frozen=True)
class Panel:
    """One panel: what it is of, as labels of dimensions, and its values."""

    chosen: Mapping[str, Any]
    values: xr.DataArray


def check_drawn(ds: xr.Dataset, figure: str) -> None:
    """Refuse a dataset of a method that a figure does not draw, naming the figures that do, and one without pairs.

    Raises
    ------
    SpecError
        In both cases.
    """
    kind = FIGURES[figure]
    method = str(ds.attrs.get("method", "patch"))
    if method not in (*METHODS, "diagnose"):
        raise unknown("method of a dataset", method, METHODS)
    if method not in kind.methods:
        others = [f"plot.{name}" for name in suited(ds) if name != figure]
        raise SpecError(
            f"plot.{figure} draws {', '.join(kind.methods)}, and this dataset's method is {method}: "
            f"{' and '.join(others)} {'draw' if len(others) > 1 else 'draws'} it."
        )
    if method != "diagnose" and not (ds["kept"] == "kept").any():
        raise SpecError("No pair of this dataset was kept, so there is nothing to draw; `kept` says why of each.")


def suited(ds: xr.Dataset) -> list[str]:
    """The figures that draw a dataset, by its method and dimensions; the one that it calls for first.

    Raises
    ------
    SpecError
        An evaluation, which is numbers and no map.
    """
    method = str(ds.attrs.get("method", "patch"))
    if method == "evaluate":
        raise SpecError(
            "No figure draws an evaluation, which swept nothing: `vp.analysis.accuracy(ds)` has its numbers, and "
            "`vlm-patching report` writes them as a page."
        )
    if method == "diagnose":
        return ["corruptions"]
    if method == "attention":
        return ["head_function", "attention"]
    if method == "knockout":
        return ["knockout", "lines"]
    if method == "lens":
        return ["lens"]
    first = "heads" if "head" in ds.dims else "heatmap"
    others = ["lines", *(["windows"] if "window" in ds.dims else []), "distribution", "compare"]
    tasks = "task" in ds.coords and len(set(ds["task"].values.tolist())) > 1
    return [first, *(["universal_heads"] if first == "heads" and tasks else []), *others]


def scaled_effect(ds: xr.Dataset, metric: str, normalize: bool) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Effect of every example and cell; and, to be divided by, its total effect where the cell has a number."""
    values = effect(ds, metric)
    return values, (total_effect(ds, metric).where(values.notnull()) if normalize else None)


def mean_over_pairs(values: xr.DataArray, total: xr.DataArray | None, metric: str) -> xr.DataArray:
    """Mean over kept examples and draws; of shares, mean effect over mean total effect.

    A mean of ratios would be ruled by the few draws whose total effect is near 0.
    """
    mean = values.mean(drawn_over(values), skipna=True)
    return mean if total is None else mean / mean_total(total, metric)


def mean_effect(ds: xr.Dataset, metric: str, normalize: bool = False) -> xr.DataArray:
    """The numbers of the maps: effect, mean over kept examples and draws.

    Parameters
    ----------
    ds
        What `vp.run` gave.
    metric
        One of the dataset's metrics.
    normalize
        Mean effect over mean total effect, of the examples that have the cell.

    Returns
    -------
    xarray.DataArray
        Of every cell; NaN where no kept example has it. Its sign is that of `vp.effect`.

    Raises
    ------
    SpecError
        No pair was kept, and what `vp.effect` refuses.
    """
    if not (ds["kept"] == "kept").any():
        raise SpecError("No pair of this dataset was kept, so there is nothing to draw; `kept` says why of each.")
    values, total = scaled_effect(ds, metric, normalize)
    return mean_over_pairs(values, total, metric)


def select(values: xr.DataArray, wanted: Mapping[str, Any]) -> xr.DataArray:
    """The values at some labels, as lists of one, so that dimensions stay; labels of None are all.

    Raises
    ------
    SpecError
        A dimension that is not there, or a label that it does not have.
    """
    for name, given in wanted.items():
        if given is None:
            continue
        if name not in values.dims:
            has = ", ".join(str(d) for d in values.dims if d not in ("example", "draw"))
            raise SpecError(f"This dataset has no dimension {name}, so {name} must not be given. It has: {has}.")
        known = values[name].values.tolist()
        labels = list(given) if isinstance(given, list | tuple) else [given]
        names = [str(label) for label in known]
        for label in labels:
            if label not in known and str(label) not in names:
                raise unknown(f"{name} in this dataset", label, known)
        values = values.isel({name: [names.index(str(label)) for label in labels]})
    return values


def pick(values: xr.DataArray, across: Sequence[str], wanted: Mapping[str, Any]) -> tuple[xr.DataArray, dict[str, Any]]:
    """The values at one label of each dimension but those across, and which labels those are.

    Raises
    ------
    SpecError
        A dimension with several labels of which none is named, and what `select` refuses.
    """
    values = select(values, {name: label for name, label in wanted.items() if label is not None})
    chosen = {}
    for name in [str(name) for name in values.dims if name not in across]:
        labels = values[name].values.tolist()
        if len(labels) > 1:
            raise SpecError(f"Name one {name} of {', '.join(map(str, labels))}: {name}=...")
        chosen[name] = labels[0]
        values = values.isel({name: 0}, drop=True)
    return values, chosen


def split(values: xr.DataArray, over: Sequence[str], ax: Axes | None, most: int = MOST_PANELS) -> list[Panel]:
    """A panel for every combination of labels that has any number.

    Raises
    ------
    SpecError
        Several panels and one `ax`, or more panels than one can look at; what is to be named is listed.
    """
    dims = [name for name in dict.fromkeys(over) if name in values.dims]
    panels = [Panel({}, values)]
    for name in dims:
        panels = [
            Panel({**panel.chosen, name: label}, panel.values.isel({name: i}, drop=True))
            for panel in panels
            for i, label in enumerate(values[name].values.tolist())
        ]
    panels = [panel for panel in panels if bool(panel.values.notnull().any())] or panels[:1]
    if (ax is not None and len(panels) > 1) or len(panels) > most:
        why = "One axes holds one panel" if ax is not None else f"These would be {len(panels)} panels"
        several = [name for name in dims if values.sizes[name] > 1]
        choices = "; ".join(f"{name}: {', '.join(map(str, values[name].values.tolist()))}" for name in several)
        raise SpecError(f"{why}; name one {' and one '.join(several)} of {choices}.")
    return panels


def titles(panels: Sequence[Panel], labeller: Labeller) -> list[str]:
    """What every panel is called: its site, and what else differs from panel to panel."""
    names = [
        name for name in panels[0].chosen if name == "site" or len({str(panel.chosen[name]) for panel in panels}) > 1
    ]
    return [", ".join(labeller.chosen(name, panel.chosen[name]) for name in names) for panel in panels]


def fitted(text: str, inches: float, points: float | None = None) -> str:
    """Text broken into lines of so many inches: at spaces, and inside of names after a point or a sign."""
    most = max(int(inches * 72 / (0.58 * (points or letters()))), 8)
    lines = []
    for line in text.split("\n"):
        parts = textwrap.wrap(line, most, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [piece for part in parts for piece in _broken(part, most)]
    return "\n".join(lines)


def _broken(word: str, most: int) -> list[str]:
    """A line whose words are still too long for it, broken after a point or a sign, else inside of a name."""
    if len(word) <= most:
        return [word]
    for signs in (".:+", "_"):
        places = [i + 1 for i, sign in enumerate(word[:most]) if sign in signs and 0 < i < len(word) - 1]
        if places:
            return [word[: places[-1]], *_broken(word[places[-1] :], most)]
    return [word]


def heading(
    figure: Figure, ds: xr.Dataset, metric: str | None, labeller: Labeller, of: str = "", notes: Sequence[str] = ()
) -> None:
    """Say above the panels what a figure is of, unless the style leaves that to a caption."""
    if not current().title:
        return
    width = figure.get_figwidth() - 0.2
    name = str(ds.attrs.get("name", ""))
    first = fitted(f"{name}: {of}" if of else name, width)
    below = "; ".join([subtitle(ds, metric, labeller), *_counts(ds, metric), *notes])
    figure.suptitle(f"{first}\n{fitted(below, width)}")


def _counts(ds: xr.Dataset, metric: str | None) -> list[str]:
    """Of how many pairs cells are, where not all have every position."""
    if metric is None or metric not in ds:
        return []
    there = ds[metric].where(ds["kept"] == "kept").notnull()
    counts = (there.any("draw") if "draw" in there.dims else there).sum("example").values
    counts = counts[counts > 0]
    few, most = (int(end(counts)) if counts.size else 0 for end in (np.min, np.max))
    return [f"cells of {few} to {most} pairs"] if few < most else []


def present(values: xr.DataArray, name: str) -> np.ndarray:
    """Which entries of a dimension have any value; all of them where none has."""
    others = [d for d in values.dims if d != name]
    found = np.asarray(values.notnull().any(others).values)
    return found if found.any() else np.ones_like(found)
