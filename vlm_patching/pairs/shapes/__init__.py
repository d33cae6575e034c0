"""The little world the bundled models know: coloured shapes on a grid, and questions about them."""

from vlm_patching.pairs.shapes.contrast import Contrast
from vlm_patching.pairs.shapes.kinds import PAIR_KINDS, draw_contrast, other_options
from vlm_patching.pairs.shapes.questions import KINDS, Question, ask, sample
from vlm_patching.pairs.shapes.render import render
from vlm_patching.pairs.shapes.scene import CELL, GRID, IMAGE_SIZE, Scene, Thing, Word, sample_scene

__all__ = [
    "CELL",
    "GRID",
    "IMAGE_SIZE",
    "KINDS",
    "PAIR_KINDS",
    "Contrast",
    "Question",
    "Scene",
    "Thing",
    "Word",
    "ask",
    "draw_contrast",
    "other_options",
    "render",
    "sample",
    "sample_scene",
]
