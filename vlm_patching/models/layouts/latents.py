"""Latents or queries that each see the whole picture: perceivers and Q-Formers."""

from __future__ import annotations

from vlm_patching.models.layouts import ImageLayout, Patch, Seen, grid, whole


def layout(
    seen: Seen, count: int, image_size: int, patch_size: int, class_token: bool = False, qformer: bool = False
) -> ImageLayout:
    """A fixed number of latents a picture, over an image encoder with one square grid.

    Parameters
    ----------
    count
        Latents a picture.
    image_size, patch_size
        Of the image encoder, in pixels.
    class_token
        Whether its sequence begins with one.
    qformer
        Whether the latents have a stack of their own. The words of an instruction that follow in its sequence are left
        out: not all that a layer does is done to them.
    """
    side = image_size // patch_size
    vision: list[Patch] = []
    for number, size in enumerate(seen.sizes):
        vision += [Patch("class", number)] if class_token else []
        vision += grid(whole(size, seen.processor), side, side, size, number)
    latents = tuple(Patch("latent", number) for number in range(len(seen.sizes)) for _ in range(count))
    return ImageLayout(tuple(vision), latents, latents, latents if qformer else ())
