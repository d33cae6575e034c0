"""GLM-4.1V: like Qwen2-VL, with norms also after the text's attention and MLP, and pictures counted as two frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Glm4vConfig, Glm4vForConditionalGeneration, Glm4vImageProcessorPil, Glm4vProcessor

from tests.families import kit, qwen2_vl
from tests.families.kit import Known, Tower

MARKS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
    "image_size": 40,
    "out_hidden_size": 64,
}


def build(folder: Path) -> None:
    words = tokenizer()
    config = Glm4vConfig(text_config=text_sizes(words), vision_config=VISION, **mark_ids(words))
    module = Glm4vForConditionalGeneration(config)
    kit.randomise(module)
    save(folder, module, words)


def tokenizer() -> Any:
    special = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", *MARKS.values()]
    return kit.byte_pairs(
        special, eos_token="<|endoftext|>", pad_token="<|endoftext|>", extra_special_tokens=special[1:]
    )


def text_sizes(words: Any) -> dict[str, Any]:
    """Half of every head is turned by its position, in pairs of neighbours."""
    turning = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
    return {**qwen2_vl.text_sizes(words), "rope_parameters": turning}


def mark_ids(words: Any) -> dict[str, int]:
    return {name: words.convert_tokens_to_ids(mark) for name, mark in MARKS.items()}


def save(folder: Path, module: Any, words: Any) -> None:
    qwen2_vl.save(folder, module, Glm4vProcessor, Glm4vImageProcessorPil, words, TEMPLATE, patch=8, frames=2)


VISION_TOWER = Tower(3, 2, kit.places(qwen2_vl.BLOCK, "attn.proj", "mlp.down_proj"))

KNOWN = Known(
    name="glm4v",
    build=build,
    encode=kit.ask,
    towers={"vision": VISION_TOWER, "language": qwen2_vl.LANGUAGE},
    embeds=qwen2_vl.EMBEDS,
    tokens=qwen2_vl.TOKENS,
    patches=qwen2_vl.patches,
    behind={"mm_token_type_ids": 0},
    processor=lambda folder: qwen2_vl.images_only(Glm4vProcessor).from_pretrained(folder),
)
