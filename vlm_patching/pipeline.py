"""Experiment → graph → program → backend → dataset: the whole way, one example after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import xarray as xr

from vlm_patching.backends.base import Backend
from vlm_patching.backends.local import LocalBackend
from vlm_patching.backends.ndif import NdifBackend
from vlm_patching.backends.plan import NAIVE
from vlm_patching.backends.reference import read_vectors
from vlm_patching.backends.wire import Remote
from vlm_patching.errors import SpecError, unknown
from vlm_patching.experiment import Experiment
from vlm_patching.graph import InterventionGraph, vector_file
from vlm_patching.graph.check import check_graph
from vlm_patching.graph.lower import lower
from vlm_patching.models import Model, ModelDescription, describe_model, load_model
from vlm_patching.pairs import Pair, Pairs, load
from vlm_patching.preparation import corrupted_pairs, prepare
from vlm_patching.results.dataset import template
from vlm_patching.results.provenance import planned_attributes
from vlm_patching.results.store import MemoryStore, ZarrStore, check_same_model
from vlm_patching.sweep import sweep

BACKENDS = ("local", "ndif")
ENGINES = ("fast", "naive")


def run(
    what: Experiment | InterventionGraph | str | Path,
    *,
    model: Model | ModelDescription | str | None = None,
    inputs: Sequence[Pair] | None = None,
    backend: str = "local",
    host: str | None = None,
    remote: Remote | None = None,
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
        A loaded model, a described one, or a model's name; the experiment's own where not given.
    inputs
        Pairs; the experiment's own where not given.
    backend
        `local`, or `ndif`: a model that is deployed on an NDIF server, whose weights never come here.
    host
        Address of the NDIF server; NDIF_HOST of the environment, or the public one, where not given.
    remote
        Everything else about the server: how long to wait, how many jobs at a time.
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
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    place = where(backend, host, remote, batch_rows, threads)
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
    return execute(graph, experiment, description, model, inputs, place, store, engine, checks, progress)


@dataclass(frozen=True)
class Where:
    """On which backend something runs, and how; as `run` takes it."""

    backend: str
    remote: Remote
    batch_rows: int | None
    threads: int | None


def where(backend: str, host: str | None, remote: Remote | None, batch_rows: int | None, threads: int | None) -> Where:
    """What was asked for, if it can be had."""
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if backend == "local" and (host is not None or remote is not None):
        raise SpecError("host and remote are of the backend 'ndif'; this run is local.")
    remote = remote or Remote()
    for name, number in (("batch_rows", batch_rows), ("threads", threads)):
        if number is not None and number < 1:
            raise SpecError(f"{name} must be at least 1, not {number}.")
    return Where(backend, remote if host is None else replace(remote, host=host), batch_rows, threads)


def execute(
    graph: InterventionGraph,
    experiment: Experiment | None,
    description: ModelDescription,
    model: Model | ModelDescription | str | None,
    inputs: Sequence[Pair] | None,
    place: Where,
    store: str | Path | None,
    engine: str,
    checks: bool,
    progress: bool,
) -> xr.Dataset:
    """Run a graph that the model has been found to take."""
    pairs = pairs_of(experiment, inputs)
    if experiment:
        pairs = corrupted_pairs(pairs, experiment.corruption, description, experiment.seed)
    prepared = prepare(graph, description, pairs)
    vectors = vector_file(graph)
    if vectors is not None:
        read_vectors(Path(vectors))
    blank = template(graph, description.architecture, prepared.encoded)
    blank.attrs = planned_attributes(experiment, graph, description, prepared.pairs)
    results = ZarrStore(store, blank) if store is not None else MemoryStore(blank)
    finished = all(results.done()) and "examples_kept" in results.attributes
    if finished and place.backend != "local":
        return results.load()
    ready = _backend(place.backend, model, description, experiment, graph, results, place.remote)
    if store is not None:
        check_same_model(store, results.attributes, ready.attributes())
    if finished:
        return results.load()
    results.annotate(ready.attributes())
    with ready.running(place.threads):
        settings = NAIVE if engine == "naive" else ready.settings(place.batch_rows)
        return sweep(prepared, ready, blank, results, settings, checks, progress)


def _backend(
    name: str,
    model: Model | ModelDescription | str | None,
    description: ModelDescription,
    experiment: Experiment | None,
    graph: InterventionGraph,
    results: MemoryStore | ZarrStore,
    remote: Remote,
) -> Backend:
    if name == "local":
        return LocalBackend(loaded(model, description, experiment))
    for option in ("attn_implementation", "quantization"):
        if experiment and getattr(experiment.model, option) is not None:
            raise SpecError(f"model.{option}: an NDIF server loads its models as it likes; leave it out.")
    dtype = model.dtype if isinstance(model, Model) else experiment.model.dtype if experiment else "float32"
    return NdifBackend(description, dtype, graph, results, remote)


def check_inputs(inputs: Sequence[Pair] | None) -> None:
    """Refuse inputs that are no pairs."""
    if inputs is not None and not all(isinstance(pair, Pair) for pair in inputs):
        raise SpecError("inputs must be pairs, as vp.load_pairs gives them.")


def described(experiment: Experiment | None, model: Model | ModelDescription | str | None) -> ModelDescription:
    """The model that is given, or the experiment's own, without weights."""
    if isinstance(model, Model | ModelDescription):
        return model.description if isinstance(model, Model) else model
    if isinstance(model, str):
        return describe_model(model, attn_implementation=experiment.model.attn_implementation if experiment else None)
    assert experiment is not None
    return describe_model(experiment.model.name, **experiment.model.describing())


def loaded(
    model: Model | ModelDescription | str | None, description: ModelDescription, experiment: Experiment | None
) -> Model:
    """The model that is given, or the one described, loaded as the experiment says."""
    if isinstance(model, Model):
        return model
    return load_model(description, **(experiment.model.loading() if experiment else {}))


def pairs_of(experiment: Experiment | None, inputs: Sequence[Pair] | None = None) -> Pairs:
    """The pairs that are given, or the experiment's own."""
    if inputs is not None:
        return Pairs.of(inputs)
    assert experiment is not None
    return load(experiment.pairs)
