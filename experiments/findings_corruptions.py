"""Findings about corruptions: what they do before anything is patched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from findings_page import (
    BLIP,
    COLORS,
    FIXED,
    LD,
    LLAVA,
    SIP,
    STR,
    TEXT_STACK,
    Runs,
    Section,
    bound,
    claim,
    experiment,
    grammatical,
    interval,
    num,
    one,
    percent,
    picture,
    prose,
)

import vlm_patching as vp

CORRUPTIONS: dict[str, dict[str, Any]] = {
    "SIP": SIP,
    "STR": STR,
    "STR, automatic": {**STR, "automatic": True},
    "STR, on/at made to fit": STR,
    "noise, image embeddings, k = 1": {"kind": "gaussian_noise", "site": "image_embeds", "k": 1.0},
    "noise, image embeddings, k = 3": {"kind": "gaussian_noise", "site": "image_embeds", "k": 3.0},
    "noise, pixels, k = 1": {"kind": "gaussian_noise", "site": "pixels", "k": 1.0},
    "noise, pixels, k = 3": {"kind": "gaussian_noise", "site": "pixels", "k": 3.0},
    "other image": {"kind": "other_image"},
    "blank image": {"kind": "blank_image"},
    "mean colour": {"kind": "mean_color_image"},
    "blurred": {"kind": "blurred_image"},
    "shuffled": {"kind": "shuffled_image"},
    "object masked": {"kind": "masked_region"},
}
FITTED = "STR, on/at made to fit"
QUESTIONS = {"color_choice": "colour", "place": "place"}
Found = Mapping[tuple[str, str], Any]
"""Of each model and kind of question: a diagnosis, or numbers out of it."""


def corruptions(runs: Runs) -> Section:
    """What corruptions do, before anything is patched."""
    found = {(model, question): _diagnosed(runs, model, question) for model in (BLIP, LLAVA) for question in QUESTIONS}
    spread = {key: _text_stack(ds["spread"], key[0]) for key, ds in found.items()}
    moved = {key: _text_stack(ds["moved"], key[0]) for key, ds in found.items()}
    body = _pairs_change(found) + _pictures_go(found) + _distances(found, moved, spread)
    sip_spread = max(float(s.sel(corruption="SIP")) for s in spread.values())
    blip, k3 = found[BLIP, "place"]["flipped"], "noise, image embeddings, k = 3"
    finding = claim(
        sip_spread < 1.2,
        f"""**Corruptions.** Semantic image pairs flip every answer and leave the text stack's residual stream as spread
        as clean runs are (at most {bound(sip_spread)} of it); noise of k = 3 takes it to
        {num(spread[BLIP, "color_choice"].sel(corruption=k3))} in shapes-blip and
        {num(spread[LLAVA, "color_choice"].sel(corruption=k3))} in shapes-llava. Token replacement in place questions
        flips {one(blip.sel(corruption="STR"))} of shapes-blip's answers, and {one(blip.sel(corruption=FITTED))} once
        the preposition fits the new options.""",
    )
    shown = picture(
        _corruption_figure(found, moved, spread),
        "corruptions",
        "Flip rate and total effect with 95 % intervals, distance moved and spread, of every corruption",
    )
    return Section("What corruptions do", (prose(body), shown), (finding,))


def _pairs_change(found: Found) -> str:
    """Semantic image pairs, and token replacement."""
    flips = {key: ds["flipped"].mean("example") for key, ds in found.items()}
    total = {key: ds[f"{LD}_total_effect"].mean("example") for key, ds in found.items()}
    sip = [float(t.sel(corruption="SIP")) for t in total.values()]
    foil = [float(ds[f"{LD}_corrupted"].sel(corruption="SIP").mean()) for ds in found.values()]
    rest = [float(t.drop_sel(corruption="SIP").max()) for t in total.values()]
    body = claim(
        all(float(f.sel(corruption="SIP")) == 1 for f in flips.values()) and min(sip) > max(rest) and max(foil) < -3,
        f"""A semantic image pair (SIP: what is asked about is changed) flips every answer of both models. Its total
        effect, {num(min(sip), 1)} to {num(max(sip), 1)} logits, is larger than any other's (at most
        {bound(max(rest), 1)}), since it makes the models prefer the foil (logit difference {num(min(foil), 1)} to
        {num(max(foil), 1)}) where others make them lose the answer. """,
    )
    blip, llava = (found[model, "place"]["flipped"] for model in (BLIP, LLAVA))
    swapped = float(max(flips[model, "color_choice"].sel(corruption="STR") for model in (BLIP, LLAVA)))
    body += claim(
        swapped < 0.05 and float(llava.sel(corruption="STR").mean()) > 0.9,
        f"""Symmetric token replacement (STR) flips at most {bound(100 * swapped, 0)}{FIXED}% of the colour answers,
        since the models name a thing's colour whatever the options are; of the place answers it flips
        {one(llava.sel(corruption="STR"))} in shapes-llava and {one(blip.sel(corruption="STR"))} in shapes-blip. """,
    )
    return body + claim(
        float(blip.sel(corruption=FITTED).mean()) > float(interval(blip.sel(corruption="STR"))["high"]),
        f"""The missing flips are the pairs' fault: their corrupted texts keep the preposition ("at the left or right"),
        and shapes-blip goes by it; with on/at made to fit, {one(blip.sel(corruption=FITTED))} flip. """,
    )


def _pictures_go(found: Found) -> str:
    gone = ["other image", "blank image", "mean colour", "blurred", "object masked"]
    lost = {
        name: [
            float(v)
            for key in found
            if key[1] == name
            for v in found[key]["flipped"].mean("example").sel(corruption=gone)
        ]
        for name in QUESTIONS
    }
    return f"""Pictures that no longer show the thing (other image, blank, mean colour, blurred, masked) flip
        {percent(min(lost["color_choice"]))} to {percent(max(lost["color_choice"]))} of the colour answers and
        {percent(min(lost["place"]))} to {percent(max(lost["place"]))} of the place answers (where a guess between the
        two options is right half of the time). """


def _distances(found: Found, moved: Found, spread: Found) -> str:
    """How far activations move, and out of their distribution."""
    k1, k3, colour = "noise, image embeddings, k = 1", "noise, image embeddings, k = 3", (LLAVA, "color_choice")
    sip_spread = max(float(s.sel(corruption="SIP")) for s in spread.values())
    listed = ", ".join(f"{num(s.sel(corruption=k3))} ({key[0]} {QUESTIONS[key[1]]})" for key, s in spread.items())
    body = claim(
        all(float(abs(s - 1).sel(corruption="SIP")) < float(abs(s - 1).sel(corruption=k3)) for s in spread.values()),
        f"""SIP leaves the residual stream of the text stack as spread as clean runs are (at most {bound(sip_spread)},
        mean over layers; 1 is the clean spread), noise of k = 3 does not: {listed}; at k = 1
        {num(spread[colour].sel(corruption=k1))} (shapes-llava colour). """,
    )
    flips, by = found[colour]["flipped"].mean("example"), moved[colour]
    return body + claim(
        float(flips.sel(corruption="shuffled")) < 0.05
        and float(by.sel(corruption="shuffled")) > 2 * float(by.sel(corruption="SIP")),
        f"""How far activations move does not say how much harm was done: shuffling the picture's patches moves
        shapes-llava's by {num(by.sel(corruption="shuffled"))} standard deviations and flips
        {percent(flips.sel(corruption="shuffled"))} of the colour answers, SIP moves them by
        {num(by.sel(corruption="SIP"))} and flips {percent(flips.sel(corruption="SIP"))}.""",
    )


def _diagnosed(runs: Runs, model: str, question: str) -> xr.Dataset:
    asked = experiment(
        "corruptions", model, question, patch={"sites": [f"{TEXT_STACK[model]}.resid_post"]}, corruption=SIP
    )
    names = [name for name in CORRUPTIONS if name != FITTED]
    ds = vp.diagnose(asked, [CORRUPTIONS[name] for name in names], model=runs.model(model))
    ds = ds.assign_coords(corruption=names)
    if question != "place":
        return ds
    fitted = grammatical(vp.load_pairs("shapes", n=32, seed=0, questions=[question]))
    extra = vp.diagnose(asked, [CORRUPTIONS[FITTED]], model=runs.model(model), inputs=fitted)
    return xr.concat([ds, extra.assign_coords(corruption=[FITTED])], "corruption", coords="minimal", compat="override")


def _text_stack(values: xr.DataArray, model: str) -> xr.DataArray:
    return values.sel(site=f"{TEXT_STACK[model]}.resid_post").mean("layer")


def _corruption_figure(found: Found, moved: Found, spread: Found) -> Any:
    figure, axes = plt.subplots(1, 4, figsize=(10, 4.8), sharey=True, layout="constrained")
    names = list(CORRUPTIONS)[::-1]
    for i, (key, ds) in enumerate(found.items()):
        at = np.array([names.index(name) for name in ds["corruption"].values]) + 0.27 - 0.18 * i
        style: dict[str, Any] = {"color": COLORS[i], "marker": "o" if key[0] == BLIP else "s", "markersize": 4}
        for ax, name in zip(axes, ("flipped", f"{LD}_total_effect"), strict=False):
            known = interval(ds[name])
            bars = np.clip([known["mean"] - known["low"], known["high"] - known["mean"]], 0, None)
            ax.errorbar(known["mean"], at, xerr=bars, linestyle="", elinewidth=1, **style)
        for ax, values in zip(axes[2:], (moved, spread), strict=True):
            ax.plot(values[key], at, linestyle="", label=f"{key[0]}, {QUESTIONS[key[1]]}", **style)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    titles = ("share of answers flipped", "total effect (logit diff.)", "moved (clean SD)", "spread (clean = 1)")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10)
        ax.set_ylim(-0.6, len(names) - 0.4)
        for y in range(len(names)):
            ax.axhspan(y - 0.5, y + 0.5, color="0.96" if y % 2 else "1", zorder=0)
    for ax in axes[2:]:
        ax.set_xscale("log")
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncol=4, fontsize=8, frameon=False)
    return figure
