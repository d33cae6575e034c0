"""What a model is made of, as data: its stacks, where each site is read and written, what a run may reuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from vlm_patching.errors import SpecError, unknown

HEAD_COMPONENTS = {"attn_head": "attn_context", "cross_attn_head": "cross_attn_context"}
"""One head's z is a slice of the context vector of all heads, read at the same place."""
PATTERN_COMPONENTS = {"attn_pattern": "attn_context", "cross_attn_pattern": "cross_attn_context"}
"""Attention probabilities (read, and blocked edge by edge), and the context vectors that are made with them."""
ENTRIES = ("image_embeds", "token_embeds")
"""Sites that are no stack's: what the image encoder (and projector) hands to the text side, and token embeddings."""


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
        Name of the field where the output is a record, number of the part where it is a tuple (the first where None).
    """

    path: str
    end: Literal["input", "output"]
    part: str | int | None = None


@dataclass(frozen=True)
class Attention:
    """An attention block whose probabilities can be read, and whose edges can be blocked.

    Attributes
    ----------
    path
        The module that computes the probabilities: the second part of its output, [batch, head, query, key].
    mask
        Keyword argument by which it takes an additive mask; None where it takes none.
    keys
        The stack whose positions are the keys.
    causal
        Whether a query sees only keys up to itself.
    eager
        Whether the probabilities are there only while the model's attention is "eager".
    source
        Cross-attention: keyword argument by which it takes what keys and values are made of.
    folds
        Cross-attention: whether rows that share their keys may come as query positions of one row: no mask tells
        queries apart, and keys and values are made by modules of their own.
    """

    path: str
    mask: str | None
    keys: str
    causal: bool = False
    eager: bool = False
    source: str = "encoder_hidden_states"
    folds: bool = False


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
    attentions
        Pattern component → its block.
    unembed
        Modules that turn the residual stream into logits, one after the other; empty where the stack ends in none.
    whole
        The module that is the whole stack, where another stack reads its output alone: it need not run where nothing in
        it changes.
    image_keys
        Modules that make cross-attention keys and values out of the stack before: where that does not change, they
        need not run.
    skips
        Whether single layers can be passed over.
    entry
        Where `resid_pre` is read in a run that keeps its key-value cache: a module's whole input would take the cache
        with it, which a sandbox hands back as a copy.
    """

    name: str
    layers: int
    heads: int
    taps: Mapping[str, Tap]
    last_layer: int
    attentions: Mapping[str, Attention] = field(default_factory=dict)
    unembed: tuple[str, ...] = ()
    whole: Tap | None = None
    image_keys: tuple[str, ...] = ()
    skips: bool = True
    entry: Tap | None = None

    @cached_property
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
    continues
        Whether the answer follows the prompt in the text stack's own sequence; else a decoder of its own begins it.
    keeps_logits
        Whether the forward pass takes `logits_to_keep`, which positions get logits.
    packs
        The causal decoder whose cells can share one key-value prefix, entered with token ids, a 4D mask and position
        ids; "" where there is none (attention over the prefix in both directions, or an encoder).
    """

    family: str
    model_class: str
    stacks: tuple[Stack, ...]
    image: ImageEntry
    text_stack: str
    token_embeds: Tap
    readout: Tap
    continues: bool = False
    keeps_logits: bool = False
    packs: str = ""

    @cached_property
    def entries(self) -> dict[str, Stack]:
        """`image_embeds` and `token_embeds`, each as a stack of one layer."""
        taps = {"image_embeds": self.image.embeds, "token_embeds": self.token_embeds}
        return {name: Stack(name, 1, 1, {name: tap}, 0) for name, tap in taps.items()}

    def ordinal(self, name: str) -> int:
        """Where a stack (or entry) stands in the order of execution."""
        text = [stack.name for stack in self.stacks if stack.name != "vision"]
        return ["vision", *ENTRIES, *text].index(name)

    def stack(self, name: str) -> Stack:
        """A stack by name; `SpecError` with what there is otherwise."""
        for stack in (*self.stacks, *self.entries.values()):
            if stack.name == name:
                return stack
        raise unknown(f"stack of this {self.family} model", name, [stack.name for stack in self.stacks])

    def sites(self) -> list[str]:
        """Every site that can be patched: ``stack.component``, and the entries."""
        named = [f"{stack.name}.{component}" for stack in self.stacks for component in stack.components]
        return [*named, *ENTRIES]

    def pattern_sites(self) -> list[str]:
        """Every site whose attention probabilities can be read, as ``stack.component``."""
        return [f"{stack.name}.{component}" for stack in self.stacks for component in stack.attentions]

    def locate(self, site: str) -> tuple[Stack, str]:
        """A site's stack and component.

        Raises
        ------
        SpecError
            Where this model lacks the stack or the stack lacks the component; what it has is listed.
        """
        if site in ENTRIES:
            return self.entries[site], site
        stack, component = self._parts(site, self.sites)
        if component in stack.attentions:
            raise SpecError(f"{site} is attention probabilities: they can be read or blocked, not edited.")
        if component not in stack.components:
            raise unknown(f"site of {stack.name} in this {self.family} model", component, stack.components)
        return stack, component

    def attention(self, site: str) -> tuple[Stack, Attention]:
        """The stack and the attention block of a pattern site.

        Raises
        ------
        SpecError
            Where the model lacks it, or the site is of another kind; what there is is listed.
        """
        stack, component = self._parts(site, self.pattern_sites)
        if component not in stack.attentions:
            raise unknown(f"attention pattern of this {self.family} model", site, self.pattern_sites())
        return stack, stack.attentions[component]

    def _parts(self, site: str, known: Callable[[], list[str]]) -> tuple[Stack, str]:
        name, _, component = site.partition(".")
        if not component:
            raise SpecError(
                f"Site {site!r} must be 'stack.component'. This {self.family} model has: {', '.join(known())}."
            )
        return self.stack(name), component

    def tap(self, site: str) -> Tap:
        """Where a site is in the module tree; a head's is that of its context vector."""
        stack, component = self.locate(site)
        return stack.taps[HEAD_COMPONENTS.get(component, component)]
