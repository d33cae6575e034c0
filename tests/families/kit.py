"""What the families' files share: what one has to say, plain hooks, random weights, tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoProcessor, PreTrainedTokenizerFast

Inputs = dict[str, Tensor]

SENTENCES = (
    "is the large red circle left or right of the small blue square ?",
    "what color is the object in the upper half ? green or yellow, cyan or magenta",
    "how many objects are there ? one two three four five six",
    "USER: ASSISTANT: user assistant model system question answer describe this image",
    "the thing on the picture is a triangle, a star, a cross; orange purple small large",
)
"""What tokenizers are trained on; every byte (or character) is in their vocabularies besides."""


@dataclass(frozen=True)
class Place:
    """A module's input or output; `part` is a keyword argument, a field, or a number in a tuple."""

    path: str
    end: Literal["input", "output"] = "output"
    part: str | int | None = None

    def at(self, layer: int = 0) -> Place:
        return Place(self.path.format(layer=layer), self.end, self.part)


@dataclass(frozen=True)
class Patch:
    """What one image position shows: which image, which tile of it (-1: the whole, seen small), which row and column.

    `box` is what it covers of the original picture, x0, y0, x1, y1 in pixels, where that can be said (None for latents,
    which see everything, and for separators).
    """

    image: int = 0
    tile: int = 0
    row: int = -1
    column: int = -1
    kind: Literal["patch", "latent", "separator", "class"] = "patch"
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Tower:
    """A stack as methods.md names it: its layers, its (query) heads, and every component's place in a layer.

    `read` is how many of the layers have an output that anything reads; all of them where None.
    """

    layers: int
    heads: int
    places: dict[str, Place]
    read: int | None = None


@dataclass(frozen=True)
class Known:
    """What one family's file has to say.

    Attributes
    ----------
    name
        As transformers' `model_type`, with a suffix where a family has several classes.
    build
        Saves a small random model and its processor into a folder.
    encode
        Processor, images, user's text → the forward pass's tensors, batch of one, ending where the answer begins.
    towers
        Stack → what it is: `vision`, `vision_global`, `question_encoder`, `answer_decoder`, `language`, `qformer`.
    embeds
        Where what the image side hands to the text side is: [.., image position, width]; None of a model of text alone.
    tokens
        Where the token embeddings are.
    patches
        Stack (also `image_embeds`) → its image positions in order: index in the stack's sequence, and what is there.
        Of `vision` and `image_embeds` the sequence is [images · tiles · positions], flattened.
    logits
        The forward pass's output → [vocabulary] at the read-out position.
    behind
        What an answer's tokens behind the prompt need of the other inputs beside the attention mask: name → number,
        or "last" for what is there at the last token of the prompt.
    processor
        Loads what `build` saved, where AutoProcessor cannot without torchvision.
    handed
        Whether the package cannot either, so that it is handed the processor.
    """

    name: str
    build: Callable[[Path], None]
    encode: Callable[[Any, Sequence[Image.Image], str], Inputs]
    towers: dict[str, Tower]
    embeds: Place | None
    tokens: Place
    patches: Callable[[Inputs, Any, Sequence[tuple[int, int]]], dict[str, list[tuple[int, Patch]]]]
    logits: Callable[[Any], Tensor] = field(default=lambda out: out.logits[0, -1])
    behind: dict[str, int | str] = field(default_factory=dict)
    processor: Callable[[Path], Any] = field(default=AutoProcessor.from_pretrained)
    handed: bool = False


Edit = tuple[Place, int, Callable[[Tensor], Tensor]]
"""Where, in which layer, and what is made of the value, [position, width]."""


def places(
    layer: str, attention: str, mlp: str, neurons: str | None = None, attn_out: str | None = None
) -> dict[str, Place]:
    """A layer's places, where attention and MLP are added to the residual stream as they come.

    Parameters
    ----------
    attention
        The attention's last projection, whose input is the context vectors.
    mlp, attn_out
        What gives the MLP's and the attention's contribution; of the latter `attention`, where not given.
    neurons
        The MLP's last projection, whose input is the hidden activations; `mlp`, where not given.
    """
    return {
        "resid_pre": Place(layer, "input"),
        "resid_post": Place(layer),
        "attn_out": Place(f"{layer}.{attn_out or attention}"),
        "attn_context": Place(f"{layer}.{attention}", "input"),
        "mlp_out": Place(f"{layer}.{mlp}"),
        "mlp_neuron": Place(f"{layer}.{neurons or mlp}", "input"),
    }


def ask(processor: Any, images: Sequence[Image.Image], text: str, nested: bool = False, **more: Any) -> Inputs:
    """One turn of the user's in the processor's chat template, pictures first; `nested` in a list within a list.

    Without the second list some processors tile each of several pictures as if it were alone.
    """
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pictures = [list(images)] if nested else list(images)
    return dict(processor(images=pictures if images else None, text=prompt, return_tensors="pt", **more))


def ask_whole(processor: Any, images: Sequence[Image.Image], text: str) -> Inputs:
    """The same, tokenized by the template itself, which begins with the first token: the tokenizer may add another."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    turns = [{"role": "user", "content": content}]
    made = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(made)


def run(module: nn.Module, known: Known, inputs: Inputs, edits: Sequence[Edit] = ()) -> Tensor:
    """One forward pass with plain hooks; the logits at the read-out position, in float64."""
    handles = [hook(module, place.at(layer), change) for place, layer, change in edits]
    try:
        with torch.no_grad():
            return known.logits(module(**inputs)).double()
    finally:
        for handle in handles:
            handle.remove()


def read(module: nn.Module, known: Known, inputs: Inputs, places: Iterable[tuple[Place, int]]) -> list[Tensor]:
    """What is at places in one forward pass, each [position, width]."""
    found: dict[int, Tensor] = {}

    def keeper(number: int) -> Callable[[Tensor], Tensor]:
        def keep(value: Tensor) -> Tensor:
            found[number] = value.clone()  # the model may go on to change it in place
            return value

        return keep

    run(module, known, inputs, [(place, layer, keeper(i)) for i, (place, layer) in enumerate(places)])
    return [found[i] for i in sorted(found)]


def hook(module: nn.Module, place: Place, change: Callable[[Tensor], Tensor]) -> Any:
    """A hook that changes what is at a place; it goes before any hook of transformers' own."""
    target = module.get_submodule(place.path)

    def exchanged(value: Tensor) -> Tensor:
        return change(value.reshape(-1, value.shape[-1])).reshape(value.shape)

    def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(place.part, str):
            return args, {**named, place.part: exchanged(named[place.part])}
        if args:
            return (exchanged(args[0]), *args[1:]), named
        return args, {**named, "hidden_states": exchanged(named["hidden_states"])}

    def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if isinstance(place.part, str):
            out[place.part] = exchanged(out[place.part])
            return out
        if isinstance(out, tuple):
            at = place.part or 0
            return (*out[:at], exchanged(out[at]), *out[at + 1 :])
        return exchanged(out)

    if place.end == "input":
        return target.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
    return target.register_forward_hook(after, prepend=True)


def randomise(module: nn.Module, seed: int = 0, gain: float = 2**0.5) -> None:
    """Draw all weights so large that no effect is lost in rounding: matrices from N(0, gain² / fan-in)."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    norms = {id(p) for part in module.modules() if "norm" in type(part).__name__.lower() for p in part.parameters()}
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if id(weight) in norms:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
                if name.endswith("weight") and not _counts_from_one(module, name):
                    weight += 1
            elif id(weight) in embeddings:
                scale = 0.5 if "position" in name else 1.0
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
            elif weight.dim() > 1:
                fan_in = weight[0].numel() if weight.dim() != 3 else weight.shape[1]
                weight.copy_(gain * fan_in**-0.5 * torch.randn(weight.shape, generator=generator))
            else:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))


def _counts_from_one(module: nn.Module, name: str) -> bool:
    """Whether a norm multiplies with 1 + weight, as Gemma's do."""
    return type(module.get_submodule(name.rpartition(".")[0])).__name__.startswith("Gemma")


def byte_pairs(special: Sequence[str], **more: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as GPT-2, LLaMA 3 and Qwen have; special tokens by their names (`bos_token=...`)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(special)
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more)


def pieces(special: Sequence[str], **more: Any) -> PreTrainedTokenizerFast:
    """A BPE over characters with ▁ for spaces and byte fallback, as LLaMA 1 and 2, Gemma and Mistral have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    names = dict.fromkeys(["<unk>", *special, *fallback])
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=list(names))
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"unk_token": "<unk>", **more})


def picture(seed: int = 0, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A picture of random coloured blocks."""
    generator = torch.Generator().manual_seed(seed)
    blocks = (256 * torch.rand(6, 6, 3, generator=generator)).byte().numpy()
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
