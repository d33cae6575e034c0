"""Pictures in their own shape at the left top of a canvas of square tiles; each is seen once more as a whole."""

from __future__ import annotations

import math

from vlm_patching.errors import SpecError
from vlm_patching.models.layouts import ImageLayout, Patch, Seen, Window, cut, grid
from vlm_patching.models.layouts.tiles import of_scale


def layout(seen: Seen, image_size: int, patch_size: int, merge: float) -> ImageLayout:
    """The tiles of a canvas, row by row, and behind them, where there are several, one that shows all of the picture.

    Parameters
    ----------
    image_size, patch_size
        Of the image encoder, in pixels; a tile is what it takes. Its sequence has a class token behind each.
    merge
        How many image embeddings a side a patch makes.
    """
    side = image_size // patch_size
    handed = round(side * merge)
    vision: list[Patch] = []
    embeds: list[Patch] = []
    for number, size in enumerate(seen.sizes):
        if seen.processor.resize_to_max_canvas:
            raise SpecError("an image processor with resize_to_max_canvas is not supported")
        across, down = of_scale(size, image_size, seen.processor)
        window, whole = _window(size, (across, down), image_size), across * down > 1
        for count, sequence in ((side, vision), (handed, embeds)):
            tiles = cut(window, down, across, count, size, number)
            for tile in [*tiles, *([grid((0, 0, *size), count, count, size, number, -1)] if whole else [])]:
                sequence += [*tile, Patch("class", number, tile[0].tile)] if sequence is vision else tile
    return ImageLayout(tuple(vision), tuple(embeds), tuple(embeds))


def _window(size: tuple[int, int], canvas: tuple[int, int], pixels: int) -> Window:
    """A canvas in pixels of the picture on it, which is not enlarged beyond one tile."""
    full = [tiles * pixels for tiles in canvas]
    room = [min(max(edge, pixels), most) for edge, most in zip(size, full, strict=True)]
    scale = min(there / edge for edge, there in zip(size, room, strict=True))
    fitted = [min(max(math.floor(edge * scale), 1), there) for edge, there in zip(size, room, strict=True)]
    return 0, 0, full[0] * size[0] / fitted[0], full[1] * size[1] / fitted[1]
