"""Figures of a dataset, by seaborn."""

from vlm_patching.plots.heatmap import heads, heatmap, mean_effect
from vlm_patching.plots.image import image
from vlm_patching.plots.labels import position_labels
from vlm_patching.plots.lines import knockout, lens

__all__ = ["heads", "heatmap", "image", "knockout", "lens", "mean_effect", "position_labels"]
