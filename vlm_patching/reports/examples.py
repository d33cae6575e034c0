"""The pairs of a dataset, one record each: prompts with their spans, pictures, what the model said, why it was kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import xarray as xr

from vlm_patching.graph import InterventionGraph
from vlm_patching.graph.draw import edit_text
from vlm_patching.pairs import Pair, Prompt, prompt_for
from vlm_patching.pairs.marking import marked
from vlm_patching.reports.packing import number
from vlm_patching.reports.pictures import Album
from vlm_patching.results.dataset import KEPT, NOT_RUN


def examples(ds: xr.Dataset, graph: InterventionGraph, pairs: Mapping[str, Pair], album: Album) -> list[dict[str, Any]]:
    """A record of every example; with its prompts where its pair is given, whose pictures go into the album."""
    names = [str(name) for name in ds["example"].values]
    return [_record(ds.isel(example=i), name, graph, pairs.get(name), album) for i, name in enumerate(names)]


def _record(ds: xr.Dataset, name: str, graph: InterventionGraph, pair: Pair | None, album: Album) -> dict[str, Any]:
    kept = str(ds["kept"].item())
    record: dict[str, Any] = {"id": name, "kept": kept == KEPT, "why": _why(kept)}
    for label in ("text", "answer", "foil", "task", "said_clean"):
        record[label] = str(ds[label].item()) if label in ds.coords else ""
    record["said_corrupted"] = _said(ds)
    record["metrics"] = [_measured(ds, metric) for metric in graph.metrics]
    record["prompts"] = _prompts(graph, pair, album) if pair is not None else []
    return record


def _why(kept: str) -> str:
    return "not run yet" if kept == NOT_RUN else kept


def _said(ds: xr.Dataset) -> str:
    """What the corrupted run said; of several draws each answer with how often."""
    if "said_corrupted" not in ds.coords:
        return ""
    said = [str(answer) for answer in ds["said_corrupted"].values.ravel()]
    if len(said) == 1:
        return said[0]
    return ", ".join(f"{answer} ({count} of {len(said)})" for answer, count in Counter(said).most_common())


def _measured(ds: xr.Dataset, metric: str) -> dict[str, Any]:
    """A metric of the clean and the corrupted run (mean of its draws), whether the pair was kept or not."""
    found: dict[str, Any] = {"metric": metric, "clean": number(ds[f"{metric}_clean"])}
    if f"{metric}_corrupted" in ds:
        found["corrupted"] = number(ds[f"{metric}_corrupted"].mean())
    return found


def _prompts(graph: InterventionGraph, pair: Pair, album: Album) -> list[dict[str, Any]]:
    """The prompts of the runs that are not swept, each with what is done to it."""
    found = []
    for run in graph.runs:
        if run.name not in ("clean", "corrupted"):
            continue
        prompt = prompt_for(pair, run.on)
        spans = pair.spans if prompt.text == pair.clean.text else pair.spans_corrupted
        regions = pair.regions if prompt.image is pair.clean.image else {}  # boxes are in the clean picture
        edits = [" ".join(edit_text(edit).split()) for edit in run.edits]
        found.append(
            {
                "run": run.name,
                "parts": marked(prompt.text, spans),
                "pictures": _pictures(prompt, album),
                "regions": [[name, list(box)] for name, box in regions.items()],
                "noise": "; ".join(edits),
            }
        )
    return found


def _pictures(prompt: Prompt, album: Album) -> list[int]:
    return [album.add(picture) for picture in prompt.pictures()]
