"""Figures of a dataset, by seaborn: a Dataset and an optional `ax` in, the Axes out (an array of several panels').

`FIGURES` in `vlm_patching.figures` is the table of them; `draw` draws all that an experiment names.
"""

from vlm_patching.plots.attention import attention, head_function
from vlm_patching.plots.compare import compare
from vlm_patching.plots.corruptions import corruptions
from vlm_patching.plots.distribution import distribution
from vlm_patching.plots.draw import draw
from vlm_patching.plots.gallery import gallery
from vlm_patching.plots.heatmap import heads, heatmap
from vlm_patching.plots.image import image
from vlm_patching.plots.labels import Labeller, position_labels
from vlm_patching.plots.lens import lens
from vlm_patching.plots.lines import knockout, lines, windows
from vlm_patching.plots.panels import mean_effect
from vlm_patching.plots.style import figure_of, save, style
from vlm_patching.plots.universal import universal_heads

__all__ = [
    "Labeller",
    "attention",
    "compare",
    "corruptions",
    "distribution",
    "draw",
    "figure_of",
    "gallery",
    "head_function",
    "heads",
    "heatmap",
    "image",
    "knockout",
    "lens",
    "lines",
    "mean_effect",
    "position_labels",
    "save",
    "style",
    "universal_heads",
    "windows",
]
