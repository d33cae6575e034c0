"""DeepSeek-VL: SigLIP and LLaMA; a picture keeps its shape and is padded to a square on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import processors
from transformers import (
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLImageProcessorPil,
    DeepseekVLProcessor,
    LlamaConfig,
    SiglipVisionConfig,
)

from tests.families import kit
from tests.families.kit import Patch, Place

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.\n\n"
)
TEMPLATE = (
    f"{SYSTEM}{{% for message in messages %}}"
    "{% if message['role']|lower == 'user' %}User: {% else %}{{ message['role'].capitalize() }}: {% endif %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image_placeholder>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
    "{% if not loop.last or add_generation_prompt %}"
    f"{{% if message['role']|lower == 'user' %}}{{{{ '\n\n' }}}}{{% else %}}{END}{{% endif %}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
SIDE, PATCH, POSITIONS = 48, 12, 16
SHORTEST = 14
"""The image processor's `min_size`: no side of a picture gets smaller."""


def build(folder: Path) -> None:
    tokenizer = kit.byte_pairs(
        [BEGIN, END, "<image_placeholder>"],
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        extra_special_tokens={"image_token": "<image_placeholder>"},
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.bos_token_id)]
    )
    pictures = DeepseekVLImageProcessorPil(size={"height": SIDE, "width": SIDE}, min_size=SHORTEST)
    processor = DeepseekVLProcessor(pictures, tokenizer, chat_template=TEMPLATE, num_image_tokens=POSITIONS)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = DeepseekVLConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    model = DeepseekVLForConditionalGeneration(config)
    kit.randomise(model, seed=15)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    prompt = f"{SYSTEM}User: {'<image_placeholder>' * len(images)}{text}\n\nAssistant:"
    return dict(processor(images=list(images) or None, text=prompt))


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    side, size = config.vision_config.image_size, config.vision_config.patch_size
    found: list[Patch] = []
    for image, (width, height) in enumerate(sizes):
        xs, ys = (edges(length, max(width, height), side, size) for length in (width, height))
        for row in range(side // size):
            for column in range(side // size):
                box = (xs[column], ys[row], xs[column + 1], ys[row + 1])
                seen = box[0] < box[2] and box[1] < box[3]
                found.append(Patch(image, row=row, column=column, box=box if seen else None))
    marks = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    return {
        "vision": list(enumerate(found)),
        "image_embeds": list(enumerate(found)),
        "language": list(zip(marks, found, strict=True)),
    }


def edges(length: int, longest: int, side: int, size: int) -> list[float]:
    """Where patches begin and end along a picture's side; there is nothing of it beyond its ends."""
    shown = max(round(length * side / longest), SHORTEST)
    before = (side - shown) // 2
    return [min(max((edge - before) * length / shown, 0.0), float(length)) for edge in range(0, side + 1, size)]


_VISION = "model.vision_model.encoder.layers.{layer}"
_TEXT = "model.language_model.layers.{layer}"

KNOWN = kit.Known(
    name="deepseek_vl",
    build=build,
    encode=encode,
    towers={
        "vision": kit.Tower(
            layers=3,
            heads=2,
            places=kit.places(_VISION, "self_attn.out_proj", "mlp", "mlp.fc2"),
        ),
        "language": kit.Tower(
            layers=3,
            heads=4,
            places=kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj"),
        ),
    },
    embeds=Place("model.aligner"),
    tokens=Place("model.language_model.embed_tokens"),
    patches=patches,
)
