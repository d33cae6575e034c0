"""Llama 3.2 Vision: tiles go through two encoders, and the text looks at them in layers of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaImageProcessorPil, MllamaProcessor
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from tests.families import kit
from tests.families.kit import Inputs, Known, Patch, Place, Tower, byte_pairs, randomise

LOCAL, GLOBAL, TEXT = 3, 2, 5

TEMPLATE = """{{- bos_token }}
{%- set seen = namespace(image=false) %}
{%- for message in messages %}{%- for content in message['content'] %}
    {%- if content['type'] == 'image' %}{%- set seen.image = true %}{%- endif %}
{%- endfor %}{%- endfor %}
{%- if not seen.image %}
    {{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {%- for content in message['content'] %}
        {%- if content['type'] == 'image' %}{{- '<|image|>' }}
        {%- elif content['type'] == 'text' %}{{- content['text'] }}
        {%- endif %}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""


def build(folder: Path) -> None:
    names = ("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>", "<|python_tag|>")
    tokenizer = byte_pairs(
        (*names, "<|start_header_id|>", "<|end_header_id|>"),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
    )
    words = len(tokenizer)
    # As in the checkpoints: the marker's id is the first that the read-out has no row for.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    pictures = MllamaImageProcessorPil(size={"height": 48, "width": 48}, max_image_tiles=4)
    MllamaProcessor(pictures, tokenizer, chat_template=TEMPLATE).save_pretrained(folder)

    config = MllamaConfig(
        vision_config=MllamaVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=LOCAL,
            num_global_layers=GLOBAL,
            attention_heads=2,
            image_size=48,
            patch_size=16,
            intermediate_layers_indices=[0, 1],
            vision_output_dim=3 * 32,
        ),
        text_config=MllamaTextConfig(
            vocab_size=words,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=TEXT,
            num_attention_heads=4,
            num_key_value_heads=2,
            cross_attention_layers=[1, 3],
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    model = MllamaForConditionalGeneration(config)
    randomise(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "gate" in name.rpartition(".")[2].split("_"):
                weight.fill_(1.0)  # they begin as 0, which closes them
    model.save_pretrained(folder)


def patches(inputs: Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    padded = math.ceil((1 + side**2) / 8) * 8
    embeds, seen = [], []
    for image, size in enumerate(sizes):
        rows, columns = vision.supported_aspect_ratios[int(inputs["aspect_ratio_ids"][0, image]) - 1]
        for tile in range(vision.max_num_tiles):
            if tile < rows * columns:
                shown = [Patch(image, tile, kind="class")]
                for row, column in product(range(side), range(side)):
                    at = (tile // columns * side + row, tile % columns * side + column)
                    box = _box(size, (rows * vision.image_size, columns * vision.image_size), vision, at)
                    shown.append(Patch(image, tile, row, column, box=box))
            else:  # there is no such tile
                shown = [Patch(image, tile, kind="separator")] * (1 + side**2)
            first = image * vision.max_num_tiles + tile
            embeds += [(first * (1 + side**2) + i, patch) for i, patch in enumerate(shown)]
            filled = shown + [Patch(image, tile, kind="separator")] * (padded - len(shown))
            seen += [(first * padded + i, patch) for i, patch in enumerate(filled)]
    markers = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    # A marker is an ordinary token embedding: it only says from where on the text may look at its image.
    text = [(position, Patch(image, kind="separator")) for image, position in enumerate(markers)]
    return {"vision": seen, "vision_global": seen, "image_embeds": embeds, "language": text}


def _box(
    size: tuple[int, int], canvas: tuple[int, int], vision: Any, at: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """What the patch in a row and column of the whole canvas covers; None where the canvas is empty.

    The picture is put into the canvas' upper left corner, made no larger than a tile if it is smaller.
    """
    width, height = size
    wide = min(max(width, vision.image_size), canvas[1])
    high = min(max(height, vision.image_size), canvas[0])
    if wide / width < high / height:
        high = math.floor(height * (wide / width)) or 1
    else:
        wide = math.floor(width * (high / height)) or 1
    row, column = (vision.patch_size * i for i in at)
    if column >= wide or row >= high:
        return None
    right, low = min(column + vision.patch_size, wide), min(row + vision.patch_size, high)
    return column * width / wide, row * height / high, right * width / wide, low * height / high


def encoder(path: str) -> dict[str, Place]:
    """The places of the local encoder, or of the global one over the same positions."""
    layer = f"model.vision_model.{path}.layers.{{layer}}"
    return {
        "resid_pre": Place(layer, "input", "hidden_states"),
        "resid_post": Place(layer),
        "attn_out": Place(f"{layer}.self_attn.o_proj"),
        "attn_context": Place(f"{layer}.self_attn.o_proj", "input"),
        "mlp_out": Place(f"{layer}.mlp"),
        "mlp_neuron": Place(f"{layer}.mlp.fc2", "input"),
    }


# A layer has either self_attn or cross_attn, never both.
LANGUAGE = {
    "resid_pre": Place("model.language_model.layers.{layer}", "input"),
    "resid_post": Place("model.language_model.layers.{layer}"),
    "attn_out": Place("model.language_model.layers.{layer}.self_attn.o_proj"),
    "attn_context": Place("model.language_model.layers.{layer}.self_attn.o_proj", "input"),
    "cross_attn_out": Place("model.language_model.layers.{layer}.cross_attn.o_proj"),
    "cross_attn_context": Place("model.language_model.layers.{layer}.cross_attn.o_proj", "input"),
    "mlp_out": Place("model.language_model.layers.{layer}.mlp"),
    "mlp_neuron": Place("model.language_model.layers.{layer}.mlp.down_proj", "input"),
}

KNOWN = Known(
    name="mllama",
    build=build,
    encode=partial(kit.ask, add_special_tokens=False),  # the template has written the first token
    towers={
        "vision": Tower(LOCAL, 2, encoder("transformer")),
        "vision_global": Tower(GLOBAL, 2, encoder("global_transformer")),
        "language": Tower(TEXT, 4, LANGUAGE),
    },
    embeds=Place("model.multi_modal_projector"),
    tokens=Place("model.language_model.embed_tokens"),
    patches=patches,
    behind={"cross_attention_mask": "last"},
)
