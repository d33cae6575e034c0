"""What was asked, in words: method, model, pairs, corruption, where, and what is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr

from vlm_patching.analysis.effects import method_of
from vlm_patching.graph import InterventionGraph, noise_of, values_of
from vlm_patching.graph.draw import edit_text, place_text, values_text
from vlm_patching.graph.ir import swept_place
from vlm_patching.metrics import METRICS

METHODS = {
    "patch": "activation patching: in the {base} run, one cell at a time takes the value that it has in the {origin} "
    "run",
    "path": "path patching: as activation patching, while every other head keeps still, so that only what reaches the "
    "receiver counts",
    "knockout": "attention knockout: attention along an edge set is blocked, around one layer at a time",
    "ablate": "ablation: one cell of the clean run at a time is taken away",
    "steer": "steering: a vector is added to one cell of the {base} run at a time",
    "lens": "logit lens: the residual stream, read through the final norm and the unembedding",
    "attention": "attention patterns of the clean run",
    "evaluate": "evaluation: the clean and the corrupted prompts alone; nothing is swept",
}
_KEEP = {
    "all": "every pair",
    "clean_correct": "pairs that the clean run answers right",
    "clean_correct_corrupted_wrong": "pairs that the clean run answers right and the corrupted run does not",
}
_INPUTS = {
    "corrupted": "the pair's corrupted picture and text",
    "corrupted_image": "the clean text with the corrupted picture",
    "corrupted_text": "the clean picture with the corrupted text",
    "clean": "the clean prompt",
}


def asked(ds: xr.Dataset, graph: InterventionGraph) -> list[tuple[str, str]]:
    """Name and words of everything that a reader must know before looking at numbers."""
    attributes = ds.attrs
    spec = json.loads(attributes["experiment"]) if "experiment" in attributes else {}
    where, swept = ("", []) if graph.method == "evaluate" else _swept(graph)
    rows = [
        ("Method", method_words(ds, graph)),
        ("Model", _model(attributes)),
        ("Pairs", _pairs(spec.get("pairs"), graph)),
        ("Corruption", _corruption(spec.get("corruption"), graph)),
        ("Where", where),
        ("Swept", "; ".join(swept)),
        ("Held still", _held(graph)),
        ("Estimated by", attributes.get("estimate", "exact") if graph.estimate != "exact" else ""),
        ("Follows", attributes.get("source", "")),
    ]
    return [(name, words) for name, words in rows if words]


def _swept(graph: InterventionGraph) -> tuple[str, list[str]]:
    """The sites, and what else the sweep goes over."""
    place = swept_place(graph)
    where = ", ".join(str(site) for site in values_of(graph, "site", place.site))
    swept = [f"{d.name} {values_text(d)}" for d in graph.dimensions if d.name != "site"]
    if place.position is not None and place.position != "edges" and graph.dimension("position") is None:
        swept.append(f"at {place.position}")
    return where, swept


def method_words(ds: xr.Dataset, graph: InterventionGraph) -> str:
    """The method in a sentence."""
    base = ds.attrs.get("base", graph.base)
    origin = "clean" if base == "corrupted" else "corrupted"
    return METHODS[method_of(ds)].format(base=base, origin=origin)


def measured(graph: InterventionGraph) -> list[tuple[str, str, str]]:
    """Every metric: its name, what it is, and whether more or less of it is better."""
    return [
        (
            metric,
            " ".join(METRICS[metric]["of"].__doc__.split()),
            "more is better" if METRICS[metric]["better"] > 0 else "less is better; effects have their sign turned",
        )
        for metric in graph.metrics
    ]


def _model(attributes: Mapping[str, Any]) -> str:
    said = [str(attributes.get("model", "")), str(attributes.get("model_revision", ""))]
    said += [f"family {attributes['family']}"] if attributes.get("family") else []
    said += [str(attributes[name]) for name in ("dtype", "quantization", "device") if attributes.get(name)]
    return ", ".join(filter(None, said))


def _pairs(spec: Mapping[str, Any] | None, graph: InterventionGraph) -> str:
    kept = f"kept: {_KEEP[graph.keep]}"
    if not spec:
        return f"given to the run; {kept}"
    said = [f"dataset {spec['dataset']}", *(f"{name} {_plain(spec[name])}" for name in spec if name not in _SAID_APART)]
    return f"{', '.join(said)}; {kept}"


_SAID_APART = ("dataset", "keep")


def _corruption(spec: Mapping[str, Any] | None, graph: InterventionGraph) -> str:
    runs = [run for run in graph.runs if run.name == "corrupted"]
    if not runs:
        return ""
    said = []
    if spec:
        said.append(", ".join([spec["kind"], *(f"{k} {_plain(v)}" for k, v in spec.items() if k != "kind")]))
    noise = noise_of(graph)
    said.append(f"the corrupted run is on {_INPUTS[runs[0].on]}" + (f", {_words(edit_text(noise))}" if noise else ""))
    return "; ".join(said)


def _held(graph: InterventionGraph) -> str:
    return "; ".join(place_text(edit.at) for run in graph.runs for edit in run.edits if edit.kind == "hold")


def _words(text: str) -> str:
    return " ".join(text.split())


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(map(_plain, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)
