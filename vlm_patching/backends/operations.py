"""What the cells of one forward pass change, hold and read in it, as operations; and where in the pass each cell is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlm_patching.backends.cells import Cell
from vlm_patching.backends.changes import Change, key_of
from vlm_patching.backends.traces import at
from vlm_patching.graph import Run
from vlm_patching.models import Tap

if TYPE_CHECKING:
    from vlm_patching.backends.plan import Job

Needs = dict[str, tuple[Tap, int]]
"""What a swept run takes from base runs: key → where they read it."""


@dataclass(frozen=True)
class Spot:
    """Where a cell's own sequence is in a forward pass.

    Attributes
    ----------
    row
        The row of the batch.
    start, offset
        Packed: the first position it recomputes, and where that is among the query positions.
    prefix
        Packed: how many positions are in the shared prefix; None for rows.
    """

    row: int
    start: int = 0
    offset: int = 0
    prefix: int | None = None

    def position(self, index: int) -> int:
        """Where a position of the cell's sequence is."""
        return index - self.start + self.offset

    def key(self, index: int) -> int:
        """Where a position is among the keys: in the prefix, or behind it."""
        return index if self.prefix is None or index < self.start else self.prefix + self.position(index)


@dataclass(frozen=True)
class Planned:
    """A cell, and where its runs part from their base.

    Attributes
    ----------
    number
        Its place in the sweep.
    changes
        Run → what it changes there.
    first
        Run → the stack's place in the order of execution, and the layer, before which nothing changes.
    start
        Run → the first position that is changed or read.
    stacks
        Where any of its changes and reads are.
    """

    number: int
    cell: Cell
    changes: Mapping[str, Sequence[Change]]
    first: Mapping[str, tuple[int, int]]
    start: Mapping[str, int]
    stacks: frozenset[str]


def reads(job: Job, run: Run) -> list[dict[str, Any]]:
    places = [(job.architecture.tap(read.at.site), int(str(read.at.layer))) for read in run.reads]
    return [{"do": "read", "name": key_of(run.name, tap, layer), **at(tap, layer)} for tap, layer in places]


def held(
    job: Job,
    run: Run,
    needs: Needs,
    first: tuple[int, int],
    index: torch.Tensor,
    positions: torch.Tensor | None,
) -> list[dict[str, Any]]:
    """Sites that are held in all layers at what they are in the base run, but for what is read; none before `first`."""
    architecture, base = job.architecture, job.graph.base
    read = [(architecture.tap(item.at.site), item.at.layer) for item in run.reads]
    operations = []
    for edit in run.edits:
        if edit.kind != "hold" or edit.at.layer != "all":
            continue
        stack, tap = architecture.locate(edit.at.site)[0], architecture.tap(edit.at.site)
        component = architecture.locate(edit.at.site)[1]
        for layer in [layer for layer in range(stack.layers) if stack.has(component, layer)]:
            if (tap, layer) in read or (architecture.ordinal(stack.name), layer) < first:
                continue
            key = key_of(base, tap, layer)
            needs[key] = (tap, layer)
            operations.append({"do": "hold", "source": key, "index": index, "positions": positions, **at(tap, layer)})
    return operations


def changed(
    items: Sequence[Planned], run: Run, spots: Mapping[int, Spot], sender: Mapping[int, Spot], needs: Needs
) -> list[dict[str, Any]]:
    """One operation for all cells' changes of one kind at one place."""
    grouped: dict[tuple[Any, ...], list[tuple[Spot, Spot, Change]]] = {}
    for item in items:
        for change in item.changes[run.name]:
            grouped.setdefault(change.group, []).append((spots[item.number], sender[item.number], change))
            if change.source is not None:
                needs[change.source] = (change.tap, change.layer)
    return [
        operation
        for members in grouped.values()
        for operation in (_block(members) if members[0][2].kind == "block" else [_edit(members)])
    ]


def _block(members: Sequence[tuple[Spot, Spot, Change]]) -> list[dict[str, Any]]:
    """Edges are shut in the mask, and what attends to nothing any more is silenced behind it."""
    first = members[0][2]
    assert first.context is not None
    across = first.length > 0
    cells = [
        {
            "row": spot.row,
            "heads": change.heads_blocked,
            "queries": torch.tensor([spot.position(i) for i in change.positions]),
            "keys": torch.tensor([i if across else spot.key(i) for i in change.source_positions]),
        }
        for spot, _, change in members
    ]
    name, heads = key_of("shut", first.tap, first.layer), first.stack.heads
    known = {"name": name, "heads": heads, "causal": first.causal, "length": first.length}
    return [
        {"do": "block", "cells": cells, **known, **at(first.tap, first.layer)},
        {"do": "silence", "source": name, "heads": heads, **at(first.context, first.layer)},
    ]


def _edit(members: Sequence[tuple[Spot, Spot, Change]]) -> dict[str, Any]:
    first = members[0][2]
    entries = [(spot, sender, change, i) for spot, sender, change in members for i in range(len(change.positions))]
    taken: dict[str, Any] = {"source": first.source, "source_rows": None, "source_positions": None}
    if first.source is not None:
        from_sender = first.source.startswith("sender.")
        rows = [sender.row if from_sender else change.source_row for _, sender, change, _ in entries]
        places = [
            sender.position(change.source_positions[i]) if from_sender else change.source_positions[i]
            for _, sender, change, i in entries
        ]
        taken |= {"source_rows": torch.tensor(rows), "source_positions": torch.tensor(places)}
    return {
        "do": first.kind,
        **taken,
        "at_rows": torch.tensor([spot.row for spot, _, _, _ in entries]),
        "at_positions": torch.tensor([spot.position(change.positions[i]) for spot, _, change, i in entries]),
        "at_heads": torch.tensor([change.head for _, _, change, _ in entries]) if first.head is not None else None,
        "factors": torch.tensor([float(change.factor) for _, _, change, _ in entries]),
        "heads": first.stack.heads,
        **at(first.tap, first.layer),
    }
