"""InternVL 3: an InternViT and Qwen 2; a picture is cut into tiles, 2 × 2 patches are one image position.

Of 3.5 there are models with experts in place of the text's MLPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from tests.families import kit
from tests.families.idefics3 import cells, image_runs
from tests.families.kit import Patch, Place

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
TILE, PATCH, POSITIONS = 24, 6, 4


def build(folder: Path, text: type[PreTrainedConfig] = Qwen2Config, **more: Any) -> None:
    tokenizer = kit.byte_pairs(
        SPECIAL,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    config = InternVLConfig(
        text_config=text(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
            **more,
        ).to_dict(),
        vision_config=InternVLVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            attention_bias=True,
            image_size=(TILE, TILE),
            patch_size=(PATCH, PATCH),
        ).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=POSITIONS,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    kit.randomise(model, seed=11)
    with torch.no_grad():
        for layer in model.model.vision_tower.encoder.layer:
            layer.lambda_1 += 1
            layer.lambda_2 += 1
    model.save_pretrained(folder)
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=6
    )
    Pictures(image_processor, tokenizer, POSITIONS, TEMPLATE).save_pretrained(folder)


class Pictures(InternVLProcessor):
    """Less the video processor, which needs torchvision."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, image_seq_length: int = 256, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template)


Pictures.__name__ = InternVLProcessor.__name__  # what is saved names the class


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    marks = "<IMG_CONTEXT>\n" * len(images)
    prompt = f"<|im_start|>user\n{marks}{text}<|im_end|>\n<|im_start|>assistant\n"
    return dict(processor(images=list(images) or None, text=[prompt], return_tensors="pt"))


def tiles(count: int, width: int, height: int) -> tuple[int, int]:
    """Columns and rows of `count` tiles: the shape that is most like the picture's."""
    shapes = [(columns, count // columns) for columns in range(1, count + 1) if count % columns == 0]
    return min(shapes, key=lambda shape: abs(width / height - shape[0] / shape[1]))


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    runs = image_runs(inputs["input_ids"][0].tolist(), config.image_token_id)
    side = config.vision_config.image_size[0] // config.vision_config.patch_size[0]
    short = round(side * config.downsample_ratio)
    vision: list[Patch] = []
    embeds: list[Patch] = []
    for image, ((width, height), run) in enumerate(zip(sizes, runs, strict=True)):
        count = len(run) // short**2
        columns, rows = tiles(max(1, count - 1), width, height)  # the last of several is the whole picture
        whole = (0.0, 0.0, float(width), float(height))
        for tile in range(count):
            box = whole
            if tile < columns * rows:
                x, y = tile % columns, tile // columns
                box = (width * x / columns, height * y / rows, width * (x + 1) / columns, height * (y + 1) / rows)
            number = -1 if tile == columns * rows else tile
            vision += [Patch(image, number, kind="class"), *cells(image, number, side, box)]
            embeds += cells(image, number, short, box)
    return {
        "vision": list(enumerate(vision)),
        "image_embeds": list(enumerate(embeds)),
        "language": list(zip([i for run in runs for i in run], embeds, strict=True)),
    }


_VISION = "model.vision_tower.encoder.layer.{layer}"
_TEXT = "model.language_model.layers.{layer}"

_DENSE = kit.Known(
    name="internvl",
    build=build,
    processor=Pictures.from_pretrained,
    encode=encode,
    towers={
        "vision": kit.Tower(
            layers=3,
            heads=2,
            places=kit.places(_VISION, "attention.projection_layer", "mlp", "mlp.fc2"),
        ),
        "language": kit.Tower(
            layers=3,
            heads=4,
            places=kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj"),
        ),
    },
    embeds=Place("model.multi_modal_projector"),
    tokens=Place("model.language_model.embed_tokens"),
    patches=patches,
)

_TOWER = _DENSE.towers["language"]


def _build_experts(folder: Path) -> None:
    build(folder, Qwen3MoeConfig, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


KNOWN = (
    _DENSE,
    replace(
        _DENSE,
        name="internvl_moe",
        build=_build_experts,
        towers={
            **_DENSE.towers,
            "language": replace(_TOWER, places={c: p for c, p in _TOWER.places.items() if c != "mlp_neuron"}),
        },
    ),
)
