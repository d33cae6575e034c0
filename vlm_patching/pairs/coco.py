"""Pictures of COCO, by their number: other datasets ask about them, and everyone has them in other folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_WAYS = (
    "{split}2014/COCO_{split}2014_{number:012d}.jpg",
    "COCO_{split}2014_{number:012d}.jpg",
    "{split}2017/{number:012d}.jpg",
    "{number:012d}.jpg",
)


class CocoPictures:
    """A folder of COCO's pictures, as any of its releases calls them.

    Parameters
    ----------
    folder
        With `val2014/COCO_val2014_000000000042.jpg`, `COCO_val2014_000000000042.jpg`, `val2017/000000000042.jpg` or
        `000000000042.jpg`.
    splits
        Where they may be: "train", "val"; the likeliest first.
    """

    def __init__(self, folder: Path, splits: Sequence[str] = ("train", "val")) -> None:
        ways = dict.fromkeys(way.replace("{split}", split) for way in _WAYS for split in splits)
        self._ways = [str(folder / way) for way in ways]
        self._first = self._ways[0]

    def __call__(self, number: int) -> Path:
        """The picture of a number; where there is none, where the release of 2014 has it."""
        for place, way in enumerate(self._ways):
            path = Path(way.format(number=number))
            if os.path.exists(path):  # of any name
                if place:  # the next one is likely to be called the same
                    self._ways.insert(0, self._ways.pop(place))
                return path
        return Path(self._first.format(number=number))
