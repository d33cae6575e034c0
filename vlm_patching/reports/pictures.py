"""The pairs' pictures, made small enough for all of them to go into one page."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, field

from PIL import Image

SIDES = (320, 256, 224, 192, 160, 128, 96, 64)
"""Longest sides, in pixels, of which the largest is taken that lets all pictures fit."""
QUALITY = 82
MOST_COLORS = 512
"""Of a picture that is kept without loss: drawn ones have fewer, and are smaller so."""


@dataclass
class Album:
    """Pictures, each once, in the order in which they were added.

    Attributes
    ----------
    sizes
        Width and height that each had.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    _small: list[Image.Image] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, picture: Image.Image) -> int:
        """Put a picture in; its number."""
        digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        if digest not in self._numbers:
            self._numbers[digest] = len(self.sizes)
            self.sizes.append(picture.size)
            self._small.append(_shrunk(picture, SIDES[0]))
        return self._numbers[digest]

    def links(self, most: int) -> list[str]:
        """A data link for each picture, all of them in at most so many characters; "" for those that do not fit."""
        if not self._small:
            return []
        for side in SIDES:
            links = [_link(_shrunk(picture, side)) for picture in self._small]
            if sum(map(len, links)) <= most:
                return links
        room, kept = most, []
        for link in links:
            room -= len(link)
            kept.append(link if room >= 0 else "")
        return kept


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    if max(picture.size) <= side:
        return picture
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _link(picture: Image.Image) -> str:
    """PNG of what was drawn, JPEG of photographs."""
    content, kind = io.BytesIO(), "jpeg" if picture.getcolors(MOST_COLORS) is None else "png"
    picture.save(content, kind, **({"quality": QUALITY} if kind == "jpeg" else {}), optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
