"""One file a dataset, found by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlm_patching.pairs.datasets import folder, shapes
from vlm_patching.pairs.pair import Pair


@dataclass(frozen=True)
class Dataset:
    """A source of pairs: a loader ``(n, seed, **options)``, the options it knows, and one line about it."""

    load: Callable[..., list[Pair]]
    options: tuple[str, ...]
    about: str


DATASETS = {
    "shapes": Dataset(shapes.load, ("questions", "aligned", "constraints", "answers"), shapes.ABOUT),
    "folder": Dataset(folder.load, ("path",), folder.ABOUT),
}
