"""Traces that estimate patched metrics from gradients: attribution patching, and its integrated variant.

Attribution: metric(patched) is about metric(base) + (source - base) · gradient at the base run. Integrated gradients:
the gradient is the mean over runs in which all positions of the cell's layers are set to base + a (source - base), at
the midpoints a of `steps` equal parts of [0, 1]; summed over all positions of a layer it gives the metric of patching
the whole layer, as steps grow (Sundararajan et al. 2017; Marks et al. 2024 for activations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vlm_patching.backends.cells import Cell
from vlm_patching.backends.changes import Change, changes_of, key_of
from vlm_patching.backends.traces import at, trace
from vlm_patching.graph import draws_of, parts, row_of
from vlm_patching.models import IMAGE_STACKS, Tap
from vlm_patching.positions import Chosen

if TYPE_CHECKING:
    from vlm_patching.backends.plan import Job


def gradient_traces(job: Job, cells: Sequence[Cell], rows: int) -> list[dict[str, Any]]:
    """The traces of a graph that estimates; their rows are draws, or (integrated) layers × draws × steps."""
    if job.graph.estimate == "attribution":
        return [_trace(job, cells, [0] * len(cells), [None])]
    together: dict[tuple[str, int, int], list[Cell]] = {}
    for cell in cells:
        together.setdefault((cell.site, cell.layer, cell.window), []).append(cell)
    assert job.graph.steps is not None
    size = max(1, rows // (job.graph.steps * draws_of(job.graph)))
    groups = list(together.values())
    traces = []
    for start in range(0, len(groups), size):
        chunk = groups[start : start + size]
        numbers = [number for number, group in enumerate(chunk) for _ in group]
        traces.append(_trace(job, [cell for group in chunk for cell in group], numbers, [g[0] for g in chunk]))
    return traces


def _trace(job: Job, cells: Sequence[Cell], group_of: Sequence[int], groups: Sequence[Cell | None]) -> dict[str, Any]:
    """One forward and backward pass; a group's rows are its draws × steps, interpolated where it is a cell."""
    graph, run = job.graph, job.graph.swept
    steps, draws = graph.steps or 1, draws_of(graph)
    terms: dict[tuple[Tap, int, bool], list[tuple[int, int, Cell, Change]]] = {}
    for number, (cell, group) in enumerate(zip(cells, group_of, strict=True)):
        for change in changes_of(graph, job.architecture, job.pair, run, cell):
            key = (change.tap, change.layer, change.head is None)
            terms.setdefault(key, []).append((number, group * draws + cell.draw, cell, change))
    needs: dict[str, tuple[Tap, int]] = {}
    for tap, layer, _ in terms:
        needs |= {key_of(name, tap, layer): (tap, layer) for name in (graph.base, graph.origin)}
    places = dict.fromkeys((tap, layer) for tap, layer, _ in terms)
    operations = [{"do": "delta", "name": key_of("delta", tap, layer), **at(tap, layer)} for tap, layer in places]
    for number, first in enumerate(groups):
        if first is not None:
            start = number * draws * steps
            operations += [_interpolation(job, change, start, draws, steps) for change in _whole_layers(job, first)]
    row_draws = [draw for _ in groups for draw in range(draws) for _ in range(steps)]
    reuses = job.has_image and not any(
        part.split(".")[0] in IMAGE_STACKS for cell in cells for part in parts(cell.site)
    )
    if reuses:
        operations += job.skipped_image(row_draws)
    gradients = {
        "cells": len(cells),
        "steps": steps,
        "base": graph.base,
        "base_rows": torch.tensor([row_of(graph.run(graph.base), cell.draw) for cell in cells]),
        "terms": [_term(job, members, tap, layer) for (tap, layer, _), members in terms.items()],
    }
    return trace(
        job.architecture,
        run,
        len(row_draws),
        operations,
        job.noise(run, row_draws),
        reuses_image=reuses,
        measured=False,
        needs=needs,
        gradients=gradients,
    )


def _term(job: Job, members: Sequence[tuple[int, int, Cell, Change]], tap: Tap, layer: int) -> dict[str, Any]:
    """(source - base) · gradient at one place, for every cell that has it."""
    entries = [(n, row, cell, change, i) for n, row, cell, change in members for i in range(len(change.positions))]
    by_head = members[0][3].head is not None
    base, origin = job.graph.base, job.graph.origin
    return {
        "delta": key_of("delta", tap, layer),
        "source": key_of(origin, tap, layer),
        "base": key_of(base, tap, layer),
        "of_cell": torch.tensor([n for n, _, _, _, _ in entries]),
        "at_rows": torch.tensor([row for _, row, _, _, _ in entries]),
        "at_positions": torch.tensor([change.positions[i] for _, _, _, change, i in entries]),
        "at_heads": torch.tensor([change.head for _, _, _, change, _ in entries]) if by_head else None,
        "source_rows": torch.tensor([change.source_row for _, _, _, change, _ in entries]),
        "source_positions": torch.tensor([change.source_positions[i] for _, _, _, change, i in entries]),
        "base_rows": torch.tensor([row_of(job.graph.run(base), cell.draw) for _, _, cell, _, _ in entries]),
        "heads": members[0][3].stack.heads,
    }


def _whole_layers(job: Job, cell: Cell) -> list[Change]:
    """Every position and head of the layers of a cell, taken from the other run."""
    stack, _ = job.architecture.locate(parts(cell.site)[0])
    everywhere = Chosen("all", tuple(range(len(job.pair.positions[stack.name].positions))))
    whole = replace(cell, head=None, position=everywhere)
    return changes_of(job.graph, job.architecture, job.pair, job.graph.swept, whole)


def _interpolation(job: Job, change: Change, start: int, draws: int, steps: int) -> dict[str, Any]:
    """Rows `start` onward, draws × steps of them, part of the way from the base run to the other."""
    rows = [(start + draw * steps + step, draw, (step + 0.5) / steps) for draw in range(draws) for step in range(steps)]
    return {
        "do": "interpolate",
        "base": key_of(job.graph.base, change.tap, change.layer),
        "source": key_of(job.graph.origin, change.tap, change.layer),
        "at_rows": torch.tensor([row for row, _, _ in rows]),
        "base_rows": torch.tensor([row_of(job.graph.run(job.graph.base), draw) for _, draw, _ in rows]),
        "source_rows": torch.tensor([row_of(job.graph.run(job.graph.origin), draw) for _, draw, _ in rows]),
        "parts": torch.tensor([part for _, _, part in rows]),
        "at_positions": torch.tensor(change.positions),
        "source_positions": torch.tensor(change.source_positions),
        **at(change.tap, change.layer),
    }
