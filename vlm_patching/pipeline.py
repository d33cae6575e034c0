"""Experiment → graph → program → backend → dataset: the whole way, one example after the other."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from tqdm import tqdm

from vlm_patching.backends.cells import Cell, cells_of
from vlm_patching.backends.local import execute
from vlm_patching.backends.plan import NAIVE, Job, Settings, rows_per_pass, settings_on
from vlm_patching.backends.reference import read_vectors, reference
from vlm_patching.errors import RunError, SpecError, unknown
from vlm_patching.experiment import Experiment
from vlm_patching.graph import SWEPT, InterventionGraph, sites_of, vector_file
from vlm_patching.graph.check import check_graph
from vlm_patching.graph.lower import lower
from vlm_patching.inputs import EncodedPair
from vlm_patching.models import Architecture, Model, ModelDescription, describe_model, load_model
from vlm_patching.pairs import Pair, load_pairs
from vlm_patching.preparation import Prepared, corrupted_pairs, prepare
from vlm_patching.results.checks import check_example
from vlm_patching.results.dataset import example_values, reason, template, unaffected
from vlm_patching.results.provenance import model_attributes, planned_attributes
from vlm_patching.results.store import MemoryStore, ZarrStore, check_same_weights

BACKENDS = ("local",)
ENGINES = ("fast", "naive")
SMALL_MODEL = 20_000_000
"""Parameters under which a second CPU thread costs more than it gives (measured 7 to 15 times on two cores)."""


def run(
    what: Experiment | InterventionGraph | str | Path,
    *,
    model: Model | str | None = None,
    inputs: Sequence[Pair] | None = None,
    backend: str = "local",
    store: str | Path | None = None,
    batch_rows: int | None = None,
    engine: str = "fast",
    checks: bool = True,
    progress: bool = True,
    threads: int | None = None,
) -> xr.Dataset:
    """Run an experiment, or a graph written by hand, and give back a labelled dataset.

    Everything that can be wrong with the spec, the pairs or the store is found before the model is loaded.

    Parameters
    ----------
    what
        An experiment, a preset's name, a YAML file, or a graph (which then needs `model` and `inputs`).
    model
        A loaded model or a model's name; the experiment's own where not given.
    inputs
        Pairs; the experiment's own where not given.
    backend
        `local`.
    store
        Zarr folder. A run that was cut off goes on where it stopped, and ends with the same numbers.
    batch_rows
        Cells a forward pass; from the size of the model where not given. Does not change the numbers.
    engine
        `fast`, or `naive`: one forward pass a cell and nothing reused, to compare with.
    checks
        Whether the first kept example's sweep is held against what must be true of it.
    progress
        Whether a progress bar shows examples, cells and time left.
    threads
        CPU threads of torch while it runs; where not given, one for models of less than 20 million parameters, torch's
        own choice for others.

    Returns
    -------
    xarray.Dataset
        Dimensions example, site, layer, head, position, draw, as far as the sweep has them; for a metric m the
        variables m (patched), m_clean, m_corrupted. See `vlm_patching.results.dataset`.

    Raises
    ------
    SpecError
        Something that was asked for cannot work.
    RunError
        The run failed on its way; what is done is in the store.
    CheckError
        A trust check failed.

    Examples
    --------
    >>> ds = run("palit2023", store="palit2023.zarr")  # doctest: +SKIP
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    for name, number in (("batch_rows", batch_rows), ("threads", threads)):
        if number is not None and number < 1:
            raise SpecError(f"{name} must be at least 1, not {number}.")
    if isinstance(what, str | Path):
        what = Experiment.from_spec(what)
    if not isinstance(what, Experiment | InterventionGraph):
        raise SpecError(f"run takes an Experiment, a graph, a preset's name or a YAML file, not {type(what).__name__}.")
    check_inputs(inputs)
    experiment = what if isinstance(what, Experiment) else None
    if experiment is None and (model is None or inputs is None):
        raise SpecError("A graph says neither its model nor its pairs: give run(graph, model=..., inputs=pairs).")
    description = described(experiment, model)
    if isinstance(what, Experiment):
        graph = lower(what, description.architecture)
    else:
        graph = what
        check_graph(graph, description.architecture)
    pairs = list(inputs) if inputs is not None else pairs_of(experiment)
    if experiment:
        pairs = corrupted_pairs(pairs, experiment.corruption, description, experiment.seed)
    prepared = prepare(graph, description, pairs)
    vectors = vector_file(graph)
    if vectors is not None:
        read_vectors(Path(vectors))
    blank = template(graph, description.architecture, prepared.encoded)
    blank.attrs = planned_attributes(experiment, graph, description, pairs)
    results = ZarrStore(store, blank) if store is not None else MemoryStore(blank)
    model = loaded(model, description, experiment)
    if store is not None:
        check_same_weights(store, results.attributes, model.digest)
    if all(results.done()) and "examples_kept" in results.attributes:
        return results.load()
    results.annotate(model_attributes(model, backend))
    with one_thread_if_small(threads, model):
        settings = NAIVE if engine == "naive" else settings_on(model.device, batch_rows)
        _sweep(prepared, model, blank, results, settings, checks, progress)
    return results.load()


def check_inputs(inputs: Sequence[Pair] | None) -> None:
    """Refuse inputs that are no pairs."""
    if inputs is not None and not all(isinstance(pair, Pair) for pair in inputs):
        raise SpecError("inputs must be pairs, as vp.load_pairs gives them.")


def described(experiment: Experiment | None, model: Model | str | None) -> ModelDescription:
    """The model that is given, or the experiment's own, without weights."""
    if isinstance(model, Model):
        return model.description
    if isinstance(model, str):
        return describe_model(model)
    assert experiment is not None
    return describe_model(experiment.model.name, experiment.model.revision)


def loaded(model: Model | str | None, description: ModelDescription, experiment: Experiment | None) -> Model:
    """The model that is given, or the one described, loaded as the experiment says."""
    if isinstance(model, Model):
        return model
    spec = experiment.model if experiment else None
    return load_model(
        description, dtype=spec.dtype if spec else "float32", device_map=spec.device_map if spec else None
    )


def pairs_of(experiment: Experiment | None) -> list[Pair]:
    """The experiment's own pairs."""
    assert experiment is not None
    spec = experiment.pairs
    return load_pairs(spec.dataset, n=spec.n, seed=spec.seed, **spec.options())


def _sweep(
    prepared: Prepared,
    model: Model,
    blank: xr.Dataset,
    results: MemoryStore | ZarrStore,
    settings: Settings,
    checks: bool,
    progress: bool,
) -> None:
    graph, encoded, start = prepared.graph, prepared.encoded, time.monotonic()
    architecture, decode = model.description.architecture, model.description.processor.tokenizer.convert_ids_to_tokens
    attributes = results.attributes
    known_std = float(str(attributes["noise_std"])) if "noise_std" in attributes else None
    shared = reference(graph, model, prepared.encode_all, known_std, prepared.candidates())
    if shared.noise_std:
        results.annotate({"noise_std": shared.noise_std})
    todo = [i for i, done in enumerate(results.done()) if not done]
    unchecked = checks and "checks" not in attributes
    total = sum(len(cells_of(graph, architecture, encoded[i])) for i in todo)
    results.annotate({"plan": json.dumps(_plan(graph, architecture, encoded, settings))})
    spent = float(attributes.get("wall_seconds", 0.0))
    every = 0.1 if sys.stderr.isatty() else 10  # a log wants a line now and then
    with tqdm(total=total, unit="cell", desc=graph.name, disable=not progress, mininterval=every) as bar:
        for count, i in enumerate(todo, start=1):
            bar.set_postfix_str(f"example {count}/{len(todo)}", refresh=False)
            job = Job(graph, architecture, prepared.encode(i), shared)
            cells = cells_of(graph, architecture, job.pair)
            found, settings = _found(model, job, cells, settings)
            if unchecked and found["kept"]:
                results.annotate({"checks": json.dumps(check_example(model, job, cells, found))})
                unchecked = False
            verified = _verified(model, job, cells, found, settings) if graph.verify and found["kept"] else None
            values = example_values(blank, graph, cells, found, decode, verified)
            results.write(i, values, reason(graph, job.pair, found, decode))
            results.annotate({"wall_seconds": round(spent + time.monotonic() - start, 3)})
            bar.update(len(cells))
    done = results.load()
    kept = int((done["kept"] == "kept").sum())
    counts = {"examples": len(prepared.pairs), "examples_kept": kept, "examples_unaffected": unaffected(done)}
    results.annotate(counts)


def _found(model: Model, job: Job, cells: Sequence[Cell], settings: Settings) -> tuple[dict[str, Any], Settings]:
    """One example's results; where memory does not suffice, the cells that are left have passes of half the size."""
    left, parts = torch.arange(len(cells)), []
    while True:
        why = None
        try:
            found = execute(model, [job.program([cells[i] for i in left.tolist()], settings)])[0]
            unfinished = found.pop("unfinished", left[:0])
            finished = torch.ones(len(left), dtype=torch.bool).index_fill(0, unfinished, False)
            parts.append((left[finished], found))
            left = left[unfinished]
        except torch.OutOfMemoryError as error:
            why = error
        if why is None and not len(left):
            return merged(parts, f"{job.graph.swept.name}."), settings
        smaller = job.halved(settings)
        if smaller == settings:
            raise RunError(
                f"Memory does not suffice for pair {job.pair.pair.id!r}, even with passes of one cell: "
                f"{why or 'the device ran out of it'}"
            ) from why
        settings = smaller


def merged(parts: Sequence[tuple[torch.Tensor, dict[str, Any]]], swept: str) -> dict[str, Any]:
    """Results of one example whose cells (their numbers come first) were run in parts."""
    if len(parts) == 1:
        return parts[0][1]
    order, first = torch.cat([numbers for numbers, _ in parts]).argsort(), parts[0][1]
    together = {name: torch.cat([found[name] for _, found in parts])[order] for name in first if name.startswith(swept)}
    return first | together


def _verified(
    model: Model, job: Job, cells: Sequence[Cell], found: dict[str, Any], settings: Settings
) -> tuple[list[Cell], dict[str, Any]]:
    """The cells whose estimated effect is strongest (on the graph's first metric), and what running them gives."""
    metric, base = job.graph.metrics[0], job.graph.base
    starts = found[f"{base}.{metric}"]
    draws = torch.tensor([cell.draw if len(starts) > 1 else 0 for cell in cells])
    effects = (found[f"{job.graph.swept.name}.{metric}"] - starts[draws]).abs()
    strongest = [cells[i] for i in effects.argsort(descending=True)[: job.graph.verify].tolist()]
    program = job.program(strongest, settings, exact=True) | {"keep": "all"}
    return strongest, execute(model, [program])[0]


def _plan(
    graph: InterventionGraph, architecture: Architecture, encoded: Sequence[EncodedPair], settings: Settings
) -> dict[str, int]:
    """Sums over all pairs, were each of them kept: cells, forward passes with rows as cells, and one a cell."""
    cells = [len(cells_of(graph, architecture, pair)) for pair in encoded]
    rows = [rows_per_pass(architecture, pair, settings) for pair in encoded]
    swept = sum(run.name in SWEPT for run in graph.runs)
    bases = len(graph.runs) - swept
    passes = sum(bases + swept * math.ceil(count / size) for count, size in zip(cells, rows, strict=True))
    if graph.method in ("lens", "attention"):
        passes = sum(bases + len(sites_of(graph)) for _ in encoded)
    return {
        "cells": sum(cells),
        "forward_passes": passes,
        "naive_forward_passes": swept * sum(cells) + bases * len(encoded),
    }


@contextlib.contextmanager
def one_thread_if_small(wanted: int | None, model: Model) -> Iterator[None]:
    """Torch's CPU threads while a model runs: as asked for, else one for a model too small to gain from more."""
    before = torch.get_num_threads()
    small = sum(parameter.numel() for parameter in model.envoy._module.parameters()) < SMALL_MODEL
    torch.set_num_threads(wanted or (1 if small else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
