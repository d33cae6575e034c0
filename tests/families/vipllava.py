"""ViP-LLaVA: LLaVA whose projector gets several vision layers' patches side by side, the class token always dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tests.families import kit
from tests.families.llava import (
    EMBEDS,
    IMAGE,
    PATCH,
    SIDE,
    TOKENS,
    Listed,
    cropped,
    grid,
    in_text,
    numbered,
    save,
    text_shape,
    towers,
    vicuna_tokenizer,
    vision_shape,
)

TEMPLATE = (
    "{% for message in messages %}{{ '###' + {'user': 'Human', 'assistant': 'Assistant'}[message['role']] + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '###Assistant:' }}{% endif %}"
)


def _patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, Listed]:
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    tiles = [grid(image, 0, cropped(size, side), size, side, patch) for image, size in enumerate(sizes)]
    seen = [one for image, patches in enumerate(tiles) for one in (kit.Patch(image, kind="class"), *patches)]
    handed = [one for patches in tiles for one in patches]
    return {
        "vision": numbered(seen),
        "image_embeds": numbered(handed),
        "language": in_text(inputs, config.image_token_id, handed),
    }


def _build(folder: Path) -> None:
    """Of four vision layers the outputs of the third, second and first are read, in that order."""
    tokenizer = vicuna_tokenizer()
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**vision_shape(layers=4)),
        text_config=LlamaConfig(**text_shape(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=[-2, -3, 1],
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    save(folder, VipLlavaForConditionalGeneration(config), processor, seed=41)


KNOWN = kit.Known(
    name="vipllava",
    build=_build,
    encode=kit.ask,
    towers=towers(vision_layers=4, read=3),
    embeds=EMBEDS,
    tokens=TOKENS,
    patches=_patches,
)
