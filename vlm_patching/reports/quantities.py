"""What a map of a dataset can show: effects, shares, changes in percent, readings of a lens, what heads attend to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr

from vlm_patching.analysis import effect, head_functions, knockout_change, metrics_of, shares, total_effect
from vlm_patching.analysis.attention import patch_keys
from vlm_patching.analysis.effects import LEAST_TOTAL_EFFECT, REMOVING, method_of, over_draws
from vlm_patching.analysis.knockout import LOG_PROBABILITIES, PROBABILITIES
from vlm_patching.analysis.uncertainty import mean_and_interval
from vlm_patching.metrics import METRICS

_STATISTICS = {
    "pointing_ratio": (
        "pointing ratio",
        "Share of a head's attention on the region {region}, over the region's share of the picture: above 1 where it "
        "looks at it, under 1 where it looks past it.",
    ),
    "mass": ("attention on the picture", "The share of a head's attention that is on image patches."),
    "top_k_share": ("share on the top patches", "Near 1 where a head looks at a few patches alone."),
    "entropy": ("entropy over the patches (nats)", "0 for one patch, ln(patches) for all of them alike."),
}
"""Of `head_functions`: label, and what its size means."""


@dataclass(frozen=True)
class Quantity:
    """One number a cell and example.

    Attributes
    ----------
    kind
        `effect`, `placebo`, `exact`, `change`, `value`, or a statistic of attention.
    metric
        Which metric it is of; "" where of none.
    label, unit, meaning
        What a colour bar says; `%` or nothing; what the sign or the size means.
    middle
        Where the colours turn; None for a scale from the least to the largest.
    values
        `example`, the sweep's dimensions, `draw` where there was noise; NaN for what was not kept or not run.
    total
        Total effect of every example (draws averaged), NaN where it is too near to 0 to be divided by; None where there
        is none that the values are shares of.
    shares
        As `analysis.shares` gives them, where there is a total effect.
    """

    kind: str
    metric: str
    label: str
    unit: str
    meaning: str
    middle: float | None
    values: xr.DataArray
    total: xr.DataArray | None = None
    shares: xr.DataArray | None = None

    @cached_property
    def summary(self) -> xr.Dataset:
        """`mean` over examples, `low` and `high`, the ends of its 95 % interval."""
        return mean_and_interval(self.values)


def quantities(ds: xr.Dataset) -> list[Quantity]:
    """Everything that a map of this dataset can show, what its method is about first; nothing of an evaluation."""
    method = method_of(ds)
    if method == "evaluate":
        return []
    if method == "attention":
        return _of_attention(ds)
    found: list[Quantity] = []
    for metric in metrics_of(ds):
        if method == "lens":
            found.append(_reading(ds, metric))
            continue
        own = [_effect(ds, metric)]
        if method in REMOVING and metric in (*PROBABILITIES, *LOG_PROBABILITIES):
            own.insert(0 if method == "knockout" else 1, _change(ds, metric))
        for kind, said in (("placebo", "effect of another pair's value"), ("exact", "effect, verified cells alone")):
            if f"{metric}_{kind}" in ds:
                own.append(_effect(ds.assign({metric: ds[f"{metric}_{kind}"]}), metric, kind, said))
        found += own
    return found


def signs(ds: xr.Dataset) -> str:
    """What positive means, in a sentence, by the method."""
    method = method_of(ds)
    if method in ("patch", "path"):
        if ds.attrs.get("direction", "denoise") == "denoise":
            return "Effect = m(patched) - m(corrupted). Positive: the cell brings the answer back, so it carries it."
        return "Effect = m(clean) - m(patched). Positive: the answer is lost without the cell's clean value."
    if method in REMOVING:
        done = "blocked" if method == "knockout" else "ablated"
        return (
            f"Effect = m(clean) - m({done}). Positive: what was taken away carried the answer. The change in percent "
            "has the opposite sign: negative where it carried the answer."
        )
    if method == "steer":
        base = ds.attrs.get("base", "clean")
        return f"Effect = m(steered) - m({base}). Positive: steering brings the answer about."
    if method == "lens":
        return "Nothing is changed: the numbers are what the lens reads at each layer."
    if method == "evaluate":
        return "Nothing is changed: total effect = m(clean) - m(corrupted), positive where corrupting does harm."
    return "Nothing is changed: the numbers are what heads attend to in the clean run."


def _effect(ds: xr.Dataset, metric: str, kind: str = "effect", said: str = "effect") -> Quantity:
    shared = "base" not in ds.attrs or method_of(ds) in ("patch", "path") or ds.attrs["base"] == "corrupted"
    total = own_shares = None
    if kind == "effect" and method_of(ds) not in REMOVING and shared and f"{metric}_corrupted" in ds:
        total = over_draws(total_effect(ds, metric).astype(np.float64))
        total = total.where(abs(total) > LEAST_TOTAL_EFFECT[metric])
        own_shares = shares(ds, metric)
    if kind == "effect" and ds.attrs.get("estimate", "exact") != "exact":
        said = f"effect, estimated by {str(ds.attrs['estimate']).replace('_', ' ')}"
    return Quantity(kind, metric, said, "", signs(ds), 0.0, effect(ds, metric), total, own_shares)


def _change(ds: xr.Dataset, metric: str) -> Quantity:
    meaning = "100 · (p(edited) - p(clean)) / p(clean). Negative: what was taken away carried the answer."
    return Quantity(
        "change", metric, "change of the answer's probability", "%", meaning, 0.0, knockout_change(ds, metric)
    )


def _reading(ds: xr.Dataset, metric: str) -> Quantity:
    values = ds[metric].where(ds["kept"] == "kept")
    signed = bool((values < 0).any() and (values > 0).any())
    return Quantity("value", metric, METRICS[metric]["label"], "", signs(ds), 0.0 if signed else None, values)


def _of_attention(ds: xr.Dataset) -> list[Quantity]:
    patches = patch_keys(ds)
    if not patches.any():
        values = ds["attention"].where(ds["kept"] == "kept")
        return [Quantity("attention", "", "attention", "", "The share of attention on a key.", None, values)]
    region = region_of(ds)
    fewest = int(patches.sum("key").where(lambda count: count > 0).min())
    statistics = head_functions(ds, min(5, fewest), region=region)
    return [
        Quantity(name, "", label, "", meaning.format(region=region), 1.0 if name == "pointing_ratio" else None, values)
        for name, (label, meaning) in _STATISTICS.items()
        for values in [statistics[name].where(ds["kept"] == "kept")]
    ]


def region_of(ds: xr.Dataset) -> str:
    """The region that attention is held against: `object` where patches have that role, else their commonest role."""
    roles = Counter(ds["key_role"].transpose("example", "key").values[patch_keys(ds).values].tolist())
    return "object" if "object" in roles else roles.most_common(1)[0][0]
