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

if TYPE_CHECKING:
    from vlm_patching.models import Model

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
    """What is in a bundle, on one screen; it is checked as `verify` does, so what is shown is what is there."""
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
    """The bundle's graph on its pairs, with the model loaded in the dtype of its results."""
    from vlm_patching.models import describe_model, load_model
    from vlm_patching.pipeline import run

    made, experiment = contents.environment, contents.experiment
    if model is None:
        model = model_to_load(made, allow_download)
    if isinstance(model, str) and backend == "local":
        revision = made.model_revision or None if model == made.model else None
        where = device_map or (experiment.model.device_map if experiment else None)
        model = load_model(describe_model(model, revision), dtype=made.dtype, device_map=where)
    elif device_map is not None:
        raise SpecError("device_map is where a model is loaded to; this one is loaded already, or is remote.")
    return run(
        contents.runnable,
        model=model,
        inputs=contents.pairs,
        backend=backend,
        host=host,
        store=store,
        threads=threads,
        progress=progress,
    )
