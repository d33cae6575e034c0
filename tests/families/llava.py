"""LLaVA: a CLIP or SigLIP tower, a projector, and a decoder in whose token embeddings image features take places.

What its relatives in this folder share is here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from tests.families import kit

IMAGE = "<image>"
SIDE, PATCH = 48, 12
VISION_HEADS, HEADS = 2, 4
VISION_LAYERS, LAYERS = 3, 3

VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

VISION = kit.places("model.vision_tower.encoder.layers.{layer}", "self_attn.out_proj", "mlp.fc2")
LANGUAGE = kit.places("model.language_model.layers.{layer}", "self_attn.o_proj", "mlp.down_proj")
EMBEDS = kit.Place("model.multi_modal_projector")
TOKENS = kit.Place("model.language_model.embed_tokens")

Listed = list[tuple[int, kit.Patch]]
Look = Callable[[tuple[int, int], int], "Frame"]


def towers(read: int = VISION_LAYERS, vision_layers: int = VISION_LAYERS, layers: int = LAYERS) -> dict[str, kit.Tower]:
    return {
        "vision": kit.Tower(vision_layers, VISION_HEADS, VISION, read),
        "language": kit.Tower(layers, HEADS, LANGUAGE),
    }


class Frame(NamedTuple):
    """How pixel x, y of what a tower sees lies in the picture: at (x + left) / across, (y + top) / down."""

    left: float
    top: float
    across: float
    down: float


def stretched(size: tuple[int, int], side: int) -> Frame:
    """Resized to a square whatever its shape."""
    return Frame(0, 0, side / size[0], side / size[1])


def cropped(size: tuple[int, int], side: int) -> Frame:
    """Resized until the shorter edge fits, the middle of the longer one kept."""
    short = min(size)
    width, height = (side if edge == short else int(side * edge / short) for edge in size)
    return Frame((width - side) // 2, (height - side) // 2, width / size[0], height / size[1])


def padded(size: tuple[int, int], side: int) -> Frame:
    """Padded to a square on both sides of the shorter edge, then resized."""
    longer = max(size)
    scale = side / longer
    return Frame(-((longer - size[0]) // 2) * scale, -((longer - size[1]) // 2) * scale, scale, scale)


def box_of(
    frame: Frame, size: tuple[int, int], cell: tuple[float, float, float, float]
) -> tuple[float, float, float, float] | None:
    """Where a cell of what the tower sees is in the picture; None if it shows nothing but padding."""
    x0, x1 = (min(max((x + frame.left) / frame.across, 0.0), float(size[0])) for x in cell[::2])
    y0, y1 = (min(max((y + frame.top) / frame.down, 0.0), float(size[1])) for y in cell[1::2])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def grid(image: int, tile: int, frame: Frame, size: tuple[int, int], side: int, patch: int) -> list[kit.Patch]:
    """The patches of one square tile, row by row."""
    cells = [(row, column) for row in range(side // patch) for column in range(side // patch)]
    return [
        kit.Patch(image, tile, row, column, box=box_of(frame, size, (x, y, x + patch, y + patch)))
        for row, column in cells
        for x, y in [(column * patch, row * patch)]
    ]


def numbered(patches: Iterable[kit.Patch]) -> Listed:
    return list(enumerate(patches))


def in_text(inputs: kit.Inputs, image_token: int, patches: Sequence[kit.Patch]) -> Listed:
    """Image tokens of the prompt, in order, each with what it shows."""
    places = (inputs["input_ids"][0] == image_token).nonzero().flatten().tolist()
    return list(zip(places, patches, strict=True))


def vicuna_tokenizer() -> PreTrainedTokenizerFast:
    """Puts <s> before every text, as LLaMA's does."""
    tokenizer = kit.pieces(
        ["<s>", "</s>", IMAGE, "<pad>"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE],
    )
    start = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[start]
    )
    return tokenizer


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE, "<video>"]
    return kit.byte_pairs(
        special, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=special[1:]
    )


def text_shape(tokenizer: PreTrainedTokenizerFast, layers: int = LAYERS) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def vision_shape(layers: int = VISION_LAYERS, side: int = SIDE, patch: int = PATCH) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": VISION_HEADS,
        "image_size": side,
        "patch_size": patch,
    }


def save(folder: Path, model: Any, processor: Any, seed: int) -> None:
    kit.randomise(model, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]], look: Look) -> dict[str, Listed]:
    vision, full = config.vision_config, config.vision_feature_select_strategy == "full"
    has_class = vision.model_type == "clip_vision_model"
    seen: list[kit.Patch] = []
    handed: list[kit.Patch] = []
    for image, size in enumerate(sizes):
        patches = grid(image, 0, look(size, vision.image_size), size, vision.image_size, vision.patch_size)
        summary = [kit.Patch(image, kind="class")] if has_class else []
        seen += [*summary, *patches]
        handed += [*(summary if full else []), *patches]
    return {
        "vision": numbered(seen),
        "image_embeds": numbered(handed),
        "language": in_text(inputs, config.image_token_id, handed),
    }


def _build_clip(folder: Path) -> None:
    """LLaVA 1.5: the tower's last layer is not read, and its class token is dropped."""
    tokenizer = vicuna_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_shape()),
        text_config=LlamaConfig(**text_shape(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )
    save(folder, LlavaForConditionalGeneration(config), processor, seed=11)


def _build_full(folder: Path) -> None:
    """The class token is an image position of the text's too; pictures are padded to squares, not cropped."""
    tokenizer = vicuna_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_shape()),
        text_config=LlamaConfig(**text_shape(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2 + 1,
        vision_feature_layer=[1, -1],
        vision_feature_select_strategy="full",
    )
    processor = LlavaProcessor(
        LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_pad=True),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )
    save(folder, LlavaForConditionalGeneration(config), processor, seed=12)


def _build_siglip(folder: Path) -> None:
    """LLaVA Interleave: SigLIP has no class token, all its layers are read, and pictures are stretched."""
    tokenizer = qwen_tokenizer()
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**vision_shape(), vision_use_head=False),
        text_config=Qwen2Config(**text_shape(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHATML,
    )
    save(folder, LlavaForConditionalGeneration(config), processor, seed=13)


KNOWN = (
    kit.Known(
        name="llava",
        build=_build_clip,
        encode=kit.ask,
        towers=towers(read=2),
        embeds=EMBEDS,
        tokens=TOKENS,
        patches=lambda inputs, config, sizes: _patches(inputs, config, sizes, cropped),
    ),
    kit.Known(
        name="llava_full",
        build=_build_full,
        encode=kit.ask,
        towers=towers(),
        embeds=EMBEDS,
        tokens=TOKENS,
        patches=lambda inputs, config, sizes: _patches(inputs, config, sizes, padded),
    ),
    kit.Known(
        name="llava_siglip",
        build=_build_siglip,
        encode=kit.ask,
        towers=towers(),
        embeds=EMBEDS,
        tokens=TOKENS,
        patches=lambda inputs, config, sizes: _patches(inputs, config, sizes, stretched),
    ),
)
