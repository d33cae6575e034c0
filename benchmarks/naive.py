"""The naive loop: plain PyTorch hooks, one full forward pass of one example a cell, its image encoded every time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from problem import Problem

LAYERS = {
    "language": "model.language_model.layers",
    "question_encoder": "text_encoder.encoder.layer",
}
POINTS = {
    "language.attn_head": ("self_attn.o_proj", "input"),
    "language.attn_out": ("self_attn.o_proj", "output"),
    "language.mlp_out": ("mlp.down_proj", "output"),
    "language.resid_post": ("", "output"),
    "question_encoder.attn_head": ("attention.output.dense", "input"),
    "question_encoder.attn_out": ("attention.output.dense", "output"),
    "question_encoder.cross_attn_head": ("crossattention.output.dense", "input"),
    "question_encoder.cross_attn_out": ("crossattention.output.dense", "output"),
    "question_encoder.mlp_out": ("output.dense", "output"),
}
Inputs = Mapping[str, Tensor]
Values = dict[tuple[str, int], Tensor]
Labels = Mapping[str, Any]


def logits(module: Any, inputs: Inputs, **options: Any) -> Tensor:
    """Logits at the read-out position, float32 ``[vocab]``, of one forward pass of the whole model."""
    decoded: list[Tensor] = []
    is_blip = hasattr(module, "text_decoder")
    handles = []
    if is_blip:  # it returns no logits
        handles = [module.text_decoder.register_forward_hook(lambda _, a, output: decoded.append(output.logits))]
    try:
        with torch.no_grad():
            output = module(**inputs, **options)
    finally:
        for handle in handles:
            handle.remove()
    return (decoded[0] if is_blip else output.logits)[0, -1].float()


def read(module: Any, inputs: Inputs, sites: Sequence[str]) -> Values:
    """The values of all layers of some sites in a run, each ``[1, position, width]``."""
    found: Values = {}

    def keep(key: tuple[str, int], value: Tensor) -> None:
        found[key] = value.detach().clone()

    places = [(site, layer) for site in sites for layer in range(len(layers_of(module, site)))]
    with hooked(_hook(module, site, layer, functools.partial(keep, (site, layer))) for site, layer in places):
        logits(module, inputs)
    return found


def run_cell(module: Any, problem: Problem, values: Values, labels: Labels, window: int) -> Tensor:
    """Logits of one cell, said by its labels on the sweep's dimensions."""
    layer = int(labels["layer"])
    if "edges" in labels:
        depth = len(layers_of(module, "language"))
        covered = range(max(0, layer - window // 2), min(depth, layer - (-window // 2)))
        keys, queries = (problem.indices(group) for group in labels["edges"].split(" -> "))
        return blocked(module, problem.inputs["clean"], covered, queries, keys)
    site, positions = labels["site"], problem.indices(labels["position"])
    return patched(module, problem.inputs["corrupted"], site, layer, positions, labels.get("head"), values[site, layer])


def patched(
    module: Any, inputs: Inputs, site: str, layer: int, positions: Sequence[int], head: int | None, source: Tensor
) -> Tensor:
    """Logits of a run in which one cell takes its value of another run."""
    columns = slice(None)
    if head is not None:
        width = source.shape[-1] // module.config.text_config.num_attention_heads
        columns = slice(head * width, (head + 1) * width)

    def replace(value: Tensor) -> Tensor:
        value = value.clone()
        value[0, positions, columns] = source[0, positions, columns]
        return value

    with hooked([_hook(module, site, layer, replace)]):
        return logits(module, inputs)


def blocked(module: Any, inputs: Inputs, layers: Sequence[int], queries: Sequence[int], keys: Sequence[int]) -> Tensor:
    """Logits of a run in which, in some layers, no head's queries see the keys."""
    length, weight = inputs["input_ids"].shape[1], next(module.parameters())
    lowest = torch.finfo(weight.dtype).min
    mask = torch.full((length, length), lowest, device=weight.device, dtype=weight.dtype).triu(1)
    mask[torch.tensor(queries)[:, None], torch.tensor(keys)] = lowest

    def block(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": mask[None, None]}

    stack = layers_of(module, "language")
    with hooked(stack[i].self_attn.register_forward_pre_hook(block, with_kwargs=True) for i in layers):
        return logits(module, inputs)


def layers_of(module: Any, site: str) -> Any:
    """The layers of a site's stack."""
    return module.get_submodule(LAYERS[site.split(".")[0]])


@contextmanager
def hooked(handles: Iterator[RemovableHandle] | list[RemovableHandle]) -> Iterator[None]:
    """Hooks are there while it is open."""
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


def _hook(module: Any, site: str, layer: int, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """A hook that gives `change` a site's value, and puts in what it returns, if it returns anything."""
    path, side = POINTS[site]
    place = layers_of(module, site)[layer].get_submodule(path)
    handle: RemovableHandle
    if side == "input":

        def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...] | None:
            new = change(args[0])
            return None if new is None else (new, *args[1:])

        handle = place.register_forward_pre_hook(before)
    else:
        handle = place.register_forward_hook(lambda _, args, output: change(output))
    return handle
