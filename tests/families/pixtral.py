"""Pixtral: LLaVA's class around Pixtral's tower, which sees a picture in its own shape, and Mistral."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig, PixtralVisionConfig
from transformers.models.pixtral import image_processing_pil_pixtral as pillow

from tests.families import kit
from tests.families.kit import Known, Patch, Place, Tower

LONGEST, PATCH = 64, 16

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST]' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '[IMG]' }}{% else %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '[/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def processor_class() -> Any:
    """PixtralProcessor, whose module takes one function from an image processor that wants torchvision; the one for
    Pillow has it too."""
    wanted = "transformers.models.pixtral.image_processing_pixtral"
    held = sys.modules.get(wanted)
    sys.modules[wanted] = pillow
    try:
        return importlib.import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    finally:
        if held is None:
            del sys.modules[wanted]
        else:
            sys.modules[wanted] = held


def processor(patch: int = PATCH, merge: int = 1) -> Any:
    """The processor that both families with Pixtral's tower have, made of small parts."""
    tokenizer = kit.byte_pairs(
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"],
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
    )
    images = pillow.PixtralImageProcessorPil(
        size={"longest_edge": LONGEST}, patch_size={"height": patch, "width": patch}
    )
    return processor_class()(images, tokenizer, patch_size=patch, spatial_merge_size=merge, chat_template=TEMPLATE)


def text_config(tokenizer: Any) -> MistralConfig:
    return MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        sliding_window=None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def vision_config(patch: int = PATCH) -> PixtralVisionConfig:
    return PixtralVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=LONGEST,
        patch_size=patch,
    )


def _build(folder: Path) -> None:
    whole = processor()
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(whole.tokenizer),
        image_token_index=whole.image_token_id,
        image_seq_length=1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config)
    kit.randomise(model)
    model.save_pretrained(folder)
    whole.save_pretrained(folder)


def _patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """A picture is stretched a little to whole tokens; in the text a row of tokens ends with [IMG_BREAK], the last one
    with [IMG_END]."""
    patch = config.vision_config.patch_size
    token = patch * getattr(config, "spatial_merge_size", 1)
    marked = iter((inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist())
    sight: list[Patch] = []
    seen: list[Patch] = []
    text: list[tuple[int, Patch]] = []
    for i, (size, shape) in enumerate(zip(sizes, inputs.get("image_sizes", ()), strict=True)):
        height, width = shape.tolist()
        sight += [one for row in _grid(i, size, height // patch, width // patch) for one in row]
        for row in _grid(i, size, height // token, width // token):
            seen += row
            text += [(next(marked), one) for one in row]
            text.append((text[-1][0] + 1, Patch(image=i, row=row[0].row, kind="separator")))
    return {"vision": list(enumerate(sight)), "image_embeds": list(enumerate(seen)), "language": text}


def _grid(image: int, size: tuple[int, int], rows: int, columns: int) -> list[list[Patch]]:
    dx, dy = size[0] / columns, size[1] / rows
    return [
        [Patch(image=image, row=r, column=c, box=(c * dx, r * dy, (c + 1) * dx, (r + 1) * dy)) for c in range(columns)]
        for r in range(rows)
    ]


_SIGHT = "model.vision_tower.transformer.layers.{layer}"
_TEXT = "model.language_model.layers.{layer}"
_TOWERS = {
    "vision": Tower(
        layers=3,
        heads=4,
        places=kit.places(_SIGHT, "attention.o_proj", "feed_forward", "feed_forward.down_proj", attn_out="attention"),
    ),
    "language": Tower(
        layers=3,
        heads=4,
        places=kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj", attn_out="self_attn"),
    ),
}


def known(name: str, build: Callable[[Path], None]) -> Known:
    return Known(
        name=name,
        build=build,
        encode=kit.ask_whole,
        towers=_TOWERS,
        embeds=Place("model.multi_modal_projector"),
        tokens=Place("model.language_model.embed_tokens"),
        patches=_patches,
        processor=lambda folder: processor_class().from_pretrained(folder),
    )


KNOWN = known("pixtral", _build)
