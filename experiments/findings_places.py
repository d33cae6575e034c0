"""Findings about places: tracing, constraints, information flow, lens and steering."""

from __future__ import annotations

import matplotlib.pyplot as plt
import xarray as xr
from findings_page import (
    BLIP,
    COLORS,
    FIXED,
    LD,
    LLAVA,
    SIP,
    P,
    Runs,
    Section,
    bound,
    ci,
    claim,
    finish,
    interval,
    line,
    num,
    picture,
    prose,
    share,
    table,
)
from matplotlib.axes import Axes

import vlm_patching as vp

SHARE = "share of the total effect"


def tracing(runs: Runs) -> Section:
    """Where the answer is: SIP, noise on the image, noise on the subject."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
    llava, finding = _llava_path(runs, axes[1])
    blip, second = _blip_path(runs, axes[0])
    shown = picture(
        figure, "path", "Share of the total effect that restoring resid_post gives back, by layer and place"
    )
    return Section("Where the answer is", (llava, blip, shown, *_rome(runs)), (finding, second))


def _llava_path(runs: Runs, ax: Axes) -> tuple[str, str]:
    found = interval(share(runs.preset("answer_path_llava"))).sel(site="language.resid_post")
    places = ("image:object", "image:other", "last", "question")
    for i, place in enumerate(places):
        line(ax, found.sel(position=place), place, COLORS[i])
    finish(ax, "shapes-llava, language.resid_post", "")
    thing, last = found.sel(position="image:object"), found.sel(position="last")
    crossed = _crossing(found)
    words = ["subject", "answer_option", "foil_option", "question"]
    most = float(abs(found["mean"].sel(position=words)).max())
    text = claim(
        most < 0.05 and float(thing["mean"][0]) > 0.8 and float(last["mean"][-1]) > 0.95,
        f"""**shapes-llava.** Under SIP the answer is in the object's patches after layer 0 (share
        {ci(thing.isel(layer=0))}) and at the last token after layer 5 ({ci(last.isel(layer=5))}); from layer {crossed}
        on ({ci(last.isel(layer=crossed))} against {ci(thing.isel(layer=crossed))}) the last token has more of it. It
        does not go through the words in between: restoring the whole question, or subject or options, moves it by at
        most {bound(most, 3)} in any layer.""",
    )
    finding = claim(
        most < 0.05,
        f"""**Tracing.** In shapes-llava the answer goes from the object's patches straight to the last token (share
        {ci(last.isel(layer=crossed - 1))} before and {ci(last.isel(layer=crossed))} after layer {crossed}); restoring
        the words in between gives back at most {bound(most, 3)}.""",
    )
    return prose(text), finding


def _crossing(found: xr.Dataset) -> int:
    """The first layer after which the last token has more of the answer than the object's patches."""
    return int((found["mean"].sel(position="last") > found["mean"].sel(position="image:object")).values.argmax())


def _blip_path(runs: Runs, ax: Axes) -> tuple[str, str]:
    ds = runs.preset("answer_path_blip")
    found = interval(share(ds))
    encoder, decoder = found.sel(site="question_encoder.resid_post"), found.sel(site="answer_decoder.resid_post")
    words, decoding = encoder.sel(position="question"), decoder.sel(position="decoding")
    noise = share(runs.preset("palit2023"))
    under = interval(noise.sel(site="question_encoder.resid_post").mean("position"))
    out = interval(noise.sel(site="answer_decoder.resid_post", position="decoding"))
    line(ax, words, "encoder, the question's words, SIP", COLORS[0])
    line(ax, encoder.sel(position="subject"), "encoder, subject, SIP", COLORS[1])
    line(ax, under, "encoder, one token, noise", COLORS[1], "--")
    line(ax, decoding, "decoder, SIP", COLORS[2])
    line(ax, out, "decoder, noise", COLORS[2], "--")
    finish(ax, "shapes-blip, resid_post", SHARE)
    tokens = noise.sel(site="question_encoder.resid_post").mean(("example", "draw"))
    tokens = tokens.dropna("position", how="all").transpose("layer", "position")
    last_is_best = tokens.values.argmax(0) == tokens.sizes["layer"] - 1
    text = claim(
        abs(float(words["mean"][1])) < 0.05 < float(words["low"][2]),
        f"""**shapes-blip.** Under SIP the picture enters the question encoder in layer 2: restoring all of the
        question's words gives back {ci(words.isel(layer=1))} after layer 1 and {ci(words.isel(layer=2))} after layer
        2. """,
    )
    text += claim(
        last_is_best.all() and float(tokens.isel(layer=4).max()) > 0.1,
        f"""Under noise on the image embeddings (`palit2023`) one encoder token alone, whichever it is, gives back
        {num(tokens.isel(layer=5).min())} to {num(tokens.isel(layer=5).max())} after the last layer. Palit et al. report
        the last layer and all tokens, as here, and no effect of the layers before, which is not so here:
        {num(tokens.isel(layer=4).min())} to {num(tokens.isel(layer=4).max())} after layer 4,
        {num(tokens.isel(layer=3).min())} to {num(tokens.isel(layer=3).max())} after layer 3. """,
    )
    text += claim(
        float(out["high"][4]) < 0.1 and float(out["mean"][5]) > 0.95,
        f"""In the decoder only the last layer's output matters ({ci(out.isel(layer=4))} after layer 4,
        {ci(out.isel(layer=5))} after layer 5); they report layers 9–11 of 12. """,
    )
    text += _blip_modules(runs)
    finding = f"""**Noise.** Of what Palit et al. report for BLIP, two things hold in shapes-blip: encoder tokens are
        alike in the last layer ({num(tokens.isel(layer=5).min())} to {num(tokens.isel(layer=5).max())} each), and the
        decoder's last layer has the answer; one does not: earlier encoder layers count too (up to
        {num(tokens.isel(layer=4).max())} after layer 4)."""
    return prose(text), finding


def _blip_modules(runs: Runs) -> str:
    blocks = share(runs.preset("palit2023_blocks")).mean(("example", "draw")).max(("layer", "position"))
    modules = share(runs.preset("notice2024_blip_modules")).mean("example").max("position")

    def most(values: xr.DataArray, component: str) -> str:
        return num(values.sel(site=f"question_encoder.{component}").max())

    cross = modules.sel(site="question_encoder.cross_attn_context")
    return claim(
        int(cross.values.argmax()) == 2,
        f"""Of the encoder's blocks, in windows of 3 layers under noise, cross-attention gives back up to
        {most(blocks, "cross_attn_block_out")}, self-attention up to {most(blocks, "attn_block_out")}. Module by module
        under SIP (`notice2024_blip_modules`), cross-attention does in layer 2 ({num(cross.max())}; at most
        {bound(cross.drop_sel(layer=2).max())} in others), and the "MLP" of NOTICE, which is the residual state after
        it, gives back up to {most(modules, "mlp_block_out")}, the MLP's own contribution up to
        {most(modules, "mlp_out")}.""",
    )


def _rome(runs: Runs) -> tuple[str, str]:
    names = {
        "rome2022": "resid_post",
        "rome2022_mlp": "mlp_out, window 3",
        "rome2022_attn": "attn_out, window 3",
        "rome2022_severed_mlp": "resid_post, MLPs severed",
        "rome2022_severed_attn": "resid_post, attention severed",
    }
    found = {name: interval(share(runs.preset(name)).isel(site=0)) for name in names}
    figure, axes = plt.subplots(1, len(names), figsize=(10, 3.2), sharey=True, layout="constrained")
    for ax, (name, title) in zip(axes, names.items(), strict=True):
        vp.plot.heatmap(runs.preset(name), LD, normalize=True, limit=1, ax=ax)
        ax.set_title(title.replace(", ", ",\n"), fontsize=9)
        ax.set_xlabel("")
        ax.tick_params(labelsize=8)
        ax.set_ylabel("layer" if ax is axes[0] else "")
        ax.collections[0].colorbar.remove()
    figure.colorbar(axes[0].collections[0], ax=list(axes), label=SHARE)
    shown = picture(figure, "rome", "Causal tracing under noise on the subject: shares of the total effect, −1 to 1")

    def cell(name: str, layer: int, position: str) -> str:
        return ci(found[name].sel(layer=layer, position=position))

    unaffected = "{examples_unaffected} of {examples_kept}".format(**runs.preset("rome2022").attrs)
    at = {
        p: float(found["rome2022"]["mean"].sel(layer=0, position=f"subject_{p}")) for p in ("first", "middle", "last")
    }
    mlp, attention = (found[f"rome2022_{kind}"].sel(layer=0, position="subject_middle") for kind in ("mlp", "attn"))
    body = claim(
        at["middle"] > 0.5 > 5 * max(at["first"], at["last"]),
        f"""**Noise on the subject's words** (`rome2022`, "small red object"; {unaffected} pairs keep their answer).
        There is an early and a late site, as Meng et al. report. The early one is the colour word after layer 0
        ({cell("rome2022", 0, "subject_middle")}), and not the last subject token
        ({cell("rome2022", 0, "subject_last")}), where they find it, and which is always "object" here. """,
    )
    body += claim(
        float(mlp["low"]) > float(attention["high"]),
        f"""There it is the MLP, as they report: restoring layers 0–1 gives back {ci(mlp)} of MLP outputs and
        {ci(attention)} of attention outputs. """,
    )
    severed = {kind: found[f"rome2022_severed_{kind}"]["mean"] for kind in ("mlp", "attn")}
    same = all(abs(float(s.sel(layer=0, position="subject_middle")) - at["middle"]) < 0.05 for s in severed.values())
    body += claim(
        same,
        f"""Severing what is above changes nothing at that word ({cell("rome2022_severed_mlp", 0, "subject_middle")}
        without MLPs, {cell("rome2022_severed_attn", 0, "subject_middle")} without attention): what is read there is
        complete after layer 0, whereas their early site loses its effect without the MLPs above. """,
    )
    late = {kind: float(s.sel(layer=1, position="last")) for kind, s in severed.items()}
    body += claim(
        late["attn"] < late["mlp"] < 0.6,
        f"""At the last token, from layer 1 ({cell("rome2022", 1, "last")}), both matter, attention more: severing it
        leaves {cell("rome2022_severed_attn", 1, "last")}, severing MLPs {cell("rome2022_severed_mlp", 1, "last")}.""",
    )
    return prose(body), shown


def constraints(runs: Runs) -> Section:
    """Which layers of the constraint's words restore the answer."""
    presets = {
        "basu2024_single": ("constraint", "thing word", "what color is the *ring*?"),
        "basu2024_multi_first": ("constraint_1", "size word", "what shape is the *small* red object?"),
        "basu2024_multi_second": ("constraint_2", "colour word", "what shape is the small *red* object?"),
    }
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.9), sharey=True, layout="constrained")
    rows, best, cells = [], {}, {}
    for ax, (preset, (span, kind, example)) in zip(axes, presets.items(), strict=True):
        ds = runs.preset(preset)
        found = interval(share(ds))
        cells[kind] = found
        for i, (position, site) in enumerate((p, s) for p in (span, "last") for s in ds["site"].values):
            values = found.sel(position=position, site=site, window=1)
            line(ax, values, f"{site.split('.')[1]} @ {position}", COLORS[i])
        finish(ax, f"{kind} replaced", SHARE if ax is axes[0] else "")
        best[kind] = {p: [_best(found.sel(position=p, window=w)) for w in (1, 3, 5)] for p in (span, "last")}
        kept = f"{ds.attrs['examples_kept']} of {ds.attrs['examples']}"
        rows.append([f"{example}", kept, *(best[kind][p][i][0] for p in (span, "last") for i in (0, 1))])
    shown = picture(
        figure, "constraints", "Share given back by one layer's MLP or attention at the constraint and last"
    )
    peaks = {kind: [max(value for _, value in found[p]) for p in found] for kind, found in best.items()}
    attention = {kind: found.sel(site="language.attn_out", position="last", window=1) for kind, found in cells.items()}
    colour = cells["colour word"].sel(site="language.mlp_out", position="constraint_2", window=1)
    beside = cells["colour word"]["mean"].sel(site="language.attn_out", position="constraint_2").max()
    body = claim(
        peaks["colour word"][0] > 0.9 and max(peaks["thing word"][0], peaks["size word"][0], float(beside)) < 0.1,
        f"""Basu et al. report the early layers' MLPs and attention at the constraint's tokens, in windows of 3 for one
        constraint and of 6 or more for two. Here only the MLP does so, and only at colour words: that of layer 0 gives
        back {ci(colour.isel(layer=0))}, in a window of one layer. At thing words and size words no window of 1, 3 or 5
        layers gives back more than {bound(max(peaks["thing word"][0], peaks["size word"][0]))}, of MLP or attention
        outputs. """,
    )
    body += claim(
        all(float(attention[kind]["low"][0]) > 0.85 for kind in ("thing word", "size word"))
        and float(attention["colour word"]["high"][0]) < 0.3 < float(attention["colour word"]["low"][1]),
        f"""The last token's attention says why: its layer 0 gives back {ci(attention["thing word"].isel(layer=0))}
        (thing) and {ci(attention["size word"].isel(layer=0))} (size), but {ci(attention["colour word"].isel(layer=0))}
        (colour), where layer 1 gives back {ci(attention["colour word"].isel(layer=1))}. Thing and size words are read
        off the embeddings before any layer has written at them; colour words first pass the MLP of layer 0. """,
    )
    few = runs.preset("basu2024_multi_first").attrs["examples_kept"]
    body += f"""Pairs whose answer the replacement leaves are dropped, so that {few} pairs are left in one case: mind
        the intervals."""
    head = ["question", "pairs kept", "constraint, window 1", "window 3", "last, window 1", "window 3"]
    finding = f"""**Words.** Restoring at the constraint (Basu et al.) works for colour words, by the MLP of layer 0
        ({ci(colour.isel(layer=0))} of the total effect), which is also where ROME's tracing finds its early site; for
        thing words and size words it gives back at most {bound(max(peaks["thing word"][0], peaks["size word"][0]))},
        since they are read off the embeddings."""
    return Section("Constraints", (prose(body), table(head, rows), shown), (finding,))


def _best(found: xr.Dataset) -> tuple[str, float]:
    """The strongest cell, in words, and its mean."""
    cells = found.stack(cell=("site", "layer")).dropna("cell", subset=["mean"])
    cell = cells.isel(cell=int(cells["mean"].values.argmax()))
    return f"{str(cell['site'].item()).split('.')[1]} L{int(cell['layer'])}: {ci(cell)}", float(cell["mean"])


def flow(runs: Runs) -> Section:
    """Information flow by blocked attention."""
    llava, blip = runs.preset("zhang2024_flow_llava"), runs.preset("zhang2024_flow_blip")
    figure, axes = plt.subplots(1, 3, figsize=(10, 4.6), sharey=True, layout="constrained")
    encoder = "question_encoder.cross_attn_pattern"
    for ax, (ds, site) in zip(
        axes, ((llava, None), (blip, encoder), (blip, "question_encoder.attn_pattern")), strict=True
    ):
        vp.plot.knockout(ds, site=site, window=3, ax=ax)
        title = f"{ds.attrs['model']}\n{site or 'language.attn_pattern'}"
        finish(ax, title, "change of the answer's probability (%)" if ax is axes[0] else "", columns=1)
    shown = picture(
        figure, "flow", "Change of the answer's probability when attention is blocked in windows of 3 layers"
    )
    change = interval(vp.analysis.knockout_change(llava)).isel(site=0).sel(window=3)

    def least(edges: str) -> xr.Dataset:
        found = change.sel(edges=edges)
        return found.isel(layer=int(found["mean"].values.argmin()))

    asked, seen, thing = (least(e) for e in ("question -> last", "image -> last", "image:object -> last"))
    never = float(
        abs(change[["low", "high"]].sel(edges=["image -> question", "image:object -> question"])).to_array().max()
    )
    body = claim(
        never < 1 and int(asked["layer"]) < int(seen["layer"]),
        f"""Zhang et al. report image → question in lower layers, then object patches → question in middle ones, and
        question → last in higher ones. In shapes-llava (windows of 3 layers) the order is another: question → last in
        low layers ({ci(asked, 0)}{FIXED}% around layer {int(asked["layer"])}), then image → last in higher ones
        ({ci(seen, 0)}{FIXED}% around layer {int(seen["layer"])}), most of it from the object's patches
        ({ci(thing, 0)}{FIXED}% around layer {int(thing["layer"])}). Blocking image → question changes p(answer) by less
        than {bound(never)}{FIXED}% at any layer, interval ends included. The last token first reads which thing is
        meant, then looks at it. """,
    )
    everything = runs.own(
        "flow_blip_decoder",
        BLIP,
        "color_choice",
        knockout={
            "sites": ["answer_decoder.cross_attn_pattern"],
            "edges": ["all -> decoding", "question -> decoding"],
            "window": [1, 3],
        },
    )
    into = interval(vp.analysis.knockout_change(blip)).sel(site=encoder, edges="image:object -> question", window=1)
    out = interval(vp.analysis.knockout_change(everything)).isel(site=0).sel(window=1)
    all_, words = (out.sel(edges=f"{name} -> decoding", layer=5) for name in ("all", "question"))
    body += claim(
        int(into["mean"].values.argmin()) == 2 and float(all_["high"]) < -90 and abs(float(words["mean"])) < 1,
        f"""In shapes-blip the object's patches are read in layer 2 of the encoder ({ci(into.sel(layer=2), 0)}{FIXED}%
        blocked there alone), the question in layer 5 of the decoder: {ci(all_, 0)}{FIXED}% if all of it is blocked, and
        {ci(words, 0)}{FIXED}% if its words are, since `question -> decoding` leaves [CLS] and [SEP], which hold the
        answer too. """,
    )
    among = interval(vp.analysis.knockout_change(blip)).sel(
        site="question_encoder.attn_pattern", edges="all -> question", window=3
    )
    strongest = among.isel(layer=int(among["mean"].values.argmin()))
    body += f"""Self-attention of the question's words, blocked in windows of 3, costs up to {ci(strongest, 0)}{FIXED}%
        (around layer {int(strongest["layer"])})."""
    finding = f"""**Knockout.** Question → last matters low ({ci(asked, 0)}{FIXED}% around layer {int(asked["layer"])}),
        image → last later ({ci(seen, 0)}{FIXED}% around layer {int(seen["layer"])}), image → question nowhere (under
        {bound(never)} %). That is not the order that Zhang et al. report of large models."""
    return Section("Information flow", (prose(body), shown), (finding,))


def lens_and_steering(runs: Runs) -> Section:
    """What the lens reads, and what a difference vector brings about."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.9), layout="constrained")
    for ax, name in zip(axes, ("lens_llava", "lens_blip"), strict=False):
        vp.plot.lens(runs.preset(name), P, ax=ax)
        finish(ax, f"lens, {runs.preset(name).attrs['model']}", "p(answer)", columns=1)
    read = {}
    for name, position in (("lens_llava", "last"), ("lens_blip", "decoding")):
        ds = runs.preset(name)
        read[name] = interval(ds[P].where(ds["kept"] == "kept").isel(site=0).sel(position=position))
    large = [p for p in vp.load_pairs("shapes", n=64, seed=0, questions=["size"]) if p.answer == "large"]
    steer = {"sites": ["language.resid_post"], "positions": ["image:object", "last"], "strengths": [-1, 1, 2, 4]}
    alike = runs.own("steering_large", LLAVA, "size", inputs=large, corruption=SIP, steer=steer)
    mixed = runs.preset("steering_llava")
    shares = {}
    for i, (ds, name) in enumerate(((mixed, "both answers"), (alike, "“large” alone"))):
        shares[name] = interval(share(ds)).isel(site=0).sel(strength=1)
        for j, position in enumerate(("image:object", "last")):
            line(axes[2], shares[name].sel(position=position), f"{name}, {position}", COLORS[j], ("--", "-")[i])
    finish(axes[2], "steering, shapes-llava, strength 1", SHARE, columns=1)
    shown = picture(figure, "lens_steering", "Logit lens by layer, and what adding the mean difference brings back")
    llava, blip = read["lens_llava"], read["lens_blip"]
    crossed = _crossing(interval(share(runs.preset("answer_path_llava"))).sel(site="language.resid_post"))
    body = claim(
        float(llava["low"][crossed]) > 0.5 > float(llava["high"][crossed - 1]),
        f"""Through the lens p(answer) at shapes-llava's last token is {ci(llava.isel(layer=crossed - 1))} after layer
        {crossed - 1} and {ci(llava.isel(layer=crossed))} after layer {crossed}: it passes a half where, by patching,
        the last token comes to hold more of the answer than the object. In shapes-blip's decoder it is
        {ci(blip.isel(layer=4))} after layer 4 and {ci(blip.isel(layer=5))} after layer 5. """,
    )
    one_way, both = (shares[name].sel(layer=2, position="last") for name in ("“large” alone", "both answers"))
    counted = int((mixed["answer"] == "large").sum())
    body += claim(
        float(one_way["low"]) > 0.8 and float(both["high"]) < 0.2,
        f"""Steering: the mean difference between clean and corrupted runs of {len(large)} pairs whose answer is
        "large", added once at the last token after layer 2 of their corrupted runs, brings back {ci(one_way)} of the
        total effect (in sample). The preset's vector, over {counted} pairs of "large" and
        {mixed.sizes["example"] - counted} of "small", brings back {ci(both)}, since the two directions cancel in
        it.""",
    )
    return Section("Lens and steering", (prose(body), shown))
