"""What a graph must be, whatever the model: it is run as it is written, or refused here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_patching.errors import SpecError, unknown
from vlm_patching.metrics import METRICS
from vlm_patching.pairs import INPUTS

if TYPE_CHECKING:
    from vlm_patching.graph.ir import Edit, InterventionGraph, Place, Run

KEEP = ("clean_correct", "all", "clean_correct_corrupted_wrong")
RUNS = ("clean", "corrupted", "patched")
NOISE_KINDS = ("add_noise", "multiply_noise", "scale")
NOISE_SITES = ("pixels", "image_embeds", "token_embeds")
DIMENSIONS = ("site", "layer", "head", "position", "draw")


def check_structure(graph: InterventionGraph) -> None:
    """Refuse a graph that does not say one sweep of one replacement.

    Raises
    ------
    SpecError
        Naming the run and what is wrong with it.
    """
    _check_names(graph)
    _check_dimensions(graph)
    for run in graph.runs:
        _check_run(graph, run)
    _check_patched(graph, graph.run("patched"))


def _check_names(graph: InterventionGraph) -> None:
    names = tuple(run.name for run in graph.runs)
    if names != RUNS:
        found = ", ".join(names) or "none"
        raise SpecError(f"A graph has the runs clean, corrupted and patched, in this order; this one has {found}.")
    if graph.direction not in ("denoise", "noise"):
        raise unknown("direction", graph.direction, ("denoise", "noise"))
    if graph.keep not in KEEP:
        raise unknown("keep", graph.keep, KEEP)
    if not graph.metrics:
        raise SpecError(f"A graph measures something; metrics is empty. Known: {', '.join(METRICS)}.")
    for metric in graph.metrics:
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
    _check_unique("metrics", graph.metrics)
    if type(graph.seed) is not int:
        raise SpecError(f"seed must be a whole number, not {graph.seed!r}.")


def _check_dimensions(graph: InterventionGraph) -> None:
    _check_unique("dimensions", [dimension.name for dimension in graph.dimensions])
    for dimension in graph.dimensions:
        if dimension.name not in DIMENSIONS:
            raise unknown("dimension", dimension.name, DIMENSIONS)
        if not dimension.values:
            raise SpecError(f"Dimension {dimension.name!r} is empty.")
        _check_unique(f"dimension {dimension.name!r}", dimension.values)
        whole = all(type(value) is int and value >= 0 for value in dimension.values)
        if dimension.name in ("layer", "head", "draw") and not whole:
            raise SpecError(f"Dimension {dimension.name!r} takes whole numbers from 0, not {list(dimension.values)}.")
        if dimension.name == "site" and not all(isinstance(value, str) for value in dimension.values):
            raise SpecError(f"Dimension 'site' takes names as 'stack.component', not {list(dimension.values)}.")
        if dimension.name == "draw" and dimension.values != tuple(range(len(dimension.values))):
            raise SpecError(f"Dimension 'draw' counts from 0 without gaps, not {list(dimension.values)}.")


def _check_unique(what: str, values: Sequence[object]) -> None:
    repeated = [value for i, value in enumerate(values) if value in values[:i]]
    if repeated:
        raise SpecError(f"{what} names {repeated[0]!r} twice.")


def _check_run(graph: InterventionGraph, run: Run) -> None:
    where = f"Run {run.name!r}"
    if run.on not in INPUTS:
        raise unknown(f"input of run {run.name!r}", run.on, INPUTS)
    if run.name == "clean" and (run.on != "clean" or run.edits):
        raise SpecError("Run 'clean' is on clean, without edits.")
    for name in run.over:
        if graph.dimension(name) is None:
            raise unknown(f"dimension of run {run.name!r}", name, [d.name for d in graph.dimensions])
    for edit in run.edits:
        if edit.kind == "replace":
            if run.name != "patched":
                raise SpecError(
                    f"{where}: only the run 'patched' can replace; what is corrupted is noise or the input."
                )
        elif edit.kind in NOISE_KINDS:
            _check_noise(where, edit)
        else:
            raise unknown(f"edit in run {run.name!r}", edit.kind, ("replace", *NOISE_KINDS))
    noise = [edit for edit in run.edits if edit.kind in NOISE_KINDS]
    if len(noise) > 1:
        raise SpecError(f"{where}: it can have one edit out of {', '.join(NOISE_KINDS)}, not {len(noise)}.")
    over = ("draw",) if noise and noise[0].kind != "scale" else ()
    if run.name == "corrupted" and run.over != over:
        raise SpecError(f"{where}: a run with noise is over 'draw', one without is over nothing; not {list(run.over)}.")


def _check_noise(where: str, edit: Edit) -> None:
    place = edit.at
    if place.site not in NOISE_SITES:
        raise SpecError(f"{where}: {edit.kind} is at {', '.join(NOISE_SITES)}, not at {place.site!r}.")
    if (place.layer, place.head, place.window) != (None, None, 1):
        raise SpecError(f"{where}: {place.site} has neither layers nor heads.")
    if (place.site == "token_embeds") != isinstance(place.position, str):
        raise SpecError(
            f"{where}: token_embeds needs the name of a span, {place.site} has position {place.position!r}."
        )
    wanted = {"add_noise": ("std",), "multiply_noise": ("mean", "std"), "scale": ("mean",)}[edit.kind]
    for name in ("mean", "std"):
        value = getattr(edit, name)
        right = isinstance(value, float | int) and abs(value) < float("inf") and (name == "mean" or value > 0)
        if not (right if name in wanted else value is None):
            raise SpecError(
                f"{where}: {edit.kind} takes {' and '.join(wanted)} (finite, std above 0); {name} is {value!r}."
            )
    if edit.relative and edit.kind != "add_noise":
        raise SpecError(f"{where}: only add_noise can be relative to the spread of the values.")


def _check_patched(graph: InterventionGraph, run: Run) -> None:
    base = graph.run(graph.base)
    if run.on != base.on:
        raise SpecError(
            f"Run 'patched': direction {graph.direction} starts from the {base.name} run, which is on {base.on!r}, but "
            f"it is on {run.on!r}."
        )
    if [edit for edit in run.edits if edit.kind in NOISE_KINDS] != list(base.edits):
        raise SpecError(f"Run 'patched' must add the same noise as the {base.name} run that it starts from.")
    replaced = [edit for edit in run.edits if edit.kind == "replace"]
    if len(replaced) != 1:
        raise SpecError(f"Run 'patched' has exactly one replace edit, not {len(replaced)}.")
    read = {f"{other.name}.{item.name}": item.at for other in graph.runs[:2] for item in other.reads}
    source, place = replaced[0].source, replaced[0].at
    if source not in read:
        raise SpecError(
            f"Run 'patched': it replaces {place.site} with {source!r}, which no earlier run has read. Read so far: "
            f"{', '.join(sorted(read)) or 'nothing'}."
        )
    if not source.startswith(f"{graph.origin}."):
        raise SpecError(f"Run 'patched': direction {graph.direction} takes values from {graph.origin}, not {source!r}.")
    if read[source] != place:
        raise SpecError(f"Run 'patched': it replaces {place} by what was read elsewhere, at {read[source]}.")
    _check_place(graph, place)
    if set(run.over) != {dimension.name for dimension in graph.dimensions}:
        names = [dimension.name for dimension in graph.dimensions]
        raise SpecError(f"Run 'patched' is over every dimension ({', '.join(names)}), not {list(run.over)}.")
    if graph.dimension("draw") and not graph.run("corrupted").over:
        raise SpecError("A graph with the dimension 'draw' has a corrupted run with noise.")


def _check_place(graph: InterventionGraph, place: Place) -> None:
    """A place's fields are values, or names of dimensions that there are; no dimension is left without a use."""
    if type(place.window) is not int or place.window < 1:
        raise SpecError(f"A window is at least 1 layer wide, not {place.window!r}.")
    for name, value in (
        ("site", place.site),
        ("layer", place.layer),
        ("head", place.head),
        ("position", place.position),
    ):
        dimension = graph.dimension(name)
        if dimension and value != name and dimension.values != (value,):
            raise SpecError(f"Dimension {name!r} has {list(dimension.values)}, but the place replaced has {value!r}.")
        if dimension is None and value == name:
            raise SpecError(f"The place replaced is swept over {name!r}, but the graph has no such dimension.")
        if name in ("layer", "head") and dimension is None and not (type(value) is int or value is None):
            raise SpecError(f"{name} {value!r} is neither a number nor the name of a dimension.")
    if place.layer is None or place.position is None:
        raise SpecError("The place replaced needs a layer and a position.")
