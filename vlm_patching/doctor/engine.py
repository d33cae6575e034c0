"""How image and text meet in a model, and what a swept run may take over from its base run."""

from __future__ import annotations

from typing import Any

from vlm_patching.models import Architecture
from vlm_patching.sections import MASKED

_PLACES = {
    "marks": "inside the text's sequence, where the prompt holds tokens in their places",
    "before": "inside the text's sequence, before the prompt",
    "apart": "apart: the text cross-attends to it",
}


def fusion(architecture: Architecture) -> str:
    """Where the image is for the text side, in words."""
    return "none: a model of text alone" if architecture.image is None else _PLACES[architecture.image.place]


def engine_rows(architecture: Architecture, attn_implementation: str | None) -> list[dict[str, Any]]:
    """What is reused, whether it is here, and what decides that."""
    found = [
        ("images encoded once", *_images(architecture)),
        ("lower layers skipped", *_layers(architecture)),
        ("cells packed over a prefix", *_packed(architecture, attn_implementation)),
        ("cross-attention keys once", *_keys(architecture)),
    ]
    return [{"reuse": name, "here": "on" if on else "off", "why": why} for name, on, why in found]


def _images(architecture: Architecture) -> tuple[bool, str]:
    image = architecture.image
    if image is None:
        return False, "there is no image"
    paths = [tap.path for tap in (*image.bypass, image.embeds)]
    return True, f"passed over: {', '.join(paths)}; not for cells below image_embeds, nor with noise on the pixels"


def _layers(architecture: Architecture) -> tuple[bool, str]:
    off = [stack.name for stack in architecture.stacks if not stack.skips]
    on = [stack.name for stack in architecture.stacks if stack.skips]
    why = f"in {', '.join(on)}" if on else ""
    why_not = f"off in {', '.join(off)}: `skips: false` in the file, or more than its last layer is read" if off else ""
    return bool(on), "; ".join(filter(None, [why, why_not]))


def _packed(architecture: Architecture, attn_implementation: str | None) -> tuple[bool, str]:
    if attn_implementation not in (None, *MASKED):
        return False, f"{attn_implementation} takes no additive mask"
    if not architecture.packs:
        return (
            False,
            "the file has no `pack`: attention over the prefix goes both ways, or nobody has said that it does not",
        )
    limits = [f"in {architecture.packs}"]
    if architecture.packs_text:
        limits.append("only cells behind the last image (`text_only: true`)")
    if architecture.packs_up_to is not None:
        limits.append(f"only up to {architecture.packs_up_to} positions (`window`)")
    return True, "; ".join(limits)


def _keys(architecture: Architecture) -> tuple[bool, str]:
    crossed = [stack for stack in architecture.stacks if "cross_attn_out" in stack.taps]
    if not crossed:
        return False, "there is no cross-attention"
    made = [stack.name for stack in crossed if stack.image_keys]
    if not made:
        return False, "the file's `cross_attention` does not say what is `made` of the other stack"
    folded = [stack.name for stack in crossed if any(attention.folds for attention in stack.attentions.values())]
    return True, f"in {', '.join(made)}" + (f"; rows of one image as one in {', '.join(folded)}" if folded else "")
