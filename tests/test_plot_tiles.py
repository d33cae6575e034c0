"""A picture that a model cuts into tiles is painted tile by tile on its own patch grid."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from PIL import Image, ImageDraw

import vlm_patching as vp
from tests.families import llava_next

SIZE = (96, 64)
BOX = (60, 20, 90, 50)


def picture(color: str) -> Image.Image:
    drawn = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(drawn).ellipse(BOX, fill=color)
    return drawn


def areas(ax: plt.Axes) -> np.ndarray:
    """How often each pixel is painted."""
    (overlay,) = [c for c in ax.collections if isinstance(c, PatchCollection)]
    painted = np.zeros(SIZE[::-1], dtype=int)
    for path in overlay.get_paths():
        (x0, y0), (x1, y1) = (np.round(path.vertices.min(axis=0) + 0.5), np.round(path.vertices.max(axis=0) + 0.5))
        painted[int(y0) : int(y1), int(x0) : int(x1)] += 1
    return painted


@pytest.mark.parametrize("site", ["vision.resid_post", "language.resid_post"])
def test_tiles_cover_the_picture_once_beside_the_whole_seen_small(site: str, tmp_path: Path) -> None:
    llava_next.KNOWN.build(tmp_path)
    pair = vp.Pair(
        "a",
        vp.Prompt(picture("red"), "what red blue"),
        vp.Prompt(picture("blue"), "what red blue"),
        "left",
        "right",
        regions={"object": BOX},
    )
    spec = {
        "name": "tiles",
        "model": {"name": str(tmp_path)},
        "pairs": {"dataset": "folder", "path": str(tmp_path), "keep": "all"},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": [site], "layers": [0], "positions": ["each:image"]},
        "metrics": ["logit_difference"],
    }
    ds = vp.run(vp.Experiment.from_dict(spec), inputs=[pair], progress=False)
    assert len(set(ds["tile"].values[0].tolist()) - {-1}) > 1
    whole, tiles = vp.plot.image(ds, "a", pair.clean.picture(), metric="logit_difference", boxes=pair.regions)
    assert (whole.get_title(), tiles.get_title()) == ("seen small", "tiles")
    for ax in (whole, tiles):
        assert areas(ax).min() == areas(ax).max() == 1
    finer = [
        len(next(c for c in ax.collections if isinstance(c, PatchCollection)).get_paths()) for ax in (whole, tiles)
    ]
    assert finer[1] > finer[0]
    assert tmp_path.name in vp.plot.figure_of(whole).get_suptitle()
    assert str(tmp_path.parent) not in vp.plot.figure_of(whole).get_suptitle()
    plt.close("all")
