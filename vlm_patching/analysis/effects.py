"""Effects of patching, from the metrics of the three runs."""

from __future__ import annotations

import xarray as xr

from vlm_patching.errors import SpecError, unknown
from vlm_patching.metrics import METRICS

LEAST_TOTAL_EFFECT = {name: row["least"] for name, row in METRICS.items()}
"""Total effects nearer to zero than this are not divided by: the normalised effect is NaN there."""


def metrics_of(ds: xr.Dataset) -> list[str]:
    """The metrics that a dataset has."""
    return [str(name) for name in ds.data_vars if f"{name}_clean" in ds and f"{name}_corrupted" in ds]


def total_effect(ds: xr.Dataset, metric: str) -> xr.DataArray:
    """TE = m(clean) - m(corrupted), per example (and draw): what corrupting takes away. Of kept examples, else NaN.

    Where less of a metric is better (`kl_divergence`, `answer_rank`) the sign is turned, so that positive still means
    that corrupting did harm.
    """
    if metric not in metrics_of(ds):
        raise unknown("metric in this dataset", metric, metrics_of(ds))
    effect = METRICS[metric]["better"] * (ds[f"{metric}_clean"] - ds[f"{metric}_corrupted"]).where(ds["kept"] == "kept")
    return effect.rename("total_effect")


def effect(
    ds: xr.Dataset, metric: str = "probability", normalize: bool = False, threshold: float | None = None
) -> xr.DataArray:
    """Indirect effect of every cell. Positive means that the cell carries the answer.

    Denoising: IE = m(patched) - m(corrupted). Noising: IE = m(clean) - m(patched). Where less of a metric is better
    (`kl_divergence`, `answer_rank`) the sign is turned. Normalised: IE / TE.

    Parameters
    ----------
    ds
        What `vp.run` gave.
    metric
        One of the dataset's metrics.
    normalize
        Divide by the total effect of the same example and draw: 0 is the base run, 1 the run the values come from.
    threshold
        Least abs(TE) that is divided by; NaN under it, never inf. `LEAST_TOTAL_EFFECT` where not given.

    Returns
    -------
    xarray.DataArray
        The metric's dimensions; NaN for examples that were not kept and cells that were not run. Unit: the metric's, or
        fractions of the total effect.

    Notes
    -----
    Zhang & Nanda (2023), "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods".
    """
    total = total_effect(ds, metric)
    patched = ds[metric].where(ds["kept"] == "kept")
    if ds.attrs.get("direction", "denoise") == "denoise":
        indirect = patched - ds[f"{metric}_corrupted"]
    else:
        indirect = ds[f"{metric}_clean"] - patched
    indirect = METRICS[metric]["better"] * indirect
    attributes: dict[str, str | float] = {"metric": metric, "direction": ds.attrs.get("direction", "denoise")}
    if normalize:
        least = LEAST_TOTAL_EFFECT[metric] if threshold is None else threshold
        if least < 0:
            raise SpecError(f"threshold must not be negative, not {least}.")
        indirect = indirect / total.where(abs(total) > least)
        attributes["least_total_effect"] = least
    result = indirect.transpose(*ds[metric].dims).rename("normalized_effect" if normalize else "effect")
    return result.assign_attrs(attributes)
