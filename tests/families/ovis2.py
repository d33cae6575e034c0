"""Ovis 2: a vision encoder whose positions are mixtures of visual words, and Qwen 2; a picture is cut into tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2ImageProcessorPil,
    Ovis2Processor,
    Qwen2Config,
)
from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig

from tests.families import kit
from tests.families.kit import Patch, Place

ATOM = "<IMG_ATOM>"
INDICATORS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TEMPLATE = SYSTEM + (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
TILE, PATCH, POSITIONS, VISUAL_WORDS = 24, 6, 4, 64


def build(folder: Path) -> None:
    tokenizer = kit.byte_pairs(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", ATOM, *INDICATORS),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    pictures = Ovis2ImageProcessorPil(size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=6)
    processor = Ovis2Processor(pictures, tokenizer, chat_template=TEMPLATE, image_seq_length=POSITIONS)
    config = Ovis2Config(
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        ).to_dict(),
        vision_config=Ovis2VisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=TILE,
            patch_size=PATCH,
            vocab_size=VISUAL_WORDS,
            hidden_stride=2,
        ).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(ATOM),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(list(INDICATORS)),
        vocab_size=len(tokenizer),
        hidden_size=32,
        tie_word_embeddings=False,
    )
    model = Ovis2ForConditionalGeneration(config)
    kit.randomise(model, seed=17)
    with torch.no_grad():  # so that a position is of a few visual words, not of all
        model.model.vision_tower.head_norm.weight *= 3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    marks = "<image>\n" * len(images)
    prompt = f"{SYSTEM}<|im_start|>user\n{marks}{text}<|im_end|>\n<|im_start|>assistant\n"
    return dict(processor(images=list(images) or None, text=prompt, return_tensors="pt"))


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """Each picture is first seen whole (`tile` -1), then, if it is cut, tile by tile; marks between tell the grid."""
    start, _, between, below, end = config.visual_indicator_token_ids
    ids = inputs["input_ids"][0].tolist()
    side = config.vision_config.image_size // config.vision_config.patch_size
    short = -(-side // config.vision_config.hidden_stride)
    vision: list[Patch] = []
    embeds: list[Patch] = []
    language: list[tuple[int, Patch]] = []
    begins = [i for i, mark in enumerate(ids) if mark == start]
    for image, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        span = range(begin, ids.index(end, begin) + 1)
        within = [ids[i] for i in span]
        rows = 1 + within.count(below)
        columns = 1 + within.count(between) // rows
        cut = within.count(config.image_token_id) > short**2
        here: list[Patch] = []
        for tile in range(-1, rows * columns if cut else 0):
            vision += cells(image, tile, size, (rows, columns), side, 1)
            here += cells(image, tile, size, (rows, columns), side, config.vision_config.hidden_stride)
        embeds += here
        following = iter(here)
        language += [
            (i, next(following) if ids[i] == config.image_token_id else Patch(image, kind="separator"))
            for i in span
            if ids[i] in (config.image_token_id, *config.visual_indicator_token_ids)
        ]
    return {"vision": list(enumerate(vision)), "image_embeds": list(enumerate(embeds)), "language": language}


def cells(image: int, tile: int, size: tuple[int, int], grid: tuple[int, int], side: int, stride: int) -> list[Patch]:
    """A tile's patches, `stride` × `stride` of them together."""
    (rows, columns) = grid if tile >= 0 else (1, 1)
    row0, column0 = divmod(max(tile, 0), columns)
    xs = [size[0] / columns * (column0 + min(i, side) / side) for i in range(0, side + stride, stride)]
    ys = [size[1] / rows * (row0 + min(i, side) / side) for i in range(0, side + stride, stride)]
    return [
        Patch(image, tile, row, column, box=(xs[column], ys[row], xs[column + 1], ys[row + 1]))
        for row in range(len(ys) - 1)
        for column in range(len(xs) - 1)
    ]


_VISION = "model.vision_tower.transformer.encoder.layers.{layer}"
_TEXT = "model.language_model.layers.{layer}"

KNOWN = kit.Known(
    name="ovis2",
    build=build,
    encode=encode,
    towers={
        "vision": kit.Tower(
            layers=3,
            heads=2,
            places=kit.places(_VISION, "attention.out_proj", "ffn", "ffn.down_proj"),
        ),
        "language": kit.Tower(
            layers=3,
            heads=4,
            places=kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj"),
        ),
    },
    # Probabilities of visual words. The table that they are weighted with runs twice: also for the five marks.
    embeds=Place("model.vision_tower", part="pooler_output"),
    tokens=Place("model.language_model.embed_tokens"),
    patches=patches,
)
