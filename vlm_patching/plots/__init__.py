"""Figures of a dataset, by seaborn."""

from vlm_patching.plots.heatmap import heads, heatmap, mean_effect

__all__ = ["heads", "heatmap", "mean_effect"]
