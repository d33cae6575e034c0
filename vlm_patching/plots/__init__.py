"""Figures of a dataset, by seaborn."""

from vlm_patching.plots.draw import draw
from vlm_patching.plots.gallery import gallery
from vlm_patching.plots.heatmap import head_function, heads, heatmap, mean_effect
from vlm_patching.plots.image import image
from vlm_patching.plots.labels import position_labels
from vlm_patching.plots.lines import knockout, lens

__all__ = [
    "draw",
    "gallery",
    "head_function",
    "heads",
    "heatmap",
    "image",
    "knockout",
    "lens",
    "mean_effect",
    "position_labels",
]
