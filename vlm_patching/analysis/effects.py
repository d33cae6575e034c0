"""Effects of what a run changed, from the metrics of its runs."""

from __future__ import annotations

import xarray as xr

from vlm_patching.errors import SpecError, unknown
from vlm_patching.metrics import METRICS

LEAST_TOTAL_EFFECT = {name: row["least"] for name, row in METRICS.items()}
"""Total effects nearer to zero than this are not divided by: the normalised effect is NaN there."""

METHODS = ("patch", "path", "knockout", "ablate", "steer", "lens", "attention", "evaluate")
"""What `attrs["method"]` of a dataset may be; `patch` where there is none."""

REMOVING = ("knockout", "ablate")
"""Methods that take something away from the clean run."""

_ONLY_READ = {
    "lens": "A lens changes nothing in the model, so it has no effect: `ds[metric]` is what it says, and plot.lens "
    "draws it.",
    "attention": "Reading attention changes nothing in the model, so it has no effect: analysis.head_functions says "
    "what the heads attend to, and plot.image draws it.",
    "evaluate": "An evaluation changes nothing in the model, so it has no effect: analysis.accuracy says how often "
    "it is right.",
}


def method_of(ds: xr.Dataset) -> str:
    """The method that made a dataset.

    Raises
    ------
    SpecError
        A method that is not one of `METHODS`.
    """
    method = str(ds.attrs.get("method", "patch"))
    if method not in METHODS:
        raise unknown("method of a dataset", method, METHODS)
    return method


def metrics_of(ds: xr.Dataset) -> list[str]:
    """The metrics that a dataset has: the variables that have a clean run's value beside them.

    Parameters
    ----------
    ds
        What `vp.run` gave.
    """
    return [str(name) for name in ds.data_vars if f"{name}_clean" in ds]


def check_metric(ds: xr.Dataset, metric: str) -> None:
    """Refuse a metric that the dataset lacks, and a dataset of attention or of an evaluation, which sweep none."""
    if method_of(ds) in ("attention", "evaluate"):
        raise SpecError(_ONLY_READ[method_of(ds)])
    if metric not in metrics_of(ds):
        raise unknown("metric in this dataset", metric, metrics_of(ds))


def total_effect(ds: xr.Dataset, metric: str) -> xr.DataArray:
    """TE = m(clean) - m(corrupted), per example (and draw): what corrupting takes away. Of kept examples, else NaN.

    Where less of a metric is better (`kl_divergence`, `answer_rank`) the sign is turned, so that positive still means
    that corrupting did harm.

    Parameters
    ----------
    ds
        What `vp.run` gave.
    metric
        One of the dataset's metrics.

    Raises
    ------
    SpecError
        A metric that the dataset lacks, or a dataset without a corrupted run.
    """
    check_metric(ds, metric)
    effect = METRICS[metric]["better"] * (ds[f"{metric}_clean"] - _corrupted(ds, metric)).where(ds["kept"] == "kept")
    return effect.rename("total_effect")


def effect(
    ds: xr.Dataset, metric: str = "probability", normalize: bool = False, threshold: float | None = None
) -> xr.DataArray:
    """Effect of every cell. Positive means that the cell carries the answer (of steering: brings it about).

    - Patching and path patching. Denoising: IE = m(patched) - m(corrupted). Noising: IE = m(clean) - m(patched).
    - Knockout and ablation: m(clean) - m(edited), positive where what was taken away carried the answer.
    - Steering: m(steered) - m(base) of the run that was steered, clean or corrupted (attribute `base`).

    Where less of a metric is better (`kl_divergence`, `answer_rank`) the sign is turned. Normalised: IE / TE, see
    `total_effect`.

    Parameters
    ----------
    ds
        What `vp.run` gave. Where its metric holds estimates (attribute `estimate`), so does the effect.
    metric
        One of the dataset's metrics.
    normalize
        Divide by the total effect of the same example and draw: 0 is the base run, 1 the run the values come from. Only
        of patching, path patching, and steering of the corrupted run.
    threshold
        Least abs(TE) that is divided by; NaN under it, never inf. `LEAST_TOTAL_EFFECT` where not given.

    Returns
    -------
    xarray.DataArray
        The metric's dimensions; NaN for examples that were not kept and cells that were not run. Unit: the metric's, or
        fractions of the total effect.

    Raises
    ------
    SpecError
        A metric that the dataset lacks, a lens, attention or an evaluation, which change nothing, a negative threshold,
        or `normalize` where there is no total effect to divide by.

    Notes
    -----
    Zhang & Nanda (2023), "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods".
    """
    method = method_of(ds)
    if method in _ONLY_READ:
        raise SpecError(_ONLY_READ[method])
    check_metric(ds, metric)
    edited = ds[metric].where(ds["kept"] == "kept")
    attributes: dict[str, str | float] = {"metric": metric, "method": method}
    attributes.update({name: ds.attrs[name] for name in ("base", "estimate") if name in ds.attrs})
    if method in ("patch", "path"):
        attributes["direction"] = ds.attrs.get("direction", "denoise")
        restored = attributes["direction"] == "denoise"
        change = edited - _corrupted(ds, metric) if restored else ds[f"{metric}_clean"] - edited
    elif method in REMOVING:
        change = ds[f"{metric}_clean"] - edited
    else:
        change = edited - (_corrupted(ds, metric) if _steered(ds) == "corrupted" else ds[f"{metric}_clean"])
    change = METRICS[metric]["better"] * change
    if normalize:
        _check_normalizable(ds, method)
        least = LEAST_TOTAL_EFFECT[metric] if threshold is None else threshold
        if least < 0:
            raise SpecError(f"threshold must not be negative, not {least}.")
        total = total_effect(ds, metric)
        change = change / total.where(abs(total) > least)
        attributes["least_total_effect"] = least
    result = change.transpose(*ds[metric].dims).rename("normalized_effect" if normalize else "effect")
    return result.assign_attrs(attributes)


def shares(ds: xr.Dataset, metric: str = "probability") -> xr.DataArray:
    """Shares of the total effect to take means and intervals of: their mean is mean effect over mean total effect.

    A mean of each example's own share, `effect(..., normalize=True)`, is ruled by the few whose total effect is near 0.
    Here the ratio of the means, r = mean IE / mean TE, is linearised: r + (IE - r · TE) / mean TE of each example and
    draw. So the bootstrap of its mean is, to first order, that of the ratio.

    Parameters
    ----------
    ds, metric
        As `effect` takes them.

    Returns
    -------
    xarray.DataArray
        The metric's dimensions; NaN where the effect is, and in cells whose mean total effect, over the examples that
        have the cell, is nearer to 0 than `LEAST_TOTAL_EFFECT`. A single value is no share by itself.

    Raises
    ------
    SpecError
        What `effect` refuses with `normalize`.
    """
    change, total = effect(ds, metric), total_effect(ds, metric)
    _check_normalizable(ds, method_of(ds))
    result = linearised(change, total.where(change.notnull()), metric)
    return result.transpose(*change.dims).rename("share").assign_attrs(change.attrs)


def linearised(change: xr.DataArray, total: xr.DataArray, metric: str) -> xr.DataArray:
    """The shares of any effects, or of a choice of them, in total effects that are NaN where they are."""
    scale = mean_total(total, metric)
    ratio = change.mean(drawn_over(change), skipna=True) / scale
    return ratio + (change - ratio * total) / scale


def mean_total(total: xr.DataArray, metric: str) -> xr.DataArray:
    """The mean total effect that mean effects are divided by; NaN where it is too small for that."""
    mean = total.mean(drawn_over(total), skipna=True)
    return mean.where(abs(mean) > LEAST_TOTAL_EFFECT[metric])


def drawn_over(values: xr.DataArray) -> list[str]:
    """The dimensions that are samples: means and intervals are over them."""
    return [d for d in ("example", "draw") if d in values.dims]


def over_draws(values: xr.DataArray) -> xr.DataArray:
    """One number an example, whatever the noise: the mean of its draws."""
    return values.mean("draw") if "draw" in values.dims else values


def _corrupted(ds: xr.Dataset, metric: str) -> xr.DataArray:
    if f"{metric}_corrupted" not in ds:
        raise SpecError(
            f"This needs m(corrupted), and the dataset (method {method_of(ds)}) has no corrupted run: there is no "
            f"{metric}_corrupted."
        )
    return ds[f"{metric}_corrupted"]


def _steered(ds: xr.Dataset) -> str:
    """The run that was steered."""
    base = str(ds.attrs.get("base", "clean"))
    if base not in ("clean", "corrupted"):
        raise unknown("base of a steered run", base, ("clean", "corrupted"))
    return base


def _check_normalizable(ds: xr.Dataset, method: str) -> None:
    if method in REMOVING:
        raise SpecError(
            f"normalize divides by the total effect m(clean) - m(corrupted), and a dataset of method {method} has no "
            "corrupted run. analysis.knockout_change gives the change in percent of the clean run's probability."
        )
    if method == "steer" and _steered(ds) == "clean":
        raise SpecError(
            "normalize divides by the total effect m(clean) - m(corrupted), and here the clean run was steered: only "
            "what is done to the corrupted run can bring back a share of it."
        )
