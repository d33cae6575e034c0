"""Models: what they are made of, and loading them.

What loads a model is imported when it is first used, so that an architecture can be read without torch or nnsight.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vlm_patching.models.architecture import (
    ENTRIES,
    HEAD_COMPONENTS,
    IMAGE_STACKS,
    PATTERN_COMPONENTS,
    Architecture,
    Attention,
    ImageEntry,
    Stack,
    Tap,
)

if TYPE_CHECKING:
    from vlm_patching.models.load import Model, ModelDescription, bundled_models, describe_model, load_model, wrap

__all__ = [
    "ENTRIES",
    "HEAD_COMPONENTS",
    "IMAGE_STACKS",
    "PATTERN_COMPONENTS",
    "Architecture",
    "Attention",
    "ImageEntry",
    "Model",
    "ModelDescription",
    "Stack",
    "Tap",
    "bundled_models",
    "describe_model",
    "load_model",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vlm_patching.models' has no attribute {name!r}")
    return getattr(importlib.import_module("vlm_patching.models.load"), name)
