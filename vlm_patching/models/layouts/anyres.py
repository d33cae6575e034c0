"""Pictures of any shape, seen whole and in tiles, whose patches are one plane again on the text side, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from transformers.image_processing_utils import select_best_resolution

from vlm_patching.models.layouts import ImageLayout, Patch, Seen, Window, cut, grid, squared

Plane = list[list[Patch]]

LEAST_REDUCTION = 1.1
"""A plane that is less over the most patches is left as it is."""


def layout(
    seen: Seen,
    image_size: int,
    patch_size: int,
    pinpoints: Sequence[Sequence[int]],
    class_token: bool = False,
    most: str = "",
) -> ImageLayout:
    """A picture is seen whole, stretched, and then fitted into the middle of a canvas of tiles.

    The text side has no padding, and a separator at the end of every row. Where the inputs say that several pictures
    are of one prompt, each is padded to a square and is one tile, with one separator.

    Parameters
    ----------
    image_size, patch_size
        Of the image encoder, in pixels; a tile is what it takes.
    pinpoints
        The canvases that there are: height and width, in pixels.
    class_token
        Whether the image encoder's sequence has one in front of each tile.
    most
        Text that ends in how many tiles' patches the text side gets at most: more are interpolated to as many.
    """
    side = image_size // patch_size
    part = side * patch_size / image_size
    vision: list[Patch] = []
    embeds: list[Patch] = []
    text: list[Patch] = []
    tiled = "batch_num_images" not in seen.inputs or int(seen.inputs["batch_num_images"][0]) == 1
    for number, size in enumerate(seen.sizes):
        first = grid(squared(size), side, side, size, number, part=part)
        tiles: list[list[Patch]] = []
        rows: Plane = [[]]
        if tiled:
            window, down, across = _canvas(size, pinpoints, image_size)
            first = grid((0, 0, *size), side, side, size, number, -1, part)
            tiles = cut(window, down, across, side, size, number, part)
            rows, window = _unpadded(_together(tiles, across, side), window, size)
            rows = _fewer(rows, window, int(most.rpartition("_")[2]) * side**2, size) if most else rows
        for tile in (first, *tiles):
            vision += [Patch("class", number, tile[0].tile), *tile] if class_token else tile
            embeds += tile
        text += first
        for row in rows:
            text += [*row, Patch("separator", number)]
    return ImageLayout(tuple(vision), tuple(embeds), tuple(text))


def _canvas(size: tuple[int, int], pinpoints: Sequence[Sequence[int]], side: int) -> tuple[Window, int, int]:
    """The canvas for a picture, in pixels of the picture in its middle, and how many tiles it is high and wide."""
    width, height = size
    down, across = select_best_resolution((height, width), list(pinpoints))
    scale = min(across / width, down / height)
    fitted = min(math.ceil(width * scale), across), min(math.ceil(height * scale), down)
    x, y = fitted[0] / width, fitted[1] / height
    left, top = (across - fitted[0]) // 2, (down - fitted[1]) // 2
    return (-left / x, -top / y, (across - left) / x, (down - top) / y), down // side, across // side


def _together(tiles: Sequence[Sequence[Patch]], across: int, side: int) -> Plane:
    """The patches of all tiles as one plane."""
    plane: Plane = []
    for start in range(0, len(tiles), across):
        abreast = tiles[start : start + across]
        plane += [[p for tile in abreast for p in tile[row * side : (row + 1) * side]] for row in range(side)]
    return plane


def _unpadded(plane: Plane, window: Window, size: tuple[int, int]) -> tuple[Plane, Window]:
    """A plane and its window without rows or columns of padding; whole ones, so that some picture may go with them."""
    rows, columns = len(plane), len(plane[0])
    (width, height), (x0, y0, x1, y1) = size, window
    if width / height > columns / rows:
        off = (rows - int(round(height * (columns / width), 7))) // 2
        edge = off * (y1 - y0) / rows
        return plane[off : rows - off], (x0, y0 + edge, x1, y1 - edge)
    off = (columns - int(round(width * (rows / height), 7))) // 2
    edge = off * (x1 - x0) / columns
    return [row[off : columns - off] for row in plane], (x0 + edge, y0, x1 - edge, y1)


def _fewer(plane: Plane, window: Window, most: int, size: tuple[int, int]) -> Plane:
    """A plane of more than the most patches has fewer, each with its share of it and the numbers of its middle."""
    rows, columns = len(plane), len(plane[0]) if plane else 0
    reduction = math.sqrt(rows * columns / most)
    if reduction <= LEAST_REDUCTION:
        return plane
    down, across = int(rows // reduction), int(columns // reduction)
    shares = iter(grid(window, down, across, size))
    middles = [plane[int((row + 0.5) * rows / down)] for row in range(down)]
    picked = [int((column + 0.5) * columns / across) for column in range(across)]
    return [[replace(middle[column], box=next(shares).box) for column in picked] for middle in middles]
