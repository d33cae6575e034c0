"""What image positions show: one file a rule, found by the name that a family's file gives it.

A rule is a function `layout(seen, **settings)` → `ImageLayout`; its settings are what the family's file says under
`image.layout`, config paths already replaced by their values.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from vlm_patching.errors import SpecError, unknown
from vlm_patching.pairs.pair import Box

MAX_PATCHES = 1_000_000
Window = tuple[float, float, float, float]
"""x0, y0, x1, y1 of the original picture, in pixels; beyond its edges is padding."""


@dataclass(frozen=True)
class Patch:
    """What one image position shows.

    Attributes
    ----------
    kind
        `patch` of a grid; `latent`, which sees the whole picture; `class` token; `separator` between patches;
        `padding` beside a picture that is smaller than others, which nothing attends to.
    image, tile
        Which of the prompt's pictures, and which part of it that was encoded by itself (-1: all of it, seen small).
    row, column
        In the grid of the tile.
    box
        What it covers of the original picture; None where nothing or all.
    """

    kind: Literal["patch", "latent", "class", "separator", "padding"] = "patch"
    image: int = 0
    tile: int = 0
    row: int = -1
    column: int = -1
    box: Box | None = None


@dataclass(frozen=True)
class ImageLayout:
    """The image positions of every sequence that has any, in order.

    Attributes
    ----------
    vision, embeds
        Of the image encoder (all pictures and tiles one after the other), and of what it hands to the text side.
    text
        What the image positions of the text's own sequence hold; empty where it has none.
    qformer
        Of a Q-Former.
    """

    vision: tuple[Patch, ...]
    embeds: tuple[Patch, ...]
    text: tuple[Patch, ...] = ()
    qformer: tuple[Patch, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What a rule may look at: the model's config, its image processor, one prompt's tensors and pictures' sizes."""

    config: Any
    processor: Any
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sizes: Sequence[tuple[int, int]] = ()


def rules() -> list[str]:
    """The names of all rules."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def layout_rule(name: str, settings: Mapping[str, Any]) -> Callable[[Seen], ImageLayout]:
    """A rule with its settings; `SpecError` where there is none of that name, or it takes other settings."""
    if name not in rules():
        raise unknown("layout rule", name, rules())
    rule = importlib.import_module(f"{__name__}.{name}").layout
    try:
        inspect.signature(rule).bind(None, **settings)
    except TypeError as error:
        raise SpecError(f"layout rule {name!r}: {error}") from error
    return partial(rule, **settings)


def grid(
    window: Window, rows: int, columns: int, size: tuple[int, int], image: int = 0, tile: int = 0, part: float = 1
) -> list[Patch]:
    """The patches of a grid over a window, row by row, with what each covers of a picture of this size.

    A patch that shows nothing but padding has no box. The grid covers a `part` of the window's edges, from its left top
    corner on: what is left over by whole patches is not seen.
    """
    if rows * columns > MAX_PATCHES:
        raise SpecError(f"a grid of {rows} × {columns} patches is too large")
    x0, y0, x1, y1 = window
    across, down = part * (x1 - x0) / columns, part * (y1 - y0) / rows
    patches = []
    for row in range(rows):
        for column in range(columns):
            edges = (x0 + across * column, y0 + down * row, x0 + across * (column + 1), y0 + down * (row + 1))
            box = _within(edges, size)
            patches.append(Patch("patch", image, tile, row, column, box))
    return patches


def cut(
    window: Window, down: int, across: int, side: int, size: tuple[int, int], image: int = 0, part: float = 1
) -> list[list[Patch]]:
    """The patches of each of the tiles that a window is cut into, tiles row by row, so many patches a side."""
    x0, y0, x1, y1 = window
    width, height = (x1 - x0) / across, (y1 - y0) / down
    tiles = []
    for tile in range(down * across):
        left, top = x0 + width * (tile % across), y0 + height * (tile // across)
        tiles.append(grid((left, top, left + width, top + height), side, side, size, image, tile, part))
    return tiles


def _within(edges: Window, size: tuple[int, int]) -> Box | None:
    width, height = size
    left, top, right, bottom = map(round, edges)
    box = max(0, left), max(0, top), min(width, right), min(height, bottom)
    return box if box[0] < box[2] and box[1] < box[3] else None


def squared(size: tuple[int, int]) -> Window:
    """What is seen of a picture that is padded to a square, on both sides of its shorter edge."""
    left, top = ((max(size) - edge) // 2 for edge in size)
    return -left, -top, max(size) - left, max(size) - top


def whole(size: tuple[int, int], processor: Any) -> Window:
    """What a processor shows of a picture, in its pixels, when it stretches, pads or crops each to one fixed size."""
    width, height = size
    if getattr(processor, "do_pad", False):  # to a square, before anything else
        return squared(size)
    if not getattr(processor, "do_center_crop", False):
        return 0, 0, width, height
    shorter = processor.size.get("shortest_edge")
    if shorter:
        resized = [shorter if edge == min(size) else int(shorter * edge / min(size)) for edge in size]
    else:
        resized = [processor.size["width"], processor.size["height"]]
    crop = (processor.crop_size["width"], processor.crop_size["height"])
    if crop[0] > resized[0] or crop[1] > resized[1]:
        raise SpecError(f"the image processor pads pictures of {resized} to {crop}: not supported")
    across, down = resized[0] / width, resized[1] / height
    left, top = (resized[0] - crop[0]) // 2, (resized[1] - crop[1]) // 2
    return left / across, top / down, (left + crop[0]) / across, (top + crop[1]) / down
