"""Whether a family's map fits the classes that were loaded."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vlm_patching.errors import SpecError
from vlm_patching.models.architecture import Architecture


def check_fit(module: torch.nn.Module, architecture: Architecture) -> None:
    """Refuse a map that names a module which is not there.

    Raises
    ------
    SpecError
        Naming the path, what it is for, and what is there instead.
    """
    for misfit in misfits(module, architecture).values():
        raise SpecError(misfit)


def misfits(module: torch.nn.Module, architecture: Architecture) -> dict[str, str]:
    """What a map says and the module is not: what it is for → why not, the first layer's where several are wrong."""
    found: dict[str, str] = {}
    says, kind = f"The family {architecture.family} says that", type(module).__name__
    for what, path in places(architecture):
        missing = None if what in found else first_missing(module, path)
        if missing is not None:
            parent, name, there = missing
            found[what] = (
                f"{says} {what} is at {path}, but {parent or 'the model'} of this {kind} has no {name!r}. It has: "
                f"{', '.join(there) or 'nothing'}."
            )
    for stack in architecture.stacks:
        path = stack.taps["resid_post"].path.format(layer=stack.layers)
        if first_missing(module, path) is None:
            found[f"{stack.name}'s layers"] = (
                f"{says} {stack.name} has {stack.layers} layers, but this {kind} has one more at {path}."
            )
    return found


def places(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """Every module path of a map, with what it is for."""
    for stack in architecture.stacks:
        for layer in range(stack.layers):
            for component, tap in stack.taps.items():
                if stack.has(component, layer):
                    yield f"{stack.name}.{component}", tap.path.format(layer=layer)
            for pattern, attention in stack.attentions.items():
                if stack.has(pattern, layer):
                    yield f"{stack.name}.{pattern}", attention.path.format(layer=layer)
                    made = [path for path in stack.image_keys if path.startswith(f"{attention.path}.")]
                    yield from ((f"{stack.name}'s keys and values", path.format(layer=layer)) for path in made)
        yield from ((f"{stack.name}'s unembedding", path) for path in stack.unembed)
        if stack.whole is not None:
            yield f"all of {stack.name}", stack.whole.path
        if stack.entry is not None:
            yield f"{stack.name}'s entry", stack.entry.path.format(layer=0)
    if architecture.image is not None:
        yield "image_embeds", architecture.image.embeds.path
        yield from (("what makes the image embeddings", tap.path) for tap in architecture.image.bypass)
    yield "token_embeds", architecture.token_embeds.path
    if architecture.rotary is not None:
        yield "the position ids", architecture.rotary.path
    yield "the logits", architecture.readout.path


def first_missing(module: torch.nn.Module, path: str) -> tuple[str, str, list[str]] | None:
    """Where a path leads nowhere: the last module that is there, the name that it lacks, and those that it has."""
    here, walked = module, list[str]()
    for name in path.split(".") if path else []:
        children = dict(here.named_children())
        if name not in children:
            return ".".join(walked), name, list(children)
        here = children[name]
        walked.append(name)
    return None
