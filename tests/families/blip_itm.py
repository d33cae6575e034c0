"""BLIP for image-text matching (`blip_itm`): a text encoder reads the picture through cross-attention in every layer,
and a head over its first position says whether the two go together: logits are [no, yes]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
    PreTrainedTokenizerFast,
)

from tests.families import kit
from tests.families.blip_2 import VISION, grid, one_image
from tests.families.kit import Patch, Place, Tower

SIDE, PATCH = 48, 12

_LAYER = "text_encoder.encoder.layer.{layer}"
# Post-norm, as BERT: `output` is LayerNorm(dense(h) + residual), the contribution is what `output.dense` gives.
TEXT = Tower(
    layers=3,
    heads=4,
    places={
        "resid_pre": Place(_LAYER, "input"),
        "resid_post": Place(_LAYER),
        "attn_out": Place(f"{_LAYER}.attention.output.dense"),
        "attn_context": Place(f"{_LAYER}.attention.output.dense", "input"),
        "cross_attn_out": Place(f"{_LAYER}.crossattention.output.dense"),
        "cross_attn_context": Place(f"{_LAYER}.crossattention.output.dense", "input"),
        "mlp_out": Place(f"{_LAYER}.output.dense"),
        "mlp_neuron": Place(f"{_LAYER}.output.dense", "input"),
    },
)


def build(folder: Path) -> None:
    tokenizer = word_pieces(["[DEC]", "[ENC]"])
    config = BlipConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"),
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        image_text_hidden_size=16,
    )
    model = BlipForImageTextRetrieval(config).eval()
    kit.randomise(model, gain=2)
    with torch.no_grad():
        model.itm_head.bias[0] += 3  # some pictures match, some do not
    model.save_pretrained(folder)
    pictures = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    BlipProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)


def word_pieces(special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """BERT's uncased WordPiece: whole words, and every character at the start and inside of one besides."""
    words = sorted({word for sentence in kit.SENTENCES for word in sentence.lower().split() if word.isalpha()})
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *[f"##{one}" for one in characters], *words]
    tokens = {token: i for i, token in enumerate(dict.fromkeys([*known, *special]))}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokens["[CLS]"]), ("[SEP]", tokens["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(special),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    """No template: the text is what is matched; it begins with [CLS], where the answer is read."""
    one_image(images)
    return dict(processor(images=list(images), text=text, return_tensors="pt"))


def patches(inputs: kit.Inputs, config: Any, sizes: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, Patch]]]:
    """The text's own sequence holds no image; the class token is handed on with the patches."""
    found = grid(config.vision_config, sizes[0])
    return {"vision": found, "image_embeds": found}


def logits(out: Any) -> torch.Tensor:
    return out.itm_score[0]


KNOWN = kit.Known(
    name="blip_itm",
    build=build,
    encode=encode,
    towers={"vision": VISION, "question_encoder": TEXT},
    embeds=Place("text_encoder", "input", "encoder_hidden_states"),
    tokens=Place("text_encoder.embeddings.word_embeddings"),
    patches=patches,
    logits=logits,
)
