"""Qwen3-VL: its picture enters at the embeddings, and again after each of the first text layers (DeepStack)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from tests.families import kit, qwen2_vl
from tests.families.kit import Known, Tower

VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 64,
    "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 1],
}


def build(folder: Path) -> None:
    words = qwen2_vl.tokenizer()
    config = Qwen3VLConfig(text_config=text_sizes(words), vision_config=VISION, **qwen2_vl.mark_ids(words))
    module = Qwen3VLForConditionalGeneration(config)
    kit.randomise(module)
    save(folder, module, words)


def text_sizes(words: Any) -> dict[str, Any]:
    sizes = qwen2_vl.text_sizes(words)
    return {**sizes, "head_dim": 20, "rope_parameters": {**sizes["rope_parameters"], "mrope_section": [4, 3, 3]}}


def save(folder: Path, module: Any, words: Any) -> None:
    qwen2_vl.save(folder, module, Qwen3VLProcessor, Qwen2VLImageProcessorPil, words, qwen2_vl.TURNS, patch=8)


VISION_TOWER = Tower(3, 2, kit.places(qwen2_vl.BLOCK, "attn.proj", "mlp.linear_fc2"))

KNOWN = Known(
    name="qwen3_vl",
    build=build,
    encode=kit.ask,
    towers={"vision": VISION_TOWER, "language": qwen2_vl.LANGUAGE},
    # Not all that is handed over: `deepstack_features` of the same output, a list, is added to the image positions of
    # the residual stream after layers 0, 1 .. of the text, between one layer's resid_post and the next one's resid_pre.
    embeds=qwen2_vl.EMBEDS,
    tokens=qwen2_vl.TOKENS,
    patches=qwen2_vl.patches,
    behind={"mm_token_type_ids": 0},
    processor=lambda folder: qwen2_vl.images_only(Qwen3VLProcessor).from_pretrained(folder),
)
