"""Arrays → a labelled dataset: `example`, then the dimensions of the sweep.

For a metric m the variables are `m` (the swept run), `m_clean` and, where there is a corrupted run, `m_corrupted`; with
placebo cells `m_placebo`; where cells were estimated, `m_exact` for those that were verified. Attention patterns are in
`attention`, with a dimension `key`. `right` of an evaluation, which sweeps nothing, is 1 where the clean
answer is, else 0. All float32; NaN means not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from vlm_patching.backends.cells import Cell, chosen_positions, keys_of, stack_of, window
from vlm_patching.graph import InterventionGraph, draws_of, sites_of, swept_place, values_of
from vlm_patching.inputs import EncodedPair
from vlm_patching.models import Architecture
from vlm_patching.positions import Position

KEPT = "kept"
WRITTEN_LABELS = ("said_clean", "said_corrupted", "kept")
"""Coordinates that are known only when an example has run; the last of them marks it as written."""
NOT_RUN = ""
_ABSENT = Position("", "", "", "")
Variable = tuple[tuple[str, ...], np.ndarray]


def template(graph: InterventionGraph, architecture: Architecture, pairs: Sequence[EncodedPair]) -> xr.Dataset:
    """The dataset before anything has run: all labels, every value NaN, `kept` empty.

    Raises
    ------
    SpecError
        Naming the pair, where a pair lacks one of the graph's positions.
    """
    sweep = _sweep(graph, architecture, pairs)
    examples = [pair.pair for pair in pairs]
    coordinates: dict[str, Any] = {
        "example": _strings([pair.id for pair in examples]),
        "answer": ("example", _strings([pair.answer for pair in examples])),
        "foil": ("example", _strings([pair.foil for pair in examples])),
        "text": ("example", _strings([pair.clean.text for pair in examples])),
        "task": ("example", _strings([pair.task for pair in examples])),
        "kept": ("example", _strings([NOT_RUN] * len(pairs))),
        "said_clean": ("example", _strings([NOT_RUN] * len(pairs))),
    }
    corrupted = _corrupted_dims(graph)
    if corrupted is not None:
        shape = (len(pairs), *(len(sweep[name]) for name in corrupted))
        coordinates["said_corrupted"] = (("example", *corrupted), np.full(shape, NOT_RUN, dtype=object))
    for name, values in sweep.items():
        coordinates[name] = values if values.dtype != object else _strings(values)
    if "layer" in sweep:
        coordinates["layers_covered"] = _covered(graph, architecture, sweep)
    if "position" in sweep:
        described = [_positions(graph, architecture, pair) for pair in pairs]
        coordinates |= _described("position", "", sweep["position"], described)
    if "key" in sweep:
        described = [_keys(graph, architecture, pair) for pair in pairs]
        coordinates |= _described("key", "key_", sweep["key"], described)
    return xr.Dataset(_variables(graph, sweep, len(pairs)), coordinates)


def _sweep(graph: InterventionGraph, architecture: Architecture, pairs: Sequence[EncodedPair]) -> dict[str, np.ndarray]:
    """Dimension → its values, `example` left out."""
    if graph.method == "evaluate":
        return {"draw": np.arange(draws_of(graph))} if graph.dimension("draw") else {}
    place = swept_place(graph)
    sweep: dict[str, np.ndarray] = {"site": _strings(sites_of(graph))}
    if graph.dimension("edges"):
        sweep["edges"] = _strings(values_of(graph, "edges", ""))
    sweep["layer"] = np.array(values_of(graph, "layer", place.layer))
    if graph.dimension("window"):
        sweep["window"] = np.array(values_of(graph, "window", place.window))
    if graph.method != "knockout":
        if place.head is not None:
            sweep["head"] = np.array(values_of(graph, "head", place.head))
        sweep["position"] = _labels(_positions(graph, architecture, pair) for pair in pairs)
    if graph.dimension("strength"):
        sweep["strength"] = np.array(values_of(graph, "strength", 1.0), dtype=float)
    if graph.dimension("draw"):
        sweep["draw"] = np.arange(draws_of(graph))
    if graph.method == "attention":
        sweep["key"] = _labels(_keys(graph, architecture, pair) for pair in pairs)
    return sweep


def _labels(described: Any) -> np.ndarray:
    return _strings(list(dict.fromkeys(label for positions in described for label in positions)))


def _corrupted_dims(graph: InterventionGraph) -> tuple[str, ...] | None:
    """The dimensions of the corrupted run, None where there is none."""
    found = [run.over for run in graph.runs if run.name == "corrupted"]
    return found[0] if found else None


def _variables(graph: InterventionGraph, sweep: Mapping[str, np.ndarray], examples: int) -> dict[str, Variable]:
    def empty(names: Sequence[str]) -> Variable:
        return ("example", *names), np.full((examples, *(len(sweep[name]) for name in names)), np.nan, np.float32)

    whole, corrupted = tuple(sweep), _corrupted_dims(graph)
    if graph.method == "attention":
        return {"attention": empty(whole), **{f"{metric}_clean": empty(()) for metric in graph.metrics}}
    swept = graph.method != "evaluate"
    variables: dict[str, Variable] = {} if swept else {"right": empty(())}
    for metric in graph.metrics:
        if swept:
            variables[metric] = empty(whole)
        if any(run.name == "placebo" for run in graph.runs):
            variables[f"{metric}_placebo"] = empty(whole)
        if graph.verify:
            variables[f"{metric}_exact"] = empty(whole)
        variables[f"{metric}_clean"] = empty(())
        if corrupted is not None:
            variables[f"{metric}_corrupted"] = empty(corrupted)
    return variables


def _described(
    dimension: str, prefix: str, labels: np.ndarray, described: Sequence[Mapping[str, Position]]
) -> dict[str, Any]:
    """Coordinates that say what every label of a dimension is, example by example."""
    table = [[positions.get(label, _ABSENT) for label in labels] for positions in described]
    across = ("example", dimension)
    coordinates: dict[str, Any] = {
        f"{prefix}token": (across, _strings([[p.token for p in row] for row in table])),
        f"{prefix}modality": (across, _strings([[p.modality for p in row] for row in table])),
        f"{prefix}role": (across, _strings([[p.role for p in row] for row in table])),
        f"{prefix}row": (across, np.array([[p.row for p in row] for row in table])),
        f"{prefix}col": (across, np.array([[p.col for p in row] for row in table])),
        f"{prefix}image": (across, np.array([[p.image for p in row] for row in table])),
        f"{prefix}tile": (across, np.array([[p.tile for p in row] for row in table])),
    }
    if any(p.box for row in table for p in row):
        boxes = [[p.box or (-1, -1, -1, -1) for p in row] for row in table]
        coordinates[f"{prefix}box"] = ((*across, "corner"), np.array(boxes))
        coordinates["corner"] = _strings(["x0", "y0", "x1", "y1"])
    return coordinates


def example_values(
    blank: xr.Dataset,
    graph: InterventionGraph,
    cells: Sequence[Cell],
    results: Mapping[str, Any],
    decode: Any,
    verified: tuple[Sequence[Cell], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """One example's arrays: variable → values without the `example` dimension.

    Parameters
    ----------
    blank
        The template; gives the labels.
    results
        What `kernels.run_program` returned for the example.
    decode
        Token → its text.
    verified
        Cells that were run exactly after having been estimated, and their results.
    """
    values: dict[str, Any] = {"said_clean": decode(int(results["clean.top"][0]))}
    if "said_corrupted" in blank:
        said = _strings([decode(int(token)) for token in results["corrupted.top"]])
        values["said_corrupted"] = said if blank["said_corrupted"].ndim > 1 else said[0]
    kept = bool(results["kept"])
    if "right" in blank:
        values["right"] = float(results["clean.right"].all())
    if graph.method == "attention":
        rows = results["attention"].numpy() if kept else None
        values["attention"] = _attention(blank, cells, rows)
    for metric in graph.metrics:
        values[f"{metric}_clean"] = results[f"clean.{metric}"].numpy()[0]
        if f"{metric}_corrupted" in blank:
            corrupted = results[f"corrupted.{metric}"].numpy()
            values[f"{metric}_corrupted"] = corrupted if blank[f"{metric}_corrupted"].ndim > 1 else corrupted[0]
        for name, run in ((metric, graph.swept.name), (f"{metric}_placebo", "placebo")):
            if name in blank:
                found = results[f"{run}.{metric}"].numpy() if kept else None
                values[name] = _placed(blank, name, cells, found)
        if f"{metric}_exact" in blank:
            exact, found = verified if verified is not None else ((), {})
            numbers = found[f"{graph.swept.name}.{metric}"].numpy() if exact else None
            values[f"{metric}_exact"] = _placed(blank, f"{metric}_exact", exact, numbers)
    return values


def _placed(blank: xr.Dataset, name: str, cells: Sequence[Cell], found: np.ndarray | None) -> np.ndarray:
    """Numbers of cells in an array of the variable's shape; NaN elsewhere."""
    array = np.full(blank[name].shape[1:], np.nan, np.float32)
    if found is not None:
        array[_where(blank, blank[name].dims[1:], cells)] = found
    return array


def _attention(blank: xr.Dataset, cells: Sequence[Cell], rows: np.ndarray | None) -> np.ndarray:
    array = np.full(blank["attention"].shape[1:], np.nan, np.float32)
    if rows is not None:
        labels = {label: i for i, label in enumerate(blank["key"].values.tolist())}
        where = _where(blank, blank["attention"].dims[1:-1], cells)
        for number, (cell, row) in enumerate(zip(cells, rows, strict=True)):
            assert cell.keys is not None
            names = cell.keys.labels
            array[tuple(index[number] for index in where)][[labels[name] for name in names]] = row[: len(names)]
    return array


def _where(blank: xr.Dataset, dims: Sequence[Any], cells: Sequence[Cell]) -> tuple[np.ndarray, ...]:
    """For each dimension the index of every cell's label."""
    index = {name: {label: i for i, label in enumerate(blank[name].values.tolist())} for name in dims}
    labels = [cell.labels() for cell in cells]
    return tuple(np.array([index[name][label[name]] for label in labels], dtype=int) for name in dims)


def reason(graph: InterventionGraph, pair: EncodedPair, results: Mapping[str, Any], decode: Any) -> str:
    """`kept`, or why the example was not: what the model said where another answer was wanted."""
    if results["kept"]:
        return KEPT
    if not bool(results["clean.right"].all()):
        said = decode(int(results["clean.top"][0]))
        does = "begins with" if len(pair.answer) > 1 else "says"
        return f"dropped: the clean run {does} {said!r}, not {pair.pair.answer!r}"
    return f"dropped: the corrupted run still says {pair.pair.answer!r}"


def unaffected(ds: xr.Dataset) -> int:
    """How many kept pairs no corruption affected: their corrupted runs all say what the clean run says."""
    if "said_corrupted" not in ds:
        return 0
    same = ds["said_corrupted"] == ds["said_clean"]
    same = same.all([d for d in same.dims if d != "example"])
    return int((same & (ds["kept"] == KEPT)).sum())


def _positions(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> dict[str, Position]:
    described: dict[str, Position] = {}
    for site in sites_of(graph):
        stack = pair.positions[stack_of(graph, architecture, site).name]
        for chosen in chosen_positions(graph, architecture, site, pair):
            described.setdefault(chosen.label, stack.describe(chosen))
    return described


def _keys(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> dict[str, Position]:
    described: dict[str, Position] = {}
    for site in sites_of(graph):
        stack = pair.positions[architecture.attention(site)[1].keys]
        for i in keys_of(graph, architecture, site, pair).indices:
            described.setdefault(stack.positions[i].label, stack.positions[i])
    return described


def _covered(graph: InterventionGraph, architecture: Architecture, sweep: Mapping[str, np.ndarray]) -> Variable:
    """How many layers each cell's window really covers."""
    depth = [stack_of(graph, architecture, site).layers for site in sweep["site"]]
    widths = values_of(graph, "window", swept_place(graph).window)
    covered = np.array(
        [
            [
                [len(window(layer, width, n)) if layer < n else 0 for width in widths]
                for layer in sweep["layer"].tolist()
            ]
            for n in depth
        ]
    )
    swept = "window" in sweep
    return ("site", "layer", *(["window"] if swept else [])), covered if swept else covered[..., 0]


def _strings(values: Any) -> np.ndarray:
    return np.array(values, dtype=object)
