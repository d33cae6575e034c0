# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
#     language: python
# ---

# %% [markdown]
# # Your first heatmap
#
# Where in a vision-language model is the answer to a question about a picture? Ten minutes, one CPU core, no
# download: the model ships with the package.

# %%
import vlm_patching as vp

pairs = vp.load_pairs("shapes", n=32, seed=0)
print(pairs[0].clean.text, "->", pairs[0].answer)
print(pairs[0].corrupted.text, "(the text a text corruption would take)")

# %% [markdown]
# A **pair** is a clean prompt and a corrupted one. Their pictures differ in one thing: the colour of what is asked
# about. The right answer to the corrupted picture is the **foil**.

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(5, 2.6))
for ax, title, prompt in zip(axes, ("clean", "corrupted"), (pairs[0].clean, pairs[0].corrupted), strict=True):
    ax.imshow(prompt.picture())
    ax.set_title(title)
    ax.axis("off")

# %% [markdown]
# ## Say what to do
#
# Take the state of the residual stream at one place of the clean run, put it into the run on the corrupted picture,
# and see how much of the answer comes back. Places: every layer, at the object's patches, the other patches, the word
# that names the object, the right option, and the last token, where the answer is read.

# %%
experiment = vp.Experiment.from_dict(
    {
        "name": "first-heatmap",
        "model": {"name": "shapes-llava"},
        "pairs": {"dataset": "shapes", "n": 32, "seed": 0},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {
            "sites": ["language.resid_post"],
            "positions": ["image:object", "image:other", "subject", "answer_option", "last"],
        },
        "metrics": ["probability", "logit_difference"],
    }
)
print(experiment.graph())

# %% [markdown]
# Nothing has run yet; that is the *intervention graph*, all of what will be done. What it will cost:

# %%
print(vp.plan(experiment))

# %% [markdown]
# ## Run it

# %%
ds = vp.run(experiment, progress=False)
ds

# %% [markdown]
# Labels everywhere: `example` is the pair's id, `position` the place's name, and for every pair the dataset knows
# what was asked, what the model said, and whether the pair was kept. The **effect** of a place is what it brings back
# of the logit difference, here as a share of all that corrupting takes away: 0 is the corrupted run, 1 the clean one.

# %%
effect = vp.effect(ds, "logit_difference", normalize=True)
effect.sel(site="language.resid_post").mean("example").to_pandas().round(2)

# %% [markdown]
# ## Look at it

# %%
drawn = vp.plot.heatmap(ds, "logit_difference", normalize=True)

# %% [markdown]
# Read it from the bottom. In the first layers the object's patches have the answer, whole; around layer 2 it moves;
# from layer 4 on the last token has it. The words of the question never do: this model goes straight from the picture
# to the answer.
#
# ## Is it real?
#
# Thirty-two pairs are a sample. The bootstrap says how far each mean would move with others, and the permutation test
# which cells stand out, with the error of the whole map held at 5 %.

# %%
interval = vp.analysis.bootstrap(effect)
tested = vp.analysis.permutation_max_t(effect)
last = dict(site="language.resid_post", position="last")
for layer in ds["layer"].values:
    low, high = (float(interval[end].sel(layer=layer, **last)) for end in ("low", "high"))
    print(f"layer {layer}: [{low:.2f}, {high:.2f}]  stands out: {bool(tested['significant'].sel(layer=layer, **last))}")

# %% [markdown]
# ## What next
#
# - The same in a file: `vlm-patching init mine`, then `vlm-patching run mine.yaml`.
# - [All of vlm_patching in one page](../tour.md).
# - [The methods](../methods/index.md): noise, heads, knockout, ablation, paths, lens.
