"""Idefics 2: SigLIP at the picture's own shape, a perceiver, Mistral; a picture is seen whole and in quarters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import processors
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
    MistralConfig,
)
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig, Idefics2VisionConfig

from tests.families import kit
from tests.families.kit import Patch, Place

TEMPLATE = (
    "{% for message in messages %}{{message['role'].capitalize()}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PATCH, LATENTS = 8, 4


def build(folder: Path) -> None:
    tokenizer = kit.pieces(["<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="<unk>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    pictures = Idefics2ImageProcessorPil(size={"shortest_edge": 24, "longest_edge": 60}, do_image_splitting=True)
    # Adds <fake_token_around_image>, <image> and <end_of_utterance> to the tokenizer.
    processor = Idefics2Processor(pictures, tokenizer, image_seq_len=LATENTS, chat_template=TEMPLATE)
    text = MistralConfig(
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
    vision = Idefics2VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=PATCH,
    )
    perceiver = Idefics2PerceiverConfig(
        hidden_size=32,
        resampler_n_latents=LATENTS,
        resampler_depth=2,
        resampler_n_heads=4,
        resampler_head_dim=8,
        num_key_value_heads=2,
    )
    config = Idefics2Config(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        perceiver_config=perceiver.to_dict(),
        image_token_id=processor.image_token_id,
    )
    model = Idefics2ForConditionalGeneration(config)
    kit.randomise(model, seed=12)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    said = ":" + "<image>" * len(images) if images else ": "
    prompt = f"User{said}{text}<end_of_utterance>\nAssistant:"
    return dict(processor(images=list(images) or None, text=prompt, return_tensors="pt"))


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """Tiles are of different sizes in one batch: smaller ones have empty patches to their right and below."""
    size, latents = config.vision_config.patch_size, config.perceiver_config.resampler_n_latents
    vision: list[tuple[int, Patch]] = []
    embeds: list[Patch] = []
    if sizes:
        seen = inputs["pixel_attention_mask"][0]
        tiles = len(seen) // len(sizes)
        rows, columns = seen.shape[1] // size, seen.shape[2] // size
        for number, mask in enumerate(seen):
            image, tile = divmod(number, tiles)
            tile = -1 if tile == tiles - 1 else tile
            x0, y0, x1, y1 = quarter(tile, *sizes[image])
            high, wide = int(mask[:, 0].sum()), int(mask[0].sum())
            dx, dy = size * (x1 - x0) / wide, size * (y1 - y0) / high
            for row in range(high // size):
                for column in range(wide // size):
                    box = (x0 + column * dx, y0 + row * dy, x0 + (column + 1) * dx, y0 + (row + 1) * dy)
                    at = (number * rows + row) * columns + column
                    vision.append((at, Patch(image, tile, row, column, box=box)))
            embeds += [Patch(image, tile, column=i, kind="latent") for i in range(latents)]
    marks = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    return {
        "vision": vision,
        "qformer": list(enumerate(embeds)),
        "image_embeds": list(enumerate(embeds)),
        "language": list(zip(marks, embeds, strict=True)),
    }


def quarter(tile: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Which pixels a tile is of: a quarter of the picture, or all (-1)."""
    middle, centre = width // 2, height // 2
    if tile == -1:
        return 0, 0, width, height
    right, low = tile % 2, tile // 2
    return middle * right, centre * low, width if right else middle, height if low else centre


_VISION = "model.vision_model.encoder.layers.{layer}"
_LATENTS = "model.connector.perceiver_resampler.layers.{layer}"
_TEXT = "model.text_model.layers.{layer}"

KNOWN = kit.Known(
    name="idefics2",
    build=build,
    encode=encode,
    towers={
        "vision": kit.Tower(
            layers=3,
            heads=2,
            places=kit.places(_VISION, "self_attn.out_proj", "mlp", "mlp.fc2"),
        ),
        # The latents' stack: one attention a layer, of latents over patches and latents together.
        "qformer": kit.Tower(
            layers=2,
            heads=4,
            places=kit.places(_LATENTS, "self_attn.o_proj", "mlp", "mlp.down_proj"),
        ),
        "language": kit.Tower(
            layers=3,
            heads=4,
            places=kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj"),
        ),
    },
    embeds=Place("model.connector"),
    tokens=Place("model.text_model.embed_tokens"),
    patches=patches,
)
