"""Attention knockout and attention patterns by plain hooks: q, k, v, mask, softmax and z are computed by hand.

Neither the model's mask argument nor its attention function plays a part in what is computed here, so eager and SDPA
models give the same. Sites are ``"stack.attn_pattern"`` and ``"stack.cross_attn_pattern"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .patching import Model, Point, head_count, locate, run, stacks

# The input that says which keys are padding. Cross-attention is not here: BLIP attends to all image and all question
# positions, padded or not.
PADDING = {
    "language.attn_pattern": "attention_mask",
    "question_encoder.attn_pattern": "attention_mask",
    "answer_decoder.attn_pattern": "decoder_attention_mask",
}
CAUSAL = ("language.attn_pattern", "answer_decoder.attn_pattern")


def attention_module(model: Model, site: str, layer: int) -> nn.Module:
    """Return the module that holds the query, key and value projections of a site."""
    stack, component = site.split(".")
    names = {"attn_pattern": "attention.self", "cross_attn_pattern": "crossattention.self"}
    if stack in ("vision", "language"):
        names = {"attn_pattern": "self_attn"}
    if component not in names:
        raise ValueError(f"{site} is no attention pattern")
    return model.get_submodule(f"{stacks(model)[stack][0]}.{layer}.{names[component]}")


def context_point(model: Model, site: str, layer: int) -> Point:
    """Return the output projection of a site; its input is z."""
    return locate(model, site.replace("_pattern", "_context"), layer)


def rotate(value: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return rotary-embedded queries or keys, ``[head, position, d_head]``."""
    first, second = value.chunk(2, dim=-1)
    return value * cosine + torch.cat([-second, first], dim=-1) * sine


def project(model: Model, site: str, module: Any, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v, each ``[query head, position, d_head]``, from what the attention module is given."""
    stack, component = site.split(".")
    hidden = args[0] if args else kwargs["hidden_states"]
    if hasattr(module, "qkv"):
        flat = module.qkv(hidden).chunk(3, dim=-1)
    elif stack in ("vision", "language"):
        flat = (module.q_proj(hidden), module.k_proj(hidden), module.v_proj(hidden))
    else:
        source = kwargs["encoder_hidden_states"] if component == "cross_attn_pattern" else hidden
        flat = (module.query(hidden), module.key(source), module.value(source))
    heads = head_count(model, site)
    width = flat[0].shape[-1] // heads
    q, k, v = (value[0].unflatten(-1, (-1, width)).transpose(0, 1) for value in flat)
    if stack == "language":
        cosine, sine = (value[0] for value in kwargs["position_embeddings"])
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
    k, v = (value.repeat_interleave(heads // value.shape[0], dim=0) for value in (k, v))
    return q, k, v


def visible(site: str, inputs: dict[str, Tensor], queries: int, keys: int) -> Tensor:
    """Return which query sees which key in the clean model, bool ``[query, key]``."""
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if site in CAUSAL:
        seen = seen.tril()
    padding = inputs.get(PADDING[site]) if site in PADDING else None
    if padding is not None:
        seen = seen & padding[0].bool().cpu()
    return seen


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention probabilities ``[head, query, key]`` and z ``[1, query, head · d_head]``.

    A query of a head that sees no key (``seen`` is ``[head, query, key]``) has probabilities and z of 0.
    """
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    probabilities = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    probabilities = torch.where(seen.any(dim=-1, keepdim=True), probabilities, 0.0)
    z = probabilities.to(v.dtype) @ v
    return probabilities, z.transpose(0, 1).flatten(1)[None]


def blocked(
    model: Model,
    inputs: dict[str, Tensor],
    site: str,
    layers: Iterable[int],
    queries: Sequence[int],
    keys: Sequence[int],
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Run with every edge from a key in ``keys`` to a query in ``queries`` blocked, in all the layers at once.

    Parameters
    ----------
    model : Model
        In eval mode.
    inputs : dict
        What the model's forward takes, batch 1.
    site : str
        ``language.attn_pattern``, ``question_encoder.attn_pattern``, ``question_encoder.cross_attn_pattern``,
        ``answer_decoder.attn_pattern`` or ``answer_decoder.cross_attn_pattern``.
    layers : iterable of int
        Where z is recomputed and substituted; the other layers run as they are.
    queries, keys : sequence of int
        Positions in the query side's sequence, in the key side's sequence.
    heads : sequence of int, optional
        Query heads; all if None.

    Returns
    -------
    Tensor
        Logits at the read-out position, float32 ``[vocab]``.
    """
    handles: list[RemovableHandle] = []

    def register(layer: int) -> None:
        computed: list[Tensor] = []

        def compute(module: nn.Module, args: tuple, kwargs: dict) -> None:
            q, k, v = project(model, site, module, args, kwargs)
            seen = visible(site, inputs, q.shape[1], k.shape[1]).repeat(len(q), 1, 1)
            for head in range(len(q)) if heads is None else heads:
                for query in queries:
                    for key in keys:
                        seen[head, query, key] = False
            computed.append(attend(q, k, v, seen.to(q.device))[1])

        def substitute(_: nn.Module, args: tuple) -> tuple:
            return (computed.pop(), *args[1:])

        projection, _ = context_point(model, site, layer)
        handles.append(attention_module(model, site, layer).register_forward_pre_hook(compute, with_kwargs=True))
        handles.append(projection.register_forward_pre_hook(substitute))

    try:
        for layer in sorted(set(layers)):
            register(layer)
        return run(model, inputs)[0]
    finally:
        for handle in handles:
            handle.remove()


def clean_attention(model: Model, inputs: dict[str, Tensor], site: str, layer: int) -> tuple[Tensor, Tensor]:
    """Return the clean run's attention probabilities ``[head, query, key]`` and z ``[1, query, head · d_head]``."""
    found: list[tuple[Tensor, Tensor]] = []

    def compute(module: nn.Module, args: tuple, kwargs: dict) -> None:
        q, k, v = project(model, site, module, args, kwargs)
        seen = visible(site, inputs, q.shape[1], k.shape[1]).repeat(len(q), 1, 1)
        found.append(attend(q, k, v, seen.to(q.device)))

    handle = attention_module(model, site, layer).register_forward_pre_hook(compute, with_kwargs=True)
    try:
        run(model, inputs)
    finally:
        handle.remove()
    return found[0]


def pattern(model: Model, inputs: dict[str, Tensor], site: str, layer: int) -> Tensor:
    """Return the clean run's attention probabilities ``[head, query, key]``, of ``vision.attn_pattern`` too."""
    return clean_attention(model, inputs, site, layer)[0]


def head_functions(pattern_row: Tensor, inside: Tensor, top_k: int) -> dict[str, Tensor]:
    """Describe how one query attends to the image keys.

    Parameters
    ----------
    pattern_row : Tensor
        ``[head, key]``: attention of the query to the image keys alone, so a row sums to at most 1.
    inside : Tensor
        bool ``[key]``: the patch is part of the object.
    top_k : int
        Number of keys in ``top_k_share``; at most the number of keys.

    Returns
    -------
    dict
        float64 ``[head]``: ``mass``, the sum over the keys; ``pointing_ratio``, the share of the mass inside over the
        share of keys inside (NaN if none is); ``top_k_share``, the share of the mass on the largest keys; ``entropy``,
        in nats, of the row divided by its mass. And ``above_mean`` ``[head, key]``, the row minus the mean over heads.
    """
    row = pattern_row.double()
    mass = row.sum(dim=-1)
    share = row / mass[:, None]
    return {
        "mass": mass,
        "pointing_ratio": share[:, inside].sum(dim=-1) / inside.double().mean(),
        "top_k_share": share.topk(top_k, dim=-1).values.sum(dim=-1),
        "entropy": -torch.xlogy(share, share).sum(dim=-1),
        "above_mean": row - row.mean(dim=0),
    }
