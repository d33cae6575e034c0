"""What is in a folder, without opening any of it."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from vlm_patching.errors import SpecError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def inside(folder: Path, name: str) -> Path:
    """A file of a folder, or of one of the folders in it; where there is none, where it would be."""
    path = folder / name
    return path if path.exists() else next(iter(sorted(folder.glob(f"*/{name}"))), path)


def folders_in(folder: Path) -> list[Path]:
    """The folders inside a folder, in the order of their names; `SpecError` where there is none of its name."""
    _check_folder(folder)
    return sorted(path for path in folder.iterdir() if path.is_dir())


def image_names(folder: Path) -> tuple[str, ...]:
    """The names of the pictures in a folder, in order; `SpecError` where there is none of its name."""
    _check_folder(folder)
    return _image_names(folder, folder.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _image_names(folder: Path, changed: int) -> tuple[str, ...]:
    return tuple(sorted(name for name in os.listdir(folder) if name.lower().endswith(_ENDINGS)))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise SpecError(f"{folder} does not exist (in {Path.cwd()}), or is no folder.")
