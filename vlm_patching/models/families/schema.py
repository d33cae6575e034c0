"""What a family's file may say, and the map that it gives of the model a configuration describes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedConfig

from vlm_patching.errors import SpecError
from vlm_patching.models.architecture import IMAGE_STACKS, Architecture, ImageEntry, Prompting, Tap
from vlm_patching.models.blank import class_of
from vlm_patching.models.families.stacks import checked_stack
from vlm_patching.models.families.values import Value, resolved, value_at, whole_number, window_of
from vlm_patching.models.layouts import layout_rule

MAX_SETTING = 1_000_000


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlaceFile(_Section):
    """A module whose input or output is meant.

    Attributes
    ----------
    path
        From the model on; "" for the model itself.
    end
        Whether its `input` is meant or its `output`.
    part
        Of an output: the name of the field, or the number of the part (the first where it is left out). Of an input:
        the keyword argument, or the argument's number (the first).
    """

    path: str
    end: Literal["input", "output"] = "output"
    part: str | int | None = None

    def tap(self) -> Tap:
        return Tap(self.path, self.end, self.part)


class AttentionFile(_Section):
    """An attention block of a layer; modules are named from the layer on.

    Attributes
    ----------
    module
        What computes the probabilities.
    out
        The output projection: its input is the context vectors, its output the contribution to the residual stream.
    block
        Post-norm models: the module whose output is the residual stream after the block's norm.
    mask
        The module's keyword argument for the mask, or the argument's number; null where edges cannot be blocked.
    pattern
        Whether probabilities can be read.
    part
        Their number in the output of `module`.
    eager
        Whether they are there only while the model's attention is "eager".
    causal
        Whether a query sees only keys up to itself.
    keys
        Cross-attention: the stack whose positions are the keys.
    source
        Cross-attention: the keyword argument that keys and values are made of.
    made
        Cross-attention: modules that make keys and values, which need not run again where their input is as before.
    folds
        Cross-attention: whether rows that share their keys may come as query positions of one row.
    layers
        The layers that have it (a path in the configuration); all where it is left out.
    kind
        What such a layer is called, where `layers` leads to what every layer is called.
    every
        Every how many layers, from the first on, there is one that has it.
    """

    module: str
    out: str
    block: str | None = None
    mask: str | int | None = "attention_mask"
    pattern: bool = True
    part: int = 1
    eager: bool = True
    causal: bool = False
    keys: str | None = None
    source: str = "encoder_hidden_states"
    made: tuple[str, ...] = ()
    folds: bool = False
    layers: str | None = None
    kind: str | None = None
    every: Value = 1


class StackFile(_Section):
    """A tower of layers.

    Attributes
    ----------
    name
        What methods call it.
    layer
        Module path of a layer, with ``{layer}``.
    layers, heads
        How many there are; heads are those of the queries.
    hidden_state
        Which of the hidden states is the last that anything reads, as transformers counts them (0 is what enters the
        first layer, negative from the end), or several; the last where it is left out.
    attention, cross_attention
        Its blocks.
    mlp
        The MLP's second projection, or, with `neurons: false`, the whole MLP, or another place of its contribution.
    mlp_block
        Post-norm models: the module whose output is the residual stream after the MLP's norm.
    neurons
        Whether the input of `mlp` is the hidden activations.
    entry
        The module whose input is the layer's own, where the layer takes a cache beside it.
    whole
        The module that is all of the stack, where others read its output alone.
    skips
        Whether single layers can be passed over; those of an image stack that is not `complete` never are.
    complete
        Whether all that the text side gets of an image stack is what its last layer gives; of another stack, whether
        nothing goes into it but what its first layer takes.
    imaged
        The layers that are passed over where the prompt has no image (a path in the configuration).
    unembed, scale, softcap
        From the residual stream to logits: modules, then a factor, then tanh.
    """

    name: Literal["vision", "vision_global", "qformer", "question_encoder", "answer_decoder", "language"]
    layer: str
    layers: Value
    heads: Value
    hidden_state: Value | None = None
    attention: AttentionFile | None = None
    cross_attention: AttentionFile | None = None
    mlp: str | PlaceFile
    mlp_block: str | None = None
    neurons: bool = True
    entry: str | None = None
    whole: PlaceFile | None = None
    skips: bool = True
    unembed: tuple[str, ...] = ()
    complete: bool = True
    imaged: str | None = None
    scale: Value = 1.0
    softcap: Value | None = None


class ImageFile(_Section):
    """How the image comes in: see `vlm_patching.models.architecture.ImageEntry`."""

    embeds: PlaceFile
    bypass: tuple[str | PlaceFile, ...] = ()
    carried: tuple[str, ...] = ()
    place: Literal["marks", "before", "apart"]
    marks: tuple[Value, ...] = ()
    mask: str = ""
    single: bool = False
    needed: bool = False
    before_tokens: bool = False
    joined: bool = False
    indexes: dict[str, str] = Field(default_factory=dict)
    layout: dict[str, Any]


class PromptFile(_Section):
    """How a prompt is put: see `vlm_patching.models.architecture.Prompting`."""

    template: str = ""
    alone: str = ""
    mark: str = ""
    extends: dict[str, int | Literal["last"]] = Field(default_factory=dict)
    start: Value | tuple[Value, ...] = ()
    begins: Value | None = None
    classes: str | dict[str, int] | None = None
    longest: Value | None = None


class PackFile(_Section):
    """Whether cells can share one key-value prefix.

    Attributes
    ----------
    window
        The sliding window of its attention (a path in the configuration), where it has one.
    rows
        Inputs that say something of every token, beside its id: of the cells' positions they are given as well.
    text_only
        Whether only positions behind the last image can be edited so: attention inside an image goes both ways.
    position_ids
        Where the base run's position ids are read, where they are more than a count.
    """

    window: Value | None = None
    rows: tuple[str, ...] = ()
    text_only: bool = False
    position_ids: PlaceFile | None = None


class FamilyFile(_Section):
    """One family: which models it is of, and where everything is in them.

    Attributes
    ----------
    matches
        Path in the configuration → the value, or one of the values, that it must have; null where it must have none.
    model_class
        The transformers class that is loaded.
    stacks
        In order of execution.
    image
        How the image comes in; left out for a model of text alone.
    text
        The stack of the question's tokens.
    tokens
        The module whose output is the token embeddings.
    readout
        Where the logits are.
    answer
        Whether it `continues` the text stack's sequence, is begun by a `decoder`, or is a `class`.
    prompt
        How a prompt is put, and what must go with it.
    pack
        Whether cells can share one key-value prefix, in the text stack: `{}` for a plain causal decoder; left out where
        attention over the prefix goes both ways.
    """

    matches: dict[str, Value | tuple[Value, ...] | None]
    model_class: str
    stacks: tuple[StackFile, ...]
    image: ImageFile | None = None
    text: str
    tokens: str
    readout: PlaceFile = PlaceFile(path="", part="logits")
    answer: Literal["continues", "decoder", "class"] = "continues"
    prompt: PromptFile = PromptFile()
    pack: PackFile | None = None

    def mismatch(self, config: PreTrainedConfig) -> str:
        """What keeps a model from being of this family; "" where nothing does."""
        for path, allowed in self.matches.items():
            found = value_at(config, path, None)
            values = allowed if isinstance(allowed, tuple) else (allowed,)
            if found not in values:
                return f"{path} is {found!r}, not {' or '.join(map(repr, values))}"
        classes = config.architectures or []
        if classes and self.model_class not in classes:
            return f"it holds a {' / '.join(classes)}, not a {self.model_class}"
        return ""

    def describe(self, name: str, config: PreTrainedConfig) -> Architecture:
        """The map of the model that a configuration describes.

        Raises
        ------
        SpecError
            The file names something that the configuration or the class does not have.
        """
        try:
            model_class = class_of(self.model_class)
        except SpecError as error:
            raise SpecError(f"model_class: {error}") from error
        stacks = tuple(checked_stack(number, stack, config) for number, stack in enumerate(self.stacks))
        names = [stack.name for stack in stacks]
        placed = [name for name in names if name not in IMAGE_STACKS]
        if self.text not in placed:
            raise SpecError(f"text: {self.text!r} is no stack of the text; those are {', '.join(placed) or 'none'}.")
        known = (self.text, "answer_decoder") if self.answer == "decoder" else (self.text,)
        if len(set(names)) < len(names) or not set(placed) <= set(known):
            raise SpecError(
                f"stacks: {', '.join(names)}; with text {self.text} and answer {self.answer}, those of the text are "
                f"{' and '.join(known)}, each once."
            )
        takes = inspect.signature(model_class.forward).parameters
        return Architecture(
            family=name,
            model_class=self.model_class,
            stacks=stacks,
            image=self._image(config),
            text_stack=self.text,
            token_embeds=Tap(self.tokens, "output"),
            readout=self.readout.tap(),
            prompting=self._prompting(config),
            continues=self.answer == "continues",
            keeps_logits=("logits_to_keep" in takes or self.pack is not None) and self.answer == "continues",
            takes=frozenset(takes),
            needs=tuple(key for key, known in takes.items() if key not in ("self", "input_ids") and _must_be(known)),
            packs=self.text if self.pack else "",
            packs_up_to=window_of(config, self.pack.window) if self.pack and self.pack.window else None,
            packs_rows=self.pack.rows if self.pack else (),
            packs_text=bool(self.pack and self.pack.text_only),
            rotary=self.pack.position_ids.tap() if self.pack and self.pack.position_ids else None,
        )

    def _image(self, config: PreTrainedConfig) -> ImageEntry | None:
        if self.image is None:
            return None
        settings = {key: resolved(config, value) for key, value in self.image.layout.items()}
        large = [key for key, value in settings.items() if isinstance(value, int) and value > MAX_SETTING]
        if large:
            raise SpecError(f"image.layout.{large[0]}: {settings[large[0]]} is too large")
        marks = tuple(whole_number(config, mark) for mark in self.image.marks)
        if (self.image.place == "marks") != bool(marks or self.image.mask):
            raise SpecError("image.marks: what says which tokens stand for an image belongs to `place: marks`.")
        rule = layout_rule(str(settings.pop("rule", "")), settings)
        return ImageEntry(
            embeds=self.image.embeds.tap(),
            bypass=tuple(Tap(one, "output") if isinstance(one, str) else one.tap() for one in self.image.bypass),
            place=self.image.place,
            layout=rule,
            marks=marks,
            mask=self.image.mask,
            single=self.image.single,
            needed=self.image.needed,
            before_tokens=self.image.before_tokens or self.image.place == "apart",
            carried=self.image.carried,
            joined=self.image.joined,
            indexes=self.image.indexes,
        )

    def _prompting(self, config: PreTrainedConfig) -> Prompting:
        known = self.prompt
        start = known.start if isinstance(known.start, tuple) else (known.start,)
        classes = value_at(config, known.classes) if isinstance(known.classes, str) else known.classes or {}
        return Prompting(
            template=known.template,
            alone=known.alone,
            mark=known.mark,
            extends=known.extends,
            start=tuple(whole_number(config, token) for token in start),
            begins=None if known.begins is None else whole_number(config, known.begins),
            classes={str(word): int(number) for word, number in classes.items()},
            longest=None if known.longest is None else whole_number(config, known.longest),
        )


def _must_be(known: inspect.Parameter) -> bool:
    """Whether an argument has to be given."""
    return known.default is known.empty and known.kind is known.POSITIONAL_OR_KEYWORD


def keys_at(location: Iterable[Any]) -> list[str]:
    """The keys that the section at a location of a family's file may have."""
    sections: dict[str, type[BaseModel]] = {
        "stacks": StackFile,
        "attention": AttentionFile,
        "cross_attention": AttentionFile,
        "image": ImageFile,
        "prompt": PromptFile,
        "pack": PackFile,
        **dict.fromkeys(("embeds", "whole", "readout", "position_ids", "mlp"), PlaceFile),
    }
    names = [part for part in location if part in sections]
    return list(sections[names[-1]].model_fields if names else FamilyFile.model_fields)
