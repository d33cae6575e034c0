"""Models by name: bundled, hub id or local folder. What a model is can be known without its weights."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from nnsight import NNsight
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, ProcessorMixin

from vlm_patching.errors import SpecError, nearest, unknown
from vlm_patching.models.architecture import Architecture
from vlm_patching.models.families import architecture
from vlm_patching.sections import DTYPE_NAMES


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
    """

    name: str
    revision: str | None
    source: str
    config: PreTrainedConfig
    processor: ProcessorMixin
    architecture: Architecture


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
    """

    description: ModelDescription
    envoy: NNsight
    digest: str

    @property
    def dtype(self) -> str:
        return str(next(self.envoy._module.parameters()).dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        return next(self.envoy._module.parameters()).device


def bundled_models() -> dict[str, Path]:
    """The models that ship inside the package: name → folder."""
    folder = Path(str(resources.files("vlm_patching.models") / "bundled"))
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def describe_model(name: str, revision: str | None = None) -> ModelDescription:
    """Everything about a model but its weights: enough to check an experiment before anything heavy is loaded.

    Parameters
    ----------
    name
        A bundled name, a local folder in transformers' format, or a hub id.
    revision
        Branch, tag or commit of a hub id.

    Raises
    ------
    SpecError
        Unknown name, unreadable files, or a family that is not supported.
    """
    bundled = bundled_models()
    if name in bundled:
        source = str(bundled[name])
    elif Path(name).is_dir():
        source = str(Path(name).resolve())
    elif "/" in name and not name.startswith((".", "/", "~")):
        source = name
    else:
        raise SpecError(
            f"model.name: unknown model {name!r}.{nearest(name, bundled)} It is neither a bundled model "
            f"({', '.join(bundled)}), nor a folder that exists, nor a hub id ('owner/name')."
        )
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        processor = AutoProcessor.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise SpecError(
            f"Model {name!r} could not be read from {source}: {str(error).strip().splitlines()[0]}"
        ) from error
    described = architecture(config)
    classes = config.architectures or []
    if described.model_class not in classes:
        raise SpecError(
            f"Model {name!r} holds a {' / '.join(classes) or 'model of unnamed class'}; "
            f"of the {described.family} family, {described.model_class} is what can be patched here."
        )
    if described.image.inline:
        mark = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        if mark != config.image_token_id:
            raise SpecError(
                f"Model {name!r}: its configuration has image_token_id {config.image_token_id}, but its processor's "
                f"image mark {processor.image_token!r} is token {mark}."
            )
    return ModelDescription(name, revision, source, config, processor, described)


def load_model(
    name: str | ModelDescription, *, revision: str | None = None, dtype: str = "float32", device_map: str | None = None
) -> Model:
    """Load a model and wrap it with nnsight.

    Parameters
    ----------
    name
        A bundled name, local folder or hub id, or a description that is at hand.
    revision
        Branch, tag or commit of a hub id.
    dtype
        `float32`, `float16` or `bfloat16`.
    device_map
        As transformers takes it ("auto", "cuda:0"); None leaves the model on the CPU.

    Returns
    -------
    Model

    Examples
    --------
    >>> model = load_model("shapes-llava")
    >>> model.description.architecture.family
    'llava'
    """
    description = name if isinstance(name, ModelDescription) else describe_model(name, revision)
    if dtype not in DTYPE_NAMES:
        raise unknown("dtype", dtype, DTYPE_NAMES)
    options: dict[str, Any] = {"device_map": device_map} if device_map else {}
    try:
        module, found = getattr(transformers, description.architecture.model_class).from_pretrained(
            description.source,
            revision=description.revision,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, AssertionError, ImportError, SafetensorError) as error:
        raise SpecError(
            f"The weights of {description.name!r} could not be loaded (dtype {dtype}, device_map {device_map}): "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise SpecError(
            f"The weights of {description.name!r} lack {len(missing)} of the model's tensors, {missing[0]} the first: "
            "its configuration and its weights do not belong together."
        )
    return wrap(module.eval(), description)


def wrap(module: torch.nn.Module, description: ModelDescription) -> Model:
    """A model that is already in memory, as `load_model` would have given it."""
    module.requires_grad_(False)
    with without_name_warning():
        envoy = NNsight(module)
    return Model(description, envoy, weights_digest(module))


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
