"""Models: what they are made of, and loading them."""

from vlm_patching.models.architecture import HEAD_COMPONENTS, Architecture, ImageEntry, Stack, Tap
from vlm_patching.models.load import Model, ModelDescription, bundled_models, describe_model, load_model, wrap

__all__ = [
    "HEAD_COMPONENTS",
    "Architecture",
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
