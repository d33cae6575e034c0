"""What becomes of a picture on its way into a model, guessed: for a family's file that is proposed."""

from __future__ import annotations

import re
from typing import Any

from PIL import Image
from torch import nn
from transformers import PreTrainedConfig

from vlm_patching.models.families.values import value_at
from vlm_patching.models.tree import joined

SELECT = "vision_feature_select_strategy"


def layout_of(
    config: PreTrainedConfig, image_processor: Any, tower: nn.Module, section: str, apart: bool, qformer: bool
) -> dict[str, Any]:
    """What a family's file says under `image.layout`.

    Parameters
    ----------
    tower, section
        The image encoder, and where the configuration describes it.
    apart
        Whether the text cross-attends to it.
    qformer
        Whether queries with a stack of their own read it.
    """
    if "image_grid_thw" in getattr(image_processor, "model_input_names", []):
        return {"rule": "blocks", "merge": joined(section, "spatial_merge_size")}
    names = [name for name, _ in (*tower.named_parameters(), *tower.named_modules())]
    first = any(re.search(r"class_embed|cls_token", name) for name in names)
    kernel = next((part.kernel_size[0] for part in tower.modules() if isinstance(part, nn.Conv2d)), 1)
    size = dict(getattr(image_processor, "crop_size", None) or getattr(image_processor, "size", None) or {})
    paths = {key: joined(section, key) for key in ("image_size", "patch_size")}
    literal = {"image_size": next(iter(size.values()), 1), "patch_size": kernel}
    sides = {key: path if value_at(config, path, None) is not None else literal[key] for key, path in paths.items()}
    if value_at(config, "num_query_tokens", None) is not None:
        return {"rule": "latents", "count": "num_query_tokens", **sides, "class_token": first, "qformer": qformer}
    says: dict[str, Any] = {"rule": "square", **sides}
    says |= {"embeds_count": "mm_tokens_per_image"} if hasattr(config, "mm_tokens_per_image") else {}
    says |= {"class_token": ["vision", "embeds"] if apart else ["vision"]} if first else {}
    return says | ({"select": SELECT} if first and hasattr(config, SELECT) else {})


def template_of(processor: Any, mark: int | None) -> str:
    """What stands around a prompt: images' places, but where the processor puts them in by itself."""
    if mark is None:
        return "{text}"
    given = _count(processor, f"{getattr(processor, 'image_token', '')}a", mark)
    return "{text}" if 0 < _count(processor, "a", mark) < given else "{images}{text}"


def _count(processor: Any, text: str, mark: int) -> int:
    """How many places one picture has in a prompt; 0 where the processor takes no such prompt."""
    try:
        made = processor(images=[Image.new("RGB", (64, 64))], text=text, return_tensors="pt")
    except (ValueError, TypeError, LookupError, AttributeError):
        return 0
    return int((made["input_ids"] == mark).sum())
