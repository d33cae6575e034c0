# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
#     language: python
# ---

# %% [markdown]
# # Heads, and what they do
#
# [The first tutorial](01_first_heatmap.md) says that the answer comes to the last token around layer 2. An attention
# head must have brought it there. Which one? What does it look at? Does it do so for every kind of question? And does
# the model need it?

# %%
import vlm_patching as vp

COMMON = {
    "name": "heads",
    "model": {"name": "shapes-llava"},
    "pairs": {"dataset": "shapes", "n": 24, "seed": 0, "questions": ["color_choice"]},
    "metrics": ["logit_difference"],
}
SWEEP = {
    "corruption": {"kind": "semantic_image_pair"},
    "patch": {"sites": ["language.attn_head"], "positions": ["last"]},
}


def run(**sections):
    return vp.run(vp.Experiment.from_dict(COMMON | sections), progress=False)


ds = run(**SWEEP)
drawn = vp.plot.heads(ds, "logit_difference", normalize=True)

# %% [markdown]
# A cell is one head's output at the last token, put from the clean run into the corrupted one. L2.H3, head 3 of layer
# 2, gives back most: three tenths of what corrupting takes away. Three more give back about a tenth each. Outlined
# heads stand out in a permutation test, which asks whether there is an effect and not how large it is: some of them
# give back next to nothing.
#
# The same in BLIP, whose question encoder looks at the picture by cross-attention, for all tokens of the question:

# %%
blip = run(
    model={"name": "shapes-blip"},
    corruption={"kind": "semantic_image_pair"},
    patch={"sites": ["question_encoder.cross_attn_head"], "positions": ["question"]},
)
drawn = vp.plot.heads(blip, "logit_difference", normalize=True)
share = vp.effect(blip, "logit_difference", normalize=True).mean("example").squeeze()
print("strongest:", share.argmax(...)["layer"].item(), share.argmax(...)["head"].item(), f"{float(share.max()):.2f}")

# %% [markdown]
# One head again, by chance of the same layer and number, with about as large a share.
#
# ## What do they look at?
#
# `attention` reads what a position attends to, here the last token in the picture's patches. The pointing ratio is the
# share of a head's attention that goes to the object, over the object's share of the picture: 1 is a head that does not
# mind it, and where it is one patch of sixteen, 16 is the most there can be.

# %%
read = run(attention={"sites": ["language.attn_pattern"], "positions": ["last"], "keys": "image"})
functions = vp.analysis.head_functions(read, position="last").sel(site="language.attn_pattern")
functions["pointing_ratio"].mean("example").to_pandas().round(1)

# %%
pairs = vp.load_pairs(**COMMON["pairs"])
drawn = vp.plot.attention(read, pairs[0].id, pairs[0].clean.picture())

# %% [markdown]
# The four heads that give back most are the four that point at the object most: L1.H1, L2.H3, L4.H0, L4.H3. The figure
# has their attention minus the mean of all heads. But most other heads have a ratio well above 1, too, and give back
# next to nothing. Looking is not mattering.
#
# ## For every kind of question?
#
# NOTICE calls a head universal that matters in every task. Its rule takes heads whose mean |effect| is more than two
# standard deviations above the mean of all heads; beside it stands a test, which asks for an effect of one direction.

# %%
kinds = ["color_choice", "shape_choice", "size_choice"]
tasks = run(**SWEEP, pairs={"dataset": "shapes", "n": 48, "seed": 0, "questions": kinds})
effect = vp.effect(tasks, "logit_difference").sel(site="language.attn_head", position="last")
found = vp.analysis.universal_heads(vp.analysis.by_task(effect), permutations=500, resamples=200)
for rule in ("universal", "universal_tested"):
    print(rule, found[rule].to_series().loc[lambda is_so: is_so].index.tolist())

# %%
drawn = vp.plot.universal_heads(tasks, "logit_difference", position="last")

# %% [markdown]
# Layer 2, head 3, and no other, by both rules. That is of sixteen pairs a kind, and of these kinds: with a fourth one
# no head is left by the first rule ([findings](../findings.md#5-heads)).
#
# ## Does the model need it?
#
# Restoring shows what is sufficient. The check is to take a head away: its output becomes the mean over all pairs, in
# the clean run.

# %%
ablated = run(ablate={"sites": ["language.attn_head"], "positions": ["last"], "kind": "mean"})
loss = vp.effect(ablated, "logit_difference").sel(site="language.attn_head", position="last").mean("example")
restored = vp.effect(ds, "logit_difference").sel(site="language.attn_head", position="last").mean("example")
mass = functions["mass"].mean("example")
for layer, head in ((2, 3), (4, 3), (4, 0), (1, 1), (0, 1)):
    gives, costs, seen = (float(values.sel(layer=layer, head=head)) for values in (restored, loss, mass))
    print(f"L{layer}.H{head}: gives back {gives:.1f} logits, costs {costs:.1f}; on the picture {seen:.0%} of attention")

# %% [markdown]
# The four are needed, too, L2.H3 most of them. The fifth line is what restoring cannot see: L0.H1 gives back nothing
# and costs most of all heads. It attends to the text alone, which is the same in both runs, so no other picture can
# show it. A map of effects is about what the corruption changes, and about nothing else.
#
# - [Heads](../methods/heads.md), with the equations; `notice2024_llava_universal` and its neighbours are presets.
# - [The findings](../findings.md) ask nine methods which heads matter.
