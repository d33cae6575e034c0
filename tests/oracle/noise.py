"""A perturbed run by plain hooks: noise on the pixels, the image embeddings or some token embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import BlipForQuestionAnswering

from tests.oracle.patching import Edit, Key, Model, run


def perturb(value: Tensor, noise: Tensor | None, mean: float | None, positions: Sequence[int] | None) -> Tensor:
    """Add noise (mean None), multiply by mean + noise, or by mean (noise None), at some positions or everywhere."""
    changed = value.clone()
    where = range(value.shape[1]) if positions is None else positions
    for i, position in enumerate(where):
        old = value[:, position]
        change = 0 if noise is None else noise[:, i]
        changed[:, position] = old + change if mean is None else old * (mean + change)
    return changed


def run_perturbed(
    model: Model,
    inputs: dict[str, Tensor],
    site: str,
    noise: Tensor | None,
    mean: float | None,
    positions: Sequence[int] | None,
    edits: Sequence[Edit] = (),
    read: Sequence[Key] = (),
) -> tuple[Tensor, dict[Key, Tensor]]:
    """`run` with one perturbation at `pixels`, `image_embeds` or `token_embeds`, before its edits."""
    if site == "pixels":
        changed = perturb(inputs["pixel_values"], noise, mean, None)
        return run(model, {**inputs, "pixel_values": changed}, edits, read)
    blip = isinstance(model, BlipForQuestionAnswering)
    if site == "token_embeds":
        module = model.text_encoder.embeddings.word_embeddings if blip else model.model.language_model.embed_tokens
        handle = module.register_forward_hook(lambda _, __, output: perturb(output, noise, mean, positions))
        try:
            return run(model, inputs, edits, read)
        finally:
            handle.remove()
    with torch.no_grad():
        _, clean = run(model, inputs, read=[("image_embeds", None)])
    before = next(iter(clean.values()))
    added = perturb(before, noise, mean, None) - before
    return run(model, inputs, [("add", "image_embeds", None, None, None, added), *edits], read)
