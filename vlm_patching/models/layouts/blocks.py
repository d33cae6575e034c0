"""One grid of patches a picture, of a size that the picture gives; blocks of patches are merged for the text side."""

from __future__ import annotations

from itertools import product

from vlm_patching.models.layouts import ImageLayout, Patch, Seen, grid


def layout(seen: Seen, merge: int, window_size: int = 0, patch_size: int = 1) -> ImageLayout:
    """A picture is stretched to whole blocks; the image encoder has it block by block, or window by window of blocks.

    Parameters
    ----------
    merge
        How many patches a side make a block, which is one image embedding.
    window_size, patch_size
        Of the image encoder, in pixels; no windows where the first is 0.
    """
    vision: list[Patch] = []
    embeds: list[Patch] = []
    sides = seen.inputs["image_grid_thw"][:, 1:].tolist() if seen.sizes else []
    for number, ((rows, columns), size) in enumerate(zip(sides, seen.sizes, strict=True)):
        picture, down, across = (0, 0, *size), rows // merge, columns // merge
        embeds += grid(picture, down, across, size, number)
        patches = grid(picture, rows, columns, size, number)
        for top, left in _windows(down, across, window_size // merge // patch_size):
            inside = product(range(merge * top, merge * (top + 1)), range(merge * left, merge * (left + 1)))
            vision += [patches[row * columns + column] for row, column in inside]
    return ImageLayout(tuple(vision), tuple(embeds), tuple(embeds))


def _windows(down: int, across: int, side: int) -> list[tuple[int, int]]:
    """The blocks of a grid, row by row; where there are windows, window by window, those at the edges smaller."""
    blocks = product(range(down), range(across))
    return sorted(blocks, key=lambda block: (block[0] // side, block[1] // side, *block)) if side else list(blocks)
