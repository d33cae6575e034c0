"""Everything that a report says, gathered as plain data: what the page shows as it is, and what its scripts draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from vlm_patching.analysis import accuracy, total_effect
from vlm_patching.analysis.effects import method_of, over_draws
from vlm_patching.analysis.uncertainty import mean_and_interval
from vlm_patching.citations import citations
from vlm_patching.graph import InterventionGraph
from vlm_patching.metrics import METRICS
from vlm_patching.pairs import Pair
from vlm_patching.reports.asked import asked, measured, method_words
from vlm_patching.reports.examples import examples
from vlm_patching.reports.figures import axis_names, opening_metric, static_figures
from vlm_patching.reports.looks import looks
from vlm_patching.reports.maps import maps, named, strongest
from vlm_patching.reports.packing import number, shown
from vlm_patching.reports.pictures import Album
from vlm_patching.reports.places import places
from vlm_patching.reports.quantities import Quantity, quantities, signs
from vlm_patching.reports.trust import checks, dropped, provenance, replay
from vlm_patching.results.dataset import KEPT

VALUE_ROOM = 4_300_000
"""Characters that numbers may take; pictures and these leave 10 MB room for the library, figures and texts."""
PICTURE_ROOM = 2_700_000
STRONGEST = 8
PAPERS = {
    "path": "Wang et al. 2022; Goldowsky-Dill et al. 2023",
    "lens": "nostalgebraist 2020",
    "attribution": "Nanda 2023; Syed et al. 2023",
    "integrated_gradients": "Sundararajan et al. 2017; Marks et al. 2024",
}
"""Method or estimate → what it is from, whether or not an experiment names its source."""


def content(
    ds: xr.Dataset, graph: InterventionGraph, pairs: Mapping[str, Pair], metric: str | None, why_no_pictures: str
) -> dict[str, Any]:
    """What the template needs (see `assets/report.html.jinja`); `data` is for the scripts."""
    album = Album()
    records = examples(ds, graph, pairs, album)
    links = album.links(PICTURE_ROOM)
    missing = links.count("")
    left_out = dropped(ds)
    opening = metric or opening_metric(ds) or graph.metrics[0]
    found = _first(quantities(ds), opening) if left_out["kept"] else []
    figures, not_drawn = static_figures(ds, metric, list(pairs.values()) or None) if found else ([], "")
    short, long = provenance(ds)
    pictures = [{"link": link, "size": size} for link, size in zip(links, album.sizes, strict=True)]
    return {
        "name": str(ds.attrs.get("name", "")) or "Results",
        "method": method_words(ds, graph),
        "asked": asked(ds, graph),
        "measured": measured(graph),
        "signs": signs(ds),
        "deviations": [line for line in str(ds.attrs.get("deviations", "")).split("\n") if line],
        "graph": str(graph),
        "drawing": graph.to_svg(),
        "narrow_drawing": graph.to_svg(narrow=True),
        "spec": ds.attrs.get("experiment_yaml", ""),
        "facts": _facts(ds, left_out, found),
        "accuracy": _accuracy(ds),
        "strongest": _strongest(ds, found),
        "figures": figures,
        "not_drawn": not_drawn,
        "checks": checks(ds),
        "dropped": left_out,
        "provenance": short,
        "files": long,
        "replay": replay(ds.attrs),
        "citations": citations(
            str(ds.attrs.get("source", "")), PAPERS.get(graph.method, ""), PAPERS.get(graph.estimate, "")
        ),
        "why_no_pictures": why_no_pictures,
        "pictures_left_out": missing,
        "data": {
            "method": str(ds.attrs["method"]),
            "pairs": records,
            "pictures": pictures,
            "metrics": {name: METRICS[name]["label"] for name in graph.metrics},
            "map": _map(ds, found) if found else None,
        },
    }


def _first(found: list[Quantity], metric: str) -> list[Quantity]:
    """The chosen metric's quantities before all others."""
    return sorted(found, key=lambda quantity: quantity.metric != metric)


def _map(ds: xr.Dataset, found: list[Quantity]) -> dict[str, Any]:
    attention = ds.attrs["method"] == "attention"
    drawn = maps(found, VALUE_ROOM // 2 if attention else VALUE_ROOM)
    described = places(ds, "key" if drawn["across"] == "key" else "position")
    if described is not None:
        described["names"] = axis_names(ds) if drawn["across"] != "key" else described["labels"]
    drawn["places"] = described
    drawn["looks"] = None
    if attention and drawn["across"] == "head":
        drawn["looks"] = looks(ds, found[0], VALUE_ROOM // 2)
        drawn["keys"] = places(ds, "key")
    return drawn


def _facts(ds: xr.Dataset, left_out: Mapping[str, Any], found: list[Quantity]) -> list[tuple[str, str, str]]:
    """The numbers above all others: what, how much, and a remark."""
    facts = [("pairs kept", f"{left_out['kept']} of {left_out['all']}", "")]
    if ds.attrs.get("examples_unaffected"):
        remark = "kept, but the corrupted run gives the same answer as the clean one"
        facts.append(("pairs not affected", str(ds.attrs["examples_unaffected"]), remark))
    metric = found[0].metric if found else ""
    if metric:
        kept = ds["kept"] == KEPT
        label = METRICS[metric]["label"]
        for run in ("clean", "corrupted"):
            if f"{metric}_{run}" in ds:
                facts.append((f"{run} run", shown(float(ds[f"{metric}_{run}"].where(kept).mean())), f"mean {label}"))
        if f"{metric}_corrupted" in ds:
            total = over_draws(total_effect(ds, metric).astype(np.float64))
            interval = mean_and_interval(total)
            low, high = (float(interval[end]) for end in ("low", "high"))
            remark = f"of {label}" + (f", 95 % interval {shown(low)} to {shown(high)}" if np.isfinite(low) else "")
            facts.append(("total effect", shown(float(total.mean())), remark))
    return facts


def _accuracy(ds: xr.Dataset) -> list[dict[str, Any]]:
    """Of an evaluation, how often the clean answer is right: by task, then of all pairs; else nothing."""
    if method_of(ds) != "evaluate" or not ds["right"].notnull().any():
        return []
    by_task, whole = accuracy(ds), accuracy(ds, None)
    tasks = [str(task) for task in by_task["task"].values] if by_task.sizes["task"] > 1 else []
    rows = [(task or "none", by_task.isel(task=i)) for i, task in enumerate(tasks)]
    numbers = ("accuracy", "lower", "upper", "flipped")
    return [
        {
            "task": name,
            **{count: int(row[count]) for count in ("pairs", "right")},
            **{share: number(row[share]) if share in row else None for share in numbers},
        }
        for name, row in [*rows, ("all", whole)]
    ]


def _strongest(ds: xr.Dataset, found: list[Quantity]) -> dict[str, Any] | None:
    """The cells furthest from the middle, as a table; a token index has its name beside it."""
    if not found:
        return None
    rows = list(strongest(found[0], STRONGEST))
    values = found[0].values
    swept = [str(name) for name in values.dims if name not in ("example", "draw") and values.sizes[name] > 1]
    if "position" in swept:
        names = dict(zip(map(str, ds["position"].values), axis_names(ds), strict=True))
        for row in rows:
            label = row["labels"]["position"]
            row["labels"]["position"] = label if names[label] == label else f"{label} ({names[label]})"
    return {"title": named(found[0]), "unit": found[0].unit, "dims": swept, "rows": rows}
