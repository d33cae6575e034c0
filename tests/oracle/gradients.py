"""Attribution patching by plain hooks and autograd, one backward pass per cell and step.

Sites are those of `patching`. Nothing here is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import BlipForQuestionAnswering, PreTrainedModel

from tests.oracle.edits import noise_edits
from tests.oracle.patching import Point, head_count, locate, run

Metric = Callable[[Tensor], Tensor]
Change = tuple[str, str, int | None, Tensor]


def columns(model: PreTrainedModel, site: str, head: int | None, width: int) -> slice:
    """Return the part of a site's last dimension that is a head's, or all of it for a site without heads."""
    if site.endswith("_head") != (head is not None):
        raise ValueError(f"{site}: head is {head}")
    if head is None:
        return slice(0, width)
    size = width // head_count(model, site)
    return slice(head * size, (head + 1) * size)


def forward(model: PreTrainedModel, inputs: dict[str, Tensor], changes: Sequence[Change] = ()) -> Tensor:
    """Run one forward pass of one example that can be differentiated.

    Parameters
    ----------
    model : PreTrainedModel
        In eval mode.
    inputs : dict
        What the model's forward takes, batch 1.
    changes : sequence of Change
        ``("add", site, layer, value)`` or ``("put", site, layer, value)`` with the full activation
        ``[1, position, width]``. Applied in this order.

    Returns
    -------
    Tensor
        Logits at the read-out position, ``[vocab]``, float32 or what the model has beyond that.
    """
    decoded: list[Tensor] = []

    def visit(point: Point, value: Tensor) -> Tensor:
        for kind, site, layer, new in changes:
            if locate(model, site, layer) != point:
                continue
            if new.shape != value.shape:
                raise ValueError(f"{site}: the change has shape {tuple(new.shape)}, the value {tuple(value.shape)}")
            value = {"add": value + new, "put": new}[kind]
        return value

    def register(point: Point) -> torch.utils.hooks.RemovableHandle:
        module, side = point
        if side == "input":
            return module.register_forward_pre_hook(lambda _, args: (visit(point, args[0]), *args[1:]))
        if side == "output":
            return module.register_forward_hook(lambda _, args, output: visit(point, output), prepend=True)
        name = "encoder_hidden_states"
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | {name: visit(point, kwargs[name])}), with_kwargs=True
        )

    handles = [register(point) for point in {locate(model, site, layer) for _, site, layer, _ in changes}]
    try:
        if isinstance(model, BlipForQuestionAnswering):
            handles.append(model.text_decoder.register_forward_hook(lambda _, a, output: decoded.append(output.logits)))
        with torch.enable_grad():
            output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    logits = decoded[0] if isinstance(model, BlipForQuestionAnswering) else output.logits
    return logits[0, -1].to(torch.promote_types(logits.dtype, torch.float32))


def noise_changes(noise: Tensor | None) -> list[Change]:
    """Return the change that adds noise to the image embeddings, if there is noise."""
    return [] if noise is None else [("add", "image_embeds", None, noise)]


def gradients(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a number with respect to each leaf, zero where it does not depend on the leaf."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(value, list(leaves), materialize_grads=True))


def attribution(
    model: PreTrainedModel,
    base_inputs: dict[str, Tensor],
    source_inputs: dict[str, Tensor],
    site: str,
    layers: Sequence[int | None],
    positions: Sequence[int],
    metric: Metric,
    head: int | None = None,
    base_noise: Tensor | None = None,
    source_noise: Tensor | None = None,
) -> float:
    """Estimate to first order the metric of the base with one cell patched.

    m(base) + sum over the cell of (source value - base value) * dm/dvalue at the base. The derivative is total: the
    layers above one of several layers are not held.

    Parameters
    ----------
    model : PreTrainedModel
        In eval mode.
    base_inputs, source_inputs : dict
        The run that is patched, and the run that the values come from.
    site : str
        As in the method notes. Sites joined by "+", of one stack, are changed together.
    layers : sequence of int or None
        ``[None]`` for ``image_embeds``.
    positions : sequence of int
        In the sequence of the site's own stack.
    metric : callable
        Logits ``[vocab]`` -> number.
    head : int, optional
        For head sites only.
    base_noise, source_noise : Tensor, optional
        Added to ``image_embeds`` in the base, in the source.

    Returns
    -------
    float
        In the metric's units.
    """
    keys = [(part, layer) for layer in layers for part in site.split("+")]
    _, base = run(model, base_inputs, noise_edits(base_noise), keys)
    _, source = run(model, source_inputs, noise_edits(source_noise), keys)
    # What the gradient is taken of: zeros added to the values.
    probes = [torch.zeros_like(base[key]).requires_grad_() for key in keys]
    changes = noise_changes(base_noise)
    changes += [("add", *key, probe) for key, probe in zip(keys, probes, strict=True)]
    value = metric(forward(model, base_inputs, changes))
    estimate = value.item()
    for key, gradient in zip(keys, gradients(value, probes), strict=True):
        product = ((source[key] - base[key]).double() * gradient.double())[0]
        estimate += product[list(positions), columns(model, key[0], head, product.shape[-1])].sum().item()
    return estimate


def integrated(
    model: PreTrainedModel,
    base_inputs: dict[str, Tensor],
    source_inputs: dict[str, Tensor],
    site: str,
    layers: Sequence[int | None],
    positions: Sequence[int],
    metric: Metric,
    head: int | None = None,
    base_noise: Tensor | None = None,
    source_noise: Tensor | None = None,
    *,
    steps: int,
) -> float:
    """Estimate the metric of the base with one cell patched, by the gradient averaged from base to source.

    As `attribution`, but the gradient is the mean of those at (k + 1/2) / steps of the way, k = 0, ..., steps - 1. On
    the way the site is set in every one of the layers, at all positions and in all heads, whatever the cell; each
    layer's values are set independently of the layers below.

    Parameters
    ----------
    model, base_inputs, source_inputs, site, layers, positions, metric, head, base_noise, source_noise
        As in `attribution`.
    steps : int
        Midpoints on the way.

    Returns
    -------
    float
        In the metric's units. Over all positions and heads it tends, as steps grow, to the metric of the base with all
        of the layers' site replaced jointly.
    """
    keys = [(part, layer) for layer in layers for part in site.split("+")]
    _, base = run(model, base_inputs, noise_edits(base_noise), keys)
    _, source = run(model, source_inputs, noise_edits(source_noise), keys)
    estimate = metric(forward(model, base_inputs, noise_changes(base_noise))).item()
    for k in range(steps):
        alpha = (k + 0.5) / steps
        points = [(base[key] + alpha * (source[key] - base[key])).requires_grad_() for key in keys]
        changes = noise_changes(base_noise)
        changes += [("put", *key, point) for key, point in zip(keys, points, strict=True)]
        value = metric(forward(model, base_inputs, changes))
        for key, gradient in zip(keys, gradients(value, points), strict=True):
            product = ((source[key] - base[key]).double() * gradient.double())[0]
            estimate += product[list(positions), columns(model, key[0], head, product.shape[-1])].sum().item() / steps
    return estimate
