"""Qwen2-VL, and what the families after it have in common with it: tokenizer, chat format, picture grids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

from tests.families import kit
from tests.families.kit import Inputs, Known, Patch, Place, Tower

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(folder: Path) -> None:
    words = tokenizer()
    vision = {"depth": 3, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8, "hidden_size": 64}
    config = Qwen2VLConfig(text_config=text_sizes(words), vision_config=vision, **mark_ids(words))
    module = Qwen2VLForConditionalGeneration(config)
    kit.randomise(module)
    save(folder, module, Qwen2VLProcessor, Qwen2VLImageProcessorPil, words, SYSTEM + TURNS, patch=8)


def tokenizer() -> Any:
    """A byte-level BPE in the family's own class, which splits words and digits before it merges bytes."""
    special = ("<|endoftext|>", *MARKS)
    trained = json.loads(kit.byte_pairs(special).backend_tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        eos_token="<|im_end|>",
        extra_special_tokens=list(MARKS),
    )


def text_sizes(words: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def mark_ids(words: Any) -> dict[str, int]:
    """The configuration's names of what stands around and for a picture → token ids."""
    return {
        "image_token_id": words.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": words.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": words.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": words.convert_tokens_to_ids("<|vision_end|>"),
    }


def save(
    folder: Path, module: Any, family: Any, pictures: Any, words: Any, template: str, patch: int, frames: int = 1
) -> None:
    """Save a model and its processor, for 9 to 40 image positions a picture, which may count as several frames."""
    side = frames * (2 * patch) ** 2
    size = {"shortest_edge": 9 * side, "longest_edge": 40 * side}
    module.save_pretrained(folder)
    processor = images_only(family)(pictures(patch_size=patch, size=size), words, chat_template=template)
    processor.save_pretrained(folder)
    # As public checkpoints have it: where there is torchvision, AutoProcessor makes the video processor of this file.
    processor.image_processor.save_pretrained(folder)


def images_only(family: Any) -> Any:
    """The family's processor less its video processor: that one needs torchvision, and no processor goes without it.

    It bears the family's name, so that what it saves is what the family's own would save.
    """

    def __init__(self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        family.__init__(self, image_processor, tokenizer, None, chat_template)

    return type(family.__name__, (family,), {"__init__": __init__})


def patches(
    inputs: Inputs, config: Any, sizes: Sequence[tuple[int, int]], window: int | None = None
) -> dict[str, list[tuple[int, Patch]]]:
    """Every picture is stretched onto a grid of its own; the encoder sees it block by block of those patches that are
    merged, and these blocks window by window where it has windows (`window`: blocks a side)."""
    merge = config.vision_config.spatial_merge_size
    fine, coarse = [], []
    grids = inputs["image_grid_thw"].tolist() if "image_grid_thw" in inputs else []
    for image, ((_, rows, columns), size) in enumerate(zip(grids, sizes, strict=True)):
        high, wide = rows // merge, columns // merge
        for row, column in by_window(high, wide, window or max(high, wide)):
            for r in range(row * merge, row * merge + merge):
                fine += [grid_patch(image, r, column * merge + c, rows, columns, size) for c in range(merge)]
        coarse += [grid_patch(image, *cell, high, wide, size) for cell in by_window(high, wide, max(high, wide))]
    marks = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    return {
        "vision": list(enumerate(fine)),
        "image_embeds": list(enumerate(coarse)),
        "language": list(zip(marks, coarse, strict=True)),
    }


def by_window(rows: int, columns: int, side: int) -> Iterator[tuple[int, int]]:
    """Row and column of every cell, window by window; those at the right and lower edges are what is left."""
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            for row in range(top, min(top + side, rows)):
                for column in range(left, min(left + side, columns)):
                    yield row, column


def grid_patch(image: int, row: int, column: int, rows: int, columns: int, size: tuple[int, int]) -> Patch:
    width, height = size[0] / columns, size[1] / rows
    box = (column * width, row * height, (column + 1) * width, (row + 1) * height)
    return Patch(image, row=row, column=column, box=box)


BLOCK = "model.visual.blocks.{layer}"
LANGUAGE = Tower(3, 4, kit.places("model.language_model.layers.{layer}", "self_attn.o_proj", "mlp.down_proj"))
EMBEDS = Place("model.visual", part="pooler_output")
TOKENS = Place("model.language_model.embed_tokens")

KNOWN = Known(
    name="qwen2_vl",
    build=build,
    encode=kit.ask,
    towers={"vision": Tower(3, 2, kit.places(BLOCK, "attn.proj", "mlp.fc2")), "language": LANGUAGE},
    embeds=EMBEDS,
    tokens=TOKENS,
    patches=patches,
    behind={"mm_token_type_ids": 0},
    processor=lambda folder: images_only(Qwen2VLProcessor).from_pretrained(folder),
)
