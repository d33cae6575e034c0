"""Language models without an image encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.families import kit
from tests.families.kit import Inputs, Known, Place, Tower, byte_pairs, pieces, randomise

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

LLAMA_CHAT = """{{- bos_token }}{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}{{- ' ' + message['content'] + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""

QWEN_CHAT = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

GEMMA_CHAT = """{{- bos_token }}{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""


def build_llama(folder: Path) -> None:
    tokenizer = _begins_with("<s>", pieces(("<s>", "</s>"), bos_token="<s>", eos_token="</s>"))
    tokenizer.chat_template = LLAMA_CHAT
    _save(LlamaForCausalLM(LlamaConfig(**SIZES, **_ids(tokenizer))), tokenizer, folder)


def build_qwen2(folder: Path) -> None:
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = byte_pairs(names, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = QWEN_CHAT
    _save(Qwen2ForCausalLM(Qwen2Config(**SIZES, **_ids(tokenizer))), tokenizer, folder)


def build_gemma2(folder: Path) -> None:
    names = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
    tokenizer = _begins_with("<bos>", pieces(names, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"))
    tokenizer.chat_template = GEMMA_CHAT
    config = Gemma2Config(**SIZES, **_ids(tokenizer), head_dim=8, query_pre_attn_scalar=8)
    _save(Gemma2ForCausalLM(config), tokenizer, folder, read_out=0.35)


def build_phi(folder: Path) -> None:
    tokenizer = byte_pairs(("<|endoftext|>",), bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    _save(PhiForCausalLM(PhiConfig(**SIZES, **_ids(tokenizer))), tokenizer, folder)


def build_gpt2(folder: Path) -> None:
    tokenizer = byte_pairs(("<|endoftext|>",), bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    config = GPT2Config(n_positions=256, n_embd=32, n_layer=3, n_head=4, **_ids(tokenizer))
    _save(GPT2LMHeadModel(config), tokenizer, folder, read_out=0.35)


def _begins_with(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    first = (name, tokenizer.convert_tokens_to_ids(name))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{name} $A", special_tokens=[first])
    return tokenizer


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path, read_out: float = 1.0) -> None:
    randomise(model)
    with torch.no_grad():
        model.lm_head.weight *= read_out
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _chat(tokenizer: Any, images: Sequence[Image.Image], text: str) -> Inputs:
    _no(images)
    messages = [{"role": "user", "content": text}]
    made = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    return dict(made)


def _plain(tokenizer: Any, images: Sequence[Image.Image], text: str) -> Inputs:
    _no(images)
    return dict(tokenizer(text, return_tensors="pt"))


def _instruct(tokenizer: Any, images: Sequence[Image.Image], text: str) -> Inputs:
    return _plain(tokenizer, images, f"Instruct: {text}\nOutput:")


def _no(images: Sequence[Image.Image]) -> None:
    if images:
        raise ValueError("a language model takes no image")


# Gemma 2's norms after attention and MLP come after these; Phi's attention and MLP both read the layer's input.
LLAMA = kit.places("model.layers.{layer}", "self_attn.o_proj", "mlp", "mlp.down_proj")
PHI = {
    **LLAMA,
    "attn_out": Place("model.layers.{layer}.self_attn.dense"),
    "attn_context": Place("model.layers.{layer}.self_attn.dense", "input"),
    "mlp_neuron": Place("model.layers.{layer}.mlp.fc2", "input"),
}
GPT2 = kit.places("transformer.h.{layer}", "attn.c_proj", "mlp", "mlp.c_proj")


def _known(
    name: str,
    build: Callable[[Path], None],
    encode: Callable[[Any, Sequence[Image.Image], str], Inputs],
    places: dict[str, Place] = LLAMA,
    tokens: str = "model.embed_tokens",
) -> Known:
    return Known(
        name=name,
        build=build,
        encode=encode,
        towers={"language": Tower(3, 4, places)},
        embeds=None,  # type: ignore[arg-type]
        tokens=Place(tokens),
        patches=lambda inputs, config, sizes: {},
        processor=AutoTokenizer.from_pretrained,
    )


KNOWN = (
    _known("llama", build_llama, _chat),
    _known("qwen2", build_qwen2, _chat),
    _known("gemma2", build_gemma2, _chat),
    _known("phi", build_phi, _instruct, PHI),
    _known("gpt2", build_gpt2, _plain, GPT2, "transformer.wte"),
)
