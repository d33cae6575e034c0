"""What a run will cost, before anything runs: forward passes, layers × positions, bytes, against one pass a cell."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlm_patching.backends.cells import cells_of
from vlm_patching.backends.joining import companies, passes_of
from vlm_patching.backends.local import LocalBackend
from vlm_patching.backends.plan import NAIVE, Job, Reference, Settings, groups_of, rows_per_pass, settings_on
from vlm_patching.experiment import Experiment
from vlm_patching.graph.lower import lower
from vlm_patching.inputs import EncodedPair
from vlm_patching.models import IMAGE_STACKS, Architecture, Model
from vlm_patching.pairs import Pair
from vlm_patching.pipeline import check_inputs, described, pairs_of
from vlm_patching.preparation import Prepared, corrupted_pairs, prepare


@dataclass(frozen=True)
class Cost:
    """Sums over forward passes.

    Attributes
    ----------
    forward_passes
        How often the model is called.
    token_layers
        Rows × positions × layers that are computed, over all stacks.
    """

    forward_passes: int = 0
    token_layers: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward_passes + other.forward_passes, self.token_layers + other.token_layers)

    def times(self, count: int) -> Cost:
        return Cost(self.forward_passes * count, self.token_layers * count)


@dataclass(frozen=True)
class Plan:
    """The cost of an experiment, were every pair kept.

    Attributes
    ----------
    pairs, cells
        How many.
    engine, naive
        What runs, and what one forward pass a cell would run.
    largest_rows, largest_bytes
        Of one pass: its rows (or query positions), and about what its widest activations take.
    reuses
        What swept runs take over from their base runs.
    seconds
        About how long, where it was calibrated.
    """

    name: str
    model: str
    pairs: int
    cells: int
    engine: Cost
    naive: Cost
    largest_rows: int
    largest_bytes: int
    reuses: tuple[str, ...]
    seconds: float | None = None

    @property
    def ratio(self) -> float:
        """Naive over engine, in token-layers."""
        return self.naive.token_layers / max(1, self.engine.token_layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        costs = {
            name: {"forward_passes": c.forward_passes, "token_layers": c.token_layers} for name, c in self._costs()
        }
        fields = ("name", "model", "pairs", "cells", "largest_rows", "largest_bytes", "seconds")
        return (
            {name: getattr(self, name) for name in fields} | costs | {"reuses": list(self.reuses), "ratio": self.ratio}
        )

    def _costs(self) -> tuple[tuple[str, Cost], ...]:
        return ("engine", self.engine), ("naive", self.naive)

    def __str__(self) -> str:
        lines = [f'Plan "{self.name}" on {self.model}', f"  {self.pairs} pairs, {self.cells:,} cells"]
        for name, cost in self._costs():
            lines.append(f"  {name:<7} {cost.forward_passes:>12,} forward passes {cost.token_layers:>18,} token-layers")
        lines.append(f"  {self.ratio:.1f} times less arithmetic; reuses: {', '.join(self.reuses) or 'nothing'}")
        lines.append(f"  largest pass: {self.largest_rows:,} rows or queries, about {_bytes(self.largest_bytes)}")
        if self.seconds is not None:
            lines.append(f"  about {self.seconds:.1f} s here")
        return "\n".join(lines)


def plan(
    what: Experiment | str | Path,
    *,
    model: Model | str | None = None,
    inputs: Sequence[Pair] | None = None,
    batch_rows: int | None = None,
    threads: int | None = None,
) -> Plan:
    """What an experiment will cost. Needs the model's configuration, not its weights.

    Parameters
    ----------
    what
        An experiment, a preset's name or a YAML file.
    model
        A model's name; or a loaded model, and then the passes of a few pairs are run to forecast the time.
    inputs, batch_rows, threads
        As `vp.run` takes them.

    Returns
    -------
    Plan
        ``print(plan)`` fits a screen.

    Examples
    --------
    >>> print(plan("notice2024_llava_heads"))  # doctest: +SKIP
    """
    experiment = what if isinstance(what, Experiment) else Experiment.from_spec(what)
    check_inputs(inputs)
    description = described(experiment, model)
    graph = lower(experiment, description.architecture)
    pairs = pairs_of(experiment, inputs)
    pairs = corrupted_pairs(pairs, experiment.corruption, description, experiment.seed)
    prepared = prepare(graph, description, pairs)
    settings = settings_on(model.device if isinstance(model, Model) else torch.device("cpu"), batch_rows)
    groups = groups_of(graph, description.architecture, prepared.encoded, settings)
    engine, naive, cells = Cost(), Cost(), 0
    programs: dict[int, dict[str, Any]] = {}
    for members in _alike(prepared):
        job = _job(prepared, members[0])
        swept = cells_of(graph, description.architecture, job.pair)
        program = job.program(swept, settings)
        programs |= dict.fromkeys(members, _without_inputs(program))
        engine += _cost(description.architecture, job, program).times(len(members))
        naive += _naive(description.architecture, job, swept).times(len(members))
        cells += len(swept) * len(members)
    passes, largest = 0, (0, 0)
    for group in groups:
        count, rows = _passes([programs[number] for number in group])
        passes += count
        largest = max(largest, (rows, _bytes_of(description.architecture, prepared.encoded[group[0]], rows, settings)))
    seconds = None
    if isinstance(model, Model):
        backend, timed = LocalBackend(model), groups[:: math.ceil(len(groups) / 3)]
        with backend.running(threads):
            seconds = sum(_seconds(prepared, group, backend, settings) for group in timed)
        seconds *= len(prepared.pairs) / sum(map(len, timed))
    return Plan(
        experiment.name,
        description.name,
        len(prepared.pairs),
        cells,
        replace(engine, forward_passes=passes),
        naive,
        *largest,
        _reuses(description.architecture, settings, groups),
        seconds,
    )


def _job(prepared: Prepared, number: int) -> Job:
    return Job(
        prepared.graph, prepared.description.architecture, prepared.encode(number), Reference(1.0, {}, ((0,), (1,)))
    )


def _alike(prepared: Prepared) -> list[list[int]]:
    """Pairs whose sweeps have the same shape together: as many positions of every kind in every stack."""
    groups: dict[Any, list[int]] = {}
    for number, pair in enumerate(prepared.encoded):
        shape = tuple(
            (name, len(stack.positions), tuple(stack.groups.items())) for name, stack in pair.positions.items()
        )
        groups.setdefault(shape, []).append(number)
    return list(groups.values())


def _without_inputs(program: Mapping[str, Any]) -> dict[str, Any]:
    """A program whose inputs have shapes alone, to save memory."""
    inputs = {
        kind: {name: tensor.to("meta") for name, tensor in tensors.items()}
        for kind, tensors in program["inputs"].items()
    }
    return {**program, "inputs": inputs}


def _passes(programs: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Forward passes of examples that are run together; and the rows (or query positions) of the largest swept one."""
    count = largest = 0
    for company in companies(programs):
        members = [programs[number] for number in company]
        swept = [
            sum(_rows(trace) for trace in traces)
            for parts in passes_of(members, range(len(members)))
            for traces in zip(*[step for _, step in parts], strict=True)
            if "fill" not in traces[0]
        ]
        count += (len(members[0]["bases"]) + len(swept)) * len(members[0]["forced"])
        largest = max([largest, *swept])
    return count, largest


def _rows(trace: Mapping[str, Any]) -> int:
    rows: int = len(trace["pack"]["positions"]) if "pack" in trace else trace["rows"]
    return rows


def _naive(architecture: Architecture, job: Job, cells: Sequence[Any]) -> Cost:
    """One full forward pass for every cell (of a swept run that estimates: as many as cells), beside the base runs."""
    bases = job.program([], NAIVE)["bases"]
    whole = sum((_cost_of(architecture, job, trace) for trace in bases), Cost())
    row = Cost(1, sum(stack.layers * len(job.pair.positions[stack.name].positions) for stack in architecture.stacks))
    return whole + row.times(len(cells))


def _cost(architecture: Architecture, job: Job, program: Mapping[str, Any]) -> Cost:
    times = len(program["forced"])
    traces = [*program["bases"], *program["sweeps"]]
    return sum((_cost_of(architecture, job, trace) for trace in traces if "fill" not in trace), Cost()).times(times)


def _cost_of(architecture: Architecture, job: Job, trace: Mapping[str, Any]) -> Cost:
    skipped = {operation["path"] for operation in trace["operations"] if operation["do"] == "skip"}
    if "pack" in trace:
        stack = architecture.stack(architecture.packs)
        layers = _layers_run(architecture, stack.name, skipped)
        return Cost(1, trace["rows"] * len(trace["pack"]["positions"]) * layers)
    total = 0
    for stack in architecture.stacks:
        passed = stack.name in IMAGE_STACKS and trace["reuses_image"]
        if passed or (stack.whole is not None and stack.whole.path in skipped):
            continue
        positions = len(job.pair.positions[stack.name].positions)
        total += trace["rows"] * positions * _layers_run(architecture, stack.name, skipped)
    return Cost(1, total)


def _layers_run(architecture: Architecture, name: str, skipped: Iterable[str]) -> int:
    stack = architecture.stack(name)
    path = stack.taps["resid_post"].path
    return sum(path.format(layer=layer) not in set(skipped) for layer in range(stack.layers))


def _bytes_of(architecture: Architecture, pair: EncodedPair, rows: int, settings: Settings) -> int:
    """About what the widest activations of a pass take."""
    share = rows_per_pass(architecture, pair, replace(settings, rows=None))
    return math.ceil(settings.budget * rows / max(share, rows))


def _seconds(prepared: Prepared, group: Sequence[int], backend: LocalBackend, settings: Settings) -> float:
    programs = []
    for number in group:
        job = _job(prepared, number)
        cells = cells_of(job.graph, job.architecture, job.pair)
        programs.append(job.program(cells, settings) | {"keep": "all"})
    traces = [trace for program in programs for trace in program["sweeps"]]
    if any(key.startswith("vector:") for trace in traces for key in trace.get("needs", {})):
        return float("nan")  # means over all pairs would have to be taken first
    start = time.perf_counter()
    backend.execute(programs)
    return time.perf_counter() - start


def _reuses(architecture: Architecture, settings: Settings, groups: Sequence[Sequence[int]]) -> tuple[str, ...]:
    found = {
        "images": settings.reuse_image,
        "lower layers": settings.layers,
        "cross-attention keys and values": settings.cross_keys
        and any(stack.image_keys for stack in architecture.stacks),
        "cross-attention of rows as one": settings.cross_keys
        and settings.fold
        and any(attention.folds for stack in architecture.stacks for attention in stack.attentions.values()),
        "key-value prefix": settings.pack and bool(architecture.packs),
        "cells without effect": settings.cone,
        "passes of several pairs": any(len(group) > 1 for group in groups),
    }
    return tuple(name for name, used in found.items() if used)


def _bytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
