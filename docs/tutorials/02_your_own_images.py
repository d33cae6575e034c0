# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
#     language: python
# ---

# %% [markdown]
# # Your own images
#
# A folder of pictures, a line of JSON for each pair, and from there the same way as in
# [the first tutorial](01_first_heatmap.md): how often the model is right, a sweep, its effects over the picture, a
# report.
#
# There are no photographs here. This cell draws twelve pairs in their place: a circle and a square on grey that gets
# darker downwards, with some grain. In the corrupted picture what is asked about has another colour. In the last three
# pairs the things are smaller than any that the model was trained on.

# %%
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLORS = {"red": "#d62728", "green": "#2c8c3c", "blue": "#2850d7", "yellow": "#f0cd23", "purple": "#873caf"}
folder = Path("mypictures")
folder.mkdir()


def photograph(name, seed, things):
    grey = np.linspace(235, 205, 192)[:, None] + np.random.default_rng(seed).integers(-8, 9, (192, 192))
    picture = Image.fromarray(grey.astype("uint8")).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for shape, color, box in things:
        (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLORS[color])
    picture.save(folder / name)


def pair(number):
    rng = random.Random(number)
    answer, foil, third = rng.sample(list(COLORS), 3)
    subject, other = rng.sample(["circle", "square"], 2)
    side = 40 if number < 9 else 14
    boxes = []
    for cell in rng.sample(range(16), 2):
        x, y = (48 * place + rng.randint(2, 46 - side) for place in (cell % 4, cell // 4))
        boxes.append((x, y, x + side, y + side))
    for name, color in ((f"{number}_clean.png", answer), (f"{number}_corrupted.png", foil)):
        photograph(name, number, [(subject, color, boxes[0]), (other, third, boxes[1])])
    text = f"is the {subject} {' or '.join(sorted((answer, foil)))}?"
    words = {"subject": subject, "answer_option": answer, "foil_option": foil}
    return {
        "id": str(number),
        "clean": {"image": f"{number}_clean.png", "text": text},
        "corrupted": {"image": f"{number}_corrupted.png", "text": text},
        "answer": answer,
        "foil": foil,
        "spans": {name: (text.rindex(word), text.rindex(word) + len(word)) for name, word in words.items()},
        "regions": {"object": boxes[0]},
    }


lines = [json.dumps(pair(number)) for number in range(12)]
(folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
print(lines[0])

# %% [markdown]
# That line is all the package asks for. `spans` are character ranges of the clean text, `regions` pixel boxes of the
# clean picture; their names are yours, and become positions. A table with the columns `id`, `clean.image`, ... in
# `pairs.csv` does as well. Look at what was read before anything runs:

# %%
import vlm_patching as vp

pairs = vp.load_pairs("folder", path="mypictures")
drawn = vp.plot.gallery(pairs, most=4)

# %% [markdown]
# ## Does the model get them right?
#
# `vp.evaluate` takes the experiment, and sweeps nothing.

# %%
spec = {
    "name": "my-pictures",
    "model": {"name": "shapes-llava"},
    "pairs": {"dataset": "folder", "path": "mypictures"},
    "corruption": {"kind": "semantic_image_pair"},
    "patch": {"sites": ["language.resid_post"], "positions": ["image:object", "image:other", "subject", "last"]},
    "metrics": ["logit_difference"],
}
answers = vp.evaluate(vp.Experiment.from_dict(spec), progress=False)
answers.to_dataframe()[["answer", "said_clean", "said_corrupted", "kept"]]

# %% [markdown]
# Nine of twelve. Of the tiny things it says "0", which is an answer to another kind of question. A sweep leaves such
# pairs out, since there is no right answer to trace; `kept` says so. Look at this table before any map.
#
# ## The sweep

# %%
ds = vp.run(vp.Experiment.from_dict(spec), progress=False)
drawn = vp.plot.heatmap(ds, "logit_difference", normalize=True)
vp.effect(ds, "logit_difference", normalize=True).sel(site="language.resid_post").mean("example").to_pandas().round(2)

# %% [markdown]
# As with the package's own pictures: the object's patches have the answer at first, the last token has it in the end,
# and neither the rest of the picture nor the word for the object ever does.
#
# ## Over the picture
#
# `each:image` makes every patch a cell of its own. The figure is drawn over your picture, in its pixels, whatever the
# model's image processor made of it.

# %%
spec["patch"] = {"sites": ["language.resid_post"], "positions": ["each:image"]}
ds = vp.run(vp.Experiment.from_dict(spec), progress=False)
picture, box = pairs[0].clean.picture(), pairs[0].regions
drawn = vp.plot.image(ds, "0", picture, metric="logit_difference", normalize=True, boxes=box)

# %% [markdown]
# One patch has it, the square's: nearly all of it after layer 0, less after layers 2 and 3, none in the end. The circle
# beside it stays grey, in every layer.
#
# ## A page to send around

# %%
vp.report(ds, "mypictures.html", pairs=pairs)
print(f"{Path('mypictures.html').stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# [One HTML file](../report.md) with the map to explore, every pair with its pictures, the trust checks, and how to cite
# it. Without `print`, as the last line of a cell, it shows itself in the notebook.
#
# With a file `mine.yaml` in the experiment's place, the same in a shell: `vlm-patching evaluate mine.yaml`,
# `vlm-patching run mine.yaml`, `vlm-patching report results/mine.zarr`.
