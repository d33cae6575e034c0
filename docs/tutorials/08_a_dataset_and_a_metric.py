# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
#     language: python
# ---

# %% [markdown]
# # Adding a dataset and a metric
#
# Both go into the package: a file or a function, and a row in a table. From then on specs, the command line, error
# messages, figures and the documentation know their names. In a checkout you edit in place. This notebook edits a copy,
# and imports that.

# %%
import importlib.util
import shutil
import sys
from pathlib import Path

package = Path("checkout/vlm_patching")
shutil.copytree(Path(importlib.util.find_spec("vlm_patching").origin).parent, package)
sys.path.insert(0, "checkout")

# %% [markdown]
# Say that somebody has published pictures of lamps, and a table of them. These are drawn:

# %%
from itertools import permutations

from PIL import Image, ImageDraw

COLORS = {"red": "#d62728", "green": "#2c8c3c", "blue": "#2850d7", "yellow": "#f0cd23"}
Path("lamps").mkdir()
rows = ["photo,lit,other_photo,other_lit"]
for number, colors in enumerate(permutations(COLORS, 2)):
    x, y = 24 * (number % 4) + 2, 24 * (number // 4) + 2
    for photo, color in enumerate(colors):
        picture = Image.new("RGB", (96, 96), "#e6e6e6")
        ImageDraw.Draw(picture).ellipse((x, y, x + 19, y + 19), fill=COLORS[color])
        ImageDraw.Draw(picture).rectangle((26, 74, 45, 93), fill="black")
        picture.save(f"lamps/{number}_{photo}.png")
    rows.append(f"{number}_0.png,{colors[0]},{number}_1.png,{colors[1]}")
rows.append("0_0.png,red,none.png,")
Path("lamps/lamps.csv").write_text("\n".join(rows) + "\n")
print(*rows[:3], "...", rows[-1], sep="\n")

# %% [markdown]
# ## The dataset
#
# One file says which files there are, which options a spec may give, and what a row becomes. Drawing n of them, putting
# the answer first in half of the questions, refusing what is missing and counting what is dropped is done for all
# datasets alike. `edit` does what you do in an editor.

# %%
(package / "pairs/datasets/lamps.py").write_text('''"""Lamps: a table of photographs, each of one lamp.

Files: `lamps.csv` with the columns photo, lit, other_photo, other_lit; the photographs.

Pair rule: the corrupted image is the other photograph; "is the circle red or green?"
"""

from functools import partial
from typing import Literal

from vlm_patching.pairs.candidates import Choice, Dropped, each
from vlm_patching.pairs.datasets.base import FilesSpec
from vlm_patching.pairs.reading.csv_files import read_csv

ABOUT = "photographs of lamps"
FILES = "lamps.csv and the photographs it names"
COLUMNS = ("photo", "lit", "other_photo", "other_lit")


class Lamps(FilesSpec):
    dataset: Literal["lamps"]


def candidates(spec):
    return each(read_csv(spec.folder / "lamps.csv", COLUMNS), partial(_question, spec))


def _question(spec, row):
    if not row.value("other_lit"):
        return Dropped("one of its lamps is off")
    return Choice(
        id=row.text("photo"),
        question="is the {subject} {first} or {second}?",
        answer=row.text("lit"),
        foil=row.text("other_lit"),
        clean=spec.folder / row.text("photo"),
        corrupted=spec.folder / row.text("other_photo"),
        words={"subject": "circle"},
        role="color",
    )
''')


def edit(file, before, new):
    text = (package / file).read_text()
    (package / file).write_text(text.replace(before, new + before))


edit("pairs/datasets/__init__.py", "    mit_states,\n    shapes,", "    lamps,\n")
row = '    "lamps": Dataset(lamps.Lamps, lamps.candidates, lamps.ABOUT, lamps.FILES),\n'
edit("pairs/datasets/__init__.py", '    "hub": Dataset(', row)

# %% [markdown]
# ## The metric
#
# The logit difference compares the answer with the foil, and with no other word. A margin compares it with the best of
# all others. A metric is a function of the logits of many runs at once. It uses tensors' own methods alone, since it
# travels to servers as well. Its row says what it is called, its unit, whether more is better, and the least total
# effect that is divided by.

# %%
edit(
    "metrics.py",
    "def kl_divergence(",
    '''def answer_margin(logits: Any, answer: int, foil: int, clean: Any) -> Any:
    """logit(answer) - the largest other logit; positive where the model says the answer."""
    others = logits.float().clone()
    others[:, answer] = -float("inf")
    return logits.float()[:, answer] - others.amax(-1)


''',
)
row = {"label": "margin of the answer", "unit": "logits", "better": 1, "least": 0.05}
edit("metrics.py", '    "kl_divergence": {', f'    "answer_margin": {{"of": answer_margin, **{row}}},\n')

# %% [markdown]
# ## Both in a run

# %%
import vlm_patching as vp

pairs = vp.load_pairs("lamps", path="lamps", n=8)
print(Path(vp.__file__).relative_to(Path.cwd()), pairs.dropped)
drawn = vp.plot.gallery(pairs, most=2)

# %%
spec = {
    "name": "lamps",
    "model": {"name": "shapes-llava"},
    "pairs": {"dataset": "lamps", "path": "lamps", "n": 8},
    "patch": {"sites": ["language.resid_post"], "positions": ["image", "subject", "last"]},
    "metrics": ["logit_difference", "answer_margin"],
}
for kind in ("semantic_image_pair", "blank_image"):
    ds = vp.run(vp.Experiment.from_dict(spec | {"corruption": {"kind": kind}}), progress=False)
    for metric in spec["metrics"]:
        clean, corrupted = (float(ds[f"{metric}_{run}"].mean()) for run in ("clean", "corrupted"))
        print(f"{kind:20} {metric:17} clean {clean:5.1f}  corrupted {corrupted:5.1f}")
    print("  it says", *ds["said_corrupted"].values)

# %% [markdown]
# With the other lamp's picture the model says the foil, and the two metrics agree about the corrupted run. With a blank
# picture it says "5". The logit difference is a little above 0 then, as if the answer had been kept: neither colour is
# likely, and it does not see that. The margin does.

# %%
drawn = vp.plot.heatmap(ds, "answer_margin", normalize=True)

# %% [markdown]
# The figure has the metric's label from its row. And a slip is caught with the new names among those allowed:

# %%
for wrong in ({"metrics": ["answer_margins"]}, {"pairs": {"dataset": "lamp"}}):
    try:
        vp.Experiment.from_dict(spec | {"corruption": {"kind": "blank_image"}} | wrong)
    except vp.SpecError as error:
        print(error)

# %% [markdown]
# - [Adding a dataset](../adding-a-dataset.md): every reader and helper there is, tests, its page.
# - [A map of the house](../contributing.md): where everything else is added. A metric's tests are in
#   `tests/test_metrics.py`, which tries every row of the table.
# - Pairs of your own need none of this: [a folder and one line a pair](02_your_own_images.md).
