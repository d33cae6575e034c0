"""BLIP-2 with OPT (`blip_2_opt`) and with a Flan-T5 (`blip_2_t5`): a Q-Former's queries stand before the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from tests.families import kit
from tests.families.kit import Patch, Place, Tower

QUERIES, SIDE, PATCH = 8, 48, 12

VISION = Tower(
    layers=3,
    heads=4,
    places=kit.places("vision_model.encoder.layers.{layer}", "self_attn.projection", "mlp.fc2"),
)
# Post-norm, as BERT. Only every second layer, from the first on, has cross-attention; `attention` is BERT's `self`.
QFORMER = Tower(
    layers=3,
    heads=4,
    places={
        "resid_pre": Place("qformer.encoder.layer.{layer}", "input"),
        "resid_post": Place("qformer.encoder.layer.{layer}"),
        "attn_out": Place("qformer.encoder.layer.{layer}.attention.output.dense"),
        "attn_context": Place("qformer.encoder.layer.{layer}.attention.output.dense", "input"),
        "cross_attn_out": Place("qformer.encoder.layer.{layer}.crossattention.output.dense"),
        "cross_attn_context": Place("qformer.encoder.layer.{layer}.crossattention.output.dense", "input"),
        "mlp_out": Place("qformer.encoder.layer.{layer}.output_query.dense"),
        "mlp_neuron": Place("qformer.encoder.layer.{layer}.output_query.dense", "input"),
    },
)
_OPT = "language_model.model.decoder.layers.{layer}"
# fc1 and fc2 see rows and positions as one dimension: [batch · position, width].
OPT = Tower(
    layers=3,
    heads=4,
    places=kit.places(_OPT, "self_attn.out_proj", "fc2"),
)


def _t5(stack: str, mlp: int) -> dict[str, Place]:
    block = f"language_model.{stack}.block.{{layer}}"
    return {
        "resid_pre": Place(block, "input"),
        "resid_post": Place(block, part=0),
        "attn_out": Place(f"{block}.layer.0.SelfAttention.o"),
        "attn_context": Place(f"{block}.layer.0.SelfAttention.o", "input"),
        "mlp_out": Place(f"{block}.layer.{mlp}.DenseReluDense.wo"),
        "mlp_neuron": Place(f"{block}.layer.{mlp}.DenseReluDense.wo", "input"),
    }


T5_ENCODER = Tower(layers=3, heads=4, places=_t5("encoder", 1))
T5_DECODER = Tower(
    layers=3,
    heads=4,
    places={
        **_t5("decoder", 2),
        "cross_attn_out": Place("language_model.decoder.block.{layer}.layer.1.EncDecAttention.o"),
        "cross_attn_context": Place("language_model.decoder.block.{layer}.layer.1.EncDecAttention.o", "input"),
    },
)


def build_opt(folder: Path) -> None:
    tokenizer = kit.byte_pairs(
        ["<s>", "<pad>", "</s>", "<unk>"], bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )
    start = ("</s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[start]
    )
    processor = _processor(tokenizer)
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = _model(text, tokenizer)
    with torch.no_grad():  # the read-out is the token embeddings, which are large
        model.language_model.model.decoder.final_layer_norm.weight *= 0.3
        model.language_model.model.decoder.final_layer_norm.bias *= 0.3
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def build_t5(folder: Path) -> None:
    tokenizer = unigram(["<pad>", "</s>", "<unk>"], eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    processor = _processor(tokenizer)
    text = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # of what it once meant, only this is left: the read-out is not scaled
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = _model(text, tokenizer, untied=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _processor(tokenizer: PreTrainedTokenizerFast) -> Blip2Processor:
    """The processor adds `<image>` to the tokenizer."""
    pictures = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Blip2Processor(image_processor=pictures, tokenizer=tokenizer, num_query_tokens=QUERIES)


def _model(text: Any, tokenizer: PreTrainedTokenizerFast, untied: bool = False) -> Blip2ForConditionalGeneration:
    config = Blip2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        qformer_config={
            "vocab_size": 20,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "cross_attention_frequency": 2,
        },
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Blip2ForConditionalGeneration(config).eval()
    if untied:
        model.language_model.lm_head.weight = nn.Parameter(model.language_model.lm_head.weight.clone())
    kit.randomise(model)
    return model


def unigram(special: Sequence[str], **more: Any) -> PreTrainedTokenizerFast:
    """A Unigram model with ▁ for spaces, as T5 and XLM-RoBERTa have: whole words, and every character besides."""
    words = sorted({f"▁{word}" for sentence in kit.SENTENCES for word in sentence.split()})
    characters = sorted(set("".join(words)) | {chr(code) for code in range(33, 127)})
    vocabulary = [(token, 0.0) for token in special]
    vocabulary += [(word, -8.0) for word in words if len(word) > 1] + [(one, -12.0) for one in characters]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=list(special).index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more)


def encode_opt(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    one_image(images)
    return dict(processor(images=list(images), text=f"Question: {text} Answer:", return_tensors="pt"))


def encode_t5(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    one_image(images)
    encoded = dict(processor(images=list(images), text=f"Question: {text} Short answer:", return_tensors="pt"))
    return {**encoded, "decoder_input_ids": torch.tensor([[processor.tokenizer.pad_token_id]])}


def one_image(images: Sequence[Image.Image]) -> None:
    """More would be silently dropped: the processor writes placeholders for one, and the rest finds no place."""
    if len(images) != 1:
        raise ValueError(f"takes exactly one image, not {len(images)}")


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    latents = [Patch(column=i, kind="latent") for i in range(config.num_query_tokens)]
    places = (inputs["input_ids"][0] == config.image_token_id).nonzero().flatten().tolist()
    text = "language" if config.use_decoder_only_language_model else "question_encoder"
    return {
        "vision": grid(config.vision_config, sizes[0]),
        "qformer": list(enumerate(latents)),
        "image_embeds": list(enumerate(latents)),
        text: list(zip(places, latents, strict=True)),
    }


def grid(vision: Any, size: tuple[int, int]) -> list[tuple[int, Patch]]:
    """A class token, then the patches of a picture that was stretched to a square."""
    side = vision.image_size // vision.patch_size
    wide, high = size[0] / side, size[1] / side
    found = [(0, Patch(kind="class"))]
    for i in range(side * side):
        y, x = divmod(i, side)
        found.append((i + 1, Patch(row=y, column=x, box=(x * wide, y * high, (x + 1) * wide, (y + 1) * high))))
    return found


KNOWN = (
    kit.Known(
        name="blip_2_opt",
        build=build_opt,
        encode=encode_opt,
        towers={"vision": VISION, "qformer": QFORMER, "language": OPT},
        embeds=Place("language_projection"),
        tokens=Place("language_model.model.decoder.embed_tokens"),
        patches=patches,
    ),
    kit.Known(
        name="blip_2_t5",
        build=build_t5,
        encode=encode_t5,
        towers={"vision": VISION, "qformer": QFORMER, "question_encoder": T5_ENCODER, "answer_decoder": T5_DECODER},
        embeds=Place("language_projection"),
        tokens=Place("language_model.shared"),
        patches=patches,
    ),
)
