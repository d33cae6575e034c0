"""Gemma 3: SigLIP, average pooling, and a text stack whose images attend within themselves in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from tests.families import kit
from tests.families.kit import Known, Patch, Place, Tower

SIDE, PATCH, TOKENS = 64, 8, 16
"""8 × 8 patches, averaged 2 × 2 to 4 × 4 tokens."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def _build(folder: Path, window: int) -> None:
    tokenizer = kit.pieces(
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        padding_side="left",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    images = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor = Gemma3Processor(images, tokenizer, chat_template=TEMPLATE, image_seq_length=TOKENS)
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=512,
        sliding_window=window,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=TOKENS,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = Gemma3ForConditionalGeneration(config)
    kit.randomise(model)
    with torch.no_grad():  # tied: multiplied by √width going in, and read-out going out
        model.model.language_model.embed_tokens.weight *= 1.5 * text.hidden_size**-0.5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """The picture is stretched onto a square grid, whose patches are averaged in squares."""
    marked = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    seen = _grid(sizes, int(config.mm_tokens_per_image**0.5))
    return {
        "vision": list(enumerate(_grid(sizes, config.vision_config.image_size // config.vision_config.patch_size))),
        "image_embeds": list(enumerate(seen)),
        "language": list(zip(marked, seen, strict=True)),
    }


def _grid(sizes: Sequence[tuple[int, int]], side: int) -> list[Patch]:
    return [
        Patch(image=i, row=r, column=c, box=(c * w / side, r * h / side, (c + 1) * w / side, (r + 1) * h / side))
        for i, (w, h) in enumerate(sizes)
        for r in range(side)
        for c in range(side)
    ]


_SIGHT = "model.vision_tower.encoder.layers.{layer}"
# Norms stand between `self_attn` / `mlp` and the residual stream; what these put out is before the norm.
_TEXT = "model.language_model.layers.{layer}"


def _known(name: str, window: int) -> Known:
    return Known(
        name=name,
        build=lambda folder: _build(folder, window),
        encode=kit.ask_whole,
        towers={
            "vision": Tower(
                layers=3,
                heads=4,
                places=kit.places(_SIGHT, "self_attn.out_proj", "mlp", "mlp.fc2", attn_out="self_attn"),
            ),
            "language": Tower(
                layers=3,
                heads=4,
                places=kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj", attn_out="self_attn"),
            ),
        },
        embeds=Place("model.multi_modal_projector"),
        tokens=Place("model.language_model.embed_tokens"),
        patches=_patches,
        behind={"token_type_ids": 0},
    )


# The second with a window that is shorter than a prompt, as a few images make it in the released models (1,024).
KNOWN = (_known("gemma3", 256), _known("gemma3_window", 12))
