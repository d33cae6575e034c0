"""Pairs → a folder of pairs, which the dataset `folder` reads back as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from vlm_patching.pairs.datasets.folder import LINES
from vlm_patching.pairs.pair import Pair, Prompt


def write_folder(pairs: Iterable[Pair], folder: Path) -> None:
    """Write pairs.jsonl and the pictures as PNG into a new folder; a picture that several pairs have is written once.

    Parameters
    ----------
    pairs
        Read one after the other; so are their pictures.
    folder
        Is made; its parent must be there.

    Raises
    ------
    OSError
        The folder exists, or cannot be written.
    """
    folder.mkdir()
    with (folder / LINES).open("w", encoding="utf-8") as lines:
        for pair in pairs:
            prompts = {
                side: {"image": _pictures(prompt, folder), "text": prompt.text}
                for side, prompt in (("clean", pair.clean), ("corrupted", pair.corrupted))
            }
            ranges = {key: dict(sorted(getattr(pair, key).items())) for key in ("spans", "spans_corrupted", "regions")}
            words = {"id": pair.id, "answer": pair.answer, "foil": pair.foil, "task": pair.task}
            lines.write(json.dumps({**words, **prompts, **ranges}, ensure_ascii=False) + "\n")


def _pictures(prompt: Prompt, folder: Path) -> str | list[str] | None:
    """The names of a prompt's pictures, as a line of a folder of pairs has them."""
    names = [_picture(picture, folder) for picture in prompt.pictures()]
    return names if len(names) > 1 else names[0] if names else None


def _picture(picture: Image.Image, folder: Path) -> str:
    """Write a picture's pixels, and nothing else of it, under a name that says what they are."""
    pixels = picture.tobytes()
    path = folder / f"{hashlib.sha256(f'{picture.size}'.encode() + pixels).hexdigest()}.png"
    if not path.exists():
        Image.frombytes("RGB", picture.size, pixels).save(path, "PNG")
    return path.name
