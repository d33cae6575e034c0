"""The parts of a program: traces, and operations in the order in which a model computes their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vlm_patching.graph import Run
from vlm_patching.models import IMAGE_STACKS, PATTERN_COMPONENTS, Architecture, Tap

_STEPS = (
    *("skip", "fold", "unfold", "perturb", "hold", "interpolate"),
    *("block", "silence", "replace", "add", "multiply", "delta"),
)
"""Operations at one place, in their order; what only reads comes last."""


def trace(
    architecture: Architecture,
    run: Run,
    rows: int,
    operations: list[dict[str, Any]],
    noise: dict[str, Any] | None = None,
    *,
    reuses_image: bool = False,
    measured: bool = True,
    eager: bool = False,
    needs: Mapping[str, tuple[Tap, int]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One forward pass as plain data.

    Parameters
    ----------
    noise
        What perturbs it; left out where the image that is reused has it in it already.
    needs
        What it takes from base runs: key → where they read it.
    """
    at_pixels = noise is not None and noise["site"] == "pixels"
    if noise is not None and not at_pixels and not (reuses_image and noise["site"] == "image_embeds"):
        operations = [*operations, noise]
    return {
        "run": run.name,
        "on": run.on,
        "rows": rows,
        "measured": measured,
        "reuses_image": reuses_image,
        "pixels": noise if at_pixels and not reuses_image else None,
        "eager": eager,
        "operations": sorted(operations, key=_order(architecture)),
        "needs": dict(needs or {}),
        **more,
    }


def at(tap: Tap, layer: int = 0) -> dict[str, Any]:
    """An operation's place."""
    return {"path": tap.path.format(layer=layer), "end": tap.end, "part": tap.part}


def _order(architecture: Architecture) -> Callable[[Mapping[str, Any]], tuple[int, int]]:
    """Sort key of operations: the order in which the model computes their places."""
    tokens = (architecture.token_embeds.path, architecture.token_embeds.end)
    image = architecture.image
    places: list[tuple[str, str]] = [tokens] if image is None or not image.before_tokens else []
    left = [tap.path for tap in image.bypass] if image else []
    reader = next(stack for stack in architecture.stacks if stack.name not in IMAGE_STACKS)
    for stack in architecture.stacks:
        if image and stack is reader:
            places += [*[(path, "output") for path in left], (image.embeds.path, image.embeds.end)]
            places += [tokens] if image.before_tokens else []
            if architecture.rotary is not None:
                places.append((architecture.rotary.path, architecture.rotary.end))
        for layer in range(stack.layers):
            after = ""
            for component, tap in stack.taps.items():
                for pattern, context in PATTERN_COMPONENTS.items():
                    if component == context and pattern in stack.attentions:
                        path = stack.attentions[pattern].path
                        places.append((path.format(layer=layer), "input"))
                        made = [name for name in stack.image_keys if name.startswith(f"{path}.")]
                        places += [(name.format(layer=layer), "output") for name in made]
                        if tap.path.startswith(f"{path}."):
                            after = path  # the module goes on to the output projection, and ends behind it
                        else:
                            places.append((path.format(layer=layer), "output"))
                places.append((tap.path.format(layer=layer), tap.end))
                if component == "resid_pre" and stack.entry is not None:
                    places.append((stack.entry.path.format(layer=layer), stack.entry.end))
                if after and component in ("attn_out", "cross_attn_out"):
                    places.append((after.format(layer=layer), "output"))
                    after = ""
        if stack.whole is not None:
            places.append((stack.whole.path, stack.whole.end))
        if stack.name in IMAGE_STACKS:
            around = [path for path in left if stack.taps["resid_post"].path.startswith(f"{path}.")]
            places += [(path, "output") for path in around]
            left = [path for path in left if path not in around]
    rank = {place: i for i, place in enumerate(places)}
    step = {name: i for i, name in enumerate(_STEPS)}
    return lambda operation: (rank[operation["path"], operation["end"]], step.get(operation["do"], len(_STEPS)))
