"""InstructBLIP with a LLaMA (`instructblip`) and with a Flan-T5 (`instructblip_t5`): as BLIP-2, but the Q-Former reads
the question, in its own tokens, after the queries.

Its cross-attention and `output_query` see the queries only, the first positions; the question's tokens have an MLP of
their own (`output`), and are not among the positions that are listed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import processors
from torch import nn
from transformers import (
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from tests.families import kit
from tests.families.blip_2 import (
    PATCH,
    QFORMER,
    QUERIES,
    SIDE,
    T5_DECODER,
    T5_ENCODER,
    VISION,
    one_image,
    patches,
    unigram,
)
from tests.families.blip_itm import word_pieces
from tests.families.kit import Place, Tower

_LAYER = "language_model.model.layers.{layer}"
LLAMA = Tower(
    layers=3,
    heads=4,
    places=kit.places(_LAYER, "self_attn.o_proj", "mlp.down_proj"),
)


def build_llama(folder: Path) -> None:
    # As Vicuna's in the public checkpoint: a sequence begins with what is the end elsewhere.
    tokenizer = kit.pieces(
        ["<s>", "</s>", "[PAD]"], bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="[PAD]"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", tokenizer.bos_token_id)]
    )
    processor = _processor(tokenizer)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(InstructBlipForConditionalGeneration(_config(text, processor)), processor, folder)


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
        tie_word_embeddings=False,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = InstructBlipForConditionalGeneration(_config(text, processor))
    model.language_model.lm_head.weight = nn.Parameter(model.language_model.lm_head.weight.clone())
    _save(model, processor, folder)


def _processor(tokenizer: PreTrainedTokenizerFast) -> InstructBlipProcessor:
    """The processor adds `<image>` to the tokenizer."""
    questions = word_pieces(["[DEC]"])
    questions.bos_token = "[DEC]"
    pictures = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return InstructBlipProcessor(
        image_processor=pictures, tokenizer=tokenizer, qformer_tokenizer=questions, num_query_tokens=QUERIES
    )


def _config(text: Any, processor: Any) -> InstructBlipConfig:
    return InstructBlipConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        qformer_config={
            "vocab_size": len(processor.qformer_tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "cross_attention_frequency": 2,
            "max_position_embeddings": 64,
        },
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )


def _save(model: InstructBlipForConditionalGeneration, processor: Any, folder: Path) -> None:
    kit.randomise(model.eval())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    """The Q-Former gets the same words, template and all."""
    one_image(images)
    prompt = f"Question: {text} Short answer:"
    encoded: dict[str, torch.Tensor] = dict(processor(images=list(images), text=prompt, return_tensors="pt"))
    return encoded


def encode_t5(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    return {
        **encode(processor, images, text),
        "decoder_input_ids": torch.tensor([[processor.tokenizer.pad_token_id]]),
    }


KNOWN = (
    kit.Known(
        name="instructblip",
        build=build_llama,
        encode=encode,
        towers={"vision": VISION, "qformer": QFORMER, "language": LLAMA},
        embeds=Place("language_projection"),
        tokens=Place("language_model.model.embed_tokens"),
        patches=patches,
    ),
    kit.Known(
        name="instructblip_t5",
        build=build_t5,
        encode=encode_t5,
        towers={"vision": VISION, "qformer": QFORMER, "question_encoder": T5_ENCODER, "answer_decoder": T5_DECODER},
        embeds=Place("language_projection"),
        tokens=Place("language_model.shared"),
        patches=patches,
    ),
)
