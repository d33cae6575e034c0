"""Command A Vision: as Aya Vision, but with other tiles, marks after tiles, and a window shorter than the prompt.

transformers prepares its pictures with torchvision only. The class here does the same with Pillow, as transformers' own
classes of that kind do; AutoProcessor finds it by the name of theirs once a model is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    IMAGE_PROCESSOR_MAPPING,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionProcessor,
    GotOcr2ImageProcessorPil,
)
from transformers.image_utils import SizeDict

from tests.families import kit
from tests.families.aya_vision import MERGE, MOST, PATCH, SIDE, TEMPLATE, ask, patches_of, save, shapes, tokenizer_with
from tests.families.llava import EMBEDS, TOKENS, towers

MARKS = {
    "image_token": "<|IMG_PATCH|>",
    "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}


def least_enlarged(size: tuple[int, int], side: int, most: int = MOST) -> tuple[int, int]:
    """Columns and rows of the canvas that needs least enlargement; where all are too small, least reduction."""
    grids = [
        (columns, count // columns)
        for count in range(1, most + 1)
        for columns in range(1, count + 1)
        if not count % columns
    ]
    scales = [min(columns * side / size[0], rows * side / size[1]) for columns, rows in grids]
    enough = [scale for scale in scales if scale >= 1]
    return grids[scales.index(min(enough) if enough else max(scales))]


class Cohere2VisionImageProcessor(GotOcr2ImageProcessorPil):
    """Of its parent all but the choice of the canvas is the same; `patch_size` is how many positions a tile is wide."""

    patch_size = SIDE // (PATCH * MERGE)

    def crop_image_to_patches(
        self,
        image: np.ndarray,
        min_patches: int,
        max_patches: int,
        use_thumbnail: bool = True,
        patch_size: Any = None,
        resample: Any = None,
    ) -> list[np.ndarray]:
        side = patch_size.height
        columns, rows = least_enlarged((image.shape[2], image.shape[1]), side, max_patches)
        canvas = self.resize(image, SizeDict(height=rows * side, width=columns * side), resample=resample)
        tiles = [
            canvas[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            for row in range(rows)
            for column in range(columns)
        ]
        return tiles if len(tiles) == 1 else [*tiles, self.resize(image, patch_size, resample=resample)]


def _build(folder: Path) -> None:
    # Not by AutoImageProcessor.register, which checks the family's own class too: without torchvision that is a dummy.
    IMAGE_PROCESSOR_MAPPING.register(Cohere2VisionConfig, {"pil": Cohere2VisionImageProcessor}, exist_ok=True)
    tokenizer = tokenizer_with(list(MARKS.values()), extra_special_tokens=MARKS)
    config = Cohere2VisionConfig(
        **shapes(tokenizer, window=24),
        alignment_intermediate_size=48,
        image_token_id=tokenizer.convert_tokens_to_ids(MARKS["image_token"]),
    )
    processor = Cohere2VisionProcessor(
        Cohere2VisionImageProcessor(size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=MOST),
        tokenizer,
        chat_template=TEMPLATE.replace("IMAGE", repr(MARKS["image_token"])),
    )
    save(folder, Cohere2VisionForConditionalGeneration(config), processor, seed=61)


KNOWN = kit.Known(
    name="cohere2_vision",
    build=_build,
    encode=ask,
    towers=towers(),
    embeds=EMBEDS,
    tokens=TOKENS,
    patches=lambda inputs, config, sizes: patches_of(inputs, config, sizes, least_enlarged),
)
