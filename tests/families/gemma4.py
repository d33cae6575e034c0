"""Gemma 4: pictures in their own shape, averaged, and text stacks of three kinds (small, dense, experts)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessorPil,
    Gemma4Processor,
    Gemma4TextConfig,
    Gemma4VisionConfig,
    ProcessorMixin,
)

from tests.families import kit
from tests.families.kit import Known, Patch, Place, Tower

PATCH, POOL, BUDGET = 6, 2, 70
"""The least number of tokens a picture that the image processor takes: 70 tokens of 2 × 2 patches."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)

SIZES: dict[str, dict[str, Any]] = {
    # E2B and E4B: embeddings of the tokens in every layer; the upper layers have no keys and values of their own.
    "gemma4": {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 16,
    },
    # 31B: image tokens see each other in sliding layers; in full ones keys are values, and heads are wider.
    "gemma4_dense": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "use_bidirectional_attention": "vision",
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0,
    },
    # 26B-A4B
    "gemma4_experts": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "use_bidirectional_attention": "vision",
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
}


class PicturesOnly(Gemma4Processor):
    """Less the video processor, which needs torchvision, and the one for sound."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.boi_token, self.eoi_token = tokenizer.boi_token, tokenizer.eoi_token
        self.audio_token, self.boa_token, self.eoa_token = (
            tokenizer.audio_token,
            tokenizer.boa_token,
            tokenizer.eoa_token,
        )


def _build(folder: Path, name: str) -> None:
    tokenizer = kit.pieces(
        ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>"],
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        padding_side="left",
        extra_special_tokens={
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|video|>"]})
    tokenizer.chat_template = TEMPLATE
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    ids["eos_token_id"] = tokenizer.eos_token_id
    text = Gemma4TextConfig(
        vocab_size=len(tokenizer),
        vocab_size_per_layer_input=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=len(SIZES[name]["layer_types"]),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=24,
        sliding_window=256,
        max_position_embeddings=512,
        final_logit_softcapping=30.0,
        **SIZES[name],
        **ids,
    )
    vision = Gemma4VisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        patch_size=PATCH,
        pooling_kernel_size=POOL,
        position_embedding_size=BUDGET * POOL,
    )
    config = Gemma4Config(
        text_config=text,
        vision_config=vision,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        audio_token_id=tokenizer.audio_token_id,
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_index=tokenizer.eoa_token_id,
        **ids,
    )
    model = Gemma4ForConditionalGeneration(config)
    kit.randomise(model)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key or key.endswith("scale"):
                weight += 1  # these multiply with the weight itself, other than the norms of Gemma 1 to 3
        for key, value in model.named_buffers():
            if key.endswith("layer_scalar"):
                value.fill_(0.8)
        # Tied: multiplied by √width going in, and read-out going out.
        model.model.language_model.embed_tokens.weight *= 1.5 * text.hidden_size**-0.5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Gemma4ImageProcessorPil(patch_size=PATCH, pooling_kernel_size=POOL, max_soft_tokens=BUDGET).save_pretrained(folder)


def _processor(folder: Path) -> PicturesOnly:
    """AutoProcessor makes a video processor too, and there is none without torchvision."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return PicturesOnly(
        AutoImageProcessor.from_pretrained(folder, backend="pil"), tokenizer, chat_template=tokenizer.chat_template
    )


def _encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    inputs = kit.ask_whole(processor, images, text)
    inputs.pop("num_soft_tokens_per_image", None)
    return inputs


def _patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """A picture is stretched to whole tokens, as large as the budget allows; its patches are padded to the budget."""
    sight: list[Patch] = []
    seen: list[Patch] = []
    for i, (size, places) in enumerate(zip(sizes, inputs.get("image_position_ids", ()), strict=True)):
        columns, rows = (places.amax(0) + 1).tolist()
        shown = _grid(i, size, rows, columns)
        sight += [*shown, *[Patch(image=i, kind="separator")] * (len(places) - len(shown))]
        pool = config.vision_config.pooling_kernel_size
        seen += _grid(i, size, rows // pool, columns // pool)
    marked = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    return {
        "vision": list(enumerate(sight)),
        "image_embeds": list(enumerate(seen)),
        "language": list(zip(marked, seen, strict=True)),
    }


def _grid(image: int, size: tuple[int, int], rows: int, columns: int) -> list[Patch]:
    dx, dy = size[0] / columns, size[1] / rows
    return [
        Patch(image=image, row=r, column=c, box=(c * dx, r * dy, (c + 1) * dx, (r + 1) * dy))
        for r in range(rows)
        for c in range(columns)
    ]


_SIGHT = "model.vision_tower.encoder.layers.{layer}"
_TEXT = "model.language_model.layers.{layer}"


def _known(name: str) -> Known:
    language = kit.places(_TEXT, "self_attn.o_proj", "mlp", "mlp.down_proj", attn_out="self_attn")
    if SIZES[name].get("enable_moe_block"):  # `mlp` and the experts, each after a norm of its own, are added first
        language["mlp_out"] = Place(f"{_TEXT}.post_feedforward_layernorm", "input")
        del language["mlp_neuron"]
    return Known(
        name=name,
        build=lambda folder: _build(folder, name),
        encode=_encode,
        towers={
            "vision": Tower(
                layers=2,
                heads=4,
                places=kit.places(_SIGHT, "self_attn.o_proj", "mlp", "mlp.down_proj", attn_out="self_attn"),
            ),
            "language": Tower(layers=len(SIZES[name]["layer_types"]), heads=4, places=language),
        },
        embeds=Place("model.embed_vision"),
        tokens=Place("model.language_model.embed_tokens"),
        patches=_patches,
        behind={"mm_token_type_ids": 0},
        processor=_processor,
    )


KNOWN = tuple(_known(name) for name in SIZES)
