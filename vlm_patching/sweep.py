"""Examples → pieces → results in the store: what a run does once everything is known to be sound."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
import xarray as xr
from tqdm import tqdm

from vlm_patching.backends.base import Backend, Failure, Outcome, Piece
from vlm_patching.backends.cells import Cell, cells_of
from vlm_patching.backends.plan import Job, Settings, groups_of, rows_per_pass
from vlm_patching.backends.reference import reference
from vlm_patching.errors import RunError
from vlm_patching.graph import SWEPT, InterventionGraph, sites_of
from vlm_patching.inputs import EncodedPair
from vlm_patching.models import Architecture
from vlm_patching.preparation import Prepared
from vlm_patching.results.checks import check_example
from vlm_patching.results.dataset import example_values, reason, unaffected
from vlm_patching.results.store import MemoryStore, ZarrStore

WHOLE = ("lens", "attention")
"""Methods whose cells are read in the same passes: fewer of them would take as much."""


@dataclass
class Parts:
    """What is known so far of examples whose cells are run in parts, where memory does not suffice for all at once."""

    found: dict[int, list[tuple[torch.Tensor, dict[str, Any]]]] = field(default_factory=dict)

    def take(self, piece: Piece, outcome: Outcome) -> torch.Tensor:
        """Keep a piece's results; the numbers of the cells that are still to be run."""
        if isinstance(outcome, Failure):
            return piece.cells
        unfinished = outcome.pop("unfinished", piece.cells[:0].long())
        if len(unfinished) == len(piece.cells) > 0:
            return piece.cells
        finished = torch.ones(len(piece.cells), dtype=torch.bool).index_fill(0, unfinished, False)
        self.found.setdefault(piece.example, []).append((piece.cells[finished], outcome))
        return piece.cells[unfinished]

    def has_all(self, example: int, count: int) -> bool:
        """Whether so many cells of an example are among the results."""
        return sum(len(numbers) for numbers, _ in self.found[example]) == count

    def whole(self, example: int, swept: str) -> dict[str, Any]:
        """An example's results, cells in order; `swept` begins the names of what is one number a cell."""
        parts = self.found.pop(example)
        first = parts[0][1]
        if len(parts) == 1:
            return first
        order = torch.cat([numbers for numbers, _ in parts]).argsort()
        return first | {
            name: torch.cat([found[name] for _, found in parts])[order] for name in first if name.startswith(swept)
        }


def sweep(
    prepared: Prepared,
    backend: Backend,
    blank: xr.Dataset,
    results: MemoryStore | ZarrStore,
    settings: Settings,
    checks: bool,
    progress: bool,
) -> xr.Dataset:
    """Run every example that is not in the store yet, and put it there; the dataset.

    Raises
    ------
    RunError
        Examples failed; all others are in the store.
    CheckError
        A trust check failed.
    """
    graph, encoded, start = prepared.graph, prepared.encoded, time.monotonic()
    architecture, decode = prepared.description.architecture, prepared.description.word
    attributes = results.attributes
    known_std = float(str(attributes["noise_std"])) if "noise_std" in attributes else None
    shared = reference(graph, backend, prepared.encode_all, known_std, prepared.candidates())
    if shared.noise_std:
        results.annotate({"noise_std": shared.noise_std})
    written = results.done()
    todo = [i for i, done in enumerate(written) if not done]
    unchecked = checks and "checks" not in attributes and graph.method != "evaluate"
    groups = [
        group for group in groups_of(graph, architecture, encoded, settings) if not all(written[i] for i in group)
    ]
    cells = {i: cells_of(graph, architecture, encoded[i]) for group in groups for i in group}
    results.annotate({"plan": json.dumps(planned(graph, architecture, encoded, settings))})
    spent = float(attributes.get("wall_seconds", 0.0))

    @lru_cache(maxsize=2 * max(map(len, groups), default=1))  # what was just run, and what is made meanwhile
    def job_of(example: int) -> Job:
        return Job(graph, architecture, prepared.encode(example), shared)

    def program(piece: Piece) -> dict[str, Any]:
        return job_of(piece.example).program([cells[piece.example][n] for n in piece.cells.tolist()], piece.settings)

    queue = deque(  # what is written is run again with the rest of its group: numbers do not depend on when it stopped
        Piece(i, torch.arange(len(cells[i])), settings, program, number)
        for number, group in enumerate(groups)
        for i in group
    )
    parts, failed, done = Parts(), dict[int, str](), 0
    every = 0.1 if sys.stderr.isatty() else 10  # a log wants a line now and then
    counted = {i: len(cells[i]) if graph.method != "evaluate" else 1 for i in todo}
    unit = "cell" if graph.method != "evaluate" else "pair"
    with tqdm(total=sum(counted.values()), unit=unit, desc=graph.name, disable=not progress, mininterval=every) as bar:

        def say(state: str) -> None:
            bar.set_postfix_str(", ".join(filter(None, [f"example {done}/{len(todo)}", state])), refresh=bool(state))

        say("")
        for piece, outcome in backend.stream(queue, say):
            i = piece.example
            if written[i] or i in failed:  # by an earlier run; in another part of its cells
                continue
            job = job_of(i)
            left = parts.take(piece, outcome)
            if len(left) or isinstance(outcome, Failure):
                piece = replace(piece, cells=left, group=None)
                smaller = _smaller(job, piece, outcome)
                if smaller:
                    rest = [part for other in queue for part in _spared(other, piece, smaller[0].settings, outcome)]
                else:
                    failed[i] = _why(outcome)
                    rest = [other for other in queue if other.example != i]
                queue.clear()
                queue.extend([*smaller, *rest])
                continue
            if not parts.has_all(i, len(cells[i])):
                continue
            found = parts.whole(i, f"{graph.swept.name}.")
            if unchecked and found["kept"]:
                results.annotate({"checks": json.dumps(check_example(backend, job, cells[i], found))})
                unchecked = False
            verified = _verified(backend, job, cells[i], found, piece.settings) if graph.verify else None
            values = example_values(blank, graph, cells[i], found, decode, verified)
            results.write(i, values, reason(graph, job.pair, found, decode))
            results.annotate({"wall_seconds": round(spent + time.monotonic() - start, 3)})
            done += 1
            say("")
            bar.update(counted[i])
    if failed:
        raise RunError(_failures(prepared, failed, len(todo)))
    loaded = results.load()
    kept = int((loaded["kept"] == "kept").sum())
    counts = {"examples": len(prepared.pairs), "examples_kept": kept, "examples_unaffected": unaffected(loaded)}
    results.annotate(counts)
    return loaded.assign_attrs(counts)


def _smaller(job: Job, piece: Piece, outcome: Outcome) -> list[Piece]:
    """What is run in the place of what was too much: smaller passes, fewer cells; nothing where neither helps."""
    settings = piece.settings
    if not isinstance(outcome, Failure) or outcome.size:
        settings = job.halved(settings)
    elif not outcome.time:
        return []
    apart = (
        isinstance(outcome, Failure)
        and job.graph.estimate == "exact"
        and job.graph.method not in WHOLE
        and len(piece.cells) > 1
    )
    if settings == piece.settings and not apart:
        return []
    smaller = replace(piece, settings=settings)
    return _halves(smaller) if apart else [smaller]


def _spared(other: Piece, piece: Piece, settings: Settings, outcome: Outcome) -> list[Piece]:
    """A piece that waits, if it is as another one that was too much, in the sizes which that one now has."""
    if other.settings == piece.settings:
        other = replace(other, settings=settings)
    slow = isinstance(outcome, Failure) and outcome.time and len(other.cells) >= len(piece.cells) > 1
    return _halves(other) if slow else [other]


def _halves(piece: Piece) -> list[Piece]:
    return [replace(piece, cells=cells) for cells in piece.cells.tensor_split(2)]


def _why(outcome: Outcome) -> str:
    """Why an example cannot be run."""
    if not isinstance(outcome, Failure):
        return "Memory does not suffice, even with passes of one cell: the device ran out of it"
    if outcome.size:
        return f"Memory does not suffice, even with passes of one cell: {outcome.why}"
    return f"Time does not suffice, even for a part of the cells: {outcome.why}" if outcome.time else outcome.why


def _failures(prepared: Prepared, failed: dict[int, str], tried: int) -> str:
    number, why = next(iter(failed.items()))
    others = f" {len(failed)} of {tried} pairs failed; the others are done." if tried > 1 else ""
    return f"Pair {prepared.pairs[number].id!r} failed: {why}{others}"


def _verified(
    backend: Backend, job: Job, cells: Sequence[Cell], found: dict[str, Any], settings: Settings
) -> tuple[list[Cell], dict[str, Any]] | None:
    """The cells whose estimated effect is strongest (on the graph's first metric), and what running them gives."""
    if not found["kept"]:
        return None
    metric, base = job.graph.metrics[0], job.graph.base
    starts = found[f"{base}.{metric}"]
    draws = torch.tensor([cell.draw if len(starts) > 1 else 0 for cell in cells])
    effects = (found[f"{job.graph.swept.name}.{metric}"] - starts[draws]).abs()
    strongest = [cells[i] for i in effects.argsort(descending=True)[: job.graph.verify].tolist()]
    program = job.program(strongest, settings, exact=True) | {"keep": "all"}
    return strongest, backend.execute([program])[0]


def planned(
    graph: InterventionGraph, architecture: Architecture, encoded: Sequence[EncodedPair], settings: Settings
) -> dict[str, int]:
    """Sums over all pairs, were each of them kept: cells, forward passes with rows as cells, and one a cell."""
    cells = [len(cells_of(graph, architecture, pair)) for pair in encoded]
    rows = [rows_per_pass(architecture, pair, settings) for pair in encoded]
    swept = sum(run.name in SWEPT for run in graph.runs)
    bases = len(graph.runs) - swept
    passes = sum(bases + swept * math.ceil(count / size) for count, size in zip(cells, rows, strict=True))
    if graph.method in WHOLE:
        passes = sum(bases + len(sites_of(graph)) for _ in encoded)
    return {
        "cells": sum(cells),
        "forward_passes": passes,
        "naive_forward_passes": swept * sum(cells) + bases * len(encoded),
    }
