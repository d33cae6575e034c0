"""Traces of methods that only read the clean run: attention patterns, and the logit lens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlm_patching.backends.cells import Cell
from vlm_patching.backends.changes import key_of
from vlm_patching.backends.traces import at, trace
from vlm_patching.graph import InterventionGraph
from vlm_patching.models import Architecture, Tap


def attention_trace(graph: InterventionGraph, architecture: Architecture, cells: Sequence[Cell]) -> dict[str, Any]:
    """One forward pass that keeps, for every cell, its head's attention from its queries (their mean) to its keys."""
    grouped: dict[tuple[Tap, int], list[int]] = {}
    for number, cell in enumerate(cells):
        grouped.setdefault((architecture.attention(cell.site)[1].probabilities, cell.layer), []).append(number)
    keys = [list(cell.keys.indices) if cell.keys else [] for cell in cells]
    wanted = [
        {"head": cell.head, "queries": list(cell.position.indices), "keys": to}
        for cell, to in zip(cells, keys, strict=True)
    ]
    width = max(map(len, keys))
    operations = [
        {"do": "pattern", "cells": [wanted[i] for i in members], "width": width, **at(tap, layer)}
        for (tap, layer), members in grouped.items()
    ]
    eager = any(architecture.attention(cell.site)[1].eager for cell in cells)
    made = trace(architecture, graph.swept, 1, operations, measured=False, eager=eager)
    places = {tap.path.format(layer=layer): members for (tap, layer), members in grouped.items()}
    order = [i for operation in made["operations"] for i in places[operation["path"]]]
    return made | {"cells_in_order": torch.tensor(order).argsort()}


def lens_traces(graph: InterventionGraph, architecture: Architecture, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A forward pass for each site, which is measured at every cell through the final norm and the unembedding."""
    traces = []
    for site in dict.fromkeys(cell.site for cell in cells):
        stack, tap = architecture.locate(site)[0], architecture.tap(site)
        members = [cell for cell in cells if cell.site == site]
        layers = sorted({cell.layer for cell in members})
        reads = [{"do": "read", "name": key_of(graph.swept.name, tap, layer), **at(tap, layer)} for layer in layers]
        lens = {
            "unembed": list(stack.unembed),
            "scale": stack.scale,
            "softcap": stack.softcap,
            "cells": [(key_of(graph.swept.name, tap, cell.layer), cell.position.indices[0]) for cell in members],
        }
        traces.append(trace(architecture, graph.swept, 1, reads, measured=False, lens=lens))
    return traces
