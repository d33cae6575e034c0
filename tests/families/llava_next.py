"""LLaVA-NeXT: the picture once small and once in tiles, whose features are put together again with row ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    MistralConfig,
)

from tests.families import kit
from tests.families.llava import (
    EMBEDS,
    IMAGE,
    TOKENS,
    Frame,
    Listed,
    grid,
    in_text,
    numbered,
    save,
    stretched,
    text_shape,
    towers,
    vicuna_tokenizer,
    vision_shape,
)

SIDE, PATCH = 24, 8
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]

MISTRAL = (
    "{% for message in messages %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% endfor %}"
)


def canvas(size: tuple[int, int], pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Width and height of the canvas that keeps most of the picture's pixels and wastes least; of equals, the first."""

    def merit(pinpoint: Sequence[int]) -> tuple[int, int]:
        height, width = pinpoint
        scale = min(width / size[0], height / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - width * height

    height, width = max(pinpoints, key=merit)
    return width, height


def tiled(size: tuple[int, int], pinpoints: Sequence[Sequence[int]], side: int) -> tuple[int, int, list[Frame]]:
    """Columns and rows of tiles, and how each lies in the picture, which was fitted into the middle of the canvas."""
    width, height = canvas(size, pinpoints)
    if width / size[0] < height / size[1]:
        new = width, min(math.ceil(size[1] * width / size[0]), height)
    else:
        new = min(math.ceil(size[0] * height / size[1]), width), height
    left, top = (width - new[0]) // 2, (height - new[1]) // 2
    columns, rows = width // side, height // side
    frames = [
        Frame(column * side - left, row * side - top, new[0] / size[0], new[1] / size[1])
        for row in range(rows)
        for column in range(columns)
    ]
    return columns, rows, frames


def plane(tiles: Sequence[Sequence[kit.Patch]], columns: int, rows: int, n: int) -> list[list[kit.Patch]]:
    """The patches of all tiles, n × n each, as one plane, row by row."""
    return [[tiles[r // n * columns + c // n][r % n * n + c % n] for c in range(columns * n)] for r in range(rows * n)]


def unpadded(rows: list[list[kit.Patch]], size: tuple[int, int]) -> list[list[kit.Patch]]:
    """Rows or columns of padding taken off, whole features at a time: a strip of the picture may go with them."""
    height, width = len(rows), len(rows[0])
    if size[0] / size[1] > width / height:
        off = (height - int(round(size[1] * (width / size[0]), 7))) // 2
        return rows[off : height - off]
    off = (width - int(round(size[0] * (height / size[1]), 7))) // 2
    return [row[off : width - off] for row in rows]


def _patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, Listed]:
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    seen: list[kit.Patch] = []
    handed: list[kit.Patch] = []
    packed: list[kit.Patch] = []
    for image, size in enumerate(sizes):
        columns, rows, frames = tiled(size, config.image_grid_pinpoints, side)
        whole = grid(image, -1, stretched(size, side), size, side, patch)
        tiles = [grid(image, tile, frame, size, side, patch) for tile, frame in enumerate(frames)]
        for tile, patches in enumerate([whole, *tiles], start=-1):
            seen += [kit.Patch(image, tile, kind="class"), *patches]
            handed += patches
        packed += whole
        for row in unpadded(plane(tiles, columns, rows, side // patch), size):
            packed += [*row, kit.Patch(image, kind="separator")]
    return {
        "vision": numbered(seen),
        "image_embeds": numbered(handed),
        "language": in_text(inputs, config.image_token_id, packed),
    }


def _build(folder: Path) -> None:
    tokenizer = vicuna_tokenizer()
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**vision_shape(side=SIDE, patch=PATCH)),
        text_config=MistralConfig(**text_shape(tokenizer), sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=MISTRAL,
    )
    save(folder, LlavaNextForConditionalGeneration(config), processor, seed=21)


KNOWN = kit.Known(
    name="llava_next",
    build=_build,
    encode=kit.ask,
    towers=towers(read=2),
    embeds=EMBEDS,
    tokens=TOKENS,
    patches=_patches,
)
