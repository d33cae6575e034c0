"""GIT: a decoder that gets the image in front of its text without a placeholder for it in the text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BertTokenizer, CLIPImageProcessorPil, GitConfig, GitForCausalLM, GitProcessor, GitVisionConfig

from tests.families import kit
from tests.families.kit import SENTENCES, Inputs, Known, Patch, Place, Tower, randomise

SIDE = 64
"""Of the square that is cut out of a picture."""


def word_pieces() -> BertTokenizer:
    """BERT's own tokenizer over the words of the sentences and, for all others, single characters."""
    words = [word for sentence in SENTENCES for word in sentence.lower().split() if word.isalpha()]
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{one}" for one in characters), *words]
    return BertTokenizer(vocab={name: i for i, name in enumerate(dict.fromkeys(names))})


def build(folder: Path) -> None:
    tokenizer = word_pieces()
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    GitProcessor(pictures, tokenizer).save_pretrained(folder)
    config = GitConfig(
        vision_config=GitVisionConfig(
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=16,
        ),
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=128,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GitForCausalLM(config)
    randomise(model)
    model.save_pretrained(folder)


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> Inputs:
    """[CLS] and the question, without [SEP]: so the checkpoints for visual question answering were trained."""
    if len(images) > 1:
        raise ValueError("GIT takes one image; several are a video's frames, for which it has other checkpoints")
    words = processor.tokenizer
    ids = [words.cls_token_id, *words(text, add_special_tokens=False)["input_ids"]]
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    return {**inputs, **(processor(images=list(images), return_tensors="pt") if images else {})}


def patches(inputs: Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    patch = config.vision_config.patch_size
    shown = []
    for size in sizes:
        shown.append(Patch(kind="class"))
        for row, column in product(range(SIDE // patch), repeat=2):
            box = [edge * patch for edge in (column, row, column + 1, row + 1)]
            shown.append(Patch(row=row, column=column, box=_uncropped(box, size)))
    listed = list(enumerate(shown))
    return {"vision": listed, "image_embeds": listed, "language": listed}


def _uncropped(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Pixels of the square in the picture's middle → pixels of the picture, whose shorter side was resized to it."""
    resized = [SIDE * length // min(size) for length in size]
    cut = [(length - SIDE) // 2 for length in resized]
    x0, y0, x1, y1 = ((edge + cut[i % 2]) * size[i % 2] / resized[i % 2] for i, edge in enumerate(box))
    return x0, y0, x1, y1


VISION = kit.places("git.image_encoder.vision_model.encoder.layers.{layer}", "self_attn.out_proj", "mlp", "mlp.fc2")
# As BERT: `attention.output` and `output` add the residual and norm, only their `dense` is the contribution.
LANGUAGE = kit.places("git.encoder.layer.{layer}", "attention.output.dense", "output.dense")

KNOWN = Known(
    name="git",
    build=build,
    encode=encode,
    towers={"vision": Tower(3, 2, VISION), "language": Tower(3, 4, LANGUAGE)},
    embeds=Place("git.visual_projection"),
    tokens=Place("git.embeddings.word_embeddings"),
    patches=patches,
)
