"""Pictures put into a corner of a canvas of square tiles, of which every picture has as many, used or not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlm_patching.models.layouts import ImageLayout, Patch, Seen, Window, cut

MULTIPLE = 8
"""What the image encoder pads every tile's sequence to a multiple of."""


def layout(seen: Seen, image_size: int, patch_size: int, tiles: int, canvases: Sequence[Sequence[int]]) -> ImageLayout:
    """A picture is in the upper left of its canvas; a class token begins every tile, and all other tiles are empty.

    Parameters
    ----------
    image_size, patch_size
        Of the image encoder, in pixels; a tile is what it takes.
    tiles
        How many every picture has.
    canvases
        Those that `aspect_ratio_ids` count, from 1 on: how many tiles they are high and wide.
    """
    side = image_size // patch_size
    vision: list[Patch] = []
    embeds: list[Patch] = []
    for number, size in enumerate(seen.sizes):
        down, across = canvases[int(seen.inputs["aspect_ratio_ids"][0, number]) - 1]
        window = _window(size, down, across, image_size)
        used = cut(window, down, across, side, size, number, side * patch_size / image_size)
        for tile in range(tiles):
            empty = Patch("separator", number, tile)
            shown = [Patch("class", number, tile), *used[tile]] if tile < len(used) else [empty] * (1 + side**2)
            embeds += shown
            vision += [*shown, *[empty] * (-len(shown) % MULTIPLE)]
    return ImageLayout(tuple(vision), tuple(embeds))


def _window(size: tuple[int, int], down: int, across: int, tile: int) -> Window:
    """The canvas, in pixels of the picture, which is made to fit, but no larger than a tile where it is smaller."""
    width, height = size
    wide, high = (min(max(edge, tile), count * tile) for edge, count in ((width, across), (height, down)))
    if wide / width < high / height:
        high = math.floor(height * (wide / width)) or 1
    else:
        wide = math.floor(width * (high / height)) or 1
    return 0, 0, across * tile * width / wide, down * tile * height / high
