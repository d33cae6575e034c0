"""Where a map says that everything is, held against a model's tree, and the shapes that come by in a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from vlm_patching.backends.interventions import argument_of, part_of
from vlm_patching.backends.kernels import attentions_of
from vlm_patching.models import HEAD_COMPONENTS, Architecture, Stack, Tap
from vlm_patching.models.tree import INPUTS, sizes

Shape = tuple[int, ...]


def first_layer(stack: Stack, component: str) -> int:
    """The lowest layer that has a component."""
    return next(layer for layer in range(stack.layers) if stack.has(component, layer))


def layers_with(stack: Stack, component: str) -> str:
    """The layers that have a component, in words."""
    there = [layer for layer in range(stack.layers) if stack.has(component, layer)]
    whole = there == list(range(there[0], there[-1] + 1)) if there else False
    if not there:
        return "none"
    return f"{there[0]} to {there[-1]}" if whole and len(there) > 1 else ", ".join(map(str, there))


def site_taps(architecture: Architecture) -> dict[str, tuple[Tap, int]]:
    """Every site that has a place of its own (a head's is its context's), with the lowest layer that has it."""
    found: dict[str, tuple[Tap, int]] = {}
    for site in architecture.sites():
        stack, component = architecture.locate(site)
        if component not in HEAD_COMPONENTS and layers_with(stack, component) != "none":
            found[site] = (architecture.tap(site), first_layer(stack, component))
    return found


def stack_rows(architecture: Architecture, shapes: Mapping[str, Shape]) -> list[dict[str, Any]]:
    """One row a stack: its layers, heads and widths."""
    rows = []
    for stack in architecture.stacks:
        wide = {
            name: shapes[f"{stack.name}.{component}"][-1]
            for name, component in (("residual", "resid_post"), ("heads", "attn_context"), ("mlp", "mlp_neuron"))
            if f"{stack.name}.{component}" in shapes
        }
        rows.append(
            {
                "stack": stack.name,
                "layers": stack.layers,
                "last read": stack.last_layer,
                "query heads": stack.heads,
                "widths": ", ".join(f"{name} {width}" for name, width in wide.items()) or "not known",
                "unembedding": " → ".join(stack.unembed),
            }
        )
    return rows


def widths(architecture: Architecture, module: torch.nn.Module) -> dict[str, Shape]:
    """The last numbers of what comes by at some sites, as the modules there have them."""
    found: dict[str, Shape] = {}
    for stack in architecture.stacks:
        for component in ("attn_context", "mlp_neuron"):
            if component in stack.taps:
                layer = first_layer(stack, component)
                into, out = sizes(module.get_submodule(stack.taps[component].path.format(layer=layer)))
                found |= {f"{stack.name}.{component}": (into,), f"{stack.name}.resid_post": (out,)} if out else {}
    return found


def site_rows(
    architecture: Architecture, module: torch.nn.Module, misfits: Mapping[str, str], shapes: Mapping[str, Shape]
) -> list[dict[str, Any]]:
    """One row a site: where it is, whether it is there, and the shape of what comes by."""
    rows = []
    for site in (*architecture.sites(), *architecture.pattern_sites()):
        name, _, component = site.partition(".")
        stack = architecture.stack(name)
        pattern, whole = stack.attentions.get(component), f"{name}.{HEAD_COMPONENTS.get(component, component)}"
        tap = pattern.probabilities if pattern else architecture.tap(site)
        there, found = layers_with(stack, component or site), (whole if component else site) not in misfits
        shape = "×".join(map(str, shapes.get(whole if component else site, ())))
        if component in HEAD_COMPONENTS and shape:
            shape += f", {stack.heads} heads"
        elif pattern and not shape:
            shape = f"{stack.heads} heads × {name} × {pattern.keys}" if found else ""
        elif not shape and found and there != "none":
            shape = _known(module, tap.path.format(layer=first_layer(stack, component or site)))
        rows.append(
            {
                "site": site,
                "module": tap.path,
                "end": tap.end if tap.part is None else f"{tap.end} {tap.part}",
                "layers": there if "{layer}" in tap.path else "",
                "there": "found" if found else "MISSING",
                "shape": shape,
            }
        )
    return rows


def _known(module: torch.nn.Module, path: str) -> str:
    """What is known of a module without a forward pass."""
    part = module.get_submodule(path)
    weight = getattr(part, "weight", None)
    return type(part).__name__ + ("" if weight is None else f" {'×'.join(map(str, weight.shape))}")


def forward(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    taps: Mapping[str, tuple[Tap, int]],
    silent: Iterable[str] = (),
) -> dict[str, Any]:
    """What comes by at places in one forward pass; places that it does not come by are left out.

    Parameters
    ----------
    silent
        Modules that give zeros.
    """
    weight = next(weight for weight in module.parameters() if weight.is_floating_point())
    found: dict[str, Any] = {}
    handles = [module.get_submodule(path).register_forward_hook(_zeros) for path in silent]
    for name, (tap, layer) in taps.items():
        part = module.get_submodule(tap.path.format(layer=layer))
        handles.append(_hooked(part, tap, name, found))
    inputs = {
        name: tensor.to(weight.device, weight.dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }
    try:
        with torch.no_grad():
            module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _zeros(_: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(out)


def patterns(module: Any, tensors: Mapping[str, torch.Tensor], architecture: Architecture) -> dict[str, Any]:
    """Attention probabilities in one forward pass, of the lowest layer that has each."""
    taps, eager = {}, False
    for site in architecture.pattern_sites():
        stack, attention = architecture.attention(site)
        component = site.split(".")[1]
        if layers_with(stack, component) != "none":
            taps[site] = (attention.probabilities, first_layer(stack, component))
            eager |= attention.eager
    before = attentions_of(module.config)
    if eager:
        module.set_attn_implementation("eager")
    try:
        return forward(module, tensors, taps)
    finally:
        if eager:
            module.set_attn_implementation(before)


def odd_places(architecture: Architecture, shapes: Mapping[str, Shape]) -> list[str]:
    """What is not as wide as it must be, or is called what it cannot be."""
    odd = []
    for stack in architecture.stacks:
        width = shapes.get(f"{stack.name}.resid_post", (0,))[-1]
        for component, tap in stack.taps.items():
            if component.endswith("attn_out") and INPUTS.search(tap.path.split(".")[-1]):
                odd.append(f"{stack.name}.{component} is at {tap.path}: by its name, that goes into attention")
            there = shapes.get(f"{stack.name}.{component}", (width,))[-1]
            if component.endswith("_out") and there != width:
                odd.append(f"{stack.name}.{component} is {there} wide, and the residual stream {width}")
            if component.endswith("_context") and there % stack.heads:
                odd.append(f"{stack.name}.{component} is {there} wide, which {stack.heads} heads cannot share")
        for component in stack.attentions:
            shape = shapes.get(f"{stack.name}.{component}", ())
            if shape and (len(shape) < 3 or shape[-3] != stack.heads):
                odd.append(
                    f"{stack.name}.{component} is {'×'.join(map(str, shape))}, not of {stack.heads} heads; `part` or "
                    "`heads` may be wrong"
                )
    return odd


def _hooked(part: torch.nn.Module, tap: Tap, name: str, found: dict[str, Any]) -> Any:
    def before(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = args[0] if args else next(iter(named.values()))
        found.setdefault(name, first if tap.part is None else argument_of((args, named), tap.part))

    def after(_: Any, args: tuple[Any, ...], out: Any) -> None:
        found.setdefault(name, part_of(out, tap.part))

    if tap.end == "input":
        return part.register_forward_pre_hook(before, with_kwargs=True)
    return part.register_forward_hook(after)
