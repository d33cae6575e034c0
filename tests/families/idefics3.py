"""Idefics 3: SigLIP and LLaMA 3; a picture is cut into tiles with names, 2 × 2 patches are one image position."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import processors
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from tests.families import kit
from tests.families.kit import Patch, Place

ROWS_AND_COLUMNS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
TURNS = (
    "{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TILE, PATCH, POSITIONS = 24, 6, 4


def build(folder: Path) -> None:
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<global-img>", *ROWS_AND_COLUMNS)
    tokenizer = kit.byte_pairs(
        special, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
    )
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 3 * TILE}, max_image_size={"longest_edge": TILE})
    # Adds <fake_token_around_image>, <image> and <end_of_utterance> to the tokenizer.
    processor = Idefics3Processor(
        pictures, tokenizer, image_seq_len=POSITIONS, chat_template="<|begin_of_text|>" + TURNS
    )
    config = Idefics3Config(
        text_config=text(tokenizer).to_dict(),
        vision_config=Idefics3VisionConfig(**vision()).to_dict(),
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Idefics3ForConditionalGeneration(config)
    kit.randomise(model, seed=13)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def text(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
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


def vision() -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
    }


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    said = ":" + "<image>" * len(images) if images else ": "
    prompt = f"<|begin_of_text|>User{said}{text}<end_of_utterance>\nAssistant:"
    return dict(processor(images=list(images) or None, text=prompt, add_special_tokens=False, return_tensors="pt"))


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    side = config.vision_config.image_size // config.vision_config.patch_size
    vision: list[Patch] = []
    embeds: list[Patch] = []
    runs = image_runs(inputs["input_ids"][0].tolist(), config.image_token_id)
    shapes = grids(inputs["input_ids"][0].tolist(), runs)
    for image, ((rows, columns), (width, height)) in enumerate(zip(shapes, sizes, strict=True)):
        for tile in [*range(rows * columns), -1]:
            box = (0.0, 0.0, float(width), float(height))
            if tile >= 0:
                row, column = divmod(tile, columns)
                dx, dy = width / columns, height / rows
                box = (column * dx, row * dy, (column + 1) * dx, (row + 1) * dy)
            vision += cells(image, tile, side, box)
            embeds += cells(image, tile, side // config.scale_factor, box)
    return {
        "vision": list(enumerate(vision)),
        "image_embeds": list(enumerate(embeds)),
        "language": list(zip([i for run in runs for i in run], embeds, strict=True)),
    }


def image_runs(ids: Sequence[int], mark: int) -> list[list[int]]:
    """Positions of the image's marks, a list a run of them."""
    return [list(run) for here, run in groupby(range(len(ids)), lambda i: ids[i] == mark) if here]


def grids(ids: Sequence[int], runs: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Rows and columns of each picture's tiles (0, 0 where it is only seen whole).

    Before a tile stand `<fake_token_around_image>` and its name; a row ends with a line break, and last of a picture
    comes the whole, whose name the last tile of all tells.
    """
    found: list[tuple[int, int]] = []
    tiles = rows = 0
    for number, run in enumerate(runs):
        if ids[run[0] - 1] == ids[runs[-1][0] - 1]:
            found.append((rows, tiles // max(1, rows)))
            tiles = rows = 0
            continue
        tiles += 1
        rows += tiles == 1 or run[0] - runs[number - 1][-1] > 3
    return found


def cells(image: int, tile: int, side: int, box: tuple[float, float, float, float]) -> list[Patch]:
    """The patches of a box that is cut into `side` rows of as many columns."""
    xs = [box[0] + (box[2] - box[0]) * i / side for i in range(side + 1)]
    ys = [box[1] + (box[3] - box[1]) * i / side for i in range(side + 1)]
    return [
        Patch(image, tile, row, column, box=(xs[column], ys[row], xs[column + 1], ys[row + 1]))
        for row in range(side)
        for column in range(side)
    ]


_VISION = "model.vision_model.encoder.layers.{layer}"
_TEXT = "model.text_model.layers.{layer}"

TOWERS = {
    "vision": kit.Tower(
        layers=3,
        heads=2,
        places=kit.places(_VISION, "self_attn.out_proj", "mlp", "mlp.fc2"),
    ),
    "language": kit.Tower(
        layers=3,
        heads=4,
        places=kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj"),
    ),
}

KNOWN = kit.Known(
    name="idefics3",
    build=build,
    encode=encode,
    towers=TOWERS,
    embeds=Place("model.connector"),
    tokens=Place("model.text_model.embed_tokens"),
    patches=patches,
)
