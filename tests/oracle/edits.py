"""Ablation, steering and patching of several places by plain hooks, one forward pass per cell.

Sites, runs and their read-out are those of `patching`. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import BlipForQuestionAnswering, PreTrainedModel

from tests.oracle.patching import Edit, run

Layer = int | None
Place = tuple[str, Layer, int | None]


def noise_edits(noise: Tensor | None) -> list[Edit]:
    """Return the edit that adds noise to the image embeddings, if there is noise."""
    return [] if noise is None else [("add", "image_embeds", None, None, None, noise)]


def moved(base: Tensor, source: Tensor, base_positions: Sequence[int], source_positions: Sequence[int]) -> Tensor:
    """Return a base activation with the source's values put in, position by position in the order given."""
    if len(base_positions) != len(source_positions):
        raise ValueError(f"{len(base_positions)} positions in the base, {len(source_positions)} in the source")
    value = base.clone()
    for to, at in zip(base_positions, source_positions, strict=True):
        value[0, to] = source[0, at]
    return value


def edited_in_turn(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    site: str,
    layers: Sequence[Layer],
    positions: Sequence[int],
    head: int | None,
    change: Callable[[Layer, Tensor], Tensor],
    base_noise: Tensor | None = None,
) -> Tensor:
    """Run with a site changed in several layers, each layer's value taken with the layers below already changed.

    Parameters
    ----------
    model : PreTrainedModel
        In eval mode.
    inputs : dict
        What the model's forward takes, batch 1.
    site : str
        As in the method notes.
    layers : sequence of int or None
        ``[None]`` for ``image_embeds``. The order does not matter.
    positions : sequence of int
        In the sequence of the site's own stack.
    head : int or None
        For head sites only.
    change : callable
        Takes the layer and the values at the positions, ``[position, width]`` with all heads, and returns the new ones,
        of which a head takes its slice.

    Returns
    -------
    Tensor
        Logits at the read-out position, float32 ``[vocab]``.
    """
    where = list(positions)
    edits = noise_edits(base_noise)
    for layer in sorted(set(layers), key=lambda index: -1 if index is None else index):
        value = run(model, inputs, edits, [(site, layer)])[1][site, layer]
        value[0, where] = change(layer, value[0, where]).to(value.dtype)
        edits.append(("replace", site, layer, head, where, value))
    return run(model, inputs, edits)[0]


def ablated(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    site: str,
    layers: Sequence[Layer],
    positions: Sequence[int],
    kind: str,
    head: int | None = None,
    mean: Mapping[Layer, Tensor] | None = None,
    other: dict[str, Tensor] | None = None,
    other_positions: Sequence[int] | None = None,
    factor: float | None = None,
) -> Tensor:
    """Run with a site ablated in several layers jointly.

    Parameters
    ----------
    model, inputs, site, layers, positions, head
        As in `edited_in_turn`.
    kind : str
        ``zero``; ``mean``, which needs `mean`; ``resample``, which needs `other`; ``scale``, which needs `factor`.
    mean : mapping, optional
        Layer -> ``[width]`` of the whole site, of which a head takes its slice.
    other : dict, optional
        The inputs of an unedited run that the values come from.
    other_positions : sequence of int, optional
        In `other`, as many as `positions` and paired with them in order; the same ones by default.
    factor : float, optional
        Multiplies the value that the layer has with the layers below already scaled.

    Returns
    -------
    Tensor
        Logits at the read-out position, float32 ``[vocab]``.
    """
    if kind == "zero":
        return edited_in_turn(model, inputs, site, layers, positions, head, lambda _, old: torch.zeros_like(old))
    if kind == "mean" and mean is not None:
        return edited_in_turn(
            model, inputs, site, layers, positions, head, lambda layer, old: mean[layer].expand_as(old)
        )
    if kind == "resample" and other is not None:
        there = list(positions if other_positions is None else other_positions)
        if len(there) != len(positions):
            raise ValueError(f"{len(positions)} positions here, {len(there)} in the other run")
        _, values = run(model, other, (), [(site, layer) for layer in layers])
        return edited_in_turn(
            model, inputs, site, layers, positions, head, lambda layer, _: values[site, layer][0, there]
        )
    if kind == "scale" and factor is not None:
        return edited_in_turn(model, inputs, site, layers, positions, head, lambda _, old: old * factor)
    raise ValueError(f"{kind!r} is no ablation, or lacks what it needs")


def site_mean(
    model: PreTrainedModel,
    list_of_inputs: Sequence[dict[str, Tensor]],
    site: str,
    layer: Layer,
    list_of_positions: Sequence[Sequence[int]],
) -> Tensor:
    """Return a site's mean over all positions listed, those of all inputs pooled, as float64 ``[width]``."""
    vectors = []
    for inputs, positions in zip(list_of_inputs, list_of_positions, strict=True):
        value = run(model, inputs, (), [(site, layer)])[1][site, layer]
        vectors += [value[0, position].double() for position in positions]
    return torch.stack(vectors).mean(dim=0)


def steered(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    site: str,
    layers: Sequence[Layer],
    positions: Sequence[int],
    vector: Tensor,
    strength: float,
    head: int | None = None,
    base_noise: Tensor | None = None,
) -> Tensor:
    """Run with ``strength * vector`` added to a site at some positions of every one of several layers.

    Parameters
    ----------
    model, inputs, site, layers, positions, head, base_noise
        As in `edited_in_turn`.
    vector : Tensor
        ``[width]`` of the whole site, of which a head takes its slice.
    strength : float
        Multiplies the vector.

    Returns
    -------
    Tensor
        Logits at the read-out position, float32 ``[vocab]``.
    """
    return edited_in_turn(
        model, inputs, site, layers, positions, head, lambda _, old: old + strength * vector, base_noise
    )


def patched_jointly(
    model: PreTrainedModel,
    base_inputs: dict[str, Tensor],
    source_inputs: dict[str, Tensor],
    places: Sequence[Place],
    base_positions: Sequence[int],
    source_positions: Sequence[int],
    base_noise: Tensor | None = None,
    source_noise: Tensor | None = None,
) -> Tensor:
    """Run the base with several places replaced together; the two prompts may differ in length.

    Parameters
    ----------
    model : PreTrainedModel
        In eval mode.
    base_inputs, source_inputs : dict
        The run that is patched, and the run that the values come from.
    places : sequence of (site, layer, head)
        Layer None for ``image_embeds``, head None for sites without heads.
    base_positions, source_positions : sequence of int
        Paired in order, the same for all places.
    base_noise, source_noise : Tensor, optional
        Added to ``image_embeds`` in the base, in the source.

    Returns
    -------
    Tensor
        Logits at the read-out position, float32 ``[vocab]``.
    """
    keys = [(site, layer) for site, layer, _ in places]
    _, base = run(model, base_inputs, noise_edits(base_noise), keys)
    _, source = run(model, source_inputs, noise_edits(source_noise), keys)
    edits = noise_edits(base_noise)
    for site, layer, head in places:
        value = moved(base[site, layer], source[site, layer], base_positions, source_positions)
        edits.append(("replace", site, layer, head, base_positions, value))
    return run(model, base_inputs, edits)[0]


def replaced_embeds(
    model: PreTrainedModel,
    base_inputs: dict[str, Tensor],
    source_inputs: dict[str, Tensor],
    which: str,
    base_positions: Sequence[int],
    source_positions: Sequence[int],
) -> Tensor:
    """Run the base with some of its image or token embeddings replaced by the source's.

    Parameters
    ----------
    model : PreTrainedModel
        In eval mode.
    base_inputs, source_inputs : dict
        The run that is patched, and the run that the values come from.
    which : str
        ``image_embeds``, what the text side gets: positions in the image sequence, BLIP's class token first.
        ``projector``: LLaVA only, where it is the same. ``token_embeds``: positions in the prompt, before LLaVA puts
        the image in, so that its image positions have no effect.
    base_positions, source_positions : sequence of int
        Paired in order.

    Returns
    -------
    Tensor
        Logits at the read-out position, float32 ``[vocab]``.
    """
    is_blip = isinstance(model, BlipForQuestionAnswering)
    if which == "image_embeds" or (which == "projector" and not is_blip):
        return patched_jointly(
            model, base_inputs, source_inputs, [("image_embeds", None, None)], base_positions, source_positions
        )
    if which != "token_embeds":
        raise ValueError(f"no embeddings {which!r} in {type(model).__name__}")
    module = model.text_encoder.embeddings.word_embeddings if is_blip else model.model.language_model.embed_tokens
    kept: list[Tensor] = []
    # Cloned, since BLIP then adds its position embeddings in place.
    handle = module.register_forward_hook(lambda _, args, output: kept.append(output.clone()))
    try:
        run(model, source_inputs)
    finally:
        handle.remove()
    handle = module.register_forward_hook(
        lambda _, args, output: moved(output, kept[0], base_positions, source_positions)
    )
    try:
        return run(model, base_inputs)[0]
    finally:
        handle.remove()
