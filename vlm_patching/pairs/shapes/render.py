"""Scene → picture, by pillow."""

from __future__ import annotations

import math
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from vlm_patching.pairs.shapes.scene import CELL, COLORS, IMAGE_SIZE, SIZES, WORD_HEIGHT, Scene

_OVERSAMPLE = 8
_INK = (110, 110, 110)
"""Of words: none of the colours that things have."""


def render(scene: Scene) -> Image.Image:
    """Draw a scene.

    Parameters
    ----------
    scene
        What to draw.

    Returns
    -------
    PIL.Image.Image
        RGB, 96 × 96. Two scenes that differ in one thing or word give pictures that differ only inside its boxes.
    """
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (scene.background,) * 3)
    for thing in scene.things:
        image.paste(COLORS[thing.color], thing.box, _mask(thing.shape, SIZES[thing.size]))
    for word in scene.words:
        image.paste(_INK, word.box, _written(word.text))
    return image


@cache
def _written(text: str) -> Image.Image:
    """A word in the middle of a mask, in the bitmap font inside pillow: no font of the machine has a say."""
    size = (2 * CELL, WORD_HEIGHT)
    mask = Image.new("L", size, 0)
    font = ImageFont.load_default_imagefont()
    left, top, right, bottom = font.getbbox(text)
    at = ((size[0] - right + left) // 2, (size[1] - bottom + top) // 2)
    ImageDraw.Draw(mask).text(at, text, fill=255, font=font)
    return mask


@cache
def _mask(shape: str, side: int) -> Image.Image:
    big = side * _OVERSAMPLE
    mask = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(mask)
    if shape == "circle":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
        draw.ellipse((big * 0.3, big * 0.3, big * 0.7, big * 0.7), fill=0)
    elif shape == "heart":
        draw.ellipse((0, big * 0.05, big * 0.52, big * 0.57), fill=255)
        draw.ellipse((big * 0.48, big * 0.05, big - 1, big * 0.57), fill=255)
        draw.polygon([(big * 0.04, big * 0.42), (big * 0.96, big * 0.42), (big * 0.5, big)], fill=255)
    else:
        draw.polygon([(x * big, y * big) for x, y in _POLYGONS[shape]], fill=255)
    return mask.resize((side, side), Image.Resampling.BOX)


def _star() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        radius = 0.53 if i % 2 == 0 else 0.22
        angle = math.pi * (i / 5 - 0.5)
        points.append((0.5 + radius * math.cos(angle), 0.53 + radius * math.sin(angle)))
    return points


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "cross": [
        (0.35, 0), (0.65, 0), (0.65, 0.35), (1, 0.35), (1, 0.65), (0.65, 0.65),
        (0.65, 1), (0.35, 1), (0.35, 0.65), (0, 0.65), (0, 0.35), (0.35, 0.35),
    ],
    "star": _star(),
}  # fmt: skip
