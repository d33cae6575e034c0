"""One grid of patches a picture, of the picture's own shape, row by row; blocks of patches may be merged to one."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_patching.models.layouts import ImageLayout, Patch, Seen, grid


def layout(seen: Seen, patch_size: int = 0, merge: int = 1) -> ImageLayout:
    """A picture is stretched to whole blocks; the inputs say how large it is then.

    Parameters
    ----------
    patch_size
        Of the image encoder, in pixels, where the inputs say how many pixels a picture has (`image_sizes`); 0 where
        they say where its patches are (`image_position_ids`), padded to as many for each picture.
    merge
        How many patches a side make a block, which is one image embedding.
    """
    vision: list[Patch] = []
    embeds: list[Patch] = []
    shapes = _in_pixels(seen, patch_size) if patch_size else _in_patches(seen)
    for number, size in enumerate(seen.sizes):
        rows, columns, padding = next(shapes)
        vision += [*grid((0, 0, *size), rows, columns, size, number), *[Patch("separator", number)] * padding]
        embeds += grid((0, 0, *size), rows // merge, columns // merge, size, number)
    return ImageLayout(tuple(vision), tuple(embeds), tuple(embeds))


def _in_pixels(seen: Seen, patch_size: int) -> Iterator[tuple[int, int, int]]:
    """Rows and columns of each picture's grid, and how many positions of padding are behind it."""
    for height, width in seen.inputs["image_sizes"].tolist():
        yield height // patch_size, width // patch_size, 0


def _in_patches(seen: Seen) -> Iterator[tuple[int, int, int]]:
    """The same from each patch's column and row, -1 for padding."""
    for places in seen.inputs["image_position_ids"]:
        columns, rows = (places.amax(0) + 1).tolist()
        yield rows, columns, len(places) - rows * columns
