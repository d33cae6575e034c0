"""What a graph must be, whatever the model: it is run as it is written, or refused here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_patching.errors import SpecError, unknown
from vlm_patching.metrics import METRICS
from vlm_patching.pairs import INPUTS
from vlm_patching.validation import repeated

if TYPE_CHECKING:
    from vlm_patching.graph.ir import Edit, InterventionGraph, Place, Run

KEEP = ("clean_correct", "all", "clean_correct_corrupted_wrong")
NOISE_KINDS = ("add_noise", "multiply_noise", "scale")
NOISE_SITES = ("pixels", "image_embeds", "token_embeds")
DIMENSIONS = ("site", "edges", "layer", "window", "head", "position", "strength", "draw")
ESTIMATES = ("exact", "attribution", "integrated_gradients")
FILE = "file:"


@dataclass(frozen=True)
class Method:
    """Which runs a method has (the optional ones in brackets), and which edit its swept run is about."""

    runs: tuple[str, ...]
    edits: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its runs, in their order."""
        return tuple(name.strip("[]") for name in self.runs)


METHODS = {
    "patch": Method(("clean", "corrupted", "[other]", "[placebo]", "patched"), ("replace",)),
    "path": Method(("clean", "corrupted", "[sender]", "patched"), ("replace",)),
    "knockout": Method(("clean", "blocked"), ("block",)),
    "ablate": Method(("clean", "[other]", "ablated"), ("zero", "mean", "multiply", "replace")),
    "steer": Method(("clean", "[corrupted]", "steered"), ("add",)),
    "lens": Method(("clean", "lens"), ()),
    "attention": Method(("clean", "attention"), ()),
    "evaluate": Method(("clean", "[corrupted]"), ()),
}
MAX_EDITS = 500
"""Of one run, and reads."""
SWEPT = ("placebo", "sender", "patched", "blocked", "ablated", "steered", "lens", "attention")
"""Names of runs that are made for every cell."""


def main_edits(run: Run) -> list[Edit]:
    """The edits that a swept run is about: not its noise, not what it holds."""
    return [edit for edit in run.edits if edit.kind not in (*NOISE_KINDS, "hold")]


def check_structure(graph: InterventionGraph) -> None:
    """Refuse a graph that does not say one sweep of one method.

    Raises
    ------
    SpecError
        Naming the run and what is wrong with it.
    """
    _check_names(graph)
    for run in graph.runs:
        if max(len(run.edits), len(run.reads)) > MAX_EDITS:
            raise SpecError(
                f"Run {run.name!r} has {len(run.edits)} edits and {len(run.reads)} reads; at most {MAX_EDITS} each."
            )
    _check_dimensions(graph)
    for run in graph.runs:
        if run.name in SWEPT:
            _check_swept(graph, run)
        else:
            _check_base(graph, run)
    for run in graph.runs:
        _check_reads(graph, run)
    _check_estimate(graph)
    places = {run.name: main_edits(run)[0].at for run in graph.runs if run.name in ("placebo", "patched")}
    if len(set(places.values())) > 1 and "placebo" in places:
        raise SpecError("The runs placebo and patched must replace at the same place.")


def _check_names(graph: InterventionGraph) -> None:
    if graph.method not in METHODS:
        raise unknown("method", graph.method, METHODS)
    names, wanted = tuple(run.name for run in graph.runs), METHODS[graph.method].runs
    allowed = METHODS[graph.method].names
    needed = [name for name in wanted if not name.startswith("[")]
    ordered = sorted(names, key=lambda name: allowed.index(name) if name in allowed else -1)
    if list(names) != ordered or len(set(names)) < len(names) or not set(needed) <= set(names) <= set(allowed):
        found = ", ".join(names) or "none"
        raise SpecError(
            f"A graph of the method {graph.method} has the runs {', '.join(wanted)}, in this order; this one has "
            f"{found}."
        )
    if graph.direction not in ("denoise", "noise"):
        raise unknown("direction", graph.direction, ("denoise", "noise"))
    if graph.keep not in KEEP:
        raise unknown("keep", graph.keep, KEEP)
    if graph.keep == "clean_correct_corrupted_wrong" and "corrupted" not in names:
        raise SpecError(f"keep {graph.keep!r} needs a corrupted run, and the method {graph.method} has none here.")
    if not graph.metrics and graph.method != "attention":
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
        least = 1 if dimension.name == "window" else 0
        whole = all(type(value) is int and value >= least for value in dimension.values)
        if dimension.name in ("layer", "head", "draw", "window") and not whole:
            raise SpecError(
                f"Dimension {dimension.name!r} takes whole numbers from {least}, not {list(dimension.values)}."
            )
        if dimension.name == "site" and not all(isinstance(value, str) for value in dimension.values):
            raise SpecError(f"Dimension 'site' takes names as 'stack.component', not {list(dimension.values)}.")
        if dimension.name == "position" and not all(type(value) in (int, str) for value in dimension.values):
            raise SpecError(f"Dimension 'position' takes selectors, not {list(dimension.values)}.")
        if dimension.name == "edges":
            for value in dimension.values:
                _check_edges(value)
        if dimension.name == "strength" and not all(type(value) in (int, float) for value in dimension.values):
            raise SpecError(f"Dimension 'strength' takes numbers, not {list(dimension.values)}.")
        if dimension.name == "draw" and dimension.values != tuple(range(len(dimension.values))):
            raise SpecError(f"Dimension 'draw' counts from 0 without gaps, not {list(dimension.values)}.")


def _check_edges(label: object) -> None:
    if not isinstance(label, str) or not re.fullmatch(r"[^\s>]+ -> [^\s>]+", label) or "each:" in label:
        raise SpecError(
            f"An edge set is 'source -> target', two position groups ('image -> last') or several joined by + "
            f"('subject+last -> last'), not {label!r}."
        )


def _check_unique(what: str, values: Sequence[object]) -> None:
    twice = repeated(values)
    if twice:
        raise SpecError(f"{what} names {twice[0]!r} twice.")


def _check_base(graph: InterventionGraph, run: Run) -> None:
    where = f"Run {run.name!r}"
    _check_input(run)
    if run.name in ("clean", "other") and (run.on != run.name or run.edits or run.over):
        raise SpecError(f"{where} is on {run.name}, without edits, over nothing.")
    for edit in run.edits:
        if edit.kind not in NOISE_KINDS:
            raise SpecError(f"{where}: only swept runs are edited by {edit.kind}; what corrupts is noise or the input.")
        _check_noise(where, edit)
    if run.name == "corrupted" and (run.on == "other" or (run.on == "clean" and not run.edits)):
        raise SpecError(f"{where} is on {run.on} without noise; it is on a corrupted input, or on clean with noise.")
    if len(run.edits) > 1:
        raise SpecError(f"{where}: it can have one edit out of {', '.join(NOISE_KINDS)}, not {len(run.edits)}.")
    over = ("draw",) if run.edits and run.edits[0].kind != "scale" else ()
    if run.over != over:
        raise SpecError(f"{where}: a run with noise is over 'draw', one without is over nothing; not {list(run.over)}.")
    if over and graph.dimension("draw") is None:
        raise unknown(f"dimension of run {run.name!r}", "draw", [d.name for d in graph.dimensions])


def _check_reads(graph: InterventionGraph, run: Run) -> None:
    """What is read has a name of its own, and is used."""
    _check_unique(f"Run {run.name!r}: reads", [read.name for read in run.reads])
    used = {term for other in graph.runs for edit in other.edits for term in str(edit.source).split(" - ")}
    for read in run.reads:
        only_read = run.name in ("lens", "attention") or graph.estimate != "exact"
        if f"{run.name}.{read.name}" not in used and not only_read:
            raise SpecError(f"Run {run.name!r} reads {read.name!r}, which nothing uses.")


def _check_input(run: Run) -> None:
    if run.on not in INPUTS:
        raise unknown(f"input of run {run.name!r}", run.on, INPUTS)


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


def _check_swept(graph: InterventionGraph, run: Run) -> None:
    where, kinds = f"Run {run.name!r}", METHODS[graph.method].edits
    _check_input(run)
    if graph.base == "corrupted" and not any(r.name == "corrupted" for r in graph.runs):
        raise SpecError(f"{where}: direction denoise starts from the corrupted run, and there is none.")
    base = graph.run(graph.base)
    if run.on != base.on:
        raise SpecError(
            f"{where}: direction {graph.direction} starts from the {base.name} run, which is on {base.on!r}, but it is "
            f"on {run.on!r}."
        )
    if [edit for edit in run.edits if edit.kind in NOISE_KINDS] != list(base.edits):
        raise SpecError(f"{where} must add the same noise as the {base.name} run that it starts from.")
    if set(run.over) != {dimension.name for dimension in graph.dimensions}:
        names = [dimension.name for dimension in graph.dimensions]
        raise SpecError(f"{where} is over every dimension ({', '.join(names)}), not {list(run.over)}.")
    if graph.dimension("draw") and not any(other.over == ("draw",) for other in graph.runs):
        raise SpecError("A graph with the dimension 'draw' has a corrupted run with noise.")
    edits = main_edits(run)
    for edit in edits:
        if edit.kind not in kinds:
            raise unknown(f"edit in run {run.name!r} of the method {graph.method}", edit.kind, (*kinds, "hold"))
    if len(edits) != (1 if kinds else 0):
        raise SpecError(f"{where} has exactly one edit out of {', '.join(kinds) or 'none'}, not {len(edits)}.")
    if not kinds and len(run.reads) != 1:
        raise SpecError(f"{where} reads exactly one place, not {len(run.reads)}.")
    for edit in run.edits:
        _check_edit(graph, run, edit)
    if not kinds and run.edits:
        raise SpecError(f"{where} only reads; it has edits.")
    for place in [edit.at for edit in edits] + ([run.reads[0].at] if not kinds else []):
        _check_place(graph, place)
        if graph.method != "path" or run.name == "sender" or len(graph.runs) == 3:
            _check_every_dimension_is_used(graph, place, edits)


def _check_edit(graph: InterventionGraph, run: Run, edit: Edit) -> None:
    where, source = f"Run {run.name!r}", edit.source
    if edit.kind in ("zero", "multiply", "block", *NOISE_KINDS):
        if source is not None:
            raise SpecError(f"{where}: {edit.kind} takes nothing from another run; source is {source!r}.")
    elif edit.kind != "add" or not str(source).startswith(FILE):
        terms = str(source).split(" - ")
        if len(terms) > (2 if edit.kind == "add" else 1):
            raise SpecError(f"{where}: {edit.kind} takes one value, or (add) the difference of two; not {source!r}.")
        for term in terms:
            _check_source(graph, run, edit, term)
    if (edit.factor is not None) != (edit.kind in ("multiply", "add")):
        raise SpecError(f"{where}: multiply and add have a factor, no other edit has; {edit.kind} has {edit.factor!r}.")
    if isinstance(edit.factor, str) and (edit.factor != "strength" or graph.dimension("strength") is None):
        raise SpecError(
            f"{where}: a factor is a number, or 'strength' with a dimension of that name; not {edit.factor!r}."
        )
    if edit.kind not in NOISE_KINDS and (edit.std, edit.mean, edit.relative) != (None, None, False):
        raise SpecError(f"{where}: std, mean and relative are those of noise, and {edit.kind} has them.")
    if edit.kind == "block":
        if (edit.at.keys, edit.at.position) != ("edges", "edges") or isinstance(edit.at.head, int | str):
            raise SpecError(
                f"{where}: block is over 'edges' in keys and position, of all heads (null) or a list of them."
            )
    elif edit.at.keys is not None:
        raise SpecError(f"{where}: keys are those of blocked attention; {edit.kind} has {edit.at.keys!r}.")
    if edit.kind == "hold":
        _check_hold(graph, run, edit.at)


def _check_hold(graph: InterventionGraph, run: Run, place: Place) -> None:
    """Held is what is above the cell, at its positions, or a whole site."""
    main = main_edits(run)
    position = main[0].at.position if main else None
    forms = (("above", position), ("all", "all"))
    if (place.layer, place.position) not in forms or (place.head, place.window, place.keys) != (None, 1, None):
        raise SpecError(
            f"Run {run.name!r}: hold is at layer 'above' and the position that is edited ({position!r}), or at layer "
            f"'all' and position 'all'; without head, window or keys. It is at {place}."
        )


def _check_source(graph: InterventionGraph, run: Run, edit: Edit, source: str) -> None:
    where = f"Run {run.name!r}"
    before = graph.runs[: graph.runs.index(run)]
    read = {f"{other.name}.{item.name}": item.at for other in before for item in other.reads}
    if source not in read:
        raise SpecError(
            f"{where}: {edit.kind} at {edit.at.site} takes {source!r}, which no earlier run has read. Read so far: "
            f"{', '.join(sorted(read)) or 'nothing'}."
        )
    if read[source] != edit.at:
        raise SpecError(f"{where}: {edit.kind} at {edit.at} takes what was read elsewhere, at {read[source]}.")
    takes = source.split(".")[0]
    if edit.kind == "replace" and run.name in ("patched", "sender"):
        wanted = "sender" if any(r.name == "sender" for r in before) else graph.origin
        if takes != wanted:
            raise SpecError(f"{where}: direction {graph.direction} takes values from {wanted}, not {source!r}.")
    elif edit.kind == "replace" and takes != "other":
        raise SpecError(f"{where} replaces by what the run 'other' has read, not by {source!r}.")
    elif edit.kind == "hold" and takes != graph.base:
        raise SpecError(f"{where} holds places at what they are in the {graph.base} run, not at {source!r}.")


def _check_place(graph: InterventionGraph, place: Place) -> None:
    """A place's fields are values, or names of dimensions that there are."""
    if place.window != "window" and (type(place.window) is not int or place.window < 1):
        raise SpecError(f"A window is at least 1 layer wide, not {place.window!r}.")
    if graph.method in ("lens", "attention") and place.window != 1:
        raise SpecError(f"{graph.method} reads one layer at a time; the window is {place.window!r}.")
    if (place.keys is not None) != (graph.method in ("knockout", "attention")):
        raise SpecError(f"keys are those of attention; {graph.method} has {place.keys!r}.")
    if graph.method == "attention" and place.head is None:
        raise SpecError("attention is read of a head: a number, or 'head'.")
    for name in ("site", "layer", "window", "head", "position"):
        value, dimension = getattr(place, name), graph.dimension(name)
        if dimension is None and value == name:
            raise SpecError(f"The place is swept over {name!r}, but the graph has no such dimension.")
        several = name == "head" and isinstance(value, tuple) and len(value) > 0 and graph.method == "knockout"
        right = value is None or type(value) is int or value == name or several
        if name in ("layer", "head") and not right:
            raise SpecError(f"{name} {value!r} is neither a number nor the name of a dimension.")
    if place.layer is None or place.position is None:
        raise SpecError("The place that is swept needs a layer and a position.")
    if "edges" in (place.position, place.keys) and graph.dimension("edges") is None:
        raise SpecError("The place is swept over 'edges', but the graph has no such dimension.")


def _check_every_dimension_is_used(graph: InterventionGraph, place: Place, edits: Sequence[Edit]) -> None:
    used = {
        "site": place.site,
        "layer": place.layer,
        "window": place.window,
        "head": place.head,
        "position": place.position,
        "edges": place.keys,
        "strength": edits[0].factor if edits else None,
    }
    for dimension in graph.dimensions:
        if dimension.name == "draw":
            continue
        value = used[dimension.name]
        if value != dimension.name and dimension.values != (value,):
            raise SpecError(
                f"Dimension {dimension.name!r} has {list(dimension.values)}, but the place that is swept has {value!r}."
            )


def _check_estimate(graph: InterventionGraph) -> None:
    if graph.estimate not in ESTIMATES:
        raise unknown("estimate", graph.estimate, ESTIMATES)
    if (graph.steps is not None) != (graph.estimate == "integrated_gradients"):
        raise SpecError(
            f"steps are those of integrated gradients, and needed there; {graph.estimate} has {graph.steps}."
        )
    if graph.steps is not None and graph.steps < 1:
        raise SpecError(f"Integrated gradients take at least 1 step, not {graph.steps}.")
    if graph.verify < 0 or (graph.verify and graph.estimate == "exact"):
        raise SpecError(
            f"verify is how many estimated cells are run exactly; it is {graph.verify}, of {graph.estimate}."
        )
    names = {run.name for run in graph.runs}
    held = any(edit.kind == "hold" for run in graph.runs for edit in run.edits)
    if graph.estimate != "exact" and (graph.method != "patch" or "placebo" in names or held):
        raise SpecError(f"{graph.estimate} estimates a plain patch, without placebo and with nothing held.")
    for metric in graph.metrics:
        if "scores" in METRICS[metric] and (graph.estimate != "exact" or graph.method == "lens"):
            what = "a lens" if graph.method == "lens" else f"an estimate by {graph.estimate}"
            raise SpecError(f"{metric} is of whole answers, and {what} of the first token.")
        if "steps" in METRICS[metric] and graph.estimate != "exact":
            raise SpecError(f"{metric} has no gradient, so it cannot be estimated by {graph.estimate}.")
