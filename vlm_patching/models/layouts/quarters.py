"""Pictures of any shape, in quarters and whole, each seen by latents of its own."""

from __future__ import annotations

from dataclasses import replace

from vlm_patching.models.layouts import ImageLayout, Patch, Seen, Window, grid


def layout(seen: Seen, patch_size: int, count: int) -> ImageLayout:
    """A picture is seen whole, or in its quarters and then whole; what is smaller is padded below and to its right.

    Parameters
    ----------
    patch_size
        Of the image encoder, in pixels. A patch that is not all picture is taken for padding.
    count
        Latents a view.
    """
    vision: list[Patch] = []
    latents: list[Patch] = []
    masks = list(seen.inputs["pixel_attention_mask"][0]) if seen.sizes else []
    views = len(masks) // max(1, len(seen.sizes))
    for number, mask in enumerate(masks):
        image, view = divmod(number, views)
        tile = -1 if view == views - 1 > 0 else view
        size = seen.sizes[image]
        x0, y0, x1, y1 = _quarter(view, size) if tile >= 0 and views > 1 else (0, 0, *size)
        high, wide = int(mask[:, 0].sum()), int(mask[0].sum())
        rows, columns = (edge // patch_size for edge in mask.shape)
        across, down = (x1 - x0) / wide * patch_size, (y1 - y0) / high * patch_size
        window = x0, y0, x0 + columns * across, y0 + rows * down
        for patch in grid(window, rows, columns, size, image, tile):
            there = patch.row < high // patch_size and patch.column < wide // patch_size
            vision.append(patch if there else replace(patch, kind="padding", row=-1, column=-1, box=None))
        latents += [Patch("latent", image, tile)] * count
    embeds = tuple(latents)
    return ImageLayout(tuple(vision), embeds, embeds, embeds)


def _quarter(number: int, size: tuple[int, int]) -> Window:
    """Upper left, upper right, lower left or lower right; an odd pixel is the last one's."""
    (width, height), (right, low) = size, (number % 2, number // 2)
    middle, centre = width // 2, height // 2
    return middle * right, centre * low, width if right else middle, height if low else centre
