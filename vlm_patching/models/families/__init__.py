"""One short data file a family, found by transformers' ``model_type``."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedConfig

from vlm_patching.errors import unknown
from vlm_patching.models.architecture import Architecture
from vlm_patching.models.families import blip, llava

FAMILIES: dict[str, Callable[[PreTrainedConfig], Architecture]] = {"blip": blip.describe, "llava": llava.describe}


def architecture(config: PreTrainedConfig) -> Architecture:
    """The map of the model that a configuration describes; `SpecError` for a family that is not known."""
    if config.model_type not in FAMILIES:
        raise unknown("model family", config.model_type, FAMILIES)
    return FAMILIES[config.model_type](config)
