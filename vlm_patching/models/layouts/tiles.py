"""Pictures stretched to a canvas of square tiles; besides them each is seen once more as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlm_patching.errors import unknown
from vlm_patching.models.layouts import ImageLayout, Patch, Seen, cut, grid

Side = int | Sequence[int]
Canvas = tuple[int, int]
"""Of how many tiles it is: across, down."""


def layout(
    seen: Seen,
    image_size: Side,
    patch_size: Side,
    canvas: str,
    merge: float = 1,
    class_token: bool = False,
    between: Sequence[int] = (),
    whole_first: bool = False,
) -> ImageLayout:
    """The tiles of a picture, row by row, and, where there are several, one more that shows all of it.

    Parameters
    ----------
    image_size, patch_size
        Of the image encoder, in pixels (one number, or height and width); a tile is what it takes.
    canvas
        Which canvas a picture gets: of the `shape` most like its own, of the `scale` that enlarges it least, of as many
        tiles as its longer `edge` is given, or the one that tokens `between` its tiles tell.
    merge
        How many patches a side make one image embedding; or, under 1, how many image embeddings a side a patch makes.
    class_token
        Whether the image encoder's sequence has one in front of each tile.
    between
        Ends in the tokens between two tiles of a row, between two rows, and behind a picture.
    whole_first
        Whether what shows all of a picture comes before its tiles, not after them.
    """
    if canvas not in (*_CANVASES, "between"):
        raise unknown("canvas", canvas, [*_CANVASES, "between"])
    pixels, patch = (size if isinstance(size, int) else size[0] for size in (image_size, patch_size))
    side = pixels // patch
    part = side * patch / pixels
    handed = round(side / merge if merge >= 1 else side * merge)
    vision: list[Patch] = []
    embeds: list[Patch] = []
    for number, (size, chosen) in enumerate(zip(seen.sizes, _chosen(seen, canvas, pixels, between), strict=True)):
        for tile in _views(size, chosen, side, number, part, whole_first):
            vision += [Patch("class", number, tile[0].tile), *tile] if class_token else tile
        embeds += [patch for tile in _views(size, chosen, handed, number, part, whole_first) for patch in tile]
    return ImageLayout(tuple(vision), tuple(embeds), tuple(embeds))


def _chosen(seen: Seen, canvas: str, pixels: int, between: Sequence[int]) -> list[Canvas]:
    """Each picture's canvas; where none is cut, each is one tile."""
    if not seen.sizes or math.prod(seen.inputs["pixel_values"].shape[:-3]) == len(seen.sizes):
        return [(1, 1)] * len(seen.sizes)
    if canvas == "between":
        return _read(seen.inputs["input_ids"][0].tolist(), *between[-3:])
    return [_CANVASES[canvas](size, pixels, seen.processor) for size in seen.sizes]


def _read(tokens: Sequence[int], column: int, row: int, end: int) -> list[Canvas]:
    """The canvases that tokens between tiles tell of."""
    ends = [i for i, token in enumerate(tokens) if token == end]
    pictures = [tokens[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
    return [(found.count(column) // (found.count(row) + 1) + 1, found.count(row) + 1) for found in pictures]


def _views(
    size: tuple[int, int], canvas: Canvas, side: int, image: int, part: float, whole_first: bool
) -> list[list[Patch]]:
    """What is seen of a picture, each with so many patches a side."""
    (across, down), picture = canvas, (0, 0, *size)
    tiles = cut(picture, down, across, side, size, image, part)
    whole = [grid(picture, side, side, size, image, -1, part)] if len(tiles) > 1 else []
    return [*whole, *tiles] if whole_first else [*tiles, *whole]


def _canvases(least: int, most: int) -> list[Canvas]:
    """All of so many tiles, the fewest first, and of as many the highest."""
    numbers = range(1, most + 1)
    found = [(across, down) for across in numbers for down in numbers if least <= across * down <= most]
    return sorted(found, key=lambda canvas: canvas[0] * canvas[1])


def _of_shape(size: tuple[int, int], pixels: int, processor: Any) -> Canvas:
    """Of several that are as like the picture, the largest that it fills to more than half."""
    (width, height), best, least = size, (1, 1), float("inf")
    for across, down in _canvases(processor.min_patches, processor.max_patches):
        off = abs(width / height - across / down)
        if off < least or (off == least and width * height > 0.5 * pixels * pixels * across * down):
            best, least = (across, down), off
    return best


def of_scale(size: tuple[int, int], pixels: int, processor: Any) -> Canvas:
    """Where the picture has to be made smaller for all of them, the one for which it has to be least."""
    canvases = _canvases(1, processor.max_patches)
    scales = [min(across * pixels / size[0], down * pixels / size[1]) for across, down in canvases]
    enlarged = [scale for scale in scales if scale >= 1]
    return canvases[scales.index(min(enlarged) if enlarged else max(scales))]


def _of_edge(size: tuple[int, int], pixels: int, processor: Any) -> Canvas:
    """The longer edge is brought to the processor's, and then to whole tiles, the other both times in proportion."""
    tile = processor.max_image_size["longest_edge"]
    width, height = (max(1, edge + edge % 2) for edge in _scaled(*size, processor.size["longest_edge"]))
    width, height = _scaled(width, height, math.ceil(max(width, height) / tile) * tile)
    return math.ceil(width / tile), math.ceil(height / tile)


def _scaled(width: int, height: int, longer: int) -> tuple[int, int]:
    ratio = width / height
    return (longer, int(longer / ratio)) if width >= height else (int(longer * ratio), longer)


_CANVASES = {"shape": _of_shape, "scale": of_scale, "edge": _of_edge}
