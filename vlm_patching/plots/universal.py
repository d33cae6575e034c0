"""Heads that matter in every task, and what they are for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from vlm_patching.analysis import by_task, effect, label_by_modality
from vlm_patching.analysis import universal_heads as find_universal_heads
from vlm_patching.errors import SpecError
from vlm_patching.plots.labels import Labeller, effect_label
from vlm_patching.plots.maps import SEQUENTIAL, Map, Scale, below, color_bar, draw_map, map_of, symmetric
from vlm_patching.plots.panels import Panel, check_drawn, fitted, select, split, titles
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

_FOR = ("vision", "text", "multimodal")
_RULES = (
    "framed in a task: mean |effect| above mean + {:g} std over heads; at the right framed: in every task; dots: "
    "significant in every task (max-T)"
)


@styled
def universal_heads(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    text: xr.Dataset | None = None,
    site: str | None = None,
    position: str | None = None,
    layers: str = "y",
    limit: float | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Mean effect of every head in each task, and in how many tasks it is important; a row for every site and position.

    Parameters
    ----------
    ds
        What `vp.run` gave for heads over several tasks (`task` of its examples); or what `analysis.universal_heads`
        gave, where its settings are to be others, with `metric` the one it is of.
    metric
        One of the dataset's metrics.
    text
        The same heads under a text corruption, where `ds` is of an image corruption: the last panel then says what
        universal heads are for, vision, text or both (`analysis.label_by_modality`, by the published rule).
    site, position
        Only this one; needed with `ax` where there are several.
    layers, limit, labeller
        As in `heatmap`.
    ax
        Only the last panel, in these axes.

    Returns
    -------
    numpy.ndarray
        Of Axes: for every row the tasks' maps in one scale, heads framed that are important by the published rule (mean
        over examples of abs(effect) above mean + 2 std over heads), and a last one. In it framed heads are universal by
        that rule, and a dot has those that are significant in every task. With `ax`, that.

    Raises
    ------
    SpecError
        No heads, a single task, and what `analysis.universal_heads` refuses.

    Notes
    -----
    Golovanevsky et al. (2024), "What Do VLMs NOTICE?".
    """
    labeller = labeller or Labeller()
    found, label = _found(ds, metric, labeller)
    wanted = {"site": site, "position": position}
    named = {str(name): select(found[name], _there(found[name], wanted)) for name in found.data_vars}
    rows = split(named["mean"], ("site", "position", "window", "strength"), ax)
    kinds = None
    if text is not None:
        other, _ = _found(text, metric, labeller)
        kinds = select(label_by_modality(found["universal"], other["universal"]), _there(found["universal"], wanted))
    tasks = [str(task) for task in found["task"].values]
    numbers = [str(head) for head in found["head"].values]
    if ax is not None:
        _last(ax, named, rows[0], numbers, layers, labeller, kinds, len(tasks), None, alone=True)
        return ax
    said = f"{ds.attrs.get('name', '')}\n{_RULES.format(found.attrs['deviations'])}".strip()
    return _figure(named, rows, tasks, numbers, layers, labeller, kinds, label, limit, said)


def _found(ds: xr.Dataset, metric: str, labeller: Labeller) -> tuple[xr.Dataset, str]:
    """The rules' verdicts, and what the effects are."""
    if "universal" in ds:
        return ds, effect_label(ds, metric, False, labeller)
    check_drawn(ds, "universal_heads")
    if "head" not in ds.dims:
        raise SpecError("This dataset has no heads; plot.heatmap draws it.")
    tasks = by_task(effect(ds, metric))
    if len(tasks) < 2:
        raise SpecError(
            f"Its examples are all of one task ({', '.join(tasks)}), so no head is universal; plot.heads draws it."
        )
    return find_universal_heads(tasks), effect_label(ds, metric, False, labeller)


def _there(values: xr.DataArray, wanted: dict[str, str | None]) -> dict[str, str | None]:
    return {name: label for name, label in wanted.items() if name in values.dims}


def _of(values: xr.DataArray, row: Panel) -> xr.DataArray:
    return values.sel({name: label for name, label in row.chosen.items() if name in values.dims}, drop=True)


def _figure(
    named: dict[str, xr.DataArray],
    rows: Sequence[Panel],
    tasks: Sequence[str],
    numbers: list[str],
    layers: str,
    labeller: Labeller,
    kinds: xr.DataArray | None,
    label: str,
    limit: float | None,
    said: str,
) -> Drawn:
    check_width(inches(len(tasks) + 3.5), "universal_heads")
    tables: list[list[Map]] = []
    called = titles(rows, labeller)
    for row in rows:
        tables.append(
            [
                map_of(
                    labeller.word(task),
                    row.values.isel(task=i),
                    "head",
                    numbers,
                    layers,
                    labeller,
                    _of(named["important"], row).isel(task=i),
                )
                for i, task in enumerate(tasks)
            ]
        )
    scale = symmetric([table.values for row_ in tables for table in row_], label, limit)
    wide, deep = len(tables[0][0].columns), len(tables[0][0].rows)
    count = len(tasks) + 1
    total = min(count * max(wide * inches(0.36), inches(1.5)) + inches(2.6), most_inches())
    pitch = (total - inches(2.6)) / count / wide
    tall = max(deep * min(inches(0.34), pitch * 1.3), inches(1.3)) + below(tables[0][0]) + inches(0.9)
    above = inches(0.8) if current().title else inches(0.3)
    figure, axes = canvas(len(rows), count, total, len(rows) * tall + above)
    for i, row in enumerate(rows):
        here = axes[i * count : (i + 1) * count]
        for j, (ax, table) in enumerate(zip(here, tables[i], strict=False)):
            title = fitted(table.title, max(pitch * wide, inches(1.5)))
            draw_map(ax, Map(title, table.values, table.rows, table.columns, table.names, table.marked), scale, pitch)
            ax.set_ylabel("" if j else fitted(f"{called[i]}\n{table.names[0]}", tall * 0.8))
            if j:
                ax.tick_params(axis="y", labelleft=False, left=False)
        color_bar(here[:-1], scale, tall * 0.9)
        _last(here[-1], named, row, numbers, layers, labeller, kinds, len(tasks), pitch, alone=False)
    if current().title:
        figure.suptitle("\n".join(fitted(line, figure.get_figwidth() - 0.2) for line in said.split("\n")))
    return returned(axes)


def _last(
    ax: Axes,
    named: dict[str, xr.DataArray],
    row: Panel,
    numbers: list[str],
    layers: str,
    labeller: Labeller,
    kinds: xr.DataArray | None,
    tasks: int,
    pitch: float | None,
    alone: bool,
) -> None:
    """In how many tasks each head is important, or what it is for."""
    run = row.values.notnull().any("task")
    universal = _of(named["universal"], row)
    if kinds is None:
        values = _of(named["important"], row).sum("task").where(run).astype(float)
        colors = sns.color_palette(SEQUENTIAL, tasks + 1).as_hex()
        colors[0] = "#fafafa"
        scale = Scale(-0.5, tasks + 0.5, f"important in so many of {tasks} tasks", ListedColormap(colors))
        framed = universal
    else:
        codes = xr.apply_ufunc(np.vectorize(lambda kind: float(("", *_FOR).index(kind))), _of(kinds, row))
        values = codes.where(run)
        shades = ["#fafafa", *(sns.color_palette("colorblind").as_hex()[i] for i in (0, 1, 2))]
        scale = Scale(-0.5, 3.5, "", ListedColormap(shades))
        framed = values > 0
    title = "what heads are for" if kinds is not None else "universal"
    table = map_of(title, values, "head", numbers, layers, labeller, framed)
    draw_map(ax, table, scale, pitch)
    tested = map_of("", _of(named["universal_tested"], row).where(run), "head", numbers, layers, labeller)
    for r, c in np.argwhere(tested.values == 1):
        ax.plot(
            c + 0.5,
            r + 0.5,
            marker="o",
            markersize=0.35 * letters(),
            color="k",
            markeredgecolor="white",
            markeredgewidth=0.5,
        )
    if not alone:
        ax.set_ylabel("")
        ax.tick_params(axis="y", labelleft=False, left=False)
    if kinds is None:
        bar = color_bar([ax], scale, inches(2.2))
        bar.set_ticks(list(range(tasks + 1)))
    else:
        handles = [Patch(color=shades[i], label=labeller.word(name)) for i, name in enumerate(_FOR, 1)]
        ax.legend(handles=handles, fontsize=small(), frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
