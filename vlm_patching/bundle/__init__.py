"""Sharing: one file that holds an experiment, its pairs and its results, and that anyone can run again.

A bundle is a zip of plain data (YAML, JSON, PNG, safetensors, uncompressed zarr), with a manifest of SHA-256 digests.
Opening one that a stranger has made never runs code of theirs, unpickles nothing, and writes only into a temporary
folder that is removed afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from vlm_patching.bundle.comparison import Comparison, Replay, compare, model_to_load
from vlm_patching.bundle.contents import Contents, Summary, opened, summary
from vlm_patching.bundle.saving import save
from vlm_patching.errors import SpecError
from vlm_patching.sections import MASKED, ModelSpec

if TYPE_CHECKING:
    from vlm_patching.models import Model, ModelDescription

__all__ = ["Comparison", "Replay", "Summary", "replay", "save", "show", "verify"]


def verify(path: str | Path) -> Summary:
    """Check a bundle whole: every digest, every file, and that its parts belong together.

    Parameters
    ----------
    path
        What `save` has written.

    Returns
    -------
    Summary
        What is in it.

    Raises
    ------
    SpecError
        What is wrong with it, and in which file.
    """
    with opened(path) as contents:
        return summary(contents)


def show(path: str | Path) -> str:
    """What is in a bundle, on one screen; it is checked as `verify` does, so what is shown is what is there.

    Parameters
    ----------
    path
        What `save` has written.
    """
    return str(verify(path))


def replay(
    path: str | Path,
    backend: str = "local",
    host: str | None = None,
    model: Model | str | None = None,
    store: str | Path | None = None,
    *,
    allow_download: bool = False,
    device_map: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Replay:
    """Run a bundle's graph again on its own pairs, and compare.

    Parameters
    ----------
    path
        What `save` has written.
    backend, host, threads, progress
        As `vlm_patching.run` takes them.
    model
        A loaded model, or a model's name: needed where the bundle's own is a folder. One that the package brings along
        is loaded by itself.
    store
        Where the new results go; nowhere where not given.
    allow_download
        Whether a model of the Hugging Face hub that the bundle names is loaded by that name.
    device_map
        As transformers takes it; the experiment's own where not given.

    Returns
    -------
    Replay
        Its `ok` says whether the numbers are the same, within the tolerance of their dtype.

    Raises
    ------
    SpecError
        What is wrong with the bundle, or with what was asked for.
    RunError
        The run failed on its way.
    """
    with opened(path) as contents:
        now = _run(contents, backend, host, model, store, allow_download, device_map, threads, progress)
        return compare(contents.results, now, contents.digest)


def _run(
    contents: Contents,
    backend: str,
    host: str | None,
    model: Model | str | None,
    store: str | Path | None,
    allow_download: bool,
    device_map: str | None,
    threads: int | None,
    progress: bool,
) -> xr.Dataset:
    """The bundle's graph on its pairs, with the model loaded as its results say."""
    from vlm_patching.models import describe_model, load_model
    from vlm_patching.pipeline import run

    if model is None:
        model = model_to_load(contents.environment, allow_download)
    if device_map is not None and (backend != "local" or not isinstance(model, str)):
        raise SpecError("device_map is where a model is loaded to; this one is loaded already, or is remote.")
    given: Model | ModelDescription
    if isinstance(model, str):
        spec = _spec(contents, model, device_map)
        given = describe_model(spec.name, **{**spec.describing(), "family": contents.family})
        given = load_model(given, **spec.loading()) if backend == "local" else given
    else:
        given = model
    return run(
        contents.runnable,
        model=given,
        inputs=contents.pairs,
        backend=backend,
        host=host,
        store=store,
        threads=threads,
        progress=progress,
    )


def _spec(contents: Contents, name: str, device_map: str | None) -> ModelSpec:
    """How the model is loaded: as for the bundle's results, but for attention that is somebody else's code."""
    made, experiment = contents.environment, contents.experiment
    given = experiment.model if experiment else ModelSpec(name=name)
    changes = {
        "name": name,
        "revision": made.model_revision or None if name == made.model else None,
        "dtype": made.dtype,
        "device_map": device_map or given.device_map,
        "attn_implementation": given.attn_implementation if given.attn_implementation in MASKED else None,
        "quantization": made.quantization or None,
    }
    return given.model_copy(update=changes)
