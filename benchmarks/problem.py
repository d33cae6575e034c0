"""The pair that a sweep is timed on, and its positions, found without the package's help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import naive
import numpy as np
import torch
from PIL import Image
from shapes import Shape
from torch import Tensor

import vlm_patching as vp
from vlm_patching.models import Model

QUESTION = {
    "llava": (
        "is the small red circle on the left of the large blue square above or below the green star on the bottom left?"
    ),
    "blip": "what color is the red circle?",
}
SUBJECT = "circle"
GRID = 7
Regions = Literal["none", "object", "grid"]
Bounds = tuple[int, int, int, int]


@dataclass(frozen=True)
class Problem:
    """A pair, prepared once for the package and once for plain PyTorch.

    Attributes
    ----------
    pair
        What `vp.run` gets.
    inputs
        `clean` and `corrupted` (the pair's other image) → what the model's forward takes, batch 1.
    answer
        The answer's token.
    groups
        Position group of the text stack → its indices.
    """

    pair: vp.Pair
    inputs: Mapping[str, Mapping[str, Tensor]]
    answer: int
    groups: Mapping[str, Sequence[int]]

    def indices(self, label: str) -> list[int]:
        """Where a group is, or one position by its number."""
        return list(self.groups[label]) if label in self.groups else [int(label)]


def make_problem(model: Model, shape: Shape, regions: Regions) -> Problem:
    """A semantic image pair whose answer and foil are the words most likely in its clean and its corrupted run."""
    module, tokenizer = model.envoy._module, model.description.processor.tokenizer
    text = QUESTION[shape.family]
    clean, corrupted = picture(shape.image, seed=0), picture(shape.image, seed=1)
    inputs = {"clean": _inputs(model, clean, text), "corrupted": _inputs(model, corrupted, text)}
    cells = _regions(shape, regions)
    start = text.index(SUBJECT)
    pair = vp.Pair(
        id="0",
        clean=vp.Prompt(clean, text),
        corrupted=vp.Prompt(corrupted, text),
        answer="red",
        foil="blue",
        spans={"subject": (start, start + len(SUBJECT))},
        regions={name: _pixels(cell, shape.patch) for name, cell in cells.items()},
    )
    words = [index for word, index in tokenizer.get_vocab().items() if word.isalpha()]
    likely: list[int] = []
    for kind in ("clean", "corrupted"):
        logits = naive.logits(module, inputs[kind])
        likely.append(max((index for index in words if index not in likely), key=lambda i: float(logits[i])))
    answer, foil = tokenizer.convert_ids_to_tokens(likely)
    groups = _groups(inputs["clean"]["input_ids"][0].tolist(), text, model, shape, cells)
    return Problem(replace(pair, answer=answer, foil=foil), inputs, likely[0], groups)


def picture(size: int, seed: int) -> Image.Image:
    """Seven by seven blocks of random colours."""
    colors = np.random.default_rng(seed).integers(0, 256, (GRID, GRID, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((size, size), Image.Resampling.NEAREST)


def _inputs(model: Model, image: Image.Image, text: str) -> dict[str, Tensor]:
    processor = model.description.processor
    inline = model.description.config.model_type == "llava"
    made = processor(images=image, text=f"USER: <image>\n{text} ASSISTANT:" if inline else text, return_tensors="pt")
    inputs = {name: made[name].to(model.device) for name in ("input_ids", "attention_mask", "pixel_values")}
    inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, model.dtype))
    if not inline:
        inputs["decoder_input_ids"] = torch.tensor([[processor.tokenizer.bos_token_id]], device=model.device)
    return inputs


def _regions(shape: Shape, regions: Regions) -> dict[str, Bounds]:
    """Name → rows and columns of patches, [top, left, bottom, right)."""
    side = shape.side
    if regions == "none":
        return {}
    if regions == "object":
        return {"object": (side // 4, side // 4, side // 2, side // 2)}
    edges = [round(side * i / GRID) for i in range(GRID + 1)]
    return {
        f"r{row}c{col}": (edges[row], edges[col], edges[row + 1], edges[col + 1])
        for row in range(GRID)
        for col in range(GRID)
    }


def _pixels(cell: Bounds, patch: int) -> Bounds:
    top, left, bottom, right = (edge * patch for edge in cell)
    return left, top, right, bottom


def _groups(
    ids: Sequence[int], text: str, model: Model, shape: Shape, regions: Mapping[str, Bounds]
) -> dict[str, list[int]]:
    tokenizer: Any = model.description.processor.tokenizer
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(ids)) if list(ids[i : i + len(words)]) == words)
    before = tokenizer(text[: text.index(SUBJECT)], add_special_tokens=False)["input_ids"]
    groups = {
        "last": [len(ids) - 1],
        "question": list(range(start, start + len(words))),
        "subject": [start + len(before)],
    }
    if shape.family == "llava":
        first, side = list(ids).index(model.description.config.image_token_id), shape.side
        groups["image"] = list(range(first, first + side**2))
        for name, (top, left, bottom, right) in regions.items():
            places = [first + row * side + col for row in range(top, bottom) for col in range(left, right)]
            groups[f"image:{name}"] = places
        covered = {i for name in regions for i in groups[f"image:{name}"]}
        groups["image:other"] = [i for i in groups["image"] if i not in covered]
    return groups
