"""Pictures of prompts: in memory, or read from where they are when they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlm_patching.errors import SpecError

MAX_PIXELS = 50_000_000
"""Of one picture. A small file can say that it is much larger than memory."""


class StoredPicture(ABC):
    """A picture inside a file of others (a row of a table, a member of an archive), or made of one.

    Subclasses are frozen dataclasses: what they hold says where the pixels are, not what they are.
    """

    @abstractmethod
    def read(self) -> Image.Image:
        """The picture, in any mode."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What errors call it: file, and place in the file."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files without which it cannot be read, where they are its own."""
        return ()


Picture = Image.Image | Path | StoredPicture


@dataclass(frozen=True)
class Resized(StoredPicture):
    """Another picture, brought to a size.

    Attributes
    ----------
    picture
        The other picture.
    to
        The size (width, height), or a third picture that has it.
    """

    picture: Picture
    to: tuple[int, int] | Picture

    def read(self) -> Image.Image:
        picture, size = opened(self.picture), self.to if isinstance(self.to, tuple) else opened(self.to).size
        return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)

    @property
    def name(self) -> str:
        return name_of(self.picture)

    @property
    def files(self) -> tuple[Path, ...]:
        return (*files_of(self.picture), *(() if isinstance(self.to, tuple) else files_of(self.to)))


def files_of(picture: Picture) -> tuple[Path, ...]:
    """The files that a picture is read from, as far as they can be told without reading it."""
    if isinstance(picture, Path):
        return (picture,)
    return picture.files if isinstance(picture, StoredPicture) else ()


def name_of(picture: Picture) -> str:
    """What errors call a picture."""
    if isinstance(picture, Image.Image):
        return f"of {picture.width} × {picture.height} pixels"
    return picture.name if isinstance(picture, StoredPicture) else str(picture)


def opened(picture: Picture) -> Image.Image:
    """A picture in RGB, upright as its EXIF data say; what is transparent is white.

    Raises
    ------
    SpecError
        A file that is missing, no picture, cut off, or of more than `MAX_PIXELS`.
    """
    try:
        if isinstance(picture, Image.Image):
            return _rgb(picture)
        if isinstance(picture, StoredPicture):
            return _rgb(ImageOps.exif_transpose(picture.read()))
        with Image.open(picture) as file:
            check_size(file.size, str(picture))
            return _rgb(ImageOps.exif_transpose(file))
    except SpecError:
        raise
    except FileNotFoundError as error:
        raise SpecError(f"Image {name_of(picture)} does not exist.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SpecError(f"Image {name_of(picture)} cannot be read as a picture: {error}") from error


def check_size(size: tuple[int, int], where: str) -> None:
    """Refuse a picture that says that it has more than `MAX_PIXELS`, before any is decoded."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise SpecError(
            f"Image {where} says that it is {width} × {height} pixels; at most {MAX_PIXELS:,} are decoded. Make it "
            "smaller: models bring pictures to a few hundred pixels a side."
        )


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):  # 16 and 32 bits a pixel, which pillow would cut off at 255
        values = np.asarray(picture, dtype=np.float64)
        return Image.fromarray((255 / _white(values, picture.mode) * values).round().astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")


def _white(values: np.ndarray, mode: str) -> int:
    """Which value is white: the least of the usual ones that none is above; 16 bits say it themselves."""
    usual = (65_535,) if mode.startswith("I;16") else (255, 65_535) if mode == "I" else (1, 255, 65_535)
    if not np.isfinite(values).all():
        raise ValueError("a pixel is not a finite number")
    least, most = values.min(initial=0), values.max(initial=0)
    if least < 0 or most > usual[-1]:
        raise ValueError(
            f"its pixels are from {least:g} to {most:g}, so it does not say what is white; save it in 8 bits"
        )
    return next(white for white in usual if most <= white)
