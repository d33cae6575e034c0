"""Pictures come in RGB and upright, whatever they were; what cannot be one, or is too large, is refused unread."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.refusals import refusal, says
from vlm_patching.pairs import Prompt
from vlm_patching.pairs.pictures import MAX_PIXELS, Resized, StoredPicture, files_of, opened


def test_a_picture_that_lies_on_its_side_is_put_upright_as_its_exif_says(tmp_path: Path) -> None:
    upright = Image.new("RGB", (20, 40), "red")
    upright.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as lying:
        assert lying.size == (40, 20)
    assert np.array_equal(opened(tmp_path / "a.png"), upright)


@pytest.mark.parametrize(
    ("mode", "color", "rgb"),
    [
        ("L", 128, (128, 128, 128)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("I;16", 0x8080, (128, 128, 128)),
        ("I", 65_535, (255, 255, 255)),
        ("I", 200, (200, 200, 200)),
        ("F", 0.5, (128, 128, 128)),
        ("F", 200, (200, 200, 200)),
        ("F", 65_535, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, color: int, rgb: tuple[int, int, int]) -> None:
    picture = opened(Image.new(mode, (2, 2), color))
    assert picture.mode == "RGB" and picture.getpixel((0, 0)) == rgb


@pytest.mark.parametrize(
    ("mode", "color", "why"),
    [
        ("I", 70_000, "does not say what is white"),
        ("I", -1, "does not say what is white"),
        ("F", -0.5, "does not say what is white"),
        ("F", float("nan"), "not a finite number"),
    ],
)
def test_numbers_that_are_no_brightness_are_refused(mode: str, color: float, why: str, tmp_path: Path) -> None:
    given = Image.new(mode, (2, 2), color)
    given.save(tmp_path / "a.tif")
    says(refusal(lambda: opened(given)), "2 × 2 pixels", "cannot be read as a picture", why)
    says(refusal(lambda: opened(tmp_path / "a.tif")), "a.tif", "cannot be read as a picture", why)


def test_a_palette_s_transparent_colour_is_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=0)
    assert [opened(tmp_path / "a.png").getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]


def png_that_says(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("side", [8_000, 60_000])
def test_a_picture_of_more_pixels_than_memory_is_refused_by_what_it_says(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_says(side, side))
    assert side**2 > MAX_PIXELS
    says(refusal(lambda: opened(path)), str(path), "pixels")


@pytest.mark.parametrize("content", [b"", b"no picture", png_that_says(100, 100)[:60]])
def test_a_file_that_is_no_whole_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    says(refusal(lambda: opened(path)), str(path), "cannot be read as a picture")


@dataclass(frozen=True)
class Grey(StoredPicture):
    shade: int

    def read(self) -> Image.Image:
        if self.shade > 255:
            raise ValueError("too bright")
        return Image.new("L", (4, 2), self.shade)

    @property
    def name(self) -> str:
        return f"a.csv, shade {self.shade}"


def test_a_picture_inside_another_file_is_read_when_it_is_needed() -> None:
    prompt = Prompt(Grey(7), "what?")
    assert prompt.picture().getpixel((0, 0)) == (7, 7, 7)
    says(refusal(Prompt(Grey(300), "what?").pictures), "a.csv, shade 300", "too bright")


def test_a_resized_picture_has_the_size_that_is_asked_for() -> None:
    assert opened(Resized(Grey(9), (10, 30))).size == (10, 30)


def test_a_picture_can_be_brought_to_the_size_of_another(tmp_path: Path) -> None:
    Image.new("RGB", (12, 8), "red").save(tmp_path / "a.png")
    picture = Resized(Grey(9), tmp_path / "a.png")
    assert opened(picture).size == (12, 8) and opened(Resized(tmp_path / "a.png", Grey(9))).size == (4, 2)
    assert opened(Resized(Grey(9), Grey(7))).getpixel((0, 0)) == (9, 9, 9)
    assert files_of(picture) == (tmp_path / "a.png",) == files_of(tmp_path / "a.png")
    assert files_of(Grey(9)) == () == files_of(Image.new("L", (1, 1)))
