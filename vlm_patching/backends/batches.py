"""Cells → forward passes of swept runs: which cells share one, what of the base run it starts from, and its operations.

Two ways. *Rows*: every cell is a row of one batch. *Packed*, in a causal decoder: every cell is a stretch of query
positions of one sequence, from the first position it edits on; all share the base run's keys and values of the
positions before, which are never copied, and see themselves alone, by a mask. Layers under the lowest edited one are
skipped with the base run's hidden states, either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from vlm_patching.backends.cells import Cell
from vlm_patching.backends.changes import Change, changes_of, key_of, received_at
from vlm_patching.backends.operations import Needs, Planned, Spot, changed, held, reads
from vlm_patching.backends.traces import at, trace
from vlm_patching.graph import SWEPT, Run, row_of
from vlm_patching.models import IMAGE_STACKS, Stack, Tap

if TYPE_CHECKING:
    from vlm_patching.backends.plan import Job, Settings

FEW_ROWS, FEW_POSITIONS = 16, 256
"""A pass of fewer rows, and fewer positions in all of them, costs hardly less than one of as many, so layers are put
together."""
AFTER_ATTENTION = ("attn_context", "attn_out", "mlp_neuron", "mlp_out", "resid_post")


def exact_traces(job: Job, cells: Sequence[Cell], settings: Settings) -> list[dict[str, Any]]:
    """Every forward pass of a sweep whose cells are run."""
    runs = [run for run in job.graph.runs if run.name in SWEPT]
    planned = [_planned(job, runs, number, cell) for number, cell in enumerate(cells)]
    idle = [item for item in planned if settings.cone and _reaches_nothing(job, item)]
    packed = [item for item in planned if settings.pack and _can_be_packed(job, item)]
    done = {item.number for item in idle}
    traces = [_filled(job, run, idle) for run in runs if idle]
    for batch in _packed_batches(job, [item for item in packed if item.number not in done], runs[0].name, settings):
        traces += [_packed(job, runs, run, batch, settings) for run in runs]
    done |= {item.number for item in packed}
    for items in _row_batches([item for item in planned if item.number not in done], runs[0].name, job, settings):
        traces += [_rows(job, run, items, settings) for run in runs]
    return traces


def _can_be_packed(job: Job, item: Planned) -> bool:
    """Whether a cell's runs can go on from their base run's keys and values."""
    architecture = job.architecture
    if item.stacks != {architecture.packs}:
        return False
    if architecture.packs_up_to is not None and job.length + job.given > architecture.packs_up_to:
        return False
    return not architecture.packs_text or min(item.start.values()) > job.last_image


def _planned(job: Job, runs: Sequence[Run], number: int, cell: Cell) -> Planned:
    """Where a cell's sweep has to start. A layer whose output alone is edited need not run itself."""
    architecture, changes, first, start = job.architecture, {}, {}, {}
    stacks: set[str] = set()
    for run in runs:
        changes[run.name] = changes_of(job.graph, architecture, job.pair, run, cell)
        layers: list[tuple[int, int]] = []
        positions: list[int] = []
        for change in changes[run.name]:
            is_output = change.tap == change.stack.taps.get("resid_post")
            layers.append((architecture.ordinal(change.stack.name), change.layer + is_output))
            positions += change.positions
            stacks.add(change.stack.name)
        for read in run.reads:
            positions += received_at(job.graph, architecture, job.pair, read.at)
            name = architecture.locate(read.at.site)[0].name
            stacks.add(name)
            layers.append((architecture.ordinal(name), int(str(read.at.layer))))
        last = architecture.stacks[-1]
        first[run.name] = min(layers, default=(architecture.ordinal(last.name), last.layers))
        start[run.name] = min(positions, default=job.length - 1)
    return Planned(number, cell, changes, first, start, frozenset(stacks or {architecture.stacks[-1].name}))


def _reaches_nothing(job: Job, item: Planned) -> bool:
    """Whether nothing that a cell changes is ever read, or it is put in as it is.

    Not read is what is behind the last attention, at positions that are not read out; as it is already is, in a causal
    decoder, what stands before anything in which the two runs differ. Of a path, what reaches the receiver is read as
    well, so its cells are always run.
    """
    if job.graph.method == "path":
        return False
    changes = [change for of_run in item.changes.values() for change in of_run]
    return all(_is_unread(job, change) or _is_the_same(job, change) for change in changes)


def _is_the_same(job: Job, change: Change) -> bool:
    run = str(change.source).split(".")[0]
    if change.stack.name != job.architecture.packs or change.kind != "replace" or run not in ("clean", "corrupted"):
        return False
    return max((*change.positions, *change.source_positions), default=0) < job.first_difference


def _is_unread(job: Job, change: Change) -> bool:
    stack, positions = change.stack, change.positions
    if stack.name == "vision":
        return change.layer > stack.last_layer
    late = change.kind == "block" or change.tap in [stack.taps.get(name) for name in AFTER_ATTENTION]
    in_last = stack.name == job.architecture.packs and change.layer == stack.layers - 1
    return in_last and late and max(positions, default=0) < job.length - 1


def _filled(job: Job, run: Run, items: Sequence[Planned]) -> dict[str, Any]:
    """Cells that are what the base run is."""
    base = job.graph.run(job.graph.base)
    rows = [row_of(base, item.cell.draw) for item in items]
    cells = torch.tensor([item.number for item in items])
    known = {"run": run.name, "fill": base.name, "base_rows": torch.tensor(rows), "cells": cells}
    return known | {"measured": run.name != "sender", "needs": {}, "reuses_image": False}


def _row_batches(items: Sequence[Planned], run: str, job: Job, settings: Settings) -> Iterator[list[Planned]]:
    """Cells that start at one layer together, or at several where those of one are few, as many as fit."""
    of_image = any(item.stacks & {*IMAGE_STACKS} for item in items)
    rows = job.rows_per_pass(settings, of_image)
    few = min(rows, FEW_ROWS, 1 + FEW_POSITIONS // job.positions_per_row(of_image))
    together: dict[Any, list[Planned]] = {}
    for item in sorted(items, key=lambda item: item.first[run]) if settings.layers else items:
        together.setdefault(item.first[run] if settings.layers else None, []).append(item)
    batch: list[Planned] = []
    for members in together.values():
        batch += members
        while len(batch) >= few:
            yield batch[:rows]
            batch = batch[rows:]
    if batch:
        yield batch


def _rows(job: Job, run: Run, items: Sequence[Planned], settings: Settings) -> dict[str, Any]:
    """One forward pass whose rows are cells."""
    needs: Needs = {}
    base = job.graph.run(job.graph.base)
    items = sorted(items, key=lambda item: row_of(base, item.cell.draw))
    spots = {item.number: Spot(row) for row, item in enumerate(items)}
    of_image = any(item.stacks & {*IMAGE_STACKS} for item in items)
    first = min(item.first[run.name] for item in items) if settings.layers else (0, 0)
    draws = [item.cell.draw for item in items]
    index = torch.tensor([row_of(base, draw) for draw in draws])
    operations = changed(items, run, spots, spots, needs) + reads(job, run)
    operations += held(job, run, needs, first, index, None)
    keeps: dict[str, Tap] = {}
    changed_at = {operation["path"] for operation in operations if operation["do"] != "read"}
    skipped, passed = _passed(job, first, index, changed_at, needs, keeps, settings, of_image)
    reuses = settings.reuse_image and job.has_image and not of_image
    noise = job.noise(run, draws)
    if noise is not None and noise["site"] == "token_embeds" and passed:
        noise = None  # the encoder that it would go into is passed over
    return trace(
        job.architecture,
        run,
        len(items),
        [*operations, *skipped, *(job.skipped_image(draws) if reuses else [])],
        noise,
        reuses_image=reuses,
        measured=run.name != "sender",
        needs=needs,
        most=job.rows_per_pass(settings, of_image),
        keeps=keeps,
        cells=torch.tensor([item.number for item in items]),
    )


def _passed(
    job: Job,
    first: tuple[int, int],
    index: torch.Tensor,
    changed_at: Set[str],
    needs: Needs,
    keeps: dict[str, Tap],
    settings: Settings,
    of_image: bool,
) -> tuple[list[dict[str, Any]], bool]:
    """What need not run again before the first change, row by base row; and whether the text encoder is among it.

    Rows that cross-attend to the same keys and values do so as query positions of one row. Modules that are
    `changed_at`, or behind a layer that is, are run as they are.
    """
    architecture, base = job.architecture, job.graph.base
    operations: list[dict[str, Any]] = []
    encoder_passed = False
    ordinal, layer = first

    def skip(tap: Tap, at_layer: int, source_layer: int, rows: torch.Tensor = index) -> None:
        key = key_of(base, tap, source_layer)
        needs[key] = (tap, source_layer)
        operations.append({"do": "skip", "name": key, "index": rows, **at(tap, at_layer)})

    for stack in architecture.stacks if settings.layers else ():
        here = architecture.ordinal(stack.name)
        if here < ordinal and stack.whole is not None:
            whole = {"do": "skip", "name": f"{base}.{stack.whole.path}", "index": index, **at(stack.whole)}
            keeps[f"{base}.{stack.whole.path}"] = stack.whole
            operations.append(whole)
            encoder_passed = True
            continue
        start = layer if here == ordinal else stack.layers if here < ordinal and of_image else 0
        start = start if stack.skips else 0
        below = [number for number in range(start) if stack.has("resid_post", number)]
        for number in below:
            skip(stack.taps["resid_post"], number, below[-1])
        inner = _self_attention(stack, layer) if here == ordinal and stack.skips else None
        around = {stack.taps["resid_post"].path.format(layer=number) for number in (layer - 1, layer)}
        if inner is not None and not changed_at & {inner.path, *around}:
            keeps[f"{base}.{inner.path}"] = inner
            operations.append({"do": "skip", "name": f"{base}.{inner.path}", "index": index, **at(inner)})
        crossed = stack.attentions.get("cross_attn_pattern")
        if crossed is None or not settings.cross_keys:
            continue
        if ordinal <= architecture.ordinal("image_embeds" if crossed.keys in IMAGE_STACKS else crossed.keys):
            continue  # what the keys and values are made of changes
        for number in [n for n in range(start, stack.layers) if stack.has("cross_attn_pattern", n)]:
            folds = crossed.folds and settings.fold and crossed.path.format(layer=number) not in changed_at
            rows = _folded(index) if folds else None
            for path in stack.image_keys:
                skip(Tap(path, "output"), number, number, index if rows is None else rows)
            if rows is not None:
                known = {"keys": crossed.source, "groups": len(rows), "rows": len(index)}
                ends: tuple[tuple[str, Literal["input", "output"]], ...] = (("fold", "input"), ("unfold", "output"))
                for do, end in ends:
                    operations.append({"do": do, **known, **at(Tap(crossed.path, end), number)})
    return operations, encoder_passed


def _self_attention(stack: Stack, layer: int) -> Tap | None:
    """The module that makes a layer's context vectors, and nothing after them; None where there is none."""
    attention = stack.attentions.get("attn_pattern")
    if attention is None or layer >= stack.layers or not stack.has("attn_pattern", layer):
        return None
    if stack.taps["attn_context"].path.startswith(f"{attention.path}."):
        return None  # it goes on to the output projection
    return Tap(attention.path.format(layer=layer), "output")


def _folded(index: torch.Tensor) -> torch.Tensor | None:
    """The base rows that rows have, each once; None where they do not come in runs of one length."""
    rows, counts = index.unique_consecutive(return_counts=True)
    return rows if len(rows) < len(index) and len(counts.unique()) == 1 else None


def _packed_batches(
    job: Job, items: Sequence[Planned], run: str, settings: Settings
) -> Iterator[list[list[tuple[int, Planned]]]]:
    """Columns (a cell in every row of the base run that it is in), as many as fit, from low layers to high."""
    base = job.graph.run(job.graph.base)
    columns: dict[Any, list[tuple[int, Planned]]] = {}
    for item in items:
        row = row_of(base, item.cell.draw)
        columns.setdefault(replace(item.cell, draw=0) if "draw" in base.over else item.number, []).append((row, item))
    batch: list[list[tuple[int, Planned]]] = []
    tokens = 0
    for column in sorted(columns.values(), key=lambda c: (c[0][1].first[run], c[0][1].start[run])):
        length = job.length + job.given - column[0][1].start[run]
        if batch and tokens + length > settings.tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(column)
        tokens += length
    if batch:
        yield batch


def _packed(
    job: Job, runs: Sequence[Run], run: Run, columns: Sequence[Sequence[tuple[int, Planned]]], settings: Settings
) -> dict[str, Any]:
    """One forward pass whose query positions are cells, over the base run's keys and values."""
    stack = job.architecture.stack(job.architecture.packs)
    base, needs = job.graph.run(job.graph.base), Needs()
    spots, positions, starts, ends = _layout(job, run, columns)
    sender = _layout(job, runs[0], columns)[0] if runs[0].name == "sender" else spots
    items = [item for column in columns for _, item in column]
    layer = min(item.first[run.name][1] for item in items)
    rows = job.draws if "draw" in base.over else 1
    index, where = torch.arange(rows), torch.tensor(positions)
    operations = changed(items, run, spots, sender, needs) + reads(job, run)
    operations += held(job, run, needs, (job.architecture.ordinal(stack.name), layer), index, where)
    operations += _entered(base, stack, layer, index, where, needs)
    image = job.skipped_image(range(rows)) if job.architecture.needs else []
    order = [(spots[item.number].row, number) for number, column in enumerate(columns) for _, item in column]
    pack: dict[str, Any] = {
        "cache": f"{base.name}.cache",
        "prefix": max(starts),
        "starts": torch.tensor([starts[i] for i, (a, b) in enumerate(ends) for _ in range(b - a)]),
        "cells": torch.tensor([i for i, (a, b) in enumerate(ends) for _ in range(b - a)]),
        "positions": where,
        "ahead": job.pair.ahead,
        "ends": torch.tensor([b - 1 - job.given + i for _, b in ends for i in range(1 + job.given)]),
        "at_rows": torch.tensor([row for row, _ in order]),
        "at_columns": torch.tensor([number for _, number in order]),
        "needs": job.architecture.needs,
        "per_token": job.architecture.packs_rows,
        "apart": [n for n in range(stack.layers) if not stack.has("attn_context", n)],
    }
    if job.architecture.rotary:
        pack["rotary"] = f"{base.name}.rotary"
    return trace(
        job.architecture,
        run,
        rows,
        [*operations, *image],
        reuses_image=bool(image),
        measured=run.name != "sender",
        needs=needs,
        most=settings.tokens // len(positions),
        cells=torch.tensor([item.number for item in items]),
        pack=pack,
    )


def _layout(
    job: Job, run: Run, columns: Sequence[Sequence[tuple[int, Planned]]]
) -> tuple[dict[int, Spot], list[int], list[int], list[tuple[int, int]]]:
    """Cell's number → its spot; every query's position; every column's first position, and its range of queries."""
    starts = [column[0][1].start[run.name] for column in columns]
    spots: dict[int, Spot] = {}
    positions: list[int] = []
    ends = []
    for column, start in zip(columns, starts, strict=True):
        offset = len(positions)
        positions += range(start, job.length + job.given)
        ends.append((offset, len(positions)))
        spots |= {item.number: Spot(row, start, offset, max(starts)) for row, item in column}
    return spots, positions, starts, ends


def _entered(
    base: Run, stack: Stack, layer: int, index: torch.Tensor, positions: torch.Tensor, needs: Needs
) -> list[dict[str, Any]]:
    """The base run's hidden states at the queries' positions, put in at a layer; the layers below are passed over."""
    shared = {"index": index, "positions": positions}
    below = [number for number in range(layer) if stack.has("resid_post", number)]
    if not below:
        tap = stack.taps["resid_pre"]
        key = key_of(base.name, tap, layer)
        needs[key] = (tap, layer)
        return [{"do": "hold", "source": key, **shared, **at(tap, layer)}]
    tap = stack.taps["resid_post"]
    key = key_of(base.name, tap, below[-1])
    needs[key] = (tap, below[-1])
    return [{"do": "skip", "name": key, **shared, **at(tap, number)} for number in below]
