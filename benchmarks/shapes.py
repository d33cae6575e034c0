"""Models of the sizes that sweeps are timed on: random weights, the bundled models' tokenizers, real processors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoProcessor,
    BlipConfig,
    BlipForQuestionAnswering,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

import vlm_patching as vp
from vlm_patching.models import Model, wrap


@dataclass(frozen=True)
class Shape:
    """The size of a model. Of BLIP the vision width is that of the text stacks, which attend to it."""

    family: Literal["llava", "blip"]
    layers: int
    heads: int
    width: int
    mlp: int
    vision_layers: int
    vision_heads: int
    vision_width: int
    vision_mlp: int
    image: int
    patch: int

    @property
    def side(self) -> int:
        """Patches along one side of a picture."""
        return self.image // self.patch

    def __str__(self) -> str:
        names = {"llava": "LLaVA", "blip": "BLIP for question answering"}
        return (
            f"{names[self.family]}: {self.layers} layers × {self.heads} heads, width {self.width}, MLP {self.mlp}; "
            f"vision {self.vision_layers} layers × {self.vision_heads} heads, width {self.vision_width}, MLP "
            f"{self.vision_mlp}; {self.image} px in {self.side} × {self.side} patches"
        )


SHAPES = {
    "llava": Shape("llava", 32, 32, 512, 1024, 4, 4, 128, 256, 336, 14),
    "blip": Shape("blip", 12, 12, 768, 3072, 12, 12, 768, 3072, 384, 16),
    "llava7b": Shape("llava", 32, 32, 4096, 11008, 24, 16, 1024, 4096, 336, 14),
}
SMALL = {
    "llava": Shape("llava", 5, 4, 32, 64, 3, 2, 32, 48, 98, 14),
    "blip": Shape("blip", 4, 2, 32, 64, 3, 2, 32, 48, 64, 16),
    "llava7b": Shape("llava", 4, 4, 64, 128, 3, 2, 32, 48, 98, 14),
}
BUNDLED = {"llava": "shapes-llava", "blip": "shapes-blip"}
LONGEST = {"llava": 2048, "blip": 512}
GAIN = {"llava": 2.0**0.5, "blip": 1.0}
BLIP_VISION_GAIN = 3.0
"""A matrix is drawn from N(0, gain² / fan_in): transformers' own initial weights give effects near zero. To BLIP's
text stacks, which attend to hundreds of random patches almost evenly, pictures look alike if vision mixes weakly."""


def build(shape: Shape, folder: Path, device: str, dtype: str, seed: int = 0) -> Model:
    """A model of a shape, as `vp.load_model` would have given it; its weights are made where they will be used.

    Parameters
    ----------
    folder
        Where configuration and processor are written to and described from.
    """
    processor = _processor(shape)
    make = {"llava": _llava, "blip": _blip}[shape.family]
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            module = make(shape, processor)
    finally:
        torch.set_default_dtype(before)
    _draw_weights(module, GAIN[shape.family])
    module.config.architectures = [type(module).__name__]
    module.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return wrap(module.eval(), vp.describe_model(str(folder)))


def _processor(shape: Shape) -> ProcessorMixin:
    processor = AutoProcessor.from_pretrained(vp.bundled_models()[BUNDLED[shape.family]])
    square = {"height": shape.image, "width": shape.image}
    if shape.family == "llava":
        processor.image_processor.size = {"shortest_edge": shape.image}
        processor.image_processor.crop_size = square
        processor.patch_size = shape.patch
    else:
        processor.image_processor.size = square
    processor.tokenizer.model_max_length = LONGEST[shape.family]
    return processor


def _text(shape: Shape, tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": LONGEST[shape.family],
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_mlp,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "image_size": shape.image,
        "patch_size": shape.patch,
    }


def _llava(shape: Shape, processor: Any) -> PreTrainedModel:
    tokenizer = processor.tokenizer
    text = _text(shape, tokenizer) | {"num_key_value_heads": shape.heads, "eos_token_id": tokenizer.eos_token_id}
    config: PreTrainedConfig = LlavaConfig(
        vision_config=CLIPVisionConfig(**_vision(shape)),
        text_config=LlamaConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids(processor.image_token),
        image_seq_length=shape.side**2,
        vision_feature_layer=-2,
    )
    return LlavaForConditionalGeneration(config)


def _blip(shape: Shape, processor: Any) -> PreTrainedModel:
    assert shape.width == shape.vision_width
    tokenizer = processor.tokenizer
    text = _text(shape, tokenizer) | {"sep_token_id": tokenizer.sep_token_id, "eos_token_id": tokenizer.sep_token_id}
    return BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=_vision(shape)))


def _draw_weights(module: PreTrainedModel, gain: float) -> None:
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "word_embeddings" in name or "embed_tokens" in name:
                weight.normal_(0.0, 1.0)
            elif "position_embedding" in name or "class_embedding" in name:
                weight.normal_(0.0, 0.5)
            elif weight.dim() > 1:
                stronger = BLIP_VISION_GAIN if "vision_model.encoder" in name else 1.0
                weight.normal_(0.0, stronger * gain * weight[0].numel() ** -0.5)
        if isinstance(module, BlipForQuestionAnswering):  # its unembedding is the embeddings, far too large for logits
            norm = module.text_decoder.cls.predictions.transform.LayerNorm
            norm.weight.mul_(2.0 * norm.weight.numel() ** -0.5)
