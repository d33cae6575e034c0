"""Figures of a dataset, by seaborn."""

from vlm_patching.plots.heatmap import heads, heatmap, mean_effect
from vlm_patching.plots.labels import position_labels

__all__ = ["heads", "heatmap", "mean_effect", "position_labels"]
