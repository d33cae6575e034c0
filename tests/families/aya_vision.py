"""Aya Vision: tiles and the whole picture after them, 2 × 2 patches to an image position; Cohere 2 as decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    CohereConfig,
    GotOcr2ImageProcessorPil,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from tests.families import kit
from tests.families.llava import (
    EMBEDS,
    LAYERS,
    TOKENS,
    Frame,
    Listed,
    grid,
    in_text,
    numbered,
    stretched,
    text_shape,
    towers,
    vision_shape,
)

SIDE, PATCH, MERGE, MOST = 32, 8, 2, 6

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}"
    "{{ '<|USER_TOKEN|>' if message['role'] == 'user' else '<|CHATBOT_TOKEN|>' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ IMAGE }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)

Tiling = Callable[[tuple[int, int], int], tuple[int, int]]


ask = partial(kit.ask, add_special_tokens=False)
"""The chat template begins with the start token, and the tokenizer would put another before it."""


def tokenizer_with(special: Sequence[str], **more: Any) -> PreTrainedTokenizerFast:
    turns = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"]
    tokenizer = kit.byte_pairs(
        ["<PAD>", "<BOS_TOKEN>", *turns, *special],
        pad_token="<PAD>",
        bos_token="<BOS_TOKEN>",
        eos_token="<|END_OF_TURN_TOKEN|>",
        additional_special_tokens=[*turns, *special],
        **more,
    )
    start = ("<BOS_TOKEN>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<BOS_TOKEN> $A", pair="<BOS_TOKEN> $A <BOS_TOKEN> $B", special_tokens=[start]
    )
    return tokenizer


def shapes(tokenizer: PreTrainedTokenizerFast, window: int) -> dict[str, Any]:
    """Only layers that look through the window have rotary positions; the last sees everything, in no order."""
    kinds = ["sliding_attention"] * (LAYERS - 1) + ["full_attention"]
    return {
        "vision_config": SiglipVisionConfig(**vision_shape(side=SIDE, patch=PATCH), vision_use_head=False),
        "text_config": Cohere2Config(**text_shape(tokenizer), sliding_window=window, layer_types=kinds),
        "downsample_factor": MERGE,
    }


def save(folder: Path, model: Any, processor: Any, seed: int) -> None:
    kit.randomise(model, seed)
    with torch.no_grad():
        model.model.language_model.norm.weight *= 0.3  # the read-out is the token embeddings, whose entries are large
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def patches_of(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]], tiling: Tiling) -> dict[str, Listed]:
    """The picture is stretched onto its canvas of tiles; where there are several, the whole comes after them."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    seen: list[kit.Patch] = []
    handed: list[kit.Patch] = []
    for image, size in enumerate(sizes):
        columns, rows = tiling(size, side)
        across, down = columns * side / size[0], rows * side / size[1]
        views = [
            (row * columns + column, Frame(column * side, row * side, across, down))
            for row in range(rows)
            for column in range(columns)
        ]
        if len(views) > 1:
            views.append((-1, stretched(size, side)))
        for tile, frame in views:
            seen += grid(image, tile, frame, size, side, patch)
            handed += grid(image, tile, frame, size, side, patch * config.downsample_factor)
    return {
        "vision": numbered(seen),
        "image_embeds": numbered(handed),
        "language": in_text(inputs, config.image_token_id, handed),
    }


def nearest_shape(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Columns and rows whose ratio is nearest the picture's; of equals the most tiles that it half fills."""
    best, least = (1, 1), float("inf")
    for count in range(1, MOST + 1):
        for columns in range(1, count + 1):
            if count % columns:
                continue
            off = abs(size[0] / size[1] - columns / (count // columns))
            if off < least or (off == least and size[0] * size[1] > 0.5 * side**2 * count):
                best, least = (columns, count // columns), off
    return best


def _build(folder: Path, first_cohere: bool = False) -> None:
    """The 8B has Cohere 2 as its decoder, the 32B the first Cohere, whose layers all see everything, in order."""
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
    tokenizer = tokenizer_with(["<image>", *marks, *(f"TILE_{tile}" for tile in range(1, MOST + 1))])
    parts = shapes(tokenizer, window=4096)
    if first_cohere:
        parts["text_config"] = CohereConfig(**text_shape(tokenizer))
    config = AyaVisionConfig(**parts, image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"))
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_patches=MOST),
        tokenizer,
        patch_size=PATCH,
        img_size=SIDE,
        downsample_factor=MERGE,
        chat_template=TEMPLATE.replace("IMAGE", "'<image>'"),
    )
    save(folder, AyaVisionForConditionalGeneration(config), processor, seed=51)


KNOWN = tuple(
    kit.Known(
        name=name,
        build=partial(_build, first_cohere=first_cohere),
        encode=ask,
        towers=towers(),
        embeds=EMBEDS,
        tokens=TOKENS,
        patches=lambda inputs, config, sizes: patches_of(inputs, config, sizes, nearest_shape),
    )
    for name, first_cohere in (("aya_vision", False), ("aya_vision_32b", True))
)
