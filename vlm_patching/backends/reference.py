"""What all pairs together give, before any is swept: the noise's scale, means, vectors that steer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vlm_patching.backends.base import Backend
from vlm_patching.backends.cells import cells_of
from vlm_patching.backends.changes import key_of, vector_key
from vlm_patching.backends.interventions import filled
from vlm_patching.backends.plan import Job, Reference, Settings, noise_positions
from vlm_patching.backends.traces import at, trace
from vlm_patching.errors import SpecError
from vlm_patching.graph import (
    FILE,
    InterventionGraph,
    draws_of,
    main_edits,
    noise_of,
    parts,
)
from vlm_patching.inputs import EncodedPair
from vlm_patching.models import Tap

Pairs = Callable[[], Iterable[EncodedPair]]
"""Gives the encoded pairs, one after the other, as often as it is called."""


def reference(
    graph: InterventionGraph,
    backend: Backend,
    pairs: Pairs,
    known_std: float | None,
    candidates: tuple[tuple[int, ...], ...] = (),
) -> Reference:
    """What a graph needs to know of all pairs.

    Parameters
    ----------
    known_std
        The noise's standard deviation, where an earlier part of the same run has found it.
    """
    std = _noise_std(graph, backend, pairs) if known_std is None else known_std
    start = Reference(std, {}, candidates)
    return Reference(std, _vectors(graph, backend, pairs, start), candidates)


def _noise_std(graph: InterventionGraph, backend: Backend, pairs: Pairs) -> float:
    """The graph's noise in absolute units: given so, or in standard deviations of the clean values of all pairs."""
    noise, architecture = noise_of(graph), backend.description.architecture
    if noise is None or noise.std is None:
        return 0.0
    if not noise.relative:
        return noise.std
    if noise.at.site == "pixels":
        given = [pair.inputs["clean"]["pixel_values"] for pair in pairs()]
        return noise.std * float(torch.cat([pixels[filled(pixels)] for pixels in given]).double().std(correction=0))
    tap = architecture.tap(noise.at.site)
    wanted = (
        summary_program(
            Job(graph, architecture, pair, Reference(0.0, {})),
            {"clean": {"reference": (tap, 0)}},
            [{"name": "reference", "value": "reference", "positions": noise_positions(graph, architecture, pair)}],
        )
        for pair in pairs()
    )
    total, squares, count = backend.summaries(list(wanted))["reference"].sum(-1).tolist()
    return noise.std * float((squares / count - (total / count) ** 2) ** 0.5)


def summary_program(
    job: Job, reads: dict[str, dict[str, tuple[Tap, int]]], wanted: list[dict[str, Any]]
) -> dict[str, Any]:
    """A program of base runs alone, for `kernels.summarize`: run → key → where it is read, and what is summed up."""
    bases = []
    for name, places in reads.items():
        run = job.graph.run(name)
        draws = list(range(draws_of(job.graph))) if "draw" in run.over else [0]
        operations = [{"do": "read", "name": key, **at(tap, layer)} for key, (tap, layer) in places.items()]
        bases.append(trace(job.architecture, run, len(draws), operations, job.noise(run, draws), measured=False))
    return job.program([], Settings()) | {"bases": bases, "summaries": wanted}


def _vectors(graph: InterventionGraph, backend: Backend, pairs: Pairs, start: Reference) -> dict[str, torch.Tensor]:
    """Means over all pairs and positions of a selector, their differences, and vectors out of files."""
    edits = [edit for edit in main_edits(graph.swept) if edit.kind in ("mean", "add")]
    if not edits:
        return {}
    source, architecture = str(edits[0].source), backend.description.architecture
    jobs = (Job(graph, architecture, pair, start) for pair in pairs())
    if source.startswith(FILE):
        return _file_vectors(source, backend, next(jobs))
    runs = source.split(" - ")
    places: dict[tuple[Any, Tap, int], None] = {}
    wanted = []
    for job in jobs:
        here = _places(job)
        places |= dict.fromkeys(here)
        wanted.append(_summing(job, runs, here))
    found = backend.summaries(wanted)
    mean = {name: (total / count).float()[None, None] for name, (total, _, count) in found.items()}
    vectors = {}
    for place in places:
        first, *others = (mean[vector_key(run, *place)] for run in runs)
        vectors[vector_key(source, *place)] = first - others[0] if others else first
    return vectors


def _places(job: Job) -> dict[tuple[Any, Tap, int], tuple[str, list[int]]]:
    """Selector, tap and layer of everything a sweep edits in one example → the stack, and the selector's positions."""
    places: dict[tuple[Any, Tap, int], tuple[str, list[int]]] = {}
    for cell in cells_of(job.graph, job.architecture, job.pair):
        for site in parts(cell.site):
            (stack, component), tap = job.architecture.locate(site), job.architecture.tap(site)
            for layer in [layer for layer in cell.layers if stack.has(component, layer)]:
                _, indices = places.setdefault((cell.position.selector, tap, layer), (stack.name, []))
                indices += [i for i in cell.position.indices if i not in indices]
    return places


def _summing(
    job: Job, sources: Sequence[str], places: dict[tuple[Any, Tap, int], tuple[str, list[int]]]
) -> dict[str, Any]:
    """One pair's part in the means of what runs have read."""
    reads: dict[str, dict[str, tuple[Tap, int]]] = {}
    wanted = []
    for source in sources:
        run = job.graph.run(source.split(".")[0])
        for (selector, tap, layer), (stack, indices) in places.items():
            key = key_of(run.name, tap, layer)
            reads.setdefault(run.name, {})[key] = (tap, layer)
            positions = [i for i in job.pair.on(run.on, stack, indices) if i is not None]
            wanted.append({"name": vector_key(source, selector, tap, layer), "value": key, "positions": positions})
    return summary_program(job, reads, wanted)


def _file_vectors(source: str, backend: Backend, job: Job) -> dict[str, torch.Tensor]:
    """A file's vectors, one for every place that is edited; their widths are held against those of an example."""
    path = Path(source.removeprefix(FILE))
    tensors, places = read_vectors(path), _places(job)
    widths = backend.summaries([_summing(job, ["clean.z"], places)])
    vectors = {}
    for selector, tap, layer in places:
        name = "vector" if "vector" in tensors else str(layer)
        if name not in tensors:
            raise SpecError(f"steer.vector: {path} has none for layer {layer}; it has {', '.join(sorted(tensors))}.")
        width = widths[vector_key("clean.z", selector, tap, layer)].shape[-1]
        if len(tensors[name]) != width:
            raise SpecError(
                f"steer.vector: {name!r} of {path} has {len(tensors[name])} numbers, layer {layer} has {width}."
            )
        vectors[vector_key(source, selector, tap, layer)] = tensors[name].float()[None, None]
    return vectors


def read_vectors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; `SpecError` where it is none, or holds something other than vectors."""
    if not path.is_file():
        raise SpecError(f"steer.vector: file {path} does not exist; give a safetensors file, or 'difference'.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as error:
        raise SpecError(f"steer.vector: {path} is no safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dim() != 1 or not torch.isfinite(tensor).all():
            raise SpecError(
                f"steer.vector: tensor {name!r} of {path} has shape {list(tensor.shape)}; a vector of finite numbers "
                "is needed, called 'vector' or by the number of its layer."
            )
    if not tensors:
        raise SpecError(f"steer.vector: {path} holds no tensor.")
    return tensors
