"""Corrupted images that are made from the pairs' own: one table, found by name.

Each function takes the pair, all pairs, a random generator and its settings, and gives the picture, as large as the
clean one. A corruption is added by adding a function and its row in `IMAGE_CORRUPTIONS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageFilter, ImageStat

from vlm_patching.errors import SpecError, nearest, unknown
from vlm_patching.pairs.pair import Pair

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ImageCorruption:
    """How a corrupted image is made: the function, the settings it knows, and one line about it."""

    make: Callable[..., Image.Image]
    settings: tuple[str, ...]
    about: str


def corrupt_images(pairs: Sequence[Pair], kind: str, seed: int = 0, **settings: Any) -> list[Pair]:
    """Pairs whose corrupted image is made from the clean ones; texts, answers and foils stay.

    Parameters
    ----------
    pairs
        What `load_pairs` gives.
    kind
        A name out of `IMAGE_CORRUPTIONS`.
    seed
        Of what is drawn (which other image, which order of patches): same seed, same pictures, whatever other pairs
        there are (except for `other_image`, which is drawn among them).
    **settings
        The kind's own: `color` (blank_image), `radius` (blurred_image), `grid` (shuffled_image), `region`
        (masked_region).

    Returns
    -------
    list of Pair

    Raises
    ------
    SpecError
        Unknown kind or setting, or a pair that it cannot be done to.

    Examples
    --------
    >>> from vlm_patching.pairs import load_pairs
    >>> pairs = corrupt_images(load_pairs("shapes", n=2), "blurred_image", radius=4)
    """
    if kind not in IMAGE_CORRUPTIONS:
        raise unknown("image corruption", kind, IMAGE_CORRUPTIONS)
    corruption = IMAGE_CORRUPTIONS[kind]
    for name in settings:
        if name not in corruption.settings:
            raise SpecError(
                f"{kind} has no setting {name!r}.{nearest(name, corruption.settings)} "
                f"It has: {', '.join(corruption.settings) or 'none'}."
            )
    corrupted = []
    for pair in pairs:
        picture = corruption.make(pair, pairs, random.Random(f"{seed}/{kind}/{pair.id}"), **settings)
        corrupted.append(replace(pair, corrupted=replace(pair.clean.with_picture(picture), text=pair.corrupted.text)))
    return corrupted


def _blank(pair: Pair, pairs: Sequence[Pair], rng: random.Random, color: Sequence[int] = (0, 0, 0)) -> Image.Image:
    return Image.new("RGB", pair.clean.picture().size, _color(color))


def _mean_color(pair: Pair, pairs: Sequence[Pair], rng: random.Random) -> Image.Image:
    picture = pair.clean.picture()
    return Image.new("RGB", picture.size, _mean_of(picture))


def _blurred(pair: Pair, pairs: Sequence[Pair], rng: random.Random, radius: float | None = None) -> Image.Image:
    picture = pair.clean.picture()
    return picture.filter(ImageFilter.GaussianBlur(min(picture.size) / 10 if radius is None else radius))


def _shuffled(pair: Pair, pairs: Sequence[Pair], rng: random.Random, grid: int = 4) -> Image.Image:
    picture = pair.clean.picture()
    width, height = picture.size
    if not 1 < grid <= min(width, height):
        raise SpecError(
            f"Pair {pair.id!r}: its picture of {width} × {height} cannot be cut into {grid} × {grid} patches."
        )
    side_x, side_y = width // grid, height // grid  # what is left over at the right and at the bottom stays in place
    boxes = [(c * side_x, r * side_y, (c + 1) * side_x, (r + 1) * side_y) for r in range(grid) for c in range(grid)]
    order = boxes.copy()
    rng.shuffle(order)
    shuffled = picture.copy()
    for source, target in zip(order, boxes, strict=True):
        shuffled.paste(picture.crop(source), target)
    return shuffled


def _masked(pair: Pair, pairs: Sequence[Pair], rng: random.Random, region: str = "object") -> Image.Image:
    if region not in pair.regions:
        known = ", ".join(pair.regions) or "none"
        raise SpecError(f"Pair {pair.id!r} has no region {region!r}.{nearest(region, pair.regions)} It has: {known}.")
    picture = pair.clean.picture().copy()
    picture.paste(_mean_of(picture), pair.regions[region])
    return picture


def _other(pair: Pair, pairs: Sequence[Pair], rng: random.Random) -> Image.Image:
    others = [other for other in pairs if other.id != pair.id]
    if not others:
        raise SpecError(f"Pair {pair.id!r}: other_image takes the image of another pair, and there is no other.")
    picture = pair.clean.picture()
    return rng.choice(others).clean.picture().resize(picture.size)


def _mean_of(picture: Image.Image) -> Color:
    red, green, blue = ImageStat.Stat(picture).mean
    return round(red), round(green), round(blue)


def _color(color: Sequence[int]) -> Color:
    if len(color) != 3 or any(type(part) is not int or not 0 <= part <= 255 for part in color):
        raise SpecError(f"A colour is three whole numbers from 0 to 255, not {list(color)}.")
    return color[0], color[1], color[2]


IMAGE_CORRUPTIONS = {
    "other_image": ImageCorruption(_other, (), "the clean image of another pair (resample)"),
    "blank_image": ImageCorruption(_blank, ("color",), "one colour everywhere, black where not given"),
    "mean_color_image": ImageCorruption(_mean_color, (), "the image's own mean colour everywhere"),
    "blurred_image": ImageCorruption(_blurred, ("radius",), "Gaussian blur, by a tenth of the shorter side"),
    "shuffled_image": ImageCorruption(_shuffled, ("grid",), "its patches in another order, 4 × 4 where not given"),
    "masked_region": ImageCorruption(_masked, ("region",), "a region, `object` where not given, in the mean colour"),
}
