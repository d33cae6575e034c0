# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
#     language: python
# ---

# %% [markdown]
# # Information flow
#
# Patching says *where* an answer is. Attention knockout says *on which way* it came there: some positions must not see
# some others, in a few layers, and the answer gets less likely or does not. Zhang et al. (2024) read an order off it:
# in LLaVA, first from the picture to the question, then from the question to the last token. Here are two small models,
# and two orders.

# %%
import vlm_patching as vp


def blocked(model, edges, **more):
    return vp.Experiment.from_dict(
        {
            "name": "flow",
            "model": {"name": model},
            "pairs": {"dataset": "shapes", "n": 24, "seed": 0, "questions": ["color_choice"]},
            "knockout": {"edges": edges, "window": [1, 3], **more},
            "metrics": ["probability"],
        }
    )


edges = ["image -> question", "image -> last", "image:object -> last", "image:other -> last", "question -> last"]
llava = blocked("shapes-llava", edges)
print(llava.graph())

# %% [markdown]
# `image -> last`: the last token does not see the picture. What it would have attended to, it attends to elsewhere. A
# window of 3 blocks a layer and its two neighbours together, which catches what several layers can do in each other's
# place. There is no corrupted run, and no corruption.

# %%
ds = vp.run(llava, progress=False)
change = vp.analysis.knockout_change(ds).sel(site="language.attn_pattern").mean("example")
change.sel(window=3).to_pandas().round().astype(int)

# %% [markdown]
# Percent of the answer's probability: −100 is an answer that has become impossible, 0 one that nothing happened to.
# Negative carries the answer, the other way round than in a map of effects.

# %%
drawn = vp.plot.knockout(ds, window=3)

# %% [markdown]
# Read the order off the lines' lowest points.
#
# 1. **question → last**, around layers 0 and 1. Later it does not matter any more.
# 2. **image → last**, lowest around layer 3, and most of it from the object's patches; the rest of the picture does not
#    matter.
# 3. **image → question**: nothing, in any layer. The picture does not come by way of the words.
#
# So the last token first reads which thing is meant, and then looks at it. The bands are 95 % intervals of the mean of
# 24 pairs, and wide: the answer is hardly touched in some pairs and gone in others.
#
# ## One layer, or several?

# %%
change.sel(edges=["image -> last", "question -> last"]).min("layer").to_pandas().round().astype(int)

# %% [markdown]
# No single layer is needed for image → last: blocked in one, another one reads the object. In three neighbours that is
# no longer so. A map of single layers would have missed it.
#
# ## Another model, another order
#
# BLIP has no last token that sees everything: the question's tokens take from the picture by cross-attention, and a
# decoder takes from the question by another one. `all -> decoding` blocks all that the decoder could see of it.

# %%
sites = ["question_encoder.cross_attn_pattern", "answer_decoder.cross_attn_pattern"]
blip = blocked("shapes-blip", ["image:object -> question", "image:other -> question", "all -> decoding"], sites=sites)
ds = vp.run(blip, progress=False)
drawn = vp.plot.knockout(ds, window=1)

# %%
change = vp.analysis.knockout_change(ds).sel(window=1).mean("example")
for site in sites:
    print(change.sel(site=site).dropna("edges", how="all").to_pandas().round().astype(int), end="\n\n")

# %% [markdown]
# Here it is image → question, in layer 2 of the encoder and from the object's patches, then question → answer, in the
# decoder's last layer. That is the order of the paper, in another kind of model.
#
# What a knockout cannot say: a line at 0 means that this way is not *needed*, not that nothing goes along it.
#
# - [The method](../methods/knockout.md), with its equation; `zhang2024_flow_llava` and its neighbour are presets.
# - [What is found with 32 pairs](../findings.md#4-information-flow), with intervals.
