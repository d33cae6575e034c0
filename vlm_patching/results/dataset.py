"""Arrays → a labelled dataset: `example`, then `site`, `layer`, `head`, `position`, `draw` as the sweep has them.

For a metric m the variables are `m` (patched), `m_clean` and `m_corrupted`, in float32; NaN means not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from vlm_patching.backends.plan import Cell, chosen_positions, window
from vlm_patching.graph import InterventionGraph, draws_of, patch_place, sites_of, values_of
from vlm_patching.inputs import EncodedPair
from vlm_patching.models import Architecture
from vlm_patching.positions import Position

KEPT = "kept"
WRITTEN_LABELS = ("said_clean", "said_corrupted", "kept")
"""Coordinates that are known only when an example has run; the last of them marks it as written."""
NOT_RUN = ""
_ABSENT = Position("", "", "", "")


def template(graph: InterventionGraph, architecture: Architecture, pairs: Sequence[EncodedPair]) -> xr.Dataset:
    """The dataset before anything has run: all labels, every value NaN, `kept` empty.

    Raises
    ------
    SpecError
        Naming the pair, where a pair lacks one of the graph's positions.
    """
    described = [_positions(graph, architecture, pair) for pair in pairs]
    labels = list(dict.fromkeys(label for positions in described for label in positions))
    place, sites = patch_place(graph), sites_of(graph)
    layers = [int(value) for value in values_of(graph, "layer", place.layer) if value is not None]
    sweep: dict[str, list[Any]] = {"site": list(sites), "layer": layers}
    if place.head is not None:
        sweep["head"] = list(values_of(graph, "head", place.head))
    sweep["position"] = labels
    draws = {"draw": list(range(draws_of(graph)))} if graph.dimension("draw") else {}
    corrupted = draws if "draw" in graph.run("corrupted").over else {}
    variables: dict[str, Any] = {}
    for metric in graph.metrics:
        for name, dims in ((metric, {**sweep, **draws}), (f"{metric}_clean", {}), (f"{metric}_corrupted", corrupted)):
            shape = (len(pairs), *map(len, dims.values()))
            variables[name] = (("example", *dims), np.full(shape, np.nan, np.float32))
    table = [[positions.get(label, _ABSENT) for label in labels] for positions in described]
    across = ("example", "position")
    coordinates: dict[str, Any] = {
        "example": _strings([pair.pair.id for pair in pairs]),
        "answer": ("example", _strings([pair.pair.answer for pair in pairs])),
        "foil": ("example", _strings([pair.pair.foil for pair in pairs])),
        "text": ("example", _strings([pair.pair.clean.text for pair in pairs])),
        "said_clean": ("example", _strings([NOT_RUN] * len(pairs))),
        "said_corrupted": (
            ("example", *corrupted),
            np.full((len(pairs), *map(len, corrupted.values())), NOT_RUN, dtype=object),
        ),
        "kept": ("example", _strings([NOT_RUN] * len(pairs))),
        "site": _strings(sites),
        "layer": np.array(layers),
        "position": _strings(labels),
        "token": (across, _strings([[p.token for p in row] for row in table])),
        "modality": (across, _strings([[p.modality for p in row] for row in table])),
        "role": (across, _strings([[p.role for p in row] for row in table])),
        "row": (across, np.array([[p.row for p in row] for row in table])),
        "col": (across, np.array([[p.col for p in row] for row in table])),
        "layers_covered": (("site", "layer"), _covered(graph, architecture, sites, layers)),
    }
    if any(p.box for row in table for p in row):
        boxes = [[p.box or (-1, -1, -1, -1) for p in row] for row in table]
        coordinates["box"] = ((*across, "corner"), np.array(boxes))
        coordinates["corner"] = _strings(["x0", "y0", "x1", "y1"])
    for name in ("head", "draw"):
        if name in sweep or name in draws:
            coordinates[name] = np.array({**sweep, **draws}[name])
    return xr.Dataset(variables, coordinates)


def example_values(
    blank: xr.Dataset, graph: InterventionGraph, cells: Sequence[Cell], results: Mapping[str, Any], decode: Any
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
    """
    said = _strings([decode(int(token)) for token in results["corrupted.top"]])
    values: dict[str, Any] = {
        "said_clean": decode(int(results["clean.top"][0])),
        "said_corrupted": said if blank["said_corrupted"].ndim > 1 else said[0],
    }
    index = {
        name: {label: i for i, label in enumerate(blank[name].values.tolist())} for name in blank.dims if name in blank
    }
    has_head, has_draw = "head" in blank.dims, "draw" in blank.dims
    where = tuple(
        np.array(places, dtype=int)
        for places in zip(
            *(
                (
                    index["site"][cell.site],
                    index["layer"][cell.layer],
                    *((index["head"][cell.head],) if has_head else ()),
                    index["position"][cell.position.label],
                    *((cell.draw,) if has_draw else ()),
                )
                for cell in cells
            ),
            strict=True,
        )
    )
    for metric in graph.metrics:
        patched = np.full(blank[metric].shape[1:], np.nan, np.float32)
        if results["kept"]:
            patched[where] = results[f"patched.{metric}"].numpy()
        values[metric] = patched
        values[f"{metric}_clean"] = results[f"clean.{metric}"].numpy()[0]
        corrupted = results[f"corrupted.{metric}"].numpy()
        values[f"{metric}_corrupted"] = corrupted if blank[f"{metric}_corrupted"].ndim > 1 else corrupted[0]
    return values


def reason(graph: InterventionGraph, pair: EncodedPair, results: Mapping[str, Any], decode: Any) -> str:
    """`kept`, or why the example was not: what the model said where another answer was wanted."""
    if results["kept"]:
        return KEPT
    clean = int(results["clean.top"][0])
    if clean != pair.answer:
        return f"dropped: the clean run says {decode(clean)!r}, not {pair.pair.answer!r}"
    return f"dropped: the corrupted run still says {pair.pair.answer!r}"


def unaffected(ds: xr.Dataset) -> int:
    """How many kept pairs no corruption affected: their corrupted runs all say what the clean run says."""
    same = ds["said_corrupted"] == ds["said_clean"]
    same = same.all([d for d in same.dims if d != "example"])
    return int((same & (ds["kept"] == KEPT)).sum())


def _positions(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> dict[str, Position]:
    described: dict[str, Position] = {}
    for site in sites_of(graph):
        stack = pair.positions[architecture.locate(site)[0].name]
        for chosen in chosen_positions(graph, architecture, site, pair):
            described.setdefault(chosen.label, stack.describe(chosen))
    return described


def _covered(
    graph: InterventionGraph, architecture: Architecture, sites: Sequence[str], layers: list[int]
) -> np.ndarray:
    width = patch_place(graph).window
    depth = [architecture.locate(site)[0].layers for site in sites]
    return np.array([[len(window(layer, width, n)) if layer < n else 0 for layer in layers] for n in depth])


def _strings(values: Any) -> np.ndarray:
    return np.array(values, dtype=object)
