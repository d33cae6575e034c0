"""Florence-2: a pyramid of convolutions and attention sees, BART's encoder reads image and text, its decoder answers.

There is no `vision` stack: the pyramid (DaViT) keeps [channel, row, column], halves its grid from stage to stage, mixes
neighbours by convolution as well as by attention, and attends in every second half-block between channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    BartConfig,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from tests.families import kit
from tests.families.kit import Inputs, Known, Patch, Place, Tower, byte_pairs, randomise


def build(folder: Path) -> None:
    tokenizer = byte_pairs(
        ("<s>", "<pad>", "</s>", "<unk>"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    pictures = CLIPImageProcessorPil(size={"height": 96, "width": 96}, do_center_crop=False, image_seq_length=37)
    Florence2Processor(pictures, tokenizer).save_pretrained(folder)

    config = Florence2Config(
        vision_config=Florence2VisionConfig(
            depths=[1, 2, 1],  # the checkpoints have four stages
            patch_size=[7, 3, 3],
            patch_stride=[4, 2, 2],
            patch_padding=[3, 1, 1],
            patch_prenorm=[False, True, True],
            embed_dim=[16, 24, 32],
            num_heads=[2, 2, 4],
            num_groups=[2, 2, 4],
            window_size=3,
            projection_dim=32,
        ),
        text_config=BartConfig(
            vocab_size=len(tokenizer),
            d_model=32,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.forced_bos_token_id = tokenizer.bos_token_id
    randomise(model)
    with torch.no_grad():
        model.lm_head.weight *= 0.3  # also the token embeddings
    model.save_pretrained(folder)


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> Inputs:
    if len(images) > 1:
        raise ValueError("Florence-2 takes one image")
    words = processor.tokenizer
    # The processor marks where the text begins and ends, but only if there is an image.
    prompt = text if images else words.bos_token + text + words.eos_token
    inputs = dict(processor(images=list(images) or None, text=prompt, return_tensors="pt"))
    # An answer begins after these two, of which `generate` forces the second.
    inputs["decoder_input_ids"] = torch.tensor([[words.eos_token_id, words.bos_token_id]])
    return inputs


def patches(inputs: Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    shown = []
    if sizes:
        (size,) = sizes
        # Picture and grid are square, and the picture is stretched to it.
        high, wide = inputs["pixel_values"].shape[-2:]
        strides = config.vision_config.patch_stride
        stride = int(torch.tensor(strides).prod())
        shown.append(Patch(kind="latent"))  # the mean of all the others
        for row, column in product(range(high // stride), range(wide // stride)):
            x0, x1 = _span(column, wide, stride, size[0])
            y0, y1 = _span(row, high, stride, size[1])
            shown.append(Patch(row=row, column=column, box=(x0, y0, x1, y1)))
    positions = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    listed = list(enumerate(shown))
    return {"image_embeds": listed, "question_encoder": list(zip(positions, shown, strict=True))}


def _span(number: int, length: int, stride: int, original: int) -> tuple[float, float]:
    """Which pixels lie nearest to where a position looks, of a side that is `length` long when it is looked at.

    A convolution whose padding is half its kernel centres position i on pixel stride · i, not on the middle of the i-th
    stretch of stride pixels. What it sees besides its own pixels fades outwards and reaches over the whole picture.
    """
    first, last = number == 0, number == length // stride - 1
    begin = 0 if first else stride * number - stride / 2
    end = length if last else stride * number + stride / 2
    return begin * original / length, end * original / length


ENCODER = kit.places("model.language_model.encoder.layers.{layer}", "self_attn.out_proj", "fc2")
DECODER = {
    "resid_pre": Place("model.language_model.decoder.layers.{layer}", "input"),
    "resid_post": Place("model.language_model.decoder.layers.{layer}"),
    "attn_out": Place("model.language_model.decoder.layers.{layer}.self_attn.out_proj"),
    "attn_context": Place("model.language_model.decoder.layers.{layer}.self_attn.out_proj", "input"),
    "cross_attn_out": Place("model.language_model.decoder.layers.{layer}.encoder_attn.out_proj"),
    "cross_attn_context": Place("model.language_model.decoder.layers.{layer}.encoder_attn.out_proj", "input"),
    "mlp_out": Place("model.language_model.decoder.layers.{layer}.fc2"),
    "mlp_neuron": Place("model.language_model.decoder.layers.{layer}.fc2", "input"),
}

KNOWN = Known(
    name="florence2",
    build=build,
    encode=encode,
    towers={"question_encoder": Tower(3, 4, ENCODER), "answer_decoder": Tower(3, 4, DECODER)},
    embeds=Place("model.multi_modal_projector"),
    tokens=Place("model.language_model.shared"),
    patches=patches,
)
