"""Two sweeps written by hand in plain PyTorch, each for its one model and method: how fast could the engine be?

Both run the two base runs whole, then one pass up the layers that the cells of each layer join when it is their turn.
Lower layers and images are never run again for a cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import naive
import torch
from problem import Problem
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import rotate_half

ROWS = 128
"""Rows whose attention is computed at once, so that their scores stay in the processor's cache."""


class Recorder:
    """Keeps what goes into or comes out of modules while a run goes on."""

    def __init__(self) -> None:
        self.values: dict[Any, Tensor] = {}
        self.handles: list[RemovableHandle] = []

    def input(self, key: Any, module: nn.Module, position: int | None = None) -> None:
        def keep(_: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            self.values[key] = value[0] if position is None else value[0, position]

        self.handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))

    def output(self, key: Any, module: nn.Module) -> None:
        def keep(_: nn.Module, args: Any, value: Tensor) -> None:
            self.values[key] = value[0]

        self.handles.append(module.register_forward_hook(keep))

    def run(self, module: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
        """One forward pass, after which nothing more is kept."""
        with naive.hooked(self.handles):
            return module(**inputs, **options)


@torch.no_grad()
def llava_heads(module: Any, problem: Problem) -> Tensor:
    """Log-probability of the answer, [site, layer, head, position], with each head's z restored at the last position.

    Cells are rows that stand at the last position, over one cache of the corrupted run's keys and values.
    """
    layers, heads = module.model.language_model.layers, module.config.text_config.num_attention_heads
    clean, corrupted = Recorder(), Recorder()
    for index, layer in enumerate(layers):
        clean.input(index, layer.self_attn.o_proj, -1)
        corrupted.input(index, layer, -1)
    clean.run(module, problem.inputs["clean"], use_cache=False, logits_to_keep=1)
    cache = DynamicCache(config=module.config.text_config)
    corrupted.run(module, problem.inputs["corrupted"], past_key_values=cache, logits_to_keep=1)
    last = problem.inputs["clean"]["input_ids"].shape[1] - 1
    hidden = corrupted.values[0][:0].reshape(0, len(corrupted.values[0]))
    where = torch.tensor([[last]], device=hidden.device)
    cosine, sine = (part[0] for part in module.model.language_model.rotary_emb(hidden, where))
    for index, layer in enumerate(layers):
        start = len(hidden)
        hidden = torch.cat([hidden, corrupted.values[index].expand(heads, -1)])
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        q, k, v = (
            projection(normed).unflatten(-1, (heads, -1))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = (part * cosine + rotate_half(part) * sine for part in (q, k))
        prefix = cache.layers[index]
        z = _attend_to_prefix_and_self(q, k, v, prefix.keys[0, :, :last], prefix.values[0, :, :last])
        own = torch.arange(heads, device=z.device)
        z[start + own, own] = clean.values[index].unflatten(-1, (heads, -1))
        hidden = hidden + attention.o_proj(z.flatten(1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    logits = module.lm_head(module.model.language_model.norm(hidden)).float()
    return logits.log_softmax(-1)[:, problem.answer].reshape(1, len(layers), heads, 1)


def _attend_to_prefix_and_self(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """z, [row, head, d]: q, k and v are [row, head, d], what all rows see before themselves [head, position, d]."""
    scale, parts = q.shape[-1] ** -0.5, []
    for rows in torch.arange(len(q), device=q.device).split(ROWS):
        query = q[rows].transpose(0, 1) * scale
        alone = (query * k[rows].transpose(0, 1)).sum(-1, keepdim=True)
        weights = torch.cat([query @ keys.transpose(1, 2), alone], -1).float().softmax(-1).to(v.dtype)
        found = weights[..., :-1] @ values + weights[..., -1:] * v[rows].transpose(0, 1)
        parts.append(found.transpose(0, 1))
    return torch.cat(parts)


BLIP_SITES = ("attn_out", "cross_attn_out", "mlp_out")


@torch.no_grad()
def blip_modules(module: Any, problem: Problem) -> Tensor:
    """Log-probability of the answer, [site, layer, 1, position], with each module's output at each token restored.

    Sites are in the order of `BLIP_SITES`. Rows share the image's keys and values at every cross-attention.
    """
    layers = module.text_encoder.encoder.layer
    clean, corrupted = Recorder(), Recorder()
    for index, layer in enumerate(layers):
        for site, point in zip(BLIP_SITES, _points(layer), strict=True):
            clean.output((site, index), point)
        corrupted.input(index, layer)
        corrupted.output(("key", index), layer.crossattention.self.key)
        corrupted.output(("value", index), layer.crossattention.self.value)
    clean.run(module, problem.inputs["clean"])
    corrupted.run(module, problem.inputs["corrupted"])
    hidden = corrupted.values[0][None][:0]
    for index, layer in enumerate(layers):
        hidden = torch.cat([hidden, corrupted.values[index].expand(len(BLIP_SITES) * hidden.shape[1], -1, -1)])
        image = corrupted.values["key", index], corrupted.values["value", index]
        hidden = _blip_layer(layer, hidden, image, [clean.values[site, index] for site in BLIP_SITES])
    start = problem.inputs["clean"]["decoder_input_ids"].expand(len(hidden), -1)
    logits = module.text_decoder(input_ids=start, encoder_hidden_states=hidden, use_cache=False).logits[:, -1].float()
    found = logits.log_softmax(-1)[:, problem.answer]
    return found.reshape(len(layers), len(BLIP_SITES), 1, -1).transpose(0, 1)


def _points(layer: Any) -> tuple[Any, Any, Any]:
    return layer.attention.output.dense, layer.crossattention.output.dense, layer.output.dense


def _blip_layer(layer: Any, hidden: Tensor, image: tuple[Tensor, Tensor], restored: Sequence[Tensor]) -> Tensor:
    """One layer on all rows, of which the last ones are this layer's cells: sites, then tokens."""
    tokens = hidden.shape[1]
    first = len(hidden) - len(restored) * tokens
    own = torch.arange(tokens, device=hidden.device)

    def restore(value: Tensor, site: int) -> Tensor:
        value[first + site * tokens + own, own] = restored[site]
        return value

    attention, crossed = layer.attention.self, layer.crossattention.self
    heads = attention.num_attention_heads
    q, k, v = (_split(part(hidden), heads) for part in (attention.query, attention.key, attention.value))
    z = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    hidden = layer.attention.output.LayerNorm(restore(layer.attention.output.dense(z), 0) + hidden)
    q = _split(crossed.query(hidden).flatten(0, 1)[None], heads)  # the rows' tokens are queries of one sequence
    k, v = (_split(part[None], heads) for part in image)
    z = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).reshape(hidden.shape)
    hidden = layer.crossattention.output.LayerNorm(restore(layer.crossattention.output.dense(z), 1) + hidden)
    out = restore(layer.output.dense(layer.intermediate(hidden)), 2)
    return layer.output.LayerNorm(out + hidden)


def _split(value: Tensor, heads: int) -> Tensor:
    """[row, position, width] → [row, head, position, d]."""
    return value.unflatten(-1, (heads, -1)).transpose(1, 2)
