"""Why the numbers can be trusted, what was left out, what made them, and how to make them again."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

import xarray as xr

from vlm_patching.catalog import presets
from vlm_patching.experiment import Experiment
from vlm_patching.results.dataset import KEPT, NOT_RUN

_LONG = ("graph", "experiment", "experiment_yaml", "family_file")
"""Attributes that are shown folded."""


def checks(ds: xr.Dataset) -> dict[str, Any] | None:
    """The trust checks: `example`, `cells`, `rows` of check, metric, difference, tolerance; None: none were made."""
    if "checks" not in ds.attrs:
        return None
    outcome = json.loads(ds.attrs["checks"])
    tolerance = outcome.get("tolerance", {})
    rows = []
    for name, found in outcome.items():
        if name in ("example", "tolerance", "cells", "passed"):
            continue
        for metric, difference in found.items() if isinstance(found, dict) else [("attention", found)]:
            rows.append((name, metric, f"{difference:.2g}", f"{tolerance[metric]:g}" if metric in tolerance else ""))
    return {"example": outcome.get("example", ""), "cells": outcome.get("cells", 0), "rows": rows}


def dropped(ds: xr.Dataset) -> dict[str, Any]:
    """Pairs that the numbers are not of: `counts` by reason, `unfinished` (not run yet) and how many were `kept`.

    `considered` candidates of the dataset were looked through before (None: it came from nowhere), and `before` says
    how many of them were dropped, and why.
    """
    labels = [str(label) for label in ds["kept"].values]
    reasons = Counter(_reason(label) for label in labels if label not in (KEPT, NOT_RUN))
    return {
        "counts": _by_count(reasons),
        "unfinished": labels.count(NOT_RUN),
        "kept": labels.count(KEPT),
        "all": len(labels),
        "considered": ds.attrs.get("pairs_considered"),
        "before": _by_count(json.loads(ds.attrs.get("pairs_dropped", "{}"))),
    }


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent first."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _reason(label: str) -> str:
    """A reason without the words that differ from pair to pair."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", "…", label.removeprefix("dropped: "))


def provenance(ds: xr.Dataset) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """All attributes: the short ones, and those that are whole files."""
    short, long = [], []
    for name, value in ds.attrs.items():
        if name in _LONG:
            long.append((name, str(value)))
        elif name in ("versions", "plan", "pairs_dropped") and isinstance(value, str):
            short.append((name, ", ".join(f"{key} {found}" for key, found in json.loads(value).items())))
        elif name != "checks":
            short.append((name, str(value)))
    return short, long


def replay(attributes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to do, and the commands that do it."""
    versions = json.loads(attributes.get("versions", "{}"))
    pins = [
        f"{name}=={versions[name].partition('+')[0]}"
        for name in ("nnsight", "torch", "transformers")
        if name in versions
    ]
    steps = [("The same libraries", f"pip install {shlex.join(pins)}")] if pins else []
    if "experiment" not in attributes:
        code = 'graph = vp.InterventionGraph.from_json(open("graph.json").read())\n'
        code += f"ds = vp.run(graph, model={attributes.get('model', '')!r}, inputs=pairs)"
        return [*steps, ("The graph was written by hand; save the attribute graph below as graph.json", code)]
    name = str(attributes["name"])
    file = re.sub(r"[^\w+-]+", "_", name)
    if attributes["method"] == "evaluate":
        command = f"vlm-patching evaluate {file}.yaml -o {file}-evaluated.zarr"
        return [*steps, ("Save the spec as a file, and evaluate it", command)]
    if _is_preset(name, attributes["experiment_id"]):
        steps.append(("Run the preset again", f"vlm-patching run {shlex.quote(name)} -o {file}.zarr"))
    else:
        steps.append(("Save the spec as a file, and run it", f"vlm-patching run {file}.yaml -o {file}.zarr"))
    shared = f"vlm-patching bundle save {file}.zarr -o {file}.vlmp.zip\nvlm-patching replay {file}.vlmp.zip"
    return [*steps, ("Share it with its pairs, as one file, and compare with a new run", shared)]


def _is_preset(name: str, identity: str) -> bool:
    """Whether the package's preset of this name is still this experiment."""
    known = presets()
    return name in known and Experiment.from_yaml(known[name]).id == identity
