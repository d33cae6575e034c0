"""Does a position show the part of the picture that its layout says? Paint that part, and see which position moves."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import ImageChops

from vlm_patching.doctor.sites import forward, site_taps
from vlm_patching.errors import SpecError
from vlm_patching.inputs import EncodedPair, encode_pair
from vlm_patching.models import IMAGE_STACKS, ModelDescription
from vlm_patching.pairs import Pair
from vlm_patching.pairs.pair import Box
from vlm_patching.positions import overlaps

TRIED = 3
"""Positions of a stack."""


def misplaced(module: torch.nn.Module, description: ModelDescription, encoded: EncodedPair) -> list[str]:
    """Positions that other paint moves than that on what they are said to show.

    They are looked at where patches enter the image encoder and where it hands them on, and attention between patches
    is silent.
    """
    architecture, lines = description.architecture, list[str]()
    silent = [
        stack.taps["attn_out"].path.format(layer=layer)
        for stack in architecture.stacks
        for layer in range(stack.layers)
        if stack.name in IMAGE_STACKS and "attn_out" in stack.taps and stack.has("attn_out", layer)
    ]
    taps = {name: tap for name, tap in site_taps(architecture).items() if name in ("vision.resid_pre", "image_embeds")}
    before = forward(module, encoded.inputs["clean"], taps, silent)
    for name in taps if silent else ():
        positions = encoded.positions[name.split(".")[0]].positions
        boxed = [i for i, position in enumerate(positions) if position.box]
        for number in sorted({boxed[len(boxed) * part // TRIED] for part in range(TRIED)} if boxed else ()):
            box = positions[number].box
            assert box is not None
            painted = encode_pair(_painted(encoded.pair, box), description, ())
            after = forward(module, painted.inputs["clean"], {name: taps[name]}, silent)
            moved = _moved(before[name], after[name], len(positions))
            most = positions[int(moved.argmax())]
            if most.box is None or not overlaps(most.box, box):
                lines.append(f"{name}: {positions[number].label} is at {list(box)}, but paint there moves {most.label}")
    return lines


def _painted(pair: Pair, box: Box) -> Pair:
    """The pair with a part of its picture in the opposite colours."""
    picture = pair.clean.picture().copy()
    picture.paste(ImageChops.invert(picture.crop(box)), box[:2])
    return replace(pair, clean=pair.clean.with_picture(picture))


def _moved(before: torch.Tensor, after: torch.Tensor, count: int) -> torch.Tensor:
    """How far each position is moved."""
    distance = (after - before).float().flatten(0, -2).norm(dim=-1)
    if len(distance) != count:
        raise SpecError(f"the sequence has {len(distance)} positions, and by its layout {count}")
    return distance
