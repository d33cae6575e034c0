"""The pairs that results are of, made anew: a dataset holds their texts and answers, not their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from vlm_patching.errors import SpecError
from vlm_patching.experiment import Experiment
from vlm_patching.pairs import Pair, Pairs, pairs_digest


def rebuild_pairs(ds: xr.Dataset, inputs: Sequence[Pair] | None = None) -> Pairs:
    """The pairs of a dataset as they were run, corrupted as its experiment says.

    Parameters
    ----------
    ds
        What `vp.run` gave.
    inputs
        The pairs that were given to `run`, or those that this function gave; loaded anew, as the experiment in the
        dataset's attributes says, where not given.

    Returns
    -------
    Pairs
        The very ones, pixel by pixel (their digest is the attribute `pairs_sha256`), in the order of the run.

    Raises
    ------
    SpecError
        Results of a graph written by hand, which does not say its pairs; a dataset of pairs that is not there any more;
        pairs that are others than those of the run.

    Examples
    --------
    >>> pairs = rebuild_pairs(vp.load_results("heads.zarr"))  # doctest: +SKIP
    """
    from vlm_patching.pipeline import check_inputs, pairs_of

    check_inputs(inputs)
    if "pairs_sha256" not in ds.attrs:
        raise SpecError("The dataset is not one that a run gave: it has no pairs_sha256 in its attributes.")
    experiment = Experiment.from_json(ds.attrs["experiment"]) if "experiment" in ds.attrs else None
    if inputs is None and experiment is None:
        raise SpecError("The results are of a graph written by hand, which does not say its pairs; give them.")
    pairs = pairs_of(experiment, inputs)
    digest = pairs_digest(pairs)
    if digest != ds.attrs["pairs_sha256"] and experiment is not None:
        pairs = _as_run(ds, experiment, pairs)
        digest = pairs_digest(pairs)
    if digest != ds.attrs["pairs_sha256"]:
        given = "the given pairs" if inputs is not None else "the experiment's own pairs, as they are now"
        raise SpecError(
            f"The results are of other pairs (sha256 {ds.attrs['pairs_sha256'][:12]}) than {given} ({digest[:12]}). "
            "Give those that were run: all of them, in their order."
        )
    return pairs


def _as_run(ds: xr.Dataset, experiment: Experiment, pairs: Pairs) -> Pairs:
    """Corrupted as the experiment says, without those that turned out to be unusable where such are skipped."""
    from vlm_patching.models import describe_model
    from vlm_patching.models.families import parse_family
    from vlm_patching.preparation import corrupted_pairs

    if experiment.corruption is not None:
        attributes = ds.attrs
        family = parse_family(attributes["family"], attributes["family_file"]) if "family_file" in attributes else None
        description = describe_model(attributes["model"], attributes["model_revision"] or None, family)
        pairs = corrupted_pairs(pairs, experiment.corruption, description, experiment.seed)
    ran = set(ds["example"].values.tolist())
    return pairs.holding(pair for pair in pairs if pair.id in ran or not pairs.skips)
