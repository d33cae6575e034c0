"""Models by name: bundled, hub id or local folder. What a model is can be known without its weights."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from nnsight import NNsight
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, PreTrainedConfig, ProcessorMixin

from vlm_patching.errors import SpecError, unknown
from vlm_patching.models.architecture import Architecture
from vlm_patching.models.families import Family, find_family, read_family
from vlm_patching.models.fit import check_fit
from vlm_patching.models.sources import Source, bundled_models, first_line, not_cached, read_source
from vlm_patching.sections import DTYPE_NAMES, MASKED, Attention, Quantization

__all__ = ["Model", "ModelDescription", "bundled_models", "describe_model", "load_model", "wrap"]

MARKS = ("image_token", "img_patch_token", "image_patch_token")
"""What processors and tokenizers call the token that holds an image position's place."""


@dataclass(frozen=True)
class ModelDescription:
    """A model without its weights.

    Attributes
    ----------
    name, revision
        As the spec gives them.
    source
        Folder or hub id that transformers loads from.
    config, processor, architecture
        What it is, how its inputs are made, where its sites are.
    family
        The file that says where they are.
    attn_implementation
        How attention is to be computed; transformers' own choice where None.
    """

    name: str
    revision: str | None
    source: str
    config: PreTrainedConfig
    processor: ProcessorMixin
    architecture: Architecture
    family: Family
    attn_implementation: str | None = None

    @property
    def tokenizer(self) -> Any:
        """The processor's; the processor itself, where there is nothing but text."""
        return getattr(self.processor, "tokenizer", self.processor)

    def word(self, token: int) -> str:
        """A token, or a class where answers are classes, in words."""
        classes = {number: word for word, number in self.architecture.prompting.classes.items()}
        return classes[token] if classes else str(self.tokenizer.convert_ids_to_tokens(token))


@dataclass(frozen=True)
class Model:
    """A loaded model, wrapped with nnsight.

    Attributes
    ----------
    description
        What it is.
    envoy
        The nnsight wrapper that traces run on.
    digest
        SHA-256 over the weights, so that a result says exactly which weights it is of.
    quantization
        `4bit`, `8bit`, or None.
    """

    description: ModelDescription
    envoy: NNsight
    digest: str
    quantization: str | None = None

    @property
    def dtype(self) -> str:
        """What most is computed in: some models keep a part in float32, and quantized weights are no numbers that this
        could be said of."""
        sizes: Counter[torch.dtype] = Counter()
        for weight in self.envoy._module.parameters():
            sizes[weight.dtype] += weight.numel() if weight.is_floating_point() else 0
        return str(sizes.most_common(1)[0][0]).removeprefix("torch.")

    @property
    def attn_implementation(self) -> str:
        """How attention is computed."""
        return str(self.envoy._module.config._attn_implementation)

    @property
    def device(self) -> torch.device:
        return next(self.envoy._module.parameters()).device


def describe_model(
    name: str,
    revision: str | None = None,
    family: str | Path | Family | None = None,
    attn_implementation: str | None = None,
) -> ModelDescription:
    """Everything about a model but its weights: enough to check an experiment before anything heavy is loaded.

    Parameters
    ----------
    name
        A bundled name, a local folder in transformers' format, or a hub id.
    revision
        Branch, tag or commit of a hub id.
    family
        A family's file, where none of the package's is of this model.
    attn_implementation
        As `ModelSpec` has it: what a model can do depends on it.

    Raises
    ------
    SpecError
        Unknown name, unreadable files, or a family that is not supported.
    """
    if attn_implementation is not None and attn_implementation not in get_args(Attention):
        raise unknown("attn_implementation", attn_implementation, get_args(Attention))
    own = family if isinstance(family, Family | None) else read_family(family)
    source = read_source(name, revision)
    try:
        return describe_source(source, own or find_family(source.config), attn_implementation)
    except SpecError as error:
        raise type(error)(f"Model {name!r}: {error}") from error


def describe_source(source: Source, family: Family, attn_implementation: str | None = None) -> ModelDescription:
    """A model whose files are at hand, as a family's file has it."""
    described = family.describe(source.config)
    _check_marks(described, source.processor)
    if attn_implementation not in (None, *MASKED):
        described = _without_masks(described)
    return ModelDescription(
        source.name,
        source.revision,
        source.place,
        source.config,
        source.processor,
        described,
        family,
        attn_implementation,
    )


def _without_masks(architecture: Architecture) -> Architecture:
    """What is left where attention takes no additive mask: nothing is blocked, and cells do not share a sequence."""
    stacks = tuple(
        replace(stack, attentions={name: replace(one, mask=None) for name, one in stack.attentions.items()})
        for stack in architecture.stacks
    )
    return replace(architecture, stacks=stacks, packs="")


def _check_marks(described: Architecture, processor: Any) -> None:
    """Refuse a processor that puts other tokens in the images' places than the model looks for."""
    if described.image is None or not described.image.marks:
        return
    tokenizer = processor.tokenizer
    marks: dict[int, str] = {}
    for owner, attribute in product((processor, tokenizer), MARKS):
        mark = getattr(owner, attribute, None)
        token = tokenizer.convert_tokens_to_ids(str(getattr(mark, "content", mark))) if mark else None
        if token not in (None, tokenizer.unk_token_id):  # else it is the template's alone
            marks[token] = str(mark)
    if marks and not marks.keys() & {*described.image.marks}:
        found, mark = next(iter(marks.items()))
        raise SpecError(
            f"its configuration has image_token_id {described.image.marks[0]}, but its processor's "
            f"image mark {mark!r} is token {found}."
        )


def load_model(
    name: str | ModelDescription,
    *,
    revision: str | None = None,
    family: str | Path | None = None,
    dtype: str = "float32",
    device_map: str | None = None,
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> Model:
    """Load a model and wrap it with nnsight.

    Parameters
    ----------
    name
        A bundled name, local folder or hub id; or a description that is at hand, which says the next three as well.
    revision, family, attn_implementation
        As `describe_model` takes them.
    dtype
        `float32`, `float16` or `bfloat16`.
    device_map
        As transformers takes it ("auto", "cuda:0"); None leaves the model on the CPU.
    quantization
        `4bit`, or (with float16) `8bit`: weights are quantized by bitsandbytes while they are loaded.

    Returns
    -------
    Model

    Examples
    --------
    >>> model = load_model("shapes-llava")
    >>> model.description.architecture.family
    'llava'
    """
    if isinstance(name, str):
        name = describe_model(name, revision, family, attn_implementation)
    return wrap(load_module(name, dtype, device_map, quantization), name, quantization)


def load_module(
    description: ModelDescription,
    dtype: str = "float32",
    device_map: str | None = None,
    quantization: str | None = None,
) -> torch.nn.Module:
    """A model as transformers loads it; `SpecError` where it cannot, or where weights are missing."""
    if dtype not in DTYPE_NAMES:
        raise unknown("dtype", dtype, DTYPE_NAMES)
    attention = description.attn_implementation
    if dtype == "float32" and str(attention).startswith("flash"):
        raise SpecError(f"{attention} computes in float16 and bfloat16 alone; dtype is float32.")
    wanted = {"device_map": device_map, "attn_implementation": attention}
    options: dict[str, Any] = {name: value for name, value in wanted.items() if value}
    said = ", ".join(
        f"{name} {value}" for name, value in {"dtype": dtype, **options, "": quantization}.items() if value
    )
    if quantization is not None:
        options["quantization_config"] = _quantized(quantization, dtype)
    try:
        module, found = getattr(transformers, description.architecture.model_class).from_pretrained(
            description.source,
            revision=description.revision,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, AssertionError, ImportError, SafetensorError) as error:
        why = f"The weights of {description.name!r} could not be loaded ({said}): {first_line(error)}"
        offline = not_cached(description.source, description.revision, "model.safetensors")
        raise SpecError(offline if isinstance(error, OSError) and offline else why) from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise SpecError(
            f"The weights of {description.name!r} lack {len(missing)} of the model's tensors, {missing[0]} the first: "
            "its configuration and its weights do not belong together."
        )
    loaded: torch.nn.Module = module.eval()
    return loaded


def _quantized(quantization: str, dtype: str) -> BitsAndBytesConfig:
    if quantization not in get_args(Quantization):
        raise unknown("quantization", quantization, get_args(Quantization))
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SpecError(
            f"quantization {quantization!r} is done by bitsandbytes, which is not installed here: pip install "
            "'bitsandbytes>=0.46.1' (and accelerate), or leave quantization out."
        )
    four = quantization == "4bit"
    if not four and dtype != "float16":
        raise SpecError(f"quantization '8bit' computes in float16, and dtype is {dtype}: say float16.")
    return BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four, bnb_4bit_compute_dtype=getattr(torch, dtype))


def wrap(module: torch.nn.Module, description: ModelDescription, quantization: str | None = None) -> Model:
    """A model that is already in memory, as `load_model` would have given it."""
    check_fit(module, description.architecture)
    module.requires_grad_(False)
    with without_name_warning():
        envoy = NNsight(module)
    return Model(description, envoy, weights_digest(module), quantization)


@contextlib.contextmanager
def without_name_warning() -> Iterator[None]:
    """No warning of nnsight's that BLIP's layers have a submodule called "output": its other name for it is used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has a submodule named 'output'.*")
        yield


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
