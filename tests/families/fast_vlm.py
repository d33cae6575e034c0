"""FastVLM: a convolutional image encoder and Qwen 2. Its own encoder is timm's, which needs torchvision: a ConvNeXt, of
the same kind of output, [image, width, row, column], stands for it here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    ConvNextConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
)

from tests.families import kit
from tests.families.kit import Patch, Place

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIDE, STRIDE = 64, 16


def build(folder: Path) -> None:
    tokenizer = kit.byte_pairs(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
    )
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=STRIDE, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )
    config = FastVlmConfig(
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        ).to_dict(),
        vision_config=ConvNextConfig(
            num_stages=3, patch_size=4, hidden_sizes=[16, 16, 32], depths=[1, 1, 1], hidden_size=32
        ).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // STRIDE) ** 2,
    )
    model = FastVlmForConditionalGeneration(config)
    kit.randomise(model, seed=18)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    marks = "<image>" * len(images)
    prompt = f"{SYSTEM}<|im_start|>user\n{marks}\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return dict(processor(images=list(images) or None, text=prompt, return_tensors="pt"))


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """The middle square of a picture; positions see more than the cell of it that they stand for."""
    side = round(config.image_seq_length**0.5)
    found: list[Patch] = []
    for image, (width, height) in enumerate(sizes):
        step = min(width, height) / side
        x0, y0 = (width - min(width, height)) / 2, (height - min(width, height)) / 2
        for row in range(side):
            for column in range(side):
                x, y = x0 + column * step, y0 + row * step
                found.append(Patch(image, row=row, column=column, box=(x, y, x + step, y + step)))
    marks = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    return {"image_embeds": list(enumerate(found)), "language": list(zip(marks, found, strict=True))}


_TEXT = "model.language_model.layers.{layer}"

KNOWN = kit.Known(
    name="fast_vlm",
    build=build,
    encode=encode,
    towers={
        "language": kit.Tower(
            layers=3,
            heads=4,
            places={
                "resid_pre": Place(_TEXT, "input"),
                "resid_post": Place(_TEXT),
                "attn_out": Place(f"{_TEXT}.self_attn.o_proj"),
                "attn_context": Place(f"{_TEXT}.self_attn.o_proj", "input"),
                "mlp_out": Place(f"{_TEXT}.mlp"),
                "mlp_neuron": Place(f"{_TEXT}.mlp.down_proj", "input"),
            },
        ),
    },
    embeds=Place("model.multi_modal_projector"),
    tokens=Place("model.language_model.embed_tokens"),
    patches=patches,
)
