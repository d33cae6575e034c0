"""Layout rules at the sizes that public checkpoints have, and pictures whose positions cannot be exchanged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlavaNextConfig, LlavaNextModel, LlavaOnevisionConfig, LlavaOnevisionModel

import vlm_patching as vp
from tests.families import kit, llava_next
from vlm_patching.inputs import encode_pair
from vlm_patching.models import describe_model
from vlm_patching.models.layouts import Patch, Seen, anyres, square
from vlm_patching.pairs import Pair, Prompt

SIZES = ((640, 480), (480, 640), (333, 1000), (1200, 300), (2000, 1500), (50, 70))
NEWLINE = torch.full((3,), -7.0)


@pytest.mark.parametrize("size", SIZES)
def test_llava_next_packs_the_features_that_the_layout_says(size: tuple[int, int]) -> None:
    config: Any = LlavaNextConfig()
    layout = anyres.layout(Seen(config, None, {}, [size]), 336, 14, config.image_grid_pinpoints, class_token=True)
    features = _tiles([[p.tile, p.row, p.column] for p in layout.embeds], 24)
    model: Any = SimpleNamespace(config=config)
    packed, _ = LlavaNextModel.pack_image_features(model, [features], torch.tensor([size[::-1]]), "default", NEWLINE)
    wanted = [[-7, -7, -7] if p.kind == "separator" else [p.tile, p.row, p.column] for p in layout.text]
    assert packed[0].tolist() == wanted


@pytest.mark.parametrize("size", SIZES)
def test_llava_onevision_packs_what_the_layout_says(size: tuple[int, int]) -> None:
    """What is interpolated lies where its parts lie, give or take a patch; of a tile's 384 pixels 378 are seen."""
    config: Any = LlavaOnevisionConfig()
    seen = Seen(config, None, {"batch_num_images": torch.tensor([1])}, [size])
    layout = anyres.layout(seen, 384, 14, config.image_grid_pinpoints, most=config.vision_aspect_ratio)
    features = _tiles([_middle(patch) for patch in layout.embeds], 27)
    model: Any = SimpleNamespace(config=config)
    packed, _ = LlavaOnevisionModel.pack_image_features(model, [features], torch.tensor([size[::-1]]), NEWLINE)
    assert len(packed[0]) == len(layout.text)
    for found, patch in zip(packed[0], layout.text, strict=True):
        assert bool((found == NEWLINE).all()) == (patch.kind == "separator")
        if patch.kind == "patch" and patch.box and not found.isnan().any():
            x0, y0, x1, y1 = patch.box
            assert x0 - (x1 - x0) <= found[0] <= x1 + (x1 - x0)
            assert y0 - (y1 - y0) <= found[1] <= y1 + (y1 - y0)


def _tiles(rows: list[list[float]], side: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, side**2, 3)


def _middle(patch: Patch) -> list[float]:
    if patch.box is None:
        return [torch.nan] * 3
    x0, y0, x1, y1 = patch.box
    return [(x0 + x1) / 2, (y0 + y1) / 2, 0]


def test_what_whole_patches_leave_over_is_not_seen() -> None:
    layout = square.layout(Seen(None, SimpleNamespace(), {}, [(768, 384)]), 384, 14)
    assert len(layout.vision) == 27**2
    assert layout.vision[-1].box == (728, 364, 756, 378)


def test_pictures_of_other_shapes_are_refused(tmp_path: Path) -> None:
    """As many tiles, but put together to other rows."""
    llava_next.KNOWN.build(tmp_path)
    description = describe_model(str(tmp_path))
    sides = [Prompt(kit.picture(0, size), "left or right ?") for size in ((96, 48), (48, 96))]
    pair = Pair("0", sides[0], sides[1], "left", "right")
    with pytest.raises(vp.SpecError, match="bring them to one size"):
        encode_pair(pair, description, ("clean", "corrupted"))
