"""One grid of patches a picture, of a size that the model's config fixes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlm_patching.models.layouts import ImageLayout, Patch, Seen, Window, grid, whole


def layout(
    seen: Seen,
    image_size: int,
    patch_size: int,
    embeds_count: int = 0,
    class_token: Sequence[str] = (),
    select: str = "",
    fitted: bool = False,
) -> ImageLayout:
    """A picture is stretched, cropped or padded to a square.

    Parameters
    ----------
    image_size, patch_size
        Of the image encoder, in pixels.
    embeds_count
        How many image embeddings a square of patches is averaged to; 0 for one a patch.
    class_token
        Which of `vision`, `embeds` and `text` have a class token in front of each picture's patches.
    select
        LLaVA's name for what is handed on: with `full`, the class token of `vision` goes on to the text side.
    fitted
        Whether a picture is brought to size before it is padded, on both sides.
    """
    seen_of = _fitted if fitted else whole
    side = image_size // patch_size
    part = side * patch_size / image_size
    handed = math.isqrt(embeds_count) or side
    if select == "full" and "vision" in class_token:
        class_token = ("vision", "embeds", "text")

    def patches(count: int, sequence: str) -> tuple[Patch, ...]:
        found: list[Patch] = []
        for number, size in enumerate(seen.sizes):
            found += [Patch("class", number)] if sequence in class_token else []
            found += grid(seen_of(size, seen.processor), count, count, size, number, part=part)
        return tuple(found)

    return ImageLayout(patches(side, "vision"), patches(handed, "embeds"), patches(handed, "text"))


def _fitted(size: tuple[int, int], processor: Any) -> Window:
    """What is seen of a picture whose longer edge becomes the square's, and whose shorter one stays in proportion."""
    scale = processor.size["height"] / max(size)
    resized = [max(round(edge * scale), processor.min_size) for edge in size]
    left, top = ((max(resized) - edge) // 2 for edge in resized)
    across, down = resized[0] / size[0], resized[1] / size[1]
    return -left / across, -top / down, (max(resized) - left) / across, (max(resized) - top) / down
