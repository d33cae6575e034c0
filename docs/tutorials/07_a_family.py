# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
#     language: python
# ---

# %% [markdown]
# # Adding a family
#
# Some fifty architectures are known; yours may not be among them. Then the package needs one data file that says where
# everything is in it. Here is a LLaVA whose picture goes through DINOv2, which no file of the package is about. It is
# small, its weights are random, and it is otherwise as real as any: a class of transformers, a configuration, a
# processor, in a folder.

# %%
import torch
from transformers import AutoProcessor, Dinov2Config, LlavaConfig, LlavaForConditionalGeneration

import vlm_patching as vp

like = vp.bundled_models()["shapes-llava"]
config = LlavaConfig.from_pretrained(like)
config.vision_config = Dinov2Config(
    hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=96, patch_size=24, initializer_range=0.3
)
config.text_config.initializer_range = 0.3  # so large that one changed place is seen in the answer
torch.manual_seed(0)
LlavaForConditionalGeneration(config).save_pretrained("dino-llava")
AutoProcessor.from_pretrained(like).save_pretrained("dino-llava")
try:
    vp.describe_model("dino-llava")
except vp.SpecError as error:
    print(error)

# %% [markdown]
# ## Let doctor propose a file
#
# Of a model that it does not know, `vlm-patching doctor` looks at the names and shapes of the modules, and writes what
# it takes them for. With `--weights none` it needs no weights, and runs nothing. This is the function behind
# `vlm-patching doctor ./dino-llava --weights none -o dino.yaml`:

# %%
from pathlib import Path

from vlm_patching.doctor import examine
from vlm_patching.sections import ModelSpec

found = examine(ModelSpec(name="./dino-llava"), weights="none", propose_to=Path("dino.yaml"))
print(*found.notes, found.verdict, sep="\n")

# %%
print(Path("dino.yaml").read_text())

# %% [markdown]
# Two *stacks*, `vision` and `language`, with the place of their layers, attention and MLPs; under `image` what the
# picture becomes, and which position shows which patch. Values such as `vision_config.num_hidden_layers` are paths in
# the configuration, so that the file holds for every size of the model.
#
# ## Look at it
#
# `UNCERTAIN` stands where little was to be seen. Here both guesses are right: the projector's output is what the text
# side gets, and DINOv2 has a class token before a square of patches.
#
# What nothing warns of: DINOv2 scales what an MLP gives (`layer_scale2`) before it goes into the residual stream, so
# the MLP's contribution is the output of that, and not of `mlp.fc2`. Only reading the model's code shows it. Then there
# is no projection whose input would be neurons. Of attention the same is true, and a file has no key for it:
# `vision.attn_out` is what comes before the scale.

# %%
text = Path("dino.yaml").read_text()
text = text.replace("mlp: mlp.fc2", "mlp: layer_scale2\n    neurons: false")
Path("dino.yaml").write_text(text)
found = examine(ModelSpec(name="./dino-llava", family="dino.yaml"))
for row in found.checks:
    if row["method"] == "patch":
        print(f"{row['site']:22} {row['effect']:>6}  {row['checks']}")
print(found.verdict)

# %% [markdown]
# Each line is a small experiment at one site. The number is the most that a cell changes: were it 0, nothing would read
# what stands there. Behind it, the largest differences: of patching nothing, of patching a run with its own values, of
# patching everything, and of cells in one forward pass each with plain hooks. The verdict is what to edit for.
#
# A mistake in the file is said with its key:

# %%
Path("wrong.yaml").write_text(text.replace("hidden_state:", "hiden_state:"))
try:
    vp.describe_model("dino-llava", family="wrong.yaml")
except vp.SpecError as error:
    print(error)

# %% [markdown]
# ## Use it
#
# `family` in a spec, or `--family` in a shell.

# %%
experiment = vp.Experiment.from_dict(
    {
        "name": "dino",
        "model": {"name": "dino-llava", "family": "dino.yaml"},
        "pairs": {"dataset": "shapes", "n": 8, "seed": 0, "keep": "all"},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": ["language.resid_post"], "positions": ["image:object", "image", "question", "last"]},
        "metrics": ["logit_difference"],
    }
)
ds = vp.run(experiment, progress=False)
drawn = vp.plot.heatmap(ds, "logit_difference", normalize=True)
effect = vp.effect(ds, "logit_difference", normalize=True).sel(site="language.resid_post", layer=5)
effect.mean("example").to_pandas().round(2)

# %% [markdown]
# The weights are random, and so is most of the map. What holds in any such model holds: after the last layer the last
# token alone decides the answer, and has all of it.
#
# Results hold the file's text and digest, so that they can be run again without it:

# %%
print(ds.attrs["family"], ds.attrs["family_sha256"][:12], len(ds.attrs["family_file"]), "characters")

# %% [markdown]
# - [Every key of the file](../adding-a-family.md), and how it gets into the package.
# - [What is known](../models.md).
