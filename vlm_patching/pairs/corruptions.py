"""What makes a corrupted run corrupted: another image, another text, or noise."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageChops

from vlm_patching.errors import SpecError
from vlm_patching.pairs.image_corruptions import IMAGE_CORRUPTIONS
from vlm_patching.pairs.pair import Pair, Prompt

INPUTS = ("clean", "corrupted", "corrupted_image", "corrupted_text", "other")
"""What a run can be on: the clean prompt, the corrupted one, the clean one with only its image or text exchanged, or
the clean prompt of another pair."""

CORRUPTED_INPUT = {
    "semantic_image_pair": "corrupted_image",
    "symmetric_token_replacement": "corrupted_text",
    "constraint_replacement": "corrupted_text",
    "gaussian_noise": "clean",
    **dict.fromkeys(IMAGE_CORRUPTIONS, "corrupted_image"),
}
"""Corruption → what its corrupted run is on. Noise is an edit of the run, so its input is the clean prompt."""


def prompt_for(pair: Pair, on: str) -> Prompt:
    """The prompt that a run on `on` (one of `INPUTS`) gets."""
    image = pair.corrupted.image if on in ("corrupted", "corrupted_image") else pair.clean.image
    text = pair.corrupted.text if on in ("corrupted", "corrupted_text") else pair.clean.text
    return Prompt(image, text)


def check_corrupted(pairs: Sequence[Pair], on: str) -> None:
    """Refuse pairs whose corrupted prompt is the clean one, which would give a total effect of zero unnoticed.

    Raises
    ------
    SpecError
        Naming the pair and what is equal.
    """
    for pair in pairs:
        same_text = pair.clean.text == pair.corrupted.text
        if on == "corrupted_text" and same_text:
            raise SpecError(
                f"Pair {pair.id!r}: symmetric_token_replacement needs a corrupted text that differs from the clean "
                f"one, and both are {pair.clean.text!r}. With automatic: true it draws other words for both options."
            )
        if on == "corrupted_image" or (on == "corrupted" and same_text):
            clean, corrupted = pair.clean.pictures(), pair.corrupted.pictures()
            if len(clean) != len(corrupted):
                raise SpecError(
                    f"Pair {pair.id!r}: the clean prompt has {len(clean)} images, the corrupted one {len(corrupted)}."
                )
            if all(map(_same, clean, corrupted)):
                raise SpecError(
                    f"Pair {pair.id!r}: the clean and the corrupted image are the same picture.",
                    "its images are the same picture",
                )


def _same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None
