"""How much less likely the answer gets when something is taken away, in percent of how likely it was."""

from __future__ import annotations

import numpy as np
import xarray as xr

from vlm_patching.analysis.effects import REMOVING, check_metric, method_of
from vlm_patching.errors import SpecError

PROBABILITIES = ("probability",)
"""Metrics that are a probability."""

LOG_PROBABILITIES = ("log_probability", "answer_log_probability")
"""Metrics that are the natural logarithm of one."""

LEAST_PROBABILITY = 1e-6
"""Where the clean run gives the answer less than this, nothing is divided by it."""


def knockout_change(ds: xr.Dataset, metric: str = "probability") -> xr.DataArray:
    """Change of the answer's probability by blocking attention, 100 · (p_blocked - p_clean) / p_clean, per example.

    Parameters
    ----------
    ds
        What `vp.run` gave for a knockout (or an ablation).
    metric
        `probability`, or one of its logarithms, `log_probability` and `answer_log_probability` (of a whole answer of
        several tokens), from which p is taken back. A percentage needs a scale with a true zero, so no other will do:
        `effect` gives their differences.

    Returns
    -------
    xarray.DataArray
        The metric's dimensions, in percent, at least -100. **Negative** means that what was blocked carried the answer
        (the opposite of `effect`): -100 where the answer has become impossible, 0 where nothing changed. NaN where
        p_clean is under `LEAST_PROBABILITY`, for examples that were not kept and cells that were not run. `bootstrap`
        gives its mean over examples with an interval.

    Raises
    ------
    SpecError
        Another method, a metric that the dataset lacks or that is no probability.

    Notes
    -----
    Zhang et al. (2024), "Cross-modal Information Flow in Multimodal Large Language Models". The change is taken for
    each example, then averaged: an example that the model was unsure of counts as much as any.
    """
    if method_of(ds) not in REMOVING:
        raise SpecError(
            f"knockout_change is of what was taken away from the clean run (method {' or '.join(REMOVING)}), and this "
            f"dataset's method is {method_of(ds)}; analysis.effect is of it."
        )
    check_metric(ds, metric)
    edited, clean = (ds[name].where(ds["kept"] == "kept").astype(np.float64) for name in (metric, f"{metric}_clean"))
    if metric in PROBABILITIES:
        change = (edited - clean) / clean.where(clean >= LEAST_PROBABILITY)
    elif metric in LOG_PROBABILITIES:
        gained = edited - clean.where(clean >= np.log(LEAST_PROBABILITY))
        change = gained.copy(data=np.expm1(gained.values))
    else:
        allowed = ", ".join((*PROBABILITIES, *LOG_PROBABILITIES))
        raise SpecError(
            f"A change in percent needs a probability, which {metric} is not: use {allowed}. analysis.effect gives "
            f"the difference of {metric}."
        )
    result = (100 * change).transpose(*ds[metric].dims).rename("knockout_change")
    return result.assign_attrs({"metric": metric, "method": method_of(ds), "unit": "%"})
