"""Severed traces and path patching by plain hooks, a few forward passes per cell.

Sites, runs and their read-out are those of `patching`. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from tests.oracle.edits import noise_edits
from tests.oracle.patching import Edit, Key, head_count, layer_count, locate, run

End = tuple[str, int | None, int | None, Sequence[int]]


def severed(
    model: PreTrainedModel,
    base_inputs: dict[str, Tensor],
    source_inputs: dict[str, Tensor],
    site: str,
    layer: int,
    positions: Sequence[int],
    cut: str,
    base_noise: Tensor | None = None,
    source_noise: Tensor | None = None,
) -> Tensor:
    """Run the base with one cell patched and a component above it held at its value in the unpatched base.

    Meng et al. 2022, section 2.2: what the cell does without the MLPs, or without the attention, above it.

    Parameters
    ----------
    model : PreTrainedModel
        In eval mode.
    base_inputs, source_inputs : dict
        The run that is patched, and the run that the value comes from.
    site : str
        Without heads, usually ``STACK.resid_post``.
    layer : int
        Of the site. The cut begins one layer above it.
    positions : sequence of int
        At which the site is replaced and the component is held.
    cut : str
        A component of the same stack, such as ``mlp_out``.
    base_noise, source_noise : Tensor, optional
        Added to ``image_embeds`` in the base, in the source.

    Returns
    -------
    Tensor
        Logits at the read-out position, float32 ``[vocab]``.
    """
    held = f"{site.split('.')[0]}.{cut}"
    above = range(layer + 1, layer_count(model, site))
    _, base = run(model, base_inputs, noise_edits(base_noise), [(held, index) for index in above])
    _, source = run(model, source_inputs, noise_edits(source_noise), [(site, layer)])
    edits = noise_edits(base_noise)
    edits.append(("replace", site, layer, None, positions, source[site, layer]))
    for index in above:
        edits.append(("replace", held, index, None, positions, base[held, index]))
    return run(model, base_inputs, edits)[0]


def path_patched(
    model: PreTrainedModel,
    base_inputs: dict[str, Tensor],
    source_inputs: dict[str, Tensor],
    sender: End,
    receiver: End | None,
    frozen: Sequence[str],
    base_noise: Tensor | None = None,
    source_noise: Tensor | None = None,
) -> Tensor:
    """Run the base with what a receiver gets from a patched sender, along paths that pass no frozen site.

    Parameters
    ----------
    model : PreTrainedModel
        In eval mode.
    base_inputs, source_inputs : dict
        The run that is patched, and the run that the sender's value comes from.
    sender : (site, layer, head, positions)
        Takes the source's value, even where its site is frozen.
    receiver : (site, layer, head, positions) or None
        Takes the value it has once the sender is patched, in a second run where nothing else is edited. None for the
        logits: those of the first run.
    frozen : sequence of str
        Sites held in the first run at their value in the unpatched base, in all layers and at all positions. The
        place that the receiver is read from is not held: the receiver's site and layer, under whatever name.
    base_noise, source_noise : Tensor, optional
        Added to ``image_embeds`` in the base, in the source.

    Returns
    -------
    Tensor
        Logits at the read-out position, float32 ``[vocab]``.
    """
    site, layer, head, positions = sender
    keys: list[Key] = []
    for held in frozen:
        keys += (
            [(held, None)] if held == "image_embeds" else [(held, index) for index in range(layer_count(model, held))]
        )
    _, base = run(model, base_inputs, noise_edits(base_noise), keys)
    _, source = run(model, source_inputs, noise_edits(source_noise), [(site, layer)])

    edits: list[Edit] = noise_edits(base_noise)
    for held, index in keys:
        if receiver is not None and locate(model, held, index) == locate(model, receiver[0], receiver[1]):
            continue
        value = base[held, index]
        for one in range(head_count(model, held)) if held.endswith("_head") else [None]:
            edits.append(("replace", held, index, one, range(value.shape[1]), value))
    edits.append(("replace", site, layer, head, positions, source[site, layer]))
    if receiver is None:
        return run(model, base_inputs, edits)[0]

    site, layer, head, positions = receiver
    _, received = run(model, base_inputs, edits, [(site, layer)])
    edits = noise_edits(base_noise)
    edits.append(("replace", site, layer, head, positions, received[site, layer]))
    return run(model, base_inputs, edits)[0]
