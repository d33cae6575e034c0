"""The figures of a dataset: those that its experiment names, or those that its method calls for."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.figure import Figure
from pydantic import ValidationError

from vlm_patching.errors import SpecError, unknown
from vlm_patching.figures import FIGURES, FigureSpec
from vlm_patching.metrics import METRICS
from vlm_patching.pairs import Pair
from vlm_patching.plots.attention import attention, head_function
from vlm_patching.plots.compare import compare
from vlm_patching.plots.corruptions import corruptions
from vlm_patching.plots.distribution import distribution
from vlm_patching.plots.heatmap import heads, heatmap
from vlm_patching.plots.image import image
from vlm_patching.plots.labels import Labeller
from vlm_patching.plots.lens import lens
from vlm_patching.plots.lines import knockout, lines, windows
from vlm_patching.plots.panels import suited
from vlm_patching.plots.style import figure_of
from vlm_patching.plots.universal import universal_heads
from vlm_patching.validation import explain

FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        heatmap,
        heads,
        head_function,
        universal_heads,
        lines,
        knockout,
        windows,
        lens,
        distribution,
        compare,
        image,
        attention,
        corruptions,
    )
}
"""Name → the function that draws it: one for every row of `FIGURES`."""


def draw(
    ds: xr.Dataset,
    metric: str | None = None,
    *,
    figure: str | None = None,
    pairs: Sequence[Pair] | None = None,
    other: xr.Dataset | None = None,
    labeller: Labeller | None = None,
    **arguments: Any,
) -> dict[str, Figure]:
    """All figures of a dataset, or the ones of a name.

    Parameters
    ----------
    ds
        What `vp.run` (or `vp.diagnose`) gave.
    metric
        In the place of every figure's own.
    figure
        Only those of this kind (``heatmap``), or one of several of a kind (``heatmap_2``).
    pairs
        The pairs that were run: figures over pictures need them, and are left out without (named by `figure`, refused).
    other
        What `compare` compares with.
    labeller
        What things are called.
    **arguments
        What `FigureSpec` may say (`site`, `position`, `normalize`, ...), in the place of what the figures say
        themselves, as far as they take it.

    Returns
    -------
    dict
        Name → figure, in the order of the experiment's list. The caller closes them.

    Raises
    ------
    SpecError
        An unknown figure or argument, one that no figure here takes, and what the plot functions refuse.
    """
    specs = figures_of(ds, figure, {"metric": metric, **arguments}, other is not None)
    if figure is None and pairs is None:
        specs = without_pictures(specs)
    drawn: dict[str, Figure] = {}
    try:
        for name, spec in specs.items():
            drawn[name] = draw_one(ds, spec, pairs=pairs, other=other, labeller=labeller)
    except SpecError:
        for figure_ in drawn.values():
            plt.close(figure_)
        raise
    return drawn


def without_pictures(specs: Mapping[str, FigureSpec]) -> dict[str, FigureSpec]:
    """The figures that need no pairs."""
    return {name: spec for name, spec in specs.items() if not FIGURES[spec.figure].pictures}


def draw_one(
    ds: xr.Dataset,
    spec: FigureSpec,
    *,
    pairs: Sequence[Pair] | None = None,
    other: xr.Dataset | None = None,
    labeller: Labeller | None = None,
) -> Figure:
    """One figure, as `draw` takes things; of figures over a picture that of the first kept pair where none is named."""
    kind, arguments = FIGURES[spec.figure], spec.arguments()
    function = FUNCTIONS[spec.figure]
    given: dict[str, Any] = {**arguments, "labeller": labeller}
    if "metric" in kind.arguments and spec.metric is None and spec.figure != "corruptions":
        given["metric"] = default_metric(ds)
    before = set(plt.get_fignums())
    try:
        if kind.pictures:
            pair = _pair(ds, given.pop("example", None), pairs, spec.figure)
            pictures = pair.clean.pictures()
            return figure_of(function(ds, pair.id, pictures, boxes=pair.regions, **given))
        if spec.figure == "compare":
            given["other"] = other
        return figure_of(function(ds, **given))
    except SpecError:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
        raise


def draw_each(
    ds: xr.Dataset,
    specs: Mapping[str, FigureSpec],
    failed: dict[str, list[str]],
    *,
    pairs: Callable[[], Sequence[Pair] | None],
    other: xr.Dataset | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Name and figure of those that can be drawn, one after the other; why others cannot goes into `failed`.

    `pairs` is asked for the pairs where a figure is over a picture.
    """
    for name, spec in specs.items():
        try:
            figure = draw_one(ds, spec, pairs=pairs() if FIGURES[spec.figure].pictures else None, other=other)
        except SpecError as error:
            failed.setdefault(str(error), []).append(name)
        else:
            yield name, figure


def not_drawn(failed: Mapping[str, Sequence[str]]) -> str:
    """A sentence on every reason why figures are not drawn."""
    return " ".join(f"Not drawn: {', '.join(names)}. {why}" for why, names in failed.items())


def figures_of(
    ds: xr.Dataset,
    figure: str | None = None,
    changes: Mapping[str, Any] | None = None,
    compared: bool = False,
) -> dict[str, FigureSpec]:
    """The figures that a dataset is drawn as, by the names of their files.

    Parameters
    ----------
    figure
        Only those of this kind: the experiment's, or, where it names none of the kind, one with nothing said of it.
        With a number behind it, ``heatmap_2``, only that one of the experiment's.
    changes
        Arguments that replace the figures' own, as far as they take them; None is no change.
    compared
        There is another dataset to compare with, so `compare` needs no other metric.

    Raises
    ------
    SpecError
        A figure or argument that there is not, or that none of these figures takes.
    """
    kind, number = _numbered(figure)
    if kind is not None and kind not in FIGURES:
        raise unknown("figure", kind, FIGURES)
    changes = {name: value for name, value in (changes or {}).items() if value is not None}
    known = [name for name in FigureSpec.model_fields if name != "figure"]
    for name in changes:
        if name not in known:
            raise unknown("argument of a figure", name, known)
    named = _named(ds)
    chosen = [each for each in named if kind in (None, each["figure"])]
    if number is not None:
        if not 1 <= number <= len(chosen):
            raise SpecError(f"There is no {figure}: the experiment names {len(chosen)} figures {kind}.")
        chosen = [chosen[number - 1]]
    if kind is not None and not chosen:
        chosen = [{"figure": kind}]
    chosen = chosen or [{"figure": suited(ds)[0]}]
    unused = [name for name in changes if not any(name in FIGURES[each["figure"]].arguments for each in chosen)]
    if unused:
        takers = [name for name, kind in FIGURES.items() if unused[0] in kind.arguments]
        drawn = ", ".join(dict.fromkeys(each["figure"] for each in chosen))
        raise SpecError(f"No figure here ({drawn}) takes {unused[0]}; {', '.join(takers)} do.")
    found: dict[str, FigureSpec] = {}
    for each in chosen:
        own = {name: value for name, value in changes.items() if name in FIGURES[each["figure"]].arguments}
        if "other_metric" in each and "other_metric" not in changes:
            own.pop("metric", None)  # it says itself which two are compared
        spec = _parsed({**each, **own})
        if spec.figure == "compare" and compared:
            spec = spec.model_copy(update={"other_metric": changes.get("other_metric")})
        name, number = spec.figure, 2
        while name in found:
            name, number = f"{spec.figure}_{number}", number + 1
        found[name] = spec
    return found


def _numbered(figure: str | None) -> tuple[str | None, int | None]:
    """The kind that is asked for, and which one of the experiment's."""
    kind, line, number = (figure or "").rpartition("_")
    return (kind, int(number)) if line and number.isascii() and number.isdigit() else (figure, None)


def _named(ds: xr.Dataset) -> list[dict[str, Any]]:
    """The list `figures` of the experiment in a dataset's attributes."""
    experiment = json.loads(str(ds.attrs["experiment"])) if "experiment" in ds.attrs else {}
    figures = experiment.get("figures", []) if isinstance(experiment, dict) else []
    if not isinstance(figures, list):
        raise SpecError("The dataset's experiment names its figures in something other than a list.")
    return [_parsed(each).model_dump(mode="json", exclude_none=True) for each in figures]


def _parsed(data: Any) -> FigureSpec:
    try:
        return FigureSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"figures: {explain(error, lambda _: FigureSpec.model_fields)}") from error


def default_metric(ds: xr.Dataset) -> str:
    """The metric that is drawn where none is named: `probability` where the dataset has it."""
    metrics = [name for name in METRICS if f"{name}_clean" in ds]
    if not metrics:
        raise SpecError("This dataset has no metric.")
    return metrics[0]


def _pair(ds: xr.Dataset, example: str | None, pairs: Sequence[Pair] | None, figure: str) -> Pair:
    """The pair whose picture is drawn over."""
    if pairs is None:
        raise SpecError(
            f"plot.{figure} draws over a picture, which a dataset does not hold: give the pairs that were run."
        )
    if example is None:
        kept = ds["example"].values[ds["kept"].values == "kept"]
        example = str(kept[0]) if len(kept) else str(ds["example"].values[0])
    by_id = {pair.id: pair for pair in pairs}
    if example not in by_id:
        raise unknown("pair", example, by_id)
    return by_id[example]


def arguments_of(name: str) -> list[str]:
    """The keyword arguments of a figure's function that a spec may give."""
    own = ("ds", "other", "text", "picture", "boxes", "names", "labeller", "ax")
    return [each for each in inspect.signature(FUNCTIONS[name]).parameters if each not in own]
