"""One sweep, timed: the engine, the naive loop, the base runs, the version by hand; and whether all say the same."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import naive
import numpy as np
import torch
import xarray as xr
from problem import Problem
from sweeps import Sweep

import vlm_patching as vp
from vlm_patching.models import Model

LONG, VERY_LONG = 60.0, 300.0
TOLERANCE = {
    "float32": {"log_probability": 1e-4, "probability": 1e-5},
    "float16": {"log_probability": 5e-2, "probability": 1e-2},
    "bfloat16": {"log_probability": 5e-1, "probability": 1e-1},
}
"""In half precision two orders of summing differ by more than anything that could go wrong but plain mistakes."""
T = TypeVar("T")
Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How often the engine is timed, on how many cells the naive loop, and which of them."""

    repeats: int = 5
    cells: int = 8
    seed: int = 0


def measure(sweep: Sweep, model: Model, problem: Problem, settings: Settings) -> Record:
    """Everything about one sweep, as plain data; `failures` says what is wrong with its numbers."""
    module = model.envoy._module
    experiment = vp.Experiment.from_dict(sweep.spec(model.description.name))

    def engine() -> xr.Dataset:
        return vp.run(experiment, model=model, inputs=[problem.pair], checks=False, progress=False, threads=1)

    ds, warm_up = timed(engine)
    repeats = repeats_of(warm_up, settings.repeats)
    seconds = [timed(engine)[1] for _ in range(repeats)]
    base = median_of(lambda: naive.logits(module, problem.inputs["clean"]), settings.repeats)
    loop = _naive_loop(sweep, module, problem, ds, settings)
    cells = int(np.isfinite(ds["log_probability"].values).sum())
    total = cells * loop["seconds_per_cell"] + sweep.base_runs * base
    record: Record = {
        "name": sweep.name,
        "about": sweep.about,
        "dtype": model.dtype,
        "device": str(model.device),
        "positions": problem.inputs["clean"]["input_ids"].shape[1],
        "cells": cells,
        "cells_not_run": int(ds["log_probability"].size) - cells,
        "naive": {**loop, "seconds": total},
        "base": {"runs": sweep.base_runs, "seconds_per_run": base},
        "engine": {"seconds": statistics.median(seconds), "all_seconds": seconds, "warm_up_seconds": warm_up},
        "speedup": total / statistics.median(seconds),
        "bound": total / (sweep.base_runs * base),
        "target": sweep.target,
        "notice_target": sweep.notice_target,
        "tolerance": TOLERANCE[model.dtype],
        **_effects(sweep, ds),
        "plan": ds.attrs.get("plan", ""),
    }
    if hasattr(module, "vision_model"):
        record["notice"] = _notice(module, problem, record, settings.repeats)
    if sweep.optimum is not None:
        record["optimum"] = _by_hand(sweep, module, problem, ds, settings.repeats)
    return record | {"failures": failures_of(record)}


def failures_of(record: Record) -> list[str]:
    """What is wrong with the engine's numbers, or with what they are compared by."""
    tolerance, found = record["tolerance"], []
    for against in ("naive", "optimum"):
        for metric, difference in record.get(against, {}).get("difference", {}).items():
            if not difference <= tolerance[metric]:
                found.append(f"{metric} is {difference:.2g} off the {against} one; allowed is {tolerance[metric]:.2g}")
    if record["cells_not_run"]:
        found.append(f"{record['cells_not_run']} cells were not run")
    least = 100 * tolerance["log_probability"]
    if record["dtype"] == "float32" and not record["largest_effect"] >= least:
        found.append(f"no effect is larger than {record['largest_effect']:.2g}, which could not show an error")
    return found


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call gives, and its seconds; on a GPU until it is done."""
    _wait()
    start = time.perf_counter()
    value = call()
    _wait()
    return value, time.perf_counter() - start


def median_of(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, after one that does not count."""
    call()
    return statistics.median(timed(call)[1] for _ in range(repeats))


def repeats_of(seconds: float, wanted: int) -> int:
    """How often something that takes so long is timed."""
    if seconds > VERY_LONG:
        return 1
    return min(wanted, 2) if seconds > LONG else wanted


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _naive_loop(sweep: Sweep, module: Any, problem: Problem, ds: xr.Dataset, settings: Settings) -> Record:
    """Seconds of one cell, and how far the engine is from the cells that were run."""
    values = naive.read(module, problem.inputs["clean"], sweep.sites)
    chosen = list(_chosen(ds, settings))
    naive.run_cell(module, problem, values, chosen[0], sweep.window)
    seconds: list[float] = []
    difference = {"log_probability": 0.0, "probability": 0.0}
    for labels in chosen:
        logits, spent = timed(partial(naive.run_cell, module, problem, values, labels, sweep.window))
        seconds.append(spent)
        expected = float(logits.double().log_softmax(-1)[problem.answer])
        cell = ds.isel(example=0).sel(labels)
        found = {metric: float(cell[metric]) for metric in difference}
        for metric, wanted in (("log_probability", expected), ("probability", np.exp(expected))):
            difference[metric] = _larger(difference[metric], abs(found[metric] - float(wanted)))
    return {
        "seconds_per_cell": statistics.median(seconds),
        "all_seconds": seconds,
        "cells_timed": len(chosen),
        "difference": difference,
    }


def _larger(a: float, b: float) -> float:
    """The larger number; NaN where one is."""
    return float(np.maximum(a, b))


def _chosen(ds: xr.Dataset, settings: Settings) -> Iterator[dict[str, Any]]:
    """Labels of random cells, among them at least one of every site and edge set."""
    values = ds["log_probability"].isel(example=0)
    dims = [str(dim) for dim in values.dims]
    kinds = [i for i, dim in enumerate(dims) if dim in ("site", "edges")]
    order = np.random.default_rng(settings.seed).permutation(np.argwhere(np.isfinite(values.values)))
    _, first = np.unique(order[:, kinds], axis=0, return_index=True)
    others = [i for i in range(len(order)) if i not in set(first.tolist())]
    for place in order[[*first.tolist(), *others][: max(settings.cells, len(first))]].tolist():
        yield {dim: ds[dim].values.tolist()[i] for dim, i in zip(dims, place, strict=True)}


def _effects(sweep: Sweep, ds: xr.Dataset) -> dict[str, float]:
    start = "log_probability_corrupted" if "patch" in sweep.section else "log_probability_clean"
    effects = np.abs(ds["log_probability"].values - ds[start].values.item())
    return {"largest_effect": float(np.nanmax(effects)), "median_effect": float(np.nanmedian(effects))}


def _notice(module: Any, problem: Problem, record: Record, repeats: int) -> Record:
    """NOTICE's own loop, modelled: it encodes three images a cell where the naive loop encodes one."""
    pixels = problem.inputs["clean"]["pixel_values"]

    def encode() -> Any:
        with torch.no_grad():
            return module.vision_model(pixel_values=pixels)

    image = median_of(encode, repeats)
    total = record["naive"]["seconds"] + record["cells"] * 2 * image
    return {"seconds_per_image": image, "seconds": total, "speedup": total / record["engine"]["seconds"]}


def _by_hand(sweep: Sweep, module: Any, problem: Problem, ds: xr.Dataset, repeats: int) -> Record:
    """The hand-written version: its seconds, and how far the engine is from it on all cells."""
    optimum = sweep.optimum
    assert optimum is not None
    expected = optimum(module, problem).double().cpu().numpy()
    seconds = [timed(lambda: optimum(module, problem))[1] for _ in range(repeats)]
    found = {metric: ds[metric].isel(example=0) for metric in ("log_probability", "probability")}
    arrays = {metric: value.values.reshape(expected.shape) for metric, value in found.items()}
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "difference": {
            "log_probability": float(np.abs(arrays["log_probability"] - expected).max()),
            "probability": float(np.abs(arrays["probability"] - np.exp(expected)).max()),
        },
    }
