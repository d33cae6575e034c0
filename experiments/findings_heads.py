"""Findings about heads: effects, universal heads, what they look at, ablation, paths, placebo, estimates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from findings_page import (
    BLIP,
    LD,
    LLAVA,
    SIP,
    STR,
    Runs,
    Section,
    bound,
    ci,
    claim,
    grammatical,
    head,
    heads_in,
    interval,
    num,
    percent,
    picture,
    prose,
    share,
    strongest,
    table,
)
from matplotlib.patches import Rectangle
from scipy import stats

import vlm_patching as vp


def at_last(values: xr.DataArray) -> xr.DataArray:
    """Heads of the last token."""
    if "position" in values.dims:
        values = values.sel(position="last")
    return values.isel(site=0).drop_vars(["site", "position"], errors="ignore")


def heads(runs: Runs) -> Section:
    """Heads, one by one."""
    ablated, finding = _ablation(runs)
    body = (
        _effects(runs),
        *_functions(runs),
        *_universal(runs),
        ablated,
        _placebo(runs),
        _paths(runs),
        _estimates(runs),
    )
    return Section("Heads", body, (finding,))


def _effects(runs: Runs) -> str:
    image, text = (
        interval(at_last(share(runs.preset(name))))
        for name in ("notice2024_llava_heads", "notice2024_llava_heads_text")
    )
    elsewhere = float(
        abs(share(runs.preset("notice2024_llava_heads")).sel(position="answer_option").mean("example")).max()
    )
    top, (leader,) = strongest(image, 3), strongest(text, 1)
    shown = ", ".join(f"{head(*h)} {ci(_cell(image, h))}" for h in top)
    body = claim(
        elsewhere < 0.02,
        f"""**Effects.** At shapes-llava's last token SIP (colour) names {shown} of the total effect; no head at the
        correct option's token moves more than {bound(elsewhere, 3)}, so of the two positions that NOTICE's sources name
        only the last prompt token shows anything. """,
    )
    body += claim(
        leader not in top,
        f"""STR (place) names another, {head(*leader)} {ci(_cell(text, leader))}. """,
    )
    cells = interval(share(runs.preset("notice2024_blip_heads")))
    single = float(abs(cells["mean"]).max())
    before = interval(share(runs.preset("notice2024_blip_heads_text")))
    after = interval(share(_fitted_heads(runs, BLIP)))
    was, still = (found.isel(position=0).sel(site="question_encoder.attn_head") for found in (before, after))
    named = strongest(was, 1)[0]
    body += claim(
        single < 0.05,
        f"""In shapes-blip no single head at the option's token gives back more than {bound(single)} under SIP, since
        every token of the encoder holds the answer. """,
    )
    body += claim(
        float(_cell(still, named)["high"]) < float(_cell(was, named)["low"]),
        f"""Its strongest head under STR, {head(*named)} ({ci(_cell(was, named))}), is so only as long as the corrupted
        text keeps the clean one's preposition (section 1): with on/at made to fit it gives back
        {ci(_cell(still, named))}.""",
    )
    return prose(body)


def _fitted_heads(runs: Runs, model: str) -> xr.Dataset:
    """Heads under STR, as the presets `notice2024_*_heads_text`, of pairs whose prepositions fit."""
    pairs = grammatical(vp.load_pairs("shapes", n=32, seed=0, questions=["place"]))
    sites = (
        ["language.attn_head"] if model == LLAVA else ["question_encoder.attn_head", "question_encoder.cross_attn_head"]
    )
    patch = {"sites": sites, "positions": ["last" if model == LLAVA else "answer_option"]}
    return runs.own("heads_text_fitted", model, "place", inputs=pairs, corruption=STR, patch=patch)


def _cell(found: xr.Dataset, which: tuple[int, int]) -> xr.Dataset:
    return found.sel(layer=which[0], head=which[1])


def _universal(runs: Runs) -> tuple[str, str]:
    rows, tested, named = [], {}, []
    for model, site, position in (
        (LLAVA, "language.attn_head", "last"),
        (BLIP, "question_encoder.attn_head", "answer_option"),
        (BLIP, "question_encoder.cross_attn_head", "answer_option"),
    ):
        place = {"site": site, "position": position}
        image = vp.effect(runs.preset(f"notice2024_{model.removeprefix('shapes-')}_universal"), LD).sel(place)
        found = vp.analysis.universal_heads(vp.analysis.by_task(image))
        text = vp.analysis.universal_heads({"place": vp.effect(_fitted_heads(runs, model), LD).sel(place)})
        tested[site] = found["universal_tested"] & found["same_sign"]
        named += found["important"].sum(("layer", "head")).values.tolist()
        kind = vp.analysis.label_by_modality(tested[site], text["universal_tested"])
        tasks = "; ".join(f"{t.split('_')[0]} {heads_in(found['important'].sel(task=t))}" for t in found["task"].values)
        kinds = [heads_in(kind == label) for label in ("vision", "text", "multimodal")]
        rows.append([f"{model} {site.split('.')[1]}", tasks, heads_in(found["universal"]), *kinds])
    skewness = _skewness(runs)
    body = """**Universal heads.** Over four kinds of question (24 pairs each, SIP), NOTICE's rule (mean |effect| above
        mean + 2 standard deviations) and the tested one (max-T at a family-wise level of 5 % in every task, one
        sign): """
    body += claim(
        all(row[2] == "–" for row in rows),
        f"no head is important in every task by the paper's rule, which names {min(named)} to {max(named)} a task; ",
    )
    body += claim(
        heads_in(tested["language.attn_head"]) == "L2.H3",
        f"""by the tested one {sum(int(t.sum()) for t in tested.values())} are, in shapes-llava L2.H3 alone. Under
        *vision* are heads that are so under SIP alone, under *text* those significant under STR alone (place, on/at
        made to fit, the one task that STR affects), under *multimodal* both. """,
    )
    body += f"""The test is as good as its null hypothesis, that an effect is as likely x as −x: shapes-llava's heads
        that are significant in a task have effects of skewness {num(skewness.min(), 1)} to {num(skewness.max(), 1)},
        median {num(np.median(skewness), 1)}."""
    names = ["heads of", "important by the paper's rule", "in every task", "tested: vision", "text", "multimodal"]
    return prose(body), table(names, rows)


def _skewness(runs: Runs) -> np.ndarray:
    """Of the heads of shapes-llava's last token that are significant in a task, one number each and task."""
    effect = at_last(vp.effect(runs.preset("notice2024_llava_universal"), LD))
    found = []
    for values in vp.analysis.by_task(effect).values():
        significant = vp.analysis.permutation_max_t(values)["significant"].transpose("layer", "head").values
        found.append(stats.skew(values.transpose("example", "layer", "head").values, axis=0)[significant])
    return np.concatenate(found)


def pointing(runs: Runs) -> xr.DataArray:
    """Pointing ratio of shapes-llava's heads at the last token, per example."""
    return at_last(vp.analysis.head_functions(runs.preset("notice2024_llava_head_functions"))["pointing_ratio"])


def _functions(runs: Runs) -> tuple[str, str]:
    ratios = interval(pointing(runs))
    image = interval(at_last(share(runs.preset("notice2024_llava_heads"))))
    top = strongest(image, 4)
    most = runs.preset("notice2024_llava_head_functions").sizes["key"]
    leader = strongest(ratios, 1)[0]
    listed = ", ".join(f"{head(*h)} {ci(_cell(ratios, h), 1)}" for h in top)
    ds = runs.preset("notice2024_blip_head_functions")
    blip = interval(vp.analysis.head_functions(ds)["pointing_ratio"].isel(site=0, position=0))
    looker = strongest(blip, 1)[0]
    body = claim(
        set(strongest(ratios, 4)) == set(top) and leader == top[0],
        f"""**What they look at.** The four heads with the largest effects in shapes-llava are the four that point at
        the object most (pointing ratio, 1 at random, at most {most}): {listed}. """,
    )
    body += f"""In shapes-blip it is {head(*looker)} of the question encoder's cross-attention
        ({ci(_cell(blip, looker), 1)}). NOTICE calls such heads object detection, by eye. """
    above = f"{int((ratios['low'] > 1).sum())} of {ratios['mean'].size}"
    body += claim(
        float((ratios["low"] > 1).mean()) > 0.5,
        f"""But {above} of shapes-llava's heads have a ratio above 1 with their whole interval, so looking at the object
        is by itself no sign of mattering.""",
    )
    figure = _looking(runs, leader, looker)
    shown = picture(
        figure, "heads", "Heads' effects and pointing ratios, and one picture under each model's best pointer"
    )
    return prose(body), shown


def _looking(runs: Runs, leader: tuple[int, int], looker: tuple[int, int]) -> Any:
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.4), layout="constrained")
    for ax, preset, title in (
        (axes[0, 0], "notice2024_llava_heads", "SIP, colour"),
        (axes[0, 1], "notice2024_llava_heads_text", "STR, place"),
    ):
        vp.plot.heads(runs.preset(preset), LD, position="last", normalize=True, ax=ax)
        ax.set_title(f"shapes-llava at last: {title}", fontsize=10)
        ax.collections[0].colorbar.set_label("share of the total effect")
    functions = runs.preset("notice2024_llava_head_functions")
    vp.plot.head_function(functions.sel(position=["last"]), ax=axes[0, 2])
    axes[0, 2].set_title("shapes-llava at last: pointing ratio", fontsize=10)
    pair = vp.load_pairs("shapes", n=1, seed=0, questions=["color_choice"])[0]
    axes[1, 0].imshow(np.asarray(pair.clean.picture()))
    x0, y0, x1, y1 = pair.regions["object"]
    axes[1, 0].add_patch(Rectangle((x0 - 1.5, y0 - 1.5), x1 - x0 + 2, y1 - y0 + 2, fill=False, linestyle="--"))
    axes[1, 0].set_title(f"{pair.clean.text} → {pair.answer}", fontsize=10)
    axes[1, 0].set_axis_off()
    for ax, ds, (layer, number), position, model in (
        (axes[1, 1], functions, leader, "last", LLAVA),
        (axes[1, 2], runs.preset("notice2024_blip_head_functions"), looker, "answer_option", BLIP),
    ):
        vp.plot.attention(ds, pair.id, pair.clean.picture(), layer=layer, head=number, position=position, ax=ax)
        ax.set_title(f"{model} {head(layer, number)}: attention", fontsize=10)
        ax.collections[-1].colorbar.set_label("minus the mean of all heads")
    return figure


def _ablation(runs: Runs) -> tuple[str, str]:
    ablated = interval(at_last(vp.effect(runs.preset("heads_llava_ablation"), LD)))
    restored = interval(at_last(vp.effect(runs.preset("notice2024_llava_heads"), LD)))
    reader, looker = strongest(ablated, 2)
    mass = at_last(vp.analysis.head_functions(runs.preset("notice2024_llava_head_functions"))["mass"])
    seen = float(mass.mean("example").sel(layer=reader[0], head=reader[1]))
    body = claim(
        abs(float(_cell(restored, reader)["mean"])) < 0.1 and seen < 0.1 and strongest(restored, 1)[0] == looker,
        f"""**Mean ablation** names {head(*reader)} first: without it the logit difference drops by
        {ci(_cell(ablated, reader))}, and restoring it under SIP gives back {ci(_cell(restored, reader))}.
        {percent(seen)} of its attention is on the picture: it reads the text, which is the same in both runs, so that
        no image corruption can show it. Second is {head(*looker)}, with {ci(_cell(ablated, looker))} (restored:
        {ci(_cell(restored, looker))}).""",
    )
    finding = f"""**Blind spots.** Image corruption cannot see {head(*reader)}: restoring it gives back
        {ci(_cell(restored, reader))} logits, ablating it costs {ci(_cell(ablated, reader))}, more than any other head.
        And {percent(_placebo_share(runs))} of what it credits {head(*looker)} with, another pair's value brings about
        too."""
    return prose(body), finding


def _placebo_share(runs: Runs) -> float:
    """Of the strongest head's effect, what another pair's value in its place has."""
    found = vp.analysis.against_placebo(runs.preset("heads_llava_placebo"), LD).isel(site=0, position=0)
    cell = _cell(found, strongest(found.assign(mean=found["effect"]), 1)[0])
    return float(cell["placebo"]) / float(cell["effect"])


def _placebo(runs: Runs) -> str:
    found = vp.analysis.against_placebo(runs.preset("heads_llava_placebo"), LD).isel(site=0, position=0)
    looker = strongest(found.assign(mean=found["effect"]), 1)[0]
    worst = strongest(found.assign(mean=found["mean"].clip(max=0)), 1)[0]
    mine, other = _cell(found, looker), _cell(found, worst)
    body = claim(
        _placebo_share(runs) > 0.5,
        f"""**Placebo.** In {head(*looker)} another pair's value gives {num(mine["placebo"])} logits where the pair's
        own gives {num(mine["effect"])} (own minus placebo {ci(mine)}): {percent(_placebo_share(runs))} of what SIP
        credits the head with needs no value of this pair. """,
    )
    third = vp.analysis.against_placebo(_third_color(runs), LD).isel(site=0, position=0)
    plain = _cell(third, looker)
    body += claim(
        float(plain["effect"]) < float(mine["effect"]) / 2 and float(plain["placebo"]) < float(mine["placebo"]) / 2,
        f"""Most of it is the foil that goes and not the answer that comes: measured against a third colour in the
        foil's place, the own value gives {num(plain["effect"])} and the placebo {num(plain["placebo"])} (difference
        {ci(plain)}). """,
    )
    body += claim(
        float(other["high"]) < 0 and bool(other["significant"]),
        f"""In {head(*worst)} the placebo even does more ({num(other["placebo"])}) than the own value
        ({num(other["effect"])}; difference {ci(other)}). """,
    )
    sure = found["significant"] & (found["mean"] > 0)
    body += f"""By max-T, heads that carry their own pair's answer beyond the placebo: {heads_in(sure)}."""
    return prose(body)


def _third_color(runs: Runs) -> xr.Dataset:
    """The placebo preset's run, its logit difference against a colour that is in neither picture's answer."""
    pairs = vp.load_pairs("shapes", n=32, seed=0, questions=["color_choice"])
    colors = sorted({pair.answer for pair in pairs} | {pair.foil for pair in pairs})
    found = []
    for i, pair in enumerate(pairs):
        turned = colors[i % len(colors) :] + colors[: i % len(colors)]
        found.append(replace(pair, foil=next(c for c in turned if c not in (pair.answer, pair.foil))))
    patch = {"sites": ["language.attn_head"], "positions": ["last"], "placebo": True}
    return runs.own("heads_placebo_third", LLAVA, "color_choice", inputs=found, corruption=SIP, patch=patch)


def _paths(runs: Runs) -> str:
    direct = interval(at_last(share(runs.preset("heads_llava_direct"))))
    whole = interval(at_last(share(runs.preset("notice2024_llava_heads"))))
    top = strongest(whole, 4)
    listed = ", ".join(
        f"{head(*h)} {percent(float(_cell(direct, h)['mean']) / float(_cell(whole, h)['mean']))}" for h in top
    )
    portion = [float(_cell(direct, h)["mean"]) / float(_cell(whole, h)["mean"]) for h in top]
    body = claim(
        min(portion) > 0.6,
        f"""**Paths.** Most of these effects reach the logits without passing another head: of the effect of restoring a
        head, its direct path alone gives {listed}. """,
    )
    return prose(body)


def _estimates(runs: Runs) -> str:
    found = {name: runs.preset(f"heads_llava_{name}") for name in ("attribution", "integrated")}
    exact = interval(at_last(vp.effect(runs.preset("notice2024_llava_heads"), LD)))
    leader = strongest(exact, 1)[0]
    sizes = {name: interval(at_last(vp.effect(ds, LD))) for name, ds in found.items()}
    said = {name: vp.analysis.verification(ds, LD) for name, ds in found.items()}
    pearson = {name: float(v["pearson_mean"]) for name, v in said.items()}
    body = claim(
        float(_cell(sizes["attribution"], leader)["high"]) < float(_cell(exact, leader)["low"]),
        f"""**Estimates.** Over the {int(said["attribution"]["cells"][0])} cells verified in each pair, attribution
        patching correlates with exact patching by {num(pearson["attribution"])} (Pearson, mean over pairs; Spearman
        {num(said["attribution"]["spearman_mean"])}), integrated gradients by {num(pearson["integrated"])}
        ({num(said["integrated"]["spearman_mean"])}). Attribution ranks heads and does not measure them: it gives
        {head(*leader)} {ci(_cell(sizes["attribution"], leader))} logits, integrated gradients
        {ci(_cell(sizes["integrated"], leader))}, the exact value is {ci(_cell(exact, leader))}.""",
    )
    return prose(body)
