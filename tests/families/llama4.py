"""Llama 4: tiles of a padded picture and the whole seen small, pixel shuffle, and a text stack with experts.

transformers prepares its pictures with torchvision only. The class here does the same with Pillow, as transformers' own
classes of that kind do; AutoProcessor finds it by the name of theirs once a model is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    IMAGE_PROCESSOR_MAPPING,
    BatchFeature,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4Processor,
)
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict

from tests.families import kit
from tests.families.kit import Known, Patch, Place, Tower

SIDE, PATCH, TILES = 48, 8, 6


class Llama4ImageProcessor(PilBackend):
    """In float32, where the family's own one gives bfloat16."""

    model_input_names = ("pixel_values",)
    resample = PILImageResampling.BILINEAR
    image_mean = image_std = (0.5, 0.5, 0.5)
    do_rescale = do_normalize = do_convert_rgb = True
    max_patches, resize_to_max_canvas = TILES, False

    def _preprocess(
        self,
        images: list[Any],
        size: SizeDict,
        resample: Any,
        rescale_factor: float,
        image_mean: Any,
        image_std: Any,
        return_tensors: str | None,
        **_: Any,
    ) -> BatchFeature:
        side = size.height
        crops, shapes = [], []
        for image in images:
            (down, across), (height, width) = canvas(image.shape[1:], side)
            padded = np.zeros((3, down * side, across * side), dtype=np.uint8)
            padded[:, :height, :width] = self.resize(image, SizeDict(height=height, width=width), resample)
            tiles = padded.reshape(3, down, side, across, side).transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
            whole = [self.resize(image, size, resample)] if len(tiles) > 1 else []
            crops += [
                self.normalize(self.rescale(tile, rescale_factor), image_mean, image_std) for tile in (*tiles, *whole)
            ]
            shapes.append((down, across))
        return BatchFeature(
            {"pixel_values": np.stack(crops).astype(np.float32), "aspect_ratios": shapes}, tensor_type=return_tensors
        )


def canvas(shape: Sequence[int], side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of tiles that a picture of a height and width gets, and the height and width it has on them."""
    fits = {
        (down, across): min(down * side / shape[0], across * side / shape[1])
        for down in range(1, TILES + 1)
        for across in range(1, TILES // down + 1)
    }
    best = min((fit for fit in fits.values() if fit >= 1), default=max(fits.values()))
    grid = min((one for one, fit in fits.items() if fit == best), key=lambda one: one[0] * one[1])
    room = [min(max(length, side), tiles * side) for length, tiles in zip(shape, grid, strict=True)]
    by = min(there / length for there, length in zip(room, shape, strict=True))
    height, width = (min(floor(length * by), there) for length, there in zip(shape, room, strict=True))
    return grid, (height, width)


def _build(folder: Path) -> None:
    marks = ["image_start", "image_end", "patch", "image", "tile_x_separator", "tile_y_separator"]
    special = [f"<|{mark}|>" for mark in ["header_start", "header_end", "eot", "finetune_right_pad", *marks]]
    tokenizer = kit.byte_pairs(
        ["<|begin_of_text|>", *special],
        bos_token="<|begin_of_text|>",
        eos_token="<|eot|>",
        pad_token="<|finetune_right_pad|>",
        padding_side="left",
    )
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = Llama4Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_local_experts": 4,
            "moe_layers": [1, 2],
            "no_rope_layers": [1, 1, 0],
            "max_position_embeddings": 1024,
            **ids,
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projector_input_dim": 40,
            "projector_output_dim": 40,
            "vision_output_dim": 40,
        },
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        **ids,
    )
    model = Llama4ForConditionalGeneration(config)
    kit.randomise(model)
    model.save_pretrained(folder)
    IMAGE_PROCESSOR_MAPPING.register(Llama4Config, {"pil": Llama4ImageProcessor}, exist_ok=True)
    images = Llama4ImageProcessor(size={"height": SIDE, "width": SIDE})
    Llama4Processor(images, tokenizer, patch_size=PATCH).save_pretrained(folder)


def _patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """Tiles row by row, then the whole picture (not the padded one) where there are several. In the encoder a class
    token ends every tile."""
    side = config.vision_config.image_size
    cells = side // config.vision_config.patch_size
    sight: list[Patch] = []
    seen: list[Patch] = []
    for image, (width, height) in enumerate(sizes):
        (down, across), (high, wide) = canvas((height, width), side)
        dx, dy = side * width / wide, side * height / high
        boxes = [(c * dx, r * dy, (c + 1) * dx, (r + 1) * dy) for r in range(down) for c in range(across)]
        crops = list(enumerate(boxes))
        if len(crops) > 1:
            crops.append((-1, (0.0, 0.0, float(width), float(height))))
        for tile, box in crops:
            sight += [*_grid(image, tile, box, cells, (width, height)), Patch(image, tile, kind="class")]
            seen += _grid(image, tile, box, cells // 2, (width, height))
    marked = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    return {
        "vision": list(enumerate(sight)),
        "image_embeds": list(enumerate(seen)),
        "language": list(zip(marked, seen, strict=True)),
    }


def _grid(
    image: int, tile: int, box: tuple[float, float, float, float], side: int, size: tuple[int, int]
) -> list[Patch]:
    return [
        Patch(image, tile, r, c, box=_of_picture(box, (c / side, r / side, (c + 1) / side, (r + 1) / side), size))
        for r in range(side)
        for c in range(side)
    ]


def _of_picture(
    box: tuple[float, float, float, float], part: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """What a part of a box shows of the picture, less padding; None where it shows nothing else."""
    x0, x1 = (min(box[0] + (box[2] - box[0]) * part[i], size[0]) for i in (0, 2))
    y0, y1 = (min(box[1] + (box[3] - box[1]) * part[i], size[1]) for i in (1, 3))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


_SIGHT = "vision_model.model.layers.{layer}"
_TEXT = "language_model.model.layers.{layer}"

KNOWN = Known(
    name="llama4",
    build=_build,
    encode=kit.ask_whole,
    towers={
        "vision": Tower(
            layers=3,
            heads=4,
            places={
                "resid_pre": Place(_SIGHT, "input", "hidden_state"),
                "resid_post": Place(_SIGHT),
                "attn_out": Place(f"{_SIGHT}.self_attn"),
                "attn_context": Place(f"{_SIGHT}.self_attn.o_proj", "input"),
                "mlp_out": Place(f"{_SIGHT}.mlp"),
                "mlp_neuron": Place(f"{_SIGHT}.mlp.fc2", "input"),
            },
        ),
        # `feed_forward` of a layer with experts puts out a tuple, whose first part has no batch dimension.
        "language": Tower(
            layers=3,
            heads=4,
            places={
                "resid_pre": Place(_TEXT, "input"),
                "resid_post": Place(_TEXT),
                "attn_out": Place(f"{_TEXT}.self_attn"),
                "attn_context": Place(f"{_TEXT}.self_attn.o_proj", "input"),
                "mlp_out": Place(f"{_TEXT}.feed_forward"),
            },
        ),
    },
    embeds=Place("multi_modal_projector"),
    tokens=Place("language_model.model.embed_tokens"),
    patches=_patches,
)
