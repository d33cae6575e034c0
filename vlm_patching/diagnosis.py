"""What corruptions do to a model, before anything is patched: how often the answer flips, how far activations move."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from vlm_patching.backends.changes import key_of
from vlm_patching.backends.local import LocalBackend
from vlm_patching.backends.plan import Job, Settings
from vlm_patching.backends.reference import reference, summary_program
from vlm_patching.errors import SpecError
from vlm_patching.experiment import Experiment
from vlm_patching.graph.lower import lower
from vlm_patching.metrics import METRICS
from vlm_patching.models import Model, Tap
from vlm_patching.pairs import Pair
from vlm_patching.pipeline import check_inputs, described, loaded, pairs_of
from vlm_patching.preparation import Prepared, corrupted_pairs, prepare


def diagnose(
    what: Experiment | str | Path,
    corruptions: Sequence[str | Mapping[str, Any]] | None = None,
    *,
    model: Model | str | None = None,
    inputs: Sequence[Pair] | None = None,
    threads: int | None = None,
) -> xr.Dataset:
    """Hold corruptions against each other on the pairs of an experiment; nothing is patched.

    Parameters
    ----------
    what
        An experiment, a preset's name or a YAML file: its model, pairs and metrics.
    corruptions
        Kinds, or sections `corruption` of a spec, to be compared; the experiment's own where not given.
    model, inputs, threads
        As `vp.run` takes them.

    Returns
    -------
    xarray.Dataset
        Dimensions `corruption` (its kind and settings), `example`, and `site` × `layer` over `resid_post` of every
        stack. Of pairs whose clean answer is right, else NaN:

        - `flipped`: share of draws whose answer is another than the clean run's, in [0, 1];
        - ``m_clean``, ``m_corrupted`` and ``m_total_effect`` for a metric m (mean over draws; positive: harm was done).

        And over all pairs, draws and positions, of each layer's residual stream:

        - `moved`: root mean square of (corrupted - clean), each dimension in standard deviations that it has over the
          clean runs; two unrelated clean values would be sqrt(2) apart;
        - `spread`: root mean square of the corrupted values' distance from the clean mean, in the same units; 1 is what
          clean runs have, more is outside of their distribution.

    Raises
    ------
    SpecError
        What `vp.run` refuses of a spec, its pairs or its corruption; an experiment without any corruption.

    Notes
    -----
    Zhang & Nanda (2023), "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods": noise
    takes a model out of its distribution, exchanging tokens does not.

    Examples
    --------
    >>> ds = diagnose("palit2023", [{"kind": "gaussian_noise"}, {"kind": "semantic_image_pair"}])  # doctest: +SKIP
    """
    experiment = what if isinstance(what, Experiment) else Experiment.from_spec(what)
    check_inputs(inputs)
    if corruptions is None:
        if experiment.corruption is None:
            raise SpecError(f"{experiment.name} has no corruption: name some (corruptions=[...], --corruption).")
        corruptions = [experiment.corruption.model_dump(mode="json", exclude_none=True)]
    sections = [{"kind": each} if isinstance(each, str) else each for each in corruptions]
    if not sections:
        raise SpecError("corruptions is empty; give at least one section as in a spec.")
    description = described(experiment, model)
    pairs = pairs_of(experiment, inputs)
    ready = {}
    for settings in sections:
        each = _experiment(experiment, settings, [stack.name for stack in description.architecture.stacks])
        assert each.corruption is not None
        name = _name(settings)
        if name in ready:
            raise SpecError(f"The corruption {name!r} is given twice.")
        with warnings.catch_warnings(action="ignore"):  # of stacks that a corruption does not reach: that is a finding
            graph = lower(each, description.architecture)
        ready[name] = prepare(graph, description, corrupted_pairs(pairs, each.corruption, description, each.seed))
    backend = LocalBackend(loaded(model, description, experiment))
    with backend.running(threads):
        found = [_diagnosis(prepared, backend) for prepared in ready.values()]
    ds = xr.concat(found, dim="corruption", coords="minimal", compat="override")
    return ds.assign_coords(corruption=np.array(list(ready), dtype=object)).assign_attrs(
        name=experiment.name, model=description.name, method="diagnose"
    )


def _experiment(experiment: Experiment, corruption: Mapping[str, Any], stacks: Sequence[str]) -> Experiment:
    data = experiment.to_dict()
    kept = {key: data[key] for key in ("name", "model", "pairs", "metrics", "seed")}
    metrics = [metric for metric in kept["metrics"] if "scores" not in METRICS[metric]] or ["probability"]
    patch = {"sites": [f"{stack}.resid_post" for stack in stacks], "positions": "all"}
    return Experiment.from_dict(
        {**kept, "metrics": metrics, "corruption": dict(corruption), "patch": patch}, "corruptions"
    )


def _name(corruption: Mapping[str, Any]) -> str:
    """Its kind, and its settings behind it."""
    settings = [f"{key}={value}" for key, value in corruption.items() if key != "kind"]
    return " ".join([str(corruption.get("kind")), *settings])


def _diagnosis(prepared: Prepared, backend: LocalBackend) -> xr.Dataset:
    graph, architecture = prepared.graph, prepared.description.architecture
    shared = reference(graph, backend, prepared.encode_all, None)
    jobs = [Job(graph, architecture, pair, shared) for pair in prepared.encode_all()]
    results = backend.execute([job.program([], Settings()) for job in jobs])
    right = np.array([bool(found["clean.right"].all()) for found in results])
    flips = [float((found["corrupted.top"] != found["clean.top"]).float().mean()) for found in results]
    values: dict[str, Any] = {"flipped": ("example", np.where(right, flips, np.nan))}
    for metric in graph.metrics:
        clean, corrupted = (
            np.array([float(found[f"{run}.{metric}"].mean()) for found in results]) for run in ("clean", "corrupted")
        )
        total = METRICS[metric]["better"] * (clean - corrupted)
        for name, numbers in (("clean", clean), ("corrupted", corrupted), ("total_effect", total)):
            values[f"{metric}_{name}"] = ("example", np.where(right, numbers, np.nan))
    sites = [f"{stack.name}.resid_post" for stack in architecture.stacks]
    moved, spread = _distances(jobs, backend, sites)
    values |= {"moved": (("site", "layer"), moved), "spread": (("site", "layer"), spread)}
    coordinates = {
        "example": np.array([pair.id for pair in prepared.pairs], dtype=object),
        "site": np.array(sites, dtype=object),
        "layer": np.arange(moved.shape[1]),
    }
    return xr.Dataset(values, coordinates)


def _distances(jobs: Sequence[Job], backend: LocalBackend, sites: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of each site and layer, how far the corrupted run moves, and how far from the clean mean it is; NaN for none."""
    architecture = backend.description.architecture
    depth = [architecture.locate(site)[0].layers for site in sites]
    places = [(i, layer, architecture.tap(site)) for i, site in enumerate(sites) for layer in range(depth[i])]
    clean = backend.summaries([_program(job, places, ("clean",), None) for job in jobs])
    scales = {}
    for name, (total, squares, count) in clean.items():
        mean = total / count
        # a dimension that never varies is left in its own units
        deviation = (squares / count - mean**2).clamp(min=0).sqrt()
        scales[name.split("|")[1]] = (mean, torch.where(deviation > 0, deviation, 1.0))
    found = backend.summaries([_program(job, places, ("clean", "corrupted"), scales) for job in jobs])
    moved, spread = (np.full((len(sites), max(depth)), np.nan) for _ in range(2))
    for i, layer, _ in places:
        for array, name in ((moved, "moved"), (spread, "spread")):
            _, squares, count = found[f"{name}|{i} {layer}"]
            array[i, layer] = float((squares.sum() / count.sum()).sqrt())
    return moved, spread


def _program(
    job: Job, places: Sequence[tuple[int, int, Tap]], runs: Sequence[str], scales: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One pair's part: the clean values' moments, or, in their units, the corrupted run's distances."""
    reads = {run: {key_of(run, tap, layer): (tap, layer) for _, layer, tap in places} for run in runs}
    wanted: list[dict[str, Any]] = []
    for i, layer, tap in places:
        place = f"{i} {layer}"
        if scales is None:
            wanted.append({"name": f"clean|{place}", "value": key_of("clean", tap, layer), "positions": None})
            continue
        center, scale = scales[place]
        stack = job.architecture.stacks[i].name
        everything = range(len(job.pair.positions[stack].positions))
        there = job.pair.on(job.graph.run("corrupted").on, stack, everything)
        paired = [(a, b) for a, b in zip(everything, there, strict=True) if b is not None]
        value = {"value": key_of("corrupted", tap, layer), "positions": [b for _, b in paired], "scale": scale}
        minus = {"minus": key_of("clean", tap, layer), "minus_positions": [a for a, _ in paired]}
        wanted.append({"name": f"spread|{place}", "center": center, **value})
        wanted.append({"name": f"moved|{place}", "center": torch.zeros_like(center), **value, **minus})
    return summary_program(job, reads, wanted)
