"""The little world the bundled models know: coloured shapes on a grid, and questions about them."""

from vlm_patching.pairs.shapes.questions import KINDS, Question, ask, sample
from vlm_patching.pairs.shapes.render import render
from vlm_patching.pairs.shapes.scene import CELL, GRID, IMAGE_SIZE, Scene, Thing, sample_scene

__all__ = [
    "CELL",
    "GRID",
    "IMAGE_SIZE",
    "KINDS",
    "Question",
    "Scene",
    "Thing",
    "ask",
    "render",
    "sample",
    "sample_scene",
]
