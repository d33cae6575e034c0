"""Models without their weights: on torch's meta device, where only shapes are, or with random numbers."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from vlm_patching.errors import SpecError
from vlm_patching.models.sources import first_line

GAIN = 2.0
"""The variance of random matrices is this over their fan-in: no effect is then lost in rounding."""


def class_of(name: str) -> type[PreTrainedModel]:
    """A model class of transformers; `SpecError` where there is none of that name."""
    found = getattr(transformers, name, None)
    if not (inspect.isclass(found) and issubclass(found, PreTrainedModel)):
        raise SpecError(f"transformers {transformers.__version__} has no model class {name}.")
    return found


def class_name(config: PreTrainedConfig) -> str:
    """The class that answers prompts with a model of a configuration; `SpecError` where transformers has none."""
    named = [name for name in config.architectures or [] if hasattr(transformers, name)]
    if named:
        return str(named[0])
    for table in (transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, transformers.MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in table:
            return str(table[type(config)].__name__)
    raise SpecError(f"transformers has no class that answers for a {config.model_type} model, so no file is proposed.")


def meta_module(model_class: str, config: PreTrainedConfig, attn_implementation: str | None = None) -> Any:
    """A model on the meta device: its tree and its shapes, in no memory."""
    with torch.device("meta"):
        return _made(model_class, config, attn_implementation)


def random_module(
    model_class: str, config: PreTrainedConfig, attn_implementation: str | None = None
) -> torch.nn.Module:
    """A model with random weights, so large that what is changed in one place is seen in the answer."""
    torch.manual_seed(0)
    module = _made(model_class, config, attn_implementation)
    with torch.no_grad():
        for part in module.modules():
            for weight in part.parameters(recurse=False):
                if weight.dim() > 1:
                    layered = isinstance(part, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d)
                    fan_in = weight[0].numel() if layered else min(weight.shape[-2:])
                    weight.normal_(std=(GAIN / fan_in) ** 0.5)
                elif weight.numel() == 1:
                    weight.fill_(0.5)  # a gate, which begins as shut
    return module


def _made(model_class: str, config: PreTrainedConfig, attn_implementation: str | None) -> torch.nn.Module:
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    try:
        found = class_of(model_class)._from_config(copy.deepcopy(config), dtype=torch.float32, **options)
        made: torch.nn.Module = found.eval()
    except (ValueError, TypeError, RuntimeError, AttributeError, ImportError, KeyError) as error:
        raise SpecError(f"{model_class} cannot be made from this configuration: {first_line(error)}") from error
    return made
