"""Findings about methods: do they rank heads alike, do metrics and corruptions, do windows add up?"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from findings_heads import at_last, pointing
from findings_page import (
    KL,
    LD,
    LLAVA,
    NOISE,
    SIP,
    P,
    Runs,
    Section,
    claim,
    head,
    interval,
    num,
    picture,
    prose,
    share,
    strongest,
    table,
)

import vlm_patching as vp

AGREEMENT = "Do the methods agree?"
ALIKE = ("SIP restored", "SIP corrupted", "direct path", "attribution", "integrated gradients")
"""Maps of one question: what a head's difference between the two pictures does."""
METRICS = {P: "p", LD: "LD", KL: "KL"}


def methods(runs: Runs) -> Section:
    """Method against method, metric against metric, corruption against corruption, windows against sums."""
    maps = head_maps(runs)
    matrix, findings = _matrix(maps)
    return Section(AGREEMENT, (*matrix, *_metrics(runs), *_windows(runs)), findings)


def head_maps(runs: Runs) -> dict[str, xr.DataArray]:
    """Every method's say on shapes-llava's heads at the last token, of the same 32 colour pairs, per example."""
    patch = {"sites": ["language.attn_head"], "positions": ["last"]}
    noising = runs.own("heads_noising", LLAVA, "color_choice", corruption=SIP, patch={**patch, "direction": "noise"})
    noise = runs.own("heads_noise", LLAVA, "color_choice", corruption=NOISE, patch=patch)
    presets = {
        "SIP restored": "notice2024_llava_heads",
        "direct path": "heads_llava_direct",
        "attribution": "heads_llava_attribution",
        "integrated gradients": "heads_llava_integrated",
        "mean ablation": "heads_llava_ablation",
    }
    maps = {name: at_last(vp.effect(runs.preset(preset), LD)) for name, preset in presets.items()}
    maps["SIP corrupted"] = at_last(vp.effect(noising, LD))
    maps["noise restored"] = at_last(vp.effect(noise, LD))
    maps["image → last blocked"] = _blocked(runs)
    maps["pointing ratio"] = pointing(runs)
    return {name: maps.pop(name) for name in ALIKE} | maps


def _blocked(runs: Runs) -> xr.DataArray:
    """Effect of keeping one head of the last token from the picture."""
    found = []
    for number in range(runs.preset("notice2024_llava_heads").sizes["head"]):
        block = {"sites": ["language.attn_pattern"], "edges": ["image -> last"], "heads": [number]}
        ds = runs.own(f"heads_blocked_{number}", LLAVA, "color_choice", knockout=block)
        found.append(vp.effect(ds, LD).isel(site=0, edges=0, drop=True).expand_dims(head=[number]))
    return xr.concat(found, "head")


def _matrix(maps: Mapping[str, xr.DataArray]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    reliability = {name: float(vp.analysis.split_half(values)["spearman_brown"]) for name, values in maps.items()}
    found = {(a, b): vp.analysis.agreement(maps[a], maps[b], k=3) for a, b in itertools.combinations(maps, 2)}
    inside = {key: float(ds["spearman"]) for key, ds in found.items() if set(key) <= set(ALIKE)}
    outside = {key: float(ds["spearman"]) for key, ds in found.items() if not set(key) <= set(ALIKE)}
    below = {
        key
        for key, ds in found.items()
        if float(ds["spearman_high"]) < np.sqrt(reliability[key[0]] * reliability[key[1]])
    }
    overlap = min(float(ds["top_k"]) for ds in found.values())
    tops = {name: strongest(interval(values), 1)[0] for name, values in maps.items()}
    (leader, votes), *_ = sorted(((h, list(tops.values()).count(h)) for h in set(tops.values())), key=lambda x: -x[1])
    others = "; ".join(f"{name} names {head(*h)}" for name, h in tops.items() if h != leader)
    low = min(outside, key=outside.__getitem__)
    body = f"""Nine methods, one question: which of the 24 heads at shapes-llava's last token carry the colour (32
        pairs, logit difference)? Below, Spearman's rank correlation of every two maps with its 95 % interval; on the
        diagonal each map's split-half reliability (Spearman–Brown), {num(min(reliability.values()))} to
        {num(max(reliability.values()))}. Maps of other pairs would agree by no more than √(r·r′) of their
        reliabilities; maps of the same pairs share their noise and may exceed it. """
    body += claim(
        min(inside.values()) > max(outside.values()),
        f"""Methods that ask what a head's *difference between the two pictures* does agree with each other
        ({num(min(inside.values()))} to {num(max(inside.values()))}): {", ".join(ALIKE)}. """,
    )
    body += claim(
        not any(set(key) <= set(ALIKE) for key in below),
        f"""The others agree less, with them and with each other ({num(min(outside.values()))} to
        {num(max(outside.values()))}; least {low[0]} and {low[1]}), and in {len(below & set(outside))} of {len(outside)}
        pairs of maps the whole interval lies below √(r·r′), so that imprecision does not explain it. """,
    )
    small = int((abs(interval(maps["SIP restored"])["mean"]) < 0.1).sum())
    body += claim(
        overlap > 0.6,
        f"""About the few strong heads they agree more: {votes} of {len(maps)} name {head(*leader)} first ({others}),
        and any two maps share at least {round(3 * overlap)} of their 3 first heads. Ranks below are of little
        consequence: restoring moves the logit difference by less than 0.1 in {small} of the 24.""",
    )
    finding = f"""**Do the methods agree?** Of the 24 heads at shapes-llava's last token, activation patching, its
        gradient estimates and path patching under semantic image pairs give one ranking (Spearman
        {num(min(inside.values()))} to {num(max(inside.values()))}); noise, mean ablation, blocked attention and
        attention itself agree with them and with each other by {num(min(outside.values()))} to
        {num(max(outside.values()))}, in {len(below & set(outside))} of {len(outside)} cases by less than their
        reliabilities allow. {votes} of {len(maps)} name the same head first."""
    shown = picture(_matrix_figure(found, reliability), "agreement", "Rank agreement of nine methods over heads")
    each = picture(_map_figure(maps), "maps", "The maps themselves, each on its own scale")
    return (prose(body), shown, each), (finding,)


def _matrix_figure(found: Mapping[tuple[str, str], xr.Dataset], reliability: Mapping[str, float]) -> Any:
    names = list(reliability)
    values = np.full((len(names), len(names)), np.nan)
    text = np.full(values.shape, "", dtype=object)
    for i, name in enumerate(names):
        values[i, i], text[i, i] = reliability[name], f"({num(reliability[name])})"
    for (a, b), ds in found.items():
        i, j = names.index(b), names.index(a)
        values[i, j] = float(ds["spearman"])
        text[i, j] = f"{num(values[i, j])}\n{num(ds['spearman_low'])}–{num(ds['spearman_high'])}"
    figure, ax = plt.subplots(figsize=(10, 6), layout="constrained")
    sns.heatmap(
        values,
        ax=ax,
        cmap="viridis",
        vmin=0,
        vmax=1,
        annot=text,
        fmt="",
        annot_kws={"fontsize": 8},
        xticklabels=names,
        yticklabels=names,
        cbar_kws={"label": "Spearman (diagonal: reliability)"},
    )
    plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    return figure


def _map_figure(maps: Mapping[str, xr.DataArray]) -> Any:
    figure, axes = plt.subplots(1, len(maps), figsize=(10, 2.6), sharey=True, layout="constrained")
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        mean = values.mean([d for d in ("example", "draw") if d in values.dims]).transpose("layer", "head").values
        limit = abs(mean).max()
        sns.heatmap(
            mean[::-1], ax=ax, cmap="RdBu_r", vmin=-limit, vmax=limit, cbar=False, yticklabels=range(len(mean))[::-1]
        )
        ax.set_title("\n".join([*textwrap.wrap(name, 12), f"max. {num(limit, 1)}"]), fontsize=8)
        ax.set_xlabel("head", fontsize=8)
        ax.tick_params(labelsize=8, rotation=0)
    axes[0].set_ylabel("layer")
    return figure


def _metrics(runs: Runs) -> tuple[str, ...]:
    sweeps = {kind: runs.preset(f"zhang_nanda2023_{kind.lower()}") for kind in ("SIP", "STR", "noise")}
    effects = {(kind, metric): vp.effect(ds, metric) for kind, ds in sweeps.items() for metric in METRICS}
    trust = {key: float(vp.analysis.split_half(values)["spearman_brown"]) for key, values in effects.items()}
    between = {
        (kind, a, b): vp.analysis.agreement(effects[kind, a], effects[kind, b])
        for kind in sweeps
        for a, b in itertools.combinations(METRICS, 2)
    }
    across = {
        (a, b, metric): vp.analysis.agreement(effects[a, metric], effects[b, metric])
        for a, b in itertools.combinations(sweeps, 2)
        for metric in METRICS
    }
    rows = [
        [kind, " ".join(num(trust[kind, m]) for m in METRICS), *(_rho(between[kind, a, b]) for a, b in _pairs())]
        for kind in sweeps
    ]
    first = table(["sweep", "reliability p, LD, KL", *(f"{METRICS[a]} – {METRICS[b]}" for a, b in _pairs())], rows)
    rows = [[f"{a} – {b}", *(_rho(across[a, b, m]) for m in METRICS)] for a, b in itertools.combinations(sweeps, 2)]
    second = table(["corruptions", *METRICS.values()], rows)

    def _object(kind: str) -> str:
        return num(interval(share(sweeps[kind]).sel(position="image:object"))["mean"].max())

    metric = [float(ds["spearman"]) for ds in between.values()]
    corruption = [float(ds["spearman"]) for ds in across.values()]
    body = claim(
        np.mean(metric) > max(corruption),
        f"""**Metrics and corruptions** (`zhang_nanda2023_*`, 90 cells of shapes-llava, place questions). Metrics agree
        by {num(min(metric))} to {num(max(metric))}, corruptions by {num(min(corruption))} to {num(max(corruption))}:
        what is done to the prompt decides more about the map than how the answer is measured. SIP and noise change the
        picture, STR the options; at the object's patches SIP and noise give back up to {_object("SIP")} and
        {_object("noise")} of the total effect, STR {_object("STR")}.""",
    )
    return prose(body), first, second


def _pairs() -> list[tuple[str, str]]:
    return list(itertools.combinations(METRICS, 2))


def _rho(ds: xr.Dataset) -> str:
    return f"{num(ds['spearman'])} [{num(ds['spearman_low'])}, {num(ds['spearman_high'])}]"


def _windows(runs: Runs) -> tuple[str, ...]:
    rows, slopes = [], {}
    for preset in ("zhang_nanda2023_windows", "basu2024_single"):
        effect = vp.effect(runs.preset(preset), LD)
        single = effect.sel(window=1, drop=True)
        for width in (3, 5):
            window, total = effect.sel(window=width, drop=True), _summed(single, width)
            slopes[preset, width] = _slope(window, total)
            agreed = vp.analysis.agreement(window, total)
            rows.append([f"`{preset}`", str(width), _rho(agreed), num(slopes[preset, width])])
    sip, basu = ([s for (name, _), s in slopes.items() if name.startswith(start)] for start in ("zhang", "basu"))
    body = claim(
        max(abs(s - 1) for s in sip) < 0.1 and max(basu) < 0.8,
        f"""**Sliding windows** against sums of single layers: Zhang & Nanda find that windows give more. Here they give
        as much under SIP (slope of window on sum {num(min(sip))} to {num(max(sip))}: layers add up), and less where one
        layer alone can bring the whole answer back, after replacing a constraint ({num(min(basu))} to
        {num(max(basu))}).""",
    )
    return prose(body), table(["sweep", "window", "rank agreement", "slope of window on sum"], rows)


def _summed(single: xr.DataArray, width: int) -> xr.DataArray:
    """Effects of single layers, summed over the layers that a window around each covers."""
    layers, half = single.sizes["layer"], width // 2
    parts = [
        single.isel(layer=slice(max(0, at - half), min(layers, at + half + 1))).sum("layer", skipna=False)
        for at in range(layers)
    ]
    return xr.concat(parts, single["layer"]).transpose(*single.dims)


def _slope(y: xr.DataArray, x: xr.DataArray) -> float:
    """Of mean effects, through 0."""
    y, x = y.mean("example"), x.mean("example")
    return float((x * y).sum() / (x * x).sum())
