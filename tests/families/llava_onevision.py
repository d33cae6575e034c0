"""LLaVA-OneVision: one picture in tiles, put together and made smaller when large; several in one small tile each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

from tests.families import kit
from tests.families.llava import (
    CHATML,
    EMBEDS,
    IMAGE,
    TOKENS,
    Frame,
    Listed,
    box_of,
    grid,
    in_text,
    numbered,
    padded,
    qwen_tokenizer,
    save,
    stretched,
    text_shape,
    towers,
    vision_shape,
)
from tests.families.llava_next import plane, tiled, unpadded

SIDE, PATCH = 24, 8
PINPOINTS = [[SIDE * rows, SIDE * columns] for rows in range(1, 5) for columns in range(1, 5)]


class Processor(LlavaOnevisionProcessor):
    """Less the video processor: that needs torchvision, and the family's own processor takes none but a real one."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        vision_aspect_ratio: str = "anyres_max_9",
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            None,
            num_image_tokens,
            vision_feature_select_strategy,
            chat_template,
            vision_aspect_ratio=vision_aspect_ratio,
        )


Processor.__name__ = LlavaOnevisionProcessor.__name__  # what is saved names the class


def _shrunk(
    rows: list[list[kit.Patch]], limit: int, size: tuple[int, int], frame: Frame, columns: int, n: int, patch: int
) -> list[list[kit.Patch]]:
    """A large plane is interpolated to fewer positions: each has its share of it, and bears its middle's numbers."""
    height, width = len(rows), len(rows[0])
    ratio = math.sqrt(height * width / (limit * n**2))
    if ratio <= 1.1:
        return rows
    down, across = int(height // ratio), int(width // ratio)
    first = rows[0][0]
    left, top = first.tile % columns * n + first.column, first.tile // columns * n + first.row

    def share(row: int, column: int) -> kit.Patch:
        (x0, x1), (y0, y1) = (
            [(start + (i + end) * length / count) * patch for end in (0, 1)]
            for start, i, length, count in ((left, column, width, across), (top, row, height, down))
        )
        middle = rows[int((row + 0.5) * height / down)][int((column + 0.5) * width / across)]
        return replace(middle, box=box_of(frame, size, (x0, y0, x1, y1)))

    return [[share(row, column) for column in range(across)] for row in range(down)]


def _patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, Listed]:
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    n, limit = side // patch, int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    handed: list[kit.Patch] = []
    packed: list[kit.Patch] = []
    for image, size in enumerate(sizes):
        if len(sizes) > 1:
            only = grid(image, 0, padded(size, side), size, side, patch)
            handed += only
            packed += [*only, kit.Patch(image, kind="separator")]
            continue
        columns, rows, frames = tiled(size, config.image_grid_pinpoints, side)
        whole = grid(image, -1, stretched(size, side), size, side, patch)
        tiles = [grid(image, tile, frame, size, side, patch) for tile, frame in enumerate(frames)]
        handed += [*whole, *(one for patches in tiles for one in patches)]
        packed += whole
        kept = unpadded(plane(tiles, columns, rows, n), size)
        for row in _shrunk(kept, limit, size, frames[0], columns, n, patch):
            packed += [*row, kit.Patch(image, kind="separator")]
    return {
        "vision": numbered(handed),
        "image_embeds": numbered(handed),
        "language": in_text(inputs, config.image_token_id, packed),
    }


def _build(folder: Path) -> None:
    tokenizer = qwen_tokenizer()
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision_shape(side=SIDE, patch=PATCH), vision_use_head=False),
        text_config=Qwen2Config(**text_shape(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
    )
    processor = Processor(
        LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHATML,
    )
    save(folder, LlavaOnevisionForConditionalGeneration(config), processor, seed=31)


KNOWN = kit.Known(
    name="llava_onevision",
    build=_build,
    encode=partial(kit.ask, nested=True),
    towers=towers(),
    embeds=EMBEDS,
    tokens=TOKENS,
    patches=_patches,
    processor=Processor.from_pretrained,
)
