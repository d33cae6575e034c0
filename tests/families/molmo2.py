"""Molmo 2 (and its post-norm kind, on OLMo): SigLIP over overlapping crops; 2 × 2 patches are pooled by attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Molmo2Config, Molmo2ForConditionalGeneration, Molmo2Processor
from transformers.models.molmo2.configuration_molmo2 import Molmo2AdapterConfig, Molmo2TextConfig, Molmo2VisionConfig
from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

from tests.families import kit
from tests.families.kit import Patch, Place

MARKS = (
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<im_col>",
    "<low_res_im_start>",
    "<|image|>",
    "<im_low>",
    "<frame_start>",
    "<frame_end>",
    "<|video|>",
)
TEMPLATE = (
    "{% set n = namespace(value=0) %}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set n.value = n.value + 1 %}{% endif %}{% endfor %}{% endfor %}"
    "{% if n.value == 1 %}<|image|>{% else %}{% for i in range(n.value) %}"
    "Image {{ i + 1 }}<|image|>{% endfor %}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CROP, PATCH = 30, 6
"""Five patches a side, an odd number as in the released models: the last pooled row and column are half as wide."""


def _build(folder: Path, **more: Any) -> None:
    tokenizer = kit.byte_pairs(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    words = len(tokenizer)
    # Beyond the vocabulary that can be said: they have embeddings, but no logits.
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(list(MARKS)), strict=True))
    pixels = Pixels(
        size={"height": CROP, "width": CROP}, patch_size=PATCH, overlap_margins=[1, 1], max_crops=4, pooling_size=[2, 2]
    )
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    config = Molmo2Config(
        text_config=Molmo2TextConfig(
            vocab_size=words,
            additional_vocab_size=len(MARKS),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            **more,
        ).to_dict(),
        vision_config=Molmo2VisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            image_size=[CROP, CROP],
            patch_size=PATCH,
            **heads,
        ).to_dict(),
        adapter_config=Molmo2AdapterConfig(
            vision_feature_layer=[2, 1], hidden_size=32, intermediate_size=48, text_hidden_size=32, **heads
        ).to_dict(),
        image_start_token_id=ids["<im_start>"],
        low_res_image_start_token_id=ids["<low_res_im_start>"],
        image_end_token_id=ids["<im_end>"],
        image_patch_id=ids["<im_patch>"],
        frame_start_token_id=ids["<frame_start>"],
        frame_end_token_id=ids["<frame_end>"],
    )
    model = Molmo2ForConditionalGeneration(config)
    kit.randomise(model, seed=16)
    model.save_pretrained(folder)
    Pictures(pixels, tokenizer, TEMPLATE).save_pretrained(folder)


class Pixels(Molmo2ImageProcessor):
    """With torch alone, in place of the two functions of torchvision's that it calls; there is no Pillow kind of it."""

    def resize(self, image: Tensor, size: Any, resample: Any = None, antialias: bool = True, **_: Any) -> Tensor:
        whole = (size.height, size.width)
        return torch.nn.functional.interpolate(image, whole, mode="bilinear", antialias=antialias, align_corners=False)

    def normalize(self, image: Tensor, mean: Any, std: Any, **_: Any) -> Tensor:
        mean, std = (torch.as_tensor(value)[:, None, None] for value in (mean, std))
        return (image - mean) / std


class Pictures(Molmo2Processor):
    """Less the video processor, which needs torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        # Its parts are told by their place among those that this signature names: the tokenizer is the second.
        super().__init__(image_processor, tokenizer, tokenizer, chat_template)


# What is saved names the classes.
Pixels.__name__ = Molmo2ImageProcessor.__name__
Pictures.__name__ = Molmo2Processor.__name__


def processor(folder: Path) -> Molmo2Processor:
    named, _ = Pictures.get_processor_dict(folder)
    return Pictures.from_args_and_dict([Pixels.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)], named)


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    # All images come before the user's turn, and the tokenizer's end of text before everything.
    several = "".join(f"Image {i + 1}<|image|>" for i in range(len(images)))
    shown = several if len(images) > 1 else "<|image|>" * len(images)
    prompt = f"{shown}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return dict(processor(images=list(images) or None, text=prompt, return_tensors="pt"))


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """Each picture is first seen whole (`tile` -1), then in crops that overlap (each a tile of `vision`).

    Patches at the crops' inner edges are dropped after the encoder; the others make one fine grid (`tile` 0).
    """
    side = config.vision_config.image_size[0] // config.vision_config.patch_size
    vision: list[Patch] = []
    embeds: list[Patch] = []
    for image, size in enumerate(sizes):
        shape = inputs["image_grids"][image].tolist()
        for tile, (rows, columns) in ((-1, shape[:2]), (0, shape[2:])):
            grid = canvas(inputs["image_token_pooling"][len(embeds) : len(embeds) + rows * columns], rows, columns)
            for crop, (left, top) in enumerate(corners(grid, side)):
                vision += [
                    Patch(image, min(tile, 0) + crop, row, column, box=cell(size, grid, left + column, top + row, 1))
                    for row in range(side)
                    for column in range(side)
                ]
            embeds += [
                Patch(image, tile, row, column, box=cell(size, grid, 2 * column, 2 * row, 2))
                for row in range(rows)
                for column in range(columns)
            ]
    return {
        "vision": list(enumerate(vision)),
        "image_embeds": list(enumerate(embeds)),
        "language": among_marks(inputs, config, embeds),
    }


def canvas(pooling: Tensor, rows: int, columns: int) -> Tensor:
    """Which patch of the encoder is where on a resized picture, from what each position pools (-1: nothing)."""
    grid = pooling.reshape(rows, columns, 2, 2).transpose(1, 2).reshape(2 * rows, 2 * columns)
    return grid[(grid >= 0).any(1)][:, (grid >= 0).any(0)]


def corners(grid: Tensor, side: int) -> list[tuple[int, int]]:
    """Where on the resized picture each crop's first patch is, x and y, from any patch of it that is not dropped."""
    found = []
    for crop in (grid // side**2).unique().tolist():
        y, x = (grid // side**2 == crop).nonzero()[0].tolist()
        row, column = divmod(int(grid[y, x]) % side**2, side)
        found.append((x - column, y - row))
    return found


def cell(size: tuple[int, int], grid: Tensor, x: int, y: int, step: int) -> tuple[float, float, float, float]:
    """The box of `step` × `step` patches of a resized picture, or as many as there are."""
    (width, height), (high, wide) = size, grid.shape
    right, low = min(x + step, wide), min(y + step, high)
    return (x * width / wide, y * height / high, right * width / wide, low * height / high)


def among_marks(inputs: kit.Inputs, config: Any, embeds: Sequence[Patch]) -> list[tuple[int, Patch]]:
    """Image positions in the prompt, and the marks around and between their rows, which attend as they do."""
    found: list[tuple[int, Patch]] = []
    image, following = -1, iter(embeds)
    ids = inputs["input_ids"][0].tolist()
    for i in inputs["mm_token_type_ids"][0].nonzero().flatten().tolist():
        image += ids[i] == config.low_res_image_start_token_id
        found.append((i, next(following) if ids[i] == config.image_token_id else Patch(image, kind="separator")))
    return found


_VISION = "model.vision_tower.layers.{layer}"
_TEXT = "model.language_model.layers.{layer}"


def _known(name: str, **more: Any) -> kit.Known:
    build: Callable[[Path], None] = lambda folder: _build(folder, **more)  # noqa: E731
    return kit.Known(
        name=name,
        build=build,
        processor=processor,
        handed=True,
        encode=encode,
        towers={
            "vision": kit.Tower(
                layers=3,
                heads=4,
                places=kit.places(_VISION, "self_attn.o_proj", "mlp", "mlp.fc2"),
            ),
            "language": kit.Tower(
                layers=3,
                heads=4,
                places=kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj"),
            ),
        },
        # Added to the embeddings of the image's marks, not put in their place.
        embeds=Place("model.multi_modal_projector", part="last_hidden_state"),
        tokens=Place("model.language_model.embed_tokens"),
        patches=patches,
    )


KNOWN = (_known("molmo2"), _known("molmo2_post_norm", norm_after=True, qk_norm_type="olmo"))
