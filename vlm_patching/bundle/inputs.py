"""The pairs in a bundle, as they were run: a folder of pairs like any other, its pictures as PNG."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vlm_patching.bundle.archive import INPUTS, decoded
from vlm_patching.errors import SpecError
from vlm_patching.pairs import Pairs, load_pairs
from vlm_patching.pairs.datasets.folder import LINES
from vlm_patching.pairs.pictures import MAX_PIXELS
from vlm_patching.validation import parse_json

VECTORS = "vectors.safetensors"
MAX_PAIRS = 100_000
MAX_PIXELS_TOTAL = 2_000_000_000
"""Of all pictures together, each counted as often as a pair names it."""
_MOST_DEFLATED = 1032
"""How many bytes one deflated byte can stand for."""
_PICTURE_CHUNKS = (b"IHDR", b"IDAT", b"IEND")
_FIGURE_CHUNKS = (*_PICTURE_CHUNKS, b"pHYs", b"tEXt")
_VECTOR_TYPES = ("F64", "F32", "F16", "BF16")


def read_pairs(folder: Path) -> Pairs:
    """Read the pairs of a bundle's folder.

    Raises
    ------
    SpecError
        What `pairs.datasets.folder` refuses, pictures of another name or kind than `write_folder` gives them, and more
        pixels than `MAX_PIXELS_TOTAL`.
    """
    place = folder / INPUTS
    named = _named(decoded((place / LINES).read_bytes(), f"{INPUTS}/{LINES}"))
    there = {path.name for path in place.glob("*.png")}
    if set(named) != there:
        odd = min(set(named) ^ there)
        raise SpecError(f"{INPUTS}/{LINES} and the pictures beside it do not agree about {odd!r}.")
    pixels = {name: check_png((place / name).read_bytes(), f"{INPUTS}/{name}", figure=False) for name in sorted(there)}
    total = sum(pixels[name] for name in named)
    if total > MAX_PIXELS_TOTAL:
        raise SpecError(f"The pictures have {total} pixels, counted for every pair; at most {MAX_PIXELS_TOTAL}.")
    return load_pairs("folder", path=place)


def _named(lines: str) -> list[str]:
    """The pictures that pairs name, each as often as one names it."""
    records = [line for line in lines.split("\n") if line.strip()]
    if len(records) > MAX_PAIRS:
        raise SpecError(f"{INPUTS}/{LINES} has {len(records)} pairs; at most {MAX_PAIRS} are read.")
    named = []
    for number, line in enumerate(records, start=1):
        where = f"{INPUTS}/{LINES}, pair {number}"
        record = parse_json(line, where)
        for side in ("clean", "corrupted"):
            prompt = record.get(side) if isinstance(record, dict) else None
            given = prompt.get("image", "") if isinstance(prompt, dict) else ""
            for name in given if isinstance(given, list) else [] if given is None else [given]:
                if not isinstance(name, str) or not re.fullmatch(r"[0-9a-f]{64}\.png", name):
                    raise SpecError(f"{where}: {side}.image must be a picture of the bundle, not {name!r}.")
                named.append(name)
    return named


def check_png(content: bytes, where: str, *, figure: bool) -> int:
    """Number of pixels of a PNG, known before any of them is decoded.

    A picture is 8-bit RGB and has nothing but pixels in it: no text, profile or orientation.
    """
    allowed = _FIGURE_CHUNKS if figure else _PICTURE_CHUNKS
    at, chunks = 8, []
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    if len(content) < 33 or not content.startswith(header):
        raise SpecError(f"{where} is no PNG.")
    while at + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        chunks.append(kind)
        at += 12 + length
    odd = [kind for kind in chunks if kind not in allowed]
    if odd or chunks.count(b"IHDR") != 1 or at != len(content) or chunks[-1] != b"IEND":
        raise SpecError(f"{where} is no PNG of {', '.join(kind.decode() for kind in allowed)} alone.")
    width, height, *kind = struct.unpack(">IIBBBBB", content[16:29])
    if not figure and kind != [8, 2, 0, 0, 0]:
        raise SpecError(f"{where} is not 8-bit RGB without interlacing.")
    if not 0 < width * height <= MAX_PIXELS:
        raise SpecError(f"{where} says that it is {width} × {height} pixels; at most {MAX_PIXELS} are decoded.")
    if not figure and width * height * 3 > _MOST_DEFLATED * len(content):
        raise SpecError(f"{where} says that it is {width} × {height} pixels, and has too few bytes for them.")
    return int(width * height)


def check_vectors(path: Path) -> None:
    """Refuse a file that is not of vectors, before any tensor of it is read."""
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                part = file.get_slice(name)
                kind, shape = part.get_dtype(), list(part.get_shape())
                if kind not in _VECTOR_TYPES or len(shape) != 1:
                    raise SpecError(f"{INPUTS}/{VECTORS}: tensor {name!r} is {kind} of shape {shape}, no vector.")
    except SafetensorError as error:
        raise SpecError(f"{INPUTS}/{VECTORS} is no safetensors file: {error}") from error
