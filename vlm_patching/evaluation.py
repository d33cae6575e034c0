"""How often a model is right on pairs, before anything is swept; and the list of those that a sweep is for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from vlm_patching.backends.wire import Remote
from vlm_patching.errors import RunError, SpecError
from vlm_patching.experiment import Experiment
from vlm_patching.graph.lower import evaluation, lower
from vlm_patching.models import Model, ModelDescription
from vlm_patching.pairs import Pair
from vlm_patching.pipeline import check_inputs, described, execute, where
from vlm_patching.results.dataset import KEPT


def evaluate(
    what: Experiment | str | Path,
    *,
    model: Model | ModelDescription | str | None = None,
    inputs: Sequence[Pair] | None = None,
    backend: str = "local",
    host: str | None = None,
    remote: Remote | None = None,
    store: str | Path | None = None,
    batch_rows: int | None = None,
    progress: bool = True,
    threads: int | None = None,
) -> xr.Dataset:
    """Run the clean (and the corrupted) prompts of an experiment's pairs, and nothing else.

    Parameters
    ----------
    what
        An experiment, a preset's name or a YAML file: its model, pairs, corruption and metrics. What it sweeps is not
        run.
    store
        Zarr folder; an evaluation that was cut off goes on where it stopped.
    batch_rows
        Pairs a forward pass; from the size of the model where not given.
    model, inputs, backend, host, remote, progress, threads
        As `vp.run` takes them.

    Returns
    -------
    xarray.Dataset
        Dimension `example` (and `draw`, of noise). Variables `right` (1 where the clean run's answer is the pair's, all
        of its tokens, else 0), ``m_clean`` and ``m_corrupted`` for a metric m. The coordinate `kept` says which pairs a
        sweep would be made for under the spec's `keep` (`clean_correct` where that is `all`), and why others would not.
        `vp.analysis.accuracy` counts them by task.

    Raises
    ------
    SpecError
        What `vp.run` refuses.

    Notes
    -----
    The list of what was kept (`write_kept`) is what `pairs: {ids: FILE}` takes in a spec.

    Examples
    --------
    >>> ds = evaluate("notice2024_blip_heads", store="right.zarr")  # doctest: +SKIP
    >>> vp.analysis.accuracy(ds)  # doctest: +SKIP
    """
    place = where(backend, host, remote, batch_rows, threads)
    experiment = what if isinstance(what, Experiment) else Experiment.from_spec(what)
    check_inputs(inputs)
    description = described(experiment, model)
    graph = evaluation(lower(experiment, description.architecture))
    return execute(graph, experiment, description, model, inputs, place, store, "fast", False, progress)


def write_kept(ds: xr.Dataset, path: str | Path) -> int:
    """Write the ids of the pairs that were kept, as a JSON list, for `pairs.ids`; how many there are.

    Raises
    ------
    SpecError
        None was kept.
    RunError
        The file cannot be written.
    """
    ids = ds["example"].values[ds["kept"].values == KEPT].tolist()
    if not ids:
        raise SpecError("No pair was kept, so there is no list to write; the coordinate `kept` has the reason of each.")
    try:
        Path(path).write_text(json.dumps(ids, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"The list of pairs could not be written to {path}: {error}.") from error
    return len(ids)
