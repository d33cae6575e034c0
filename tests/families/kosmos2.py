"""KOSMOS-2: latents that have attended to the picture once stand in 64 places after <image>; which, a mask says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, Kosmos2Config, Kosmos2ForConditionalGeneration, Kosmos2Processor

from tests.families import kit
from tests.families.blip_2 import grid, one_image, unigram
from tests.families.kit import Patch, Place, Tower

LATENTS, SIDE, PATCH = 64, 48, 12  # the processor writes 64 places unless every call says otherwise

_VISION = "vision_model.model.encoder.layers.{layer}"
VISION = Tower(
    layers=3,
    heads=4,
    places=kit.places(_VISION, "self_attn.out_proj", "mlp.fc2"),
)
_TEXT = "text_model.model.layers.{layer}"
# Sub-layer norms: what `out_proj` and `fc2` get has passed a LayerNorm over all heads (all neurons) together;
# a head's own weighted sum of values is the input of `self_attn.inner_attn_ln`.
TEXT = Tower(
    layers=3,
    heads=4,
    places=kit.places(_TEXT, "self_attn.out_proj", "ffn.fc2"),
)


def build(folder: Path) -> None:
    tokenizer = unigram(
        ["<s>", "<pad>", "</s>", "<unk>"], bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    # The public checkpoint's `use_square_size` means the same: stretched, nothing is cropped.
    square = {"height": SIDE, "width": SIDE}
    processor = Kosmos2Processor(
        CLIPImageProcessorPil(size=square, crop_size=square), tokenizer, num_patch_index_tokens=16
    )
    config = Kosmos2Config(
        text_config={
            "vocab_size": len(tokenizer),
            "embed_dim": 32,
            "layers": 3,
            "ffn_dim": 64,
            "attention_heads": 4,
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        latent_query_num=LATENTS,
    )
    model = Kosmos2ForConditionalGeneration(config).eval()
    kit.randomise(model)
    with torch.no_grad():
        # Multiplied with the root of the width on their way in, and read out as they are.
        model.text_model.model.embed_tokens.weight *= config.text_config.embed_dim**-0.5
        # A patch comes as a vector of length one.
        model.image_to_text_projection.dense.weight *= config.vision_config.hidden_size**0.5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    """No chat template; `<grounding>` before the question would ask for boxes in the answer."""
    one_image(images)
    return dict(processor(images=list(images), text=f"Question: {text} Answer:", return_tensors="pt"))


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """The ids at image positions are words' own (4 to 67): only the mask tells."""
    latents = [Patch(column=i, kind="latent") for i in range(config.latent_query_num)]
    places = inputs["image_embeds_position_mask"][0].nonzero().flatten().tolist()
    return {
        "vision": grid(config.vision_config, sizes[0]),
        "image_embeds": list(enumerate(latents)),
        "language": list(zip(places, latents, strict=True)),
    }


KNOWN = kit.Known(
    name="kosmos_2",
    build=build,
    encode=encode,
    towers={"vision": VISION, "language": TEXT},
    embeds=Place("image_to_text_projection", part=0),
    tokens=Place("text_model.model.embed_tokens"),
    patches=patches,
    behind={"image_embeds_position_mask": 0},
)
