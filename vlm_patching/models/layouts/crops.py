"""Pictures seen whole and in crops that overlap, whose patches are pooled as one plane, with marks around its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vlm_patching.models.layouts import ImageLayout, Patch, Seen, Window, grid


def layout(seen: Seen, image_size: Sequence[int], patch_size: int, mark: int, start: int) -> ImageLayout:
    """A picture is stretched to one crop, and then to all of its crops together; of two that overlap each gives a half.

    Parameters
    ----------
    image_size, patch_size
        Of the image encoder, in pixels; a crop is what it takes.
    mark, start
        The token that stands for an image embedding, and the one that a picture begins with.
    """
    side = image_size[0] // patch_size
    vision: list[Patch] = []
    embeds: list[Patch] = []
    grids = seen.inputs["image_grids"].tolist() if seen.sizes else []
    for number, (size, shape) in enumerate(zip(seen.sizes, grids, strict=True)):
        for first, (rows, columns) in ((-1, shape[:2]), (0, shape[2:])):
            pooled = seen.inputs["image_token_pooling"][len(embeds) : len(embeds) + rows * columns]
            step = math.isqrt(pooled.shape[1])
            plane = _plane(pooled.reshape(rows, columns, step, step))
            window = _window((0, 0), step * columns, step * rows, plane, size)
            embeds += grid(window, rows, columns, size, number, first)
            for crop, corner in enumerate(_corners(plane, side)):
                window = _window(corner, side, side, plane, size)
                vision += grid(window, side, side, size, number, first + crop)
    text = _with_marks(seen, embeds, mark, start) if embeds else ()
    return ImageLayout(tuple(vision), tuple(embeds), tuple(text))


def _plane(pooled: torch.Tensor) -> torch.Tensor:
    """Which patch of the image encoder is where on a stretched picture, of what image embeddings pool (-1: none)."""
    plane = pooled.transpose(1, 2).flatten(2).flatten(0, 1)
    return plane[(plane >= 0).any(1)][:, (plane >= 0).any(0)]


def _corners(plane: torch.Tensor, side: int) -> list[tuple[int, int]]:
    """Column and row on the plane of each crop's first patch, found by any patch of it that is pooled."""
    corners = []
    for crop in (plane // side**2).unique().tolist():
        row, column = (plane // side**2 == crop).nonzero()[0].tolist()
        down, across = divmod(int(plane[row, column]) % side**2, side)
        corners.append((column - across, row - down))
    return corners


def _window(corner: tuple[int, int], across: int, down: int, plane: torch.Tensor, size: tuple[int, int]) -> Window:
    """What so many patches show of a picture, from a place on its plane on."""
    (left, top), (width, height) = corner, (size[0] / plane.shape[1], size[1] / plane.shape[0])
    return left * width, top * height, (left + across) * width, (top + down) * height


def _with_marks(seen: Seen, embeds: Sequence[Patch], mark: int, start: int) -> list[Patch]:
    """The image embeddings, and the marks around them, which attend and are attended to as they are."""
    found: list[Patch] = []
    image, following = -1, iter(embeds)
    held = seen.inputs["mm_token_type_ids"][0].bool()
    for token in seen.inputs["input_ids"][0][held].tolist():
        image += token == start
        found.append(next(following) if token == mark else Patch("separator", image))
    return found
