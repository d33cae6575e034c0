"""What a model is made of, as data: its stacks, where each site is read and written, what a run may reuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from vlm_patching.errors import SpecError, unknown

if TYPE_CHECKING:
    from vlm_patching.models.layouts import ImageLayout

HEAD_COMPONENTS = {"attn_head": "attn_context", "cross_attn_head": "cross_attn_context"}
"""One head's z is a slice of the context vector of all heads, read at the same place."""
PATTERN_COMPONENTS = {"attn_pattern": "attn_context", "cross_attn_pattern": "cross_attn_context"}
"""Attention probabilities (read, and blocked edge by edge), and the context vectors that are made with them."""
IMAGE_STACKS = ("vision", "vision_global", "qformer")
"""Stacks that run before image and text meet; all others run on tokens."""
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
        Of an output: name of the field where it is a record, number of the part where it is a tuple (the first where
        None). Of an input: the keyword argument, or the number of the argument (the first where None).
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
        The module that computes the probabilities, [batch, head, query, key].
    part
        Their number in its output.
    mask
        Keyword argument by which it takes an additive mask, or the argument's number; None where it takes none.
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
    mask: str | int | None
    keys: str
    causal: bool = False
    eager: bool = False
    source: str = "encoder_hidden_states"
    folds: bool = False
    part: int = 1

    @property
    def probabilities(self) -> Tap:
        """Where they are."""
        return Tap(self.path, "output", self.part)


@dataclass(frozen=True)
class Stack:
    """A tower of layers of one kind.

    Attributes
    ----------
    name
        `vision`, `vision_global` (a second image encoder, over all that the first one gives), `qformer`,
        `question_encoder`, `answer_decoder` or `language`.
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
    scale, softcap
        What the logits are then multiplied with, and the bound that tanh keeps them in (0 for none).
    complete
        Whether all that the text side gets of an image stack is what its last layer gives; of another stack, whether
        nothing goes into it but what its first layer takes.
    only
        Component → the layers that have it, where not all do.
    imaged
        The layers that are passed over where the prompt has no image.
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
    scale: float = 1.0
    softcap: float = 0.0
    only: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    complete: bool = True
    imaged: tuple[int, ...] = ()

    def has(self, component: str, layer: int) -> bool:
        """Whether a layer has a component."""
        return layer in self.only.get(HEAD_COMPONENTS.get(component, component), range(self.layers))

    def without_image(self) -> Stack:
        """What of it runs where the prompt has no image."""
        run = {
            component: tuple(n for n in range(self.layers) if n not in self.imaged and self.has(component, n))
            for component in (*self.taps, *self.attentions)
        }
        return replace(self, only=run) if self.imaged else self

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
        Outputs of modules that need not run again once `embeds` is known, in order of execution: as they were, or,
        where a part is named, with as many rows in it as are run.
    place
        Where image positions are: `marks` in the text stack's own sequence (early fusion), `before` its tokens without
        any mark, or `apart`, cross-attended to.
    layout
        What the image positions are, given config, image processor, inputs and the pictures' sizes.
    marks
        Ids of the tokens that hold an image's place in the prompt.
    mask
        Input that says which tokens do so, where their ids do not.
    single
        Whether no prompt has more than one picture.
    needed
        Whether every prompt has one.
    before_tokens
        Whether the image is encoded before the tokens are embedded.
    carried
        Fields beside `embeds` in the same record, which the text side reads as well.
    joined
        Whether `embeds` has the pictures of all rows as one sequence, [1, row · position, width].
    indexes
        Inputs that count the patches of another, crop by crop (under 0 for none), and so go on from row to row.
    """

    embeds: Tap
    bypass: tuple[Tap, ...]
    place: Literal["marks", "before", "apart"]
    layout: Callable[..., ImageLayout]
    marks: tuple[int, ...] = ()
    mask: str = ""
    single: bool = False
    needed: bool = False
    before_tokens: bool = False
    carried: tuple[str, ...] = ()
    joined: bool = False
    indexes: Mapping[str, str] = field(default_factory=dict)

    @property
    def inline(self) -> bool:
        """Whether image positions are part of the text stack's own sequence."""
        return self.place != "apart"


@dataclass(frozen=True)
class Prompting:
    """How a prompt becomes a forward pass's tensors.

    Attributes
    ----------
    template
        What stands around the user's text where the processor has no chat template: ``{images}`` and ``{text}``.
    alone
        The same where the prompt has no image; `template` where there is nothing.
    mark
        What stands for one image in it.
    extends
        Input beside the attention mask that an answer's tokens lengthen → what it is there ("last": as at the last).
    start
        The tokens that a decoder of its own begins an answer with; none where there is no such decoder.
    begins
        The token that a prompt begins with in the place of the tokenizer's own first, without its end.
    classes
        The answers, where they are classes and no tokens: word → number.
    longest
        The most tokens that a prompt and its answer may have.
    """

    template: str = ""
    alone: str = ""
    mark: str = ""
    extends: Mapping[str, int | str] = field(default_factory=dict)
    start: tuple[int, ...] = ()
    begins: int | None = None
    classes: Mapping[str, int] = field(default_factory=dict)
    longest: int | None = None


@dataclass(frozen=True)
class Architecture:
    """A family's map of one model.

    Attributes
    ----------
    family, model_class
        Name of the family's file, and the transformers class that is loaded.
    stacks
        In order of execution.
    image
        How the image comes in; None for a model of text alone.
    text_stack
        The stack whose positions are the question's tokens.
    token_embeds
        Where the token embeddings are, before any layer.
    readout
        Where the logits are; the read-out position is the last one.
    prompting
        How prompts are put.
    continues
        Whether the answer follows the prompt in the text stack's own sequence; else a decoder of its own begins it.
    keeps_logits
        Whether the forward pass takes `logits_to_keep`, which positions get logits.
    takes, needs
        Names of the forward pass's arguments; and of those that it cannot do without, beside token ids.
    packs
        The causal decoder whose cells can share one key-value prefix, entered with token ids, a 4D mask and position
        ids; "" where there is none (attention over the prefix in both directions, or an encoder).
    packs_up_to
        The most positions for which that holds (a sliding window); None for any.
    packs_rows
        Inputs that say something of every token, beside those ids: of the cells' positions they are given as well.
    packs_text
        Whether only positions behind the last image can be edited so: attention inside an image goes both ways.
    rotary
        Where the base run's position ids are read, where they are more than a count.
    """

    family: str
    model_class: str
    stacks: tuple[Stack, ...]
    image: ImageEntry | None
    text_stack: str
    token_embeds: Tap
    readout: Tap
    prompting: Prompting = field(default_factory=Prompting)
    continues: bool = False
    keeps_logits: bool = False
    takes: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    packs: str = ""
    packs_up_to: int | None = None
    packs_rows: tuple[str, ...] = ()
    packs_text: bool = False
    rotary: Tap | None = None

    def on(self, pictures: int) -> Architecture:
        """What of the model runs on a prompt with so many pictures."""
        return self if pictures else replace(self, stacks=tuple(stack.without_image() for stack in self.stacks))

    @property
    def joins(self) -> bool:
        """Whether prompts of several examples can be rows of one batch as they are: nothing counts through the rows."""
        image = self.image
        counted = image is not None and (image.indexes or image.joined or image.carried)
        return not (counted or (self.packs and (self.needs or self.packs_rows or self.rotary)))

    @cached_property
    def entries(self) -> dict[str, Stack]:
        """`image_embeds` and `token_embeds`, each as a stack of one layer."""
        taps = {"image_embeds": self.image.embeds} if self.image else {}
        taps["token_embeds"] = self.token_embeds
        whole = not self.image or not self.image.carried
        return {name: Stack(name, 1, 1, {name: tap}, 0, complete=whole) for name, tap in taps.items()}

    def ordinal(self, name: str) -> int:
        """Where a stack (or entry) stands in the order of execution."""
        text = [stack.name for stack in self.stacks if stack.name not in IMAGE_STACKS]
        return [*IMAGE_STACKS, *ENTRIES, *text].index(name)

    def stack(self, name: str) -> Stack:
        """A stack by name; `SpecError` with what there is otherwise."""
        for stack in (*self.stacks, *self.entries.values()):
            if stack.name == name:
                return stack
        raise unknown(f"stack of this {self.family} model", name, [stack.name for stack in self.stacks])

    def sites(self) -> list[str]:
        """Every site that can be patched: ``stack.component``, and the entries."""
        named = [f"{stack.name}.{component}" for stack in self.stacks for component in stack.components]
        return [*named, *self.entries]

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
        if site in self.entries:
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
