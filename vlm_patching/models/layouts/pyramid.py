"""A picture stretched to a fixed size and made smaller by strided convolutions; first comes the mean of all it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from vlm_patching.models.layouts import ImageLayout, Patch, Seen


def layout(seen: Seen, strides: Sequence[int]) -> ImageLayout:
    """A convolution padded by half its kernel looks around the pixel stride · i, not around the middle of a stride.

    What a position sees fades outwards from there over the whole picture; boxes are half a stride to all sides.

    Parameters
    ----------
    strides
        Of all convolutions, in pixels of what each of them gets.
    """
    stride, found = math.prod(strides), list[Patch]()
    for number, (width, height) in enumerate(seen.sizes):
        high, wide = seen.inputs["pixel_values"].shape[-2:]
        across, down = _spans(wide, stride, width), _spans(high, stride, height)
        found.append(Patch("latent", number))
        for row, (top, low) in enumerate(down):
            for column, (left, right) in enumerate(across):
                found.append(Patch("patch", number, 0, row, column, (left, top, right, low)))
    return ImageLayout((), tuple(found), tuple(found))


def _spans(length: int, stride: int, original: int) -> list[tuple[int, int]]:
    """The pixels of a side that are nearest to each position, as many of the original as it has; none are left over."""
    count = length // stride
    edges = [0, *[round((i - 0.5) * stride * original / length) for i in range(1, count)], original]
    return list(pairwise(edges))
