"""What a model is made of, as data: its stacks, where each site is read and written, what a run may reuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vlm_patching.errors import SpecError, unknown

HEAD_COMPONENTS = {"attn_head": "attn_context", "cross_attn_head": "cross_attn_context"}
"""One head's z is a slice of the context vector of all heads, read at the same place."""


@dataclass(frozen=True)
class Tap:
    """Where in the module tree a value is read and replaced.

    Attributes
    ----------
    path
        Module path; ``{layer}`` stands for the layer's number.
    end
        Whether it is what goes into the module (its first argument) or what comes out.
    part
        Name of the field where the output is a record, else None.
    """

    path: str
    end: Literal["input", "output"]
    part: str | None = None


@dataclass(frozen=True)
class Stack:
    """A tower of layers of one kind.

    Attributes
    ----------
    name
        `vision`, `question_encoder`, `answer_decoder` or `language`.
    layers, heads
        Their numbers.
    taps
        Component → where it is, in the order in which a layer computes them.
    last_layer
        The highest layer whose output anything reads: replacing all of its positions replaces all that the stack says.
    """

    name: str
    layers: int
    heads: int
    taps: Mapping[str, Tap]
    last_layer: int

    @property
    def components(self) -> tuple[str, ...]:
        """Every component a site of this stack may name."""
        heads = tuple(head for head, context in HEAD_COMPONENTS.items() if context in self.taps)
        return (*self.taps, *heads)


@dataclass(frozen=True)
class ImageEntry:
    """How the image reaches the text side.

    Attributes
    ----------
    embeds
        Where `image_embeds` is.
    bypass
        Modules that need not run again once `embeds` is known, in order of execution.
    rows, columns
        The patch grid.
    class_token
        Whether the vision stack has one more position in front of its patches.
    inline
        True where image positions are part of the text stack's own sequence (early fusion).
    """

    embeds: Tap
    bypass: tuple[str, ...]
    rows: int
    columns: int
    class_token: bool
    inline: bool


@dataclass(frozen=True)
class Architecture:
    """A family's map of one model.

    Attributes
    ----------
    family, model_class
        transformers' ``model_type`` and the class that is loaded.
    stacks
        In order of execution.
    text_stack
        The stack whose positions are the question's tokens.
    token_embeds
        Where the token embeddings are, before any layer.
    readout
        Where the logits are; the read-out position is the last one.
    constants
        Keyword arguments that every forward pass gets.
    """

    family: str
    model_class: str
    stacks: tuple[Stack, ...]
    image: ImageEntry
    text_stack: str
    token_embeds: Tap
    readout: Tap
    constants: Mapping[str, int] = field(default_factory=dict)

    def stack(self, name: str) -> Stack:
        """A stack by name; `SpecError` with what there is otherwise."""
        for stack in self.stacks:
            if stack.name == name:
                return stack
        raise unknown(f"stack of this {self.family} model", name, [stack.name for stack in self.stacks])

    def sites(self) -> list[str]:
        """Every site that can be patched, as ``stack.component``."""
        return [f"{stack.name}.{component}" for stack in self.stacks for component in stack.components]

    def locate(self, site: str) -> tuple[Stack, str]:
        """A site's stack and component.

        Raises
        ------
        SpecError
            Where this model lacks the stack or the stack lacks the component; what it has is listed.
        """
        name, _, component = site.partition(".")
        if not component:
            raise SpecError(
                f"Site {site!r} must be 'stack.component'. This {self.family} model has: {', '.join(self.sites())}."
            )
        stack = self.stack(name)
        if component not in stack.components:
            raise unknown(f"site of {name} in this {self.family} model", component, stack.components)
        return stack, component

    def tap(self, site: str) -> Tap:
        """Where a site is in the module tree; a head's is that of its context vector."""
        stack, component = self.locate(site)
        return stack.taps[HEAD_COMPONENTS.get(component, component)]
