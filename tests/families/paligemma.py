"""PaliGemma (SigLIP and Gemma) and PaliGemma 2 (SigLIP and Gemma 2): the prompt attends in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from tests.families import kit
from tests.families.kit import Known, Patch, Place, Tower

SIDE, PATCH, WIDTH = 48, 12, 64
TOKENS = (SIDE // PATCH) ** 2


def _build(folder: Path, text_config: type[Any], **more: Any) -> None:
    tokenizer = kit.pieces(
        ["<pad>", "<eos>", "<bos>"], pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_seq_length=TOKENS)
    processor = PaliGemmaProcessor(images, tokenizer)  # adds <image> and 1,152 tokens for places and shapes
    text = text_config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **more,
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
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = PaliGemmaForConditionalGeneration(config)
    kit.randomise(model)
    with torch.no_grad():  # tied: multiplied by √width going in, and read-out going out
        model.model.language_model.embed_tokens.weight *= 2 * WIDTH**-0.5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    # The processor puts <bos> after the images and "\n" after the text, and refuses to go without images.
    inputs = processor(
        images=[list(images)] if images else None,
        text="<image>" * len(images) + f"answer en {text}",
        return_tensors="pt",
    )
    del inputs["labels"]
    return dict(inputs)


def _patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """The picture is stretched onto a square grid."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    seen = [
        Patch(image=i, row=r, column=c, box=(c * w / side, r * h / side, (c + 1) * w / side, (r + 1) * h / side))
        for i, (w, h) in enumerate(sizes)
        for r in range(side)
        for c in range(side)
    ]
    marked = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    return {
        "vision": list(enumerate(seen)),
        "image_embeds": list(enumerate(seen)),
        "language": list(zip(marked, seen, strict=True)),
    }


def _known(name: str, text_config: type[Any], **more: Any) -> Known:
    build: Callable[[Path], None] = lambda folder: _build(folder, text_config, **more)  # noqa: E731
    return Known(
        name=name,
        build=build,
        encode=_encode,
        towers={"vision": VISION, "language": LANGUAGE},
        embeds=Place("model.multi_modal_projector"),
        tokens=Place("model.language_model.embed_tokens"),
        patches=_patches,
        behind={"token_type_ids": 1},
    )


_SIGHT = "model.vision_tower.encoder.layers.{layer}"
VISION = Tower(
    layers=3,
    heads=4,
    places=kit.places(_SIGHT, "self_attn.out_proj", "mlp", "mlp.fc2", attn_out="self_attn"),
)

# Gemma 2 has norms between `self_attn` / `mlp` and the residual stream; what these put out is before the norm.
_TEXT = "model.language_model.layers.{layer}"
LANGUAGE = Tower(
    layers=3,
    heads=4,
    places=kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj", attn_out="self_attn"),
)

KNOWN = (
    _known("paligemma", GemmaConfig),
    _known("paligemma_2", Gemma2Config, query_pre_attn_scalar=16, sliding_window=256),
)
