"""Qwen2.5-VL: its encoder sees a picture window by window, and attends within windows in most layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from tests.families import kit, qwen2_vl
from tests.families.kit import Inputs, Known, Patch, Tower


def build(folder: Path) -> None:
    words = qwen2_vl.tokenizer()
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [2],
        "out_hidden_size": 64,
    }
    config = Qwen2_5_VLConfig(text_config=qwen2_vl.text_sizes(words), vision_config=vision, **qwen2_vl.mark_ids(words))
    module = Qwen2_5_VLForConditionalGeneration(config)
    kit.randomise(module)
    template = qwen2_vl.SYSTEM + qwen2_vl.TURNS
    qwen2_vl.save(folder, module, Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil, words, template, patch=8)


def patches(inputs: Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    vision = config.vision_config
    window = vision.window_size // vision.patch_size // vision.spatial_merge_size
    return qwen2_vl.patches(inputs, config, sizes, window)


KNOWN = Known(
    name="qwen2_5_vl",
    build=build,
    encode=kit.ask,
    towers={
        "vision": Tower(3, 2, kit.places(qwen2_vl.BLOCK, "attn.proj", "mlp.down_proj")),
        "language": qwen2_vl.LANGUAGE,
    },
    # The merger's own output is still window by window: what leaves the encoder is row by row again.
    embeds=qwen2_vl.EMBEDS,
    tokens=qwen2_vl.TOKENS,
    patches=patches,
    behind={"mm_token_type_ids": 0},
    processor=lambda folder: qwen2_vl.images_only(Qwen2_5_VLProcessor).from_pretrained(folder),
)
