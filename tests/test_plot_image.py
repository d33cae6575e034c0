"""Overlays on a picture: every patch has its value's colour at its own box."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from PIL import Image

import vlm_patching as vp
from vlm_patching.analysis import above_mean
from vlm_patching.models.layouts import grid

ROWS, COLUMNS = 2, 3
PICTURE = Image.new("RGB", (60, 40), "white")
BOXES = [patch.box for patch in grid((0, 0, *PICTURE.size), ROWS, COLUMNS, PICTURE.size)]
ROLES = ["image", "object", "object", "image", "image", "image"]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def described(prefix: str, dimension: str, more: int) -> dict[str, Any]:
    """Coordinates of the patches of two examples, after `more` positions that are none."""
    across = ("example", dimension)
    rows = [[-1] * more + [row for row in range(ROWS) for _ in range(COLUMNS)]] * 2
    cols = [[-1] * more + list(range(COLUMNS)) * ROWS] * 2
    return {
        "example": ["a", "b"],
        "kept": ("example", ["kept", "dropped: the clean run says 'red'"]),
        "text": ("example", ["is the ring black or cyan?"] * 2),
        "answer": ("example", ["cyan"] * 2),
        f"{prefix}modality": (across, [["image"] * (more + 6)] * 2),
        f"{prefix}role": (across, [["object"] * more + ROLES] * 2),
        f"{prefix}row": (across, rows),
        f"{prefix}col": (across, cols),
        f"{prefix}box": ((*across, "corner"), [[(0, 0, 60, 40)] * more + BOXES] * 2),
        "corner": ["x0", "y0", "x1", "y1"],
        dimension: ["cls"] * more + [f"r{row}c{col}" for row in range(ROWS) for col in range(COLUMNS)],
    }


@pytest.fixture
def attention() -> xr.Dataset:
    """Two layers, two heads; the first key is the class token."""
    values = np.random.default_rng(0).dirichlet(np.ones(7), size=(2, 1, 2, 2, 1)).astype(np.float32)
    return xr.Dataset(
        {"attention": (("example", "site", "layer", "head", "position", "key"), values)},
        described("key_", "key", 1)
        | {"site": ["language.attn_pattern"], "layer": [4, 5], "head": [0, 1], "position": ["last"]},
        {"method": "attention"},
    )


@pytest.fixture
def patched() -> xr.Dataset:
    """One site, two layers, two draws; the first position is a group of all patches; one patch was not run."""
    values = np.random.default_rng(1).uniform(0.1, 0.9, (2, 1, 2, 7, 2)).astype(np.float32)
    values[0, 0, 1, 3] = np.nan
    return xr.Dataset(
        {
            "probability": (("example", "site", "layer", "position", "draw"), values),
            "probability_clean": ("example", [0.9, 0.9]),
            "probability_corrupted": (("example", "draw"), [[0.2, 0.4]] * 2),
        },
        described("", "position", 1) | {"site": ["language.resid_post"], "layer": [4, 5]},
        {"direction": "denoise"},
    )


def overlay(figure: Any) -> PatchCollection:
    (found,) = [c for ax in figure.axes for c in ax.collections if isinstance(c, PatchCollection)]
    return found


def drawn(figure: Any) -> dict[tuple[int, ...], float]:
    """Box in pixels → value."""
    found = overlay(figure)
    corners = [np.concatenate([p.vertices.min(axis=0), p.vertices.max(axis=0)]) + 0.5 for p in found.get_paths()]
    return {tuple(np.round(c).astype(int).tolist()): v for c, v in zip(corners, found.get_array(), strict=True)}


def test_attention_minus_the_mean_of_all_heads_lies_at_each_patchs_box(attention: xr.Dataset) -> None:
    values = drawn(vp.plot.image(attention, "a", PICTURE, layer=5, head=0))
    wanted = above_mean(attention).sel(example="a", layer=5, head=0).squeeze().values[1:]
    assert list(values) == BOXES
    np.testing.assert_allclose(list(values.values()), wanted)


def test_attention_itself_can_be_drawn_on_a_scale_from_0(attention: xr.Dataset) -> None:
    figure = vp.plot.image(attention, "a", PICTURE, layer=5, head=0, minus_mean=False)
    wanted = attention["attention"].sel(example="a", layer=5, head=0).squeeze().values[1:]
    np.testing.assert_allclose(list(drawn(figure).values()), wanted)
    assert overlay(figure).get_clim() == (0, pytest.approx(wanted.max()))


def test_effects_of_single_patches_are_means_over_draws_and_what_was_not_run_is_left_out(patched: xr.Dataset) -> None:
    values = drawn(vp.plot.image(patched, "a", PICTURE, layer=5))
    wanted = vp.effect(patched).sel(example="a", layer=5).squeeze().mean("draw").values[1:]
    assert list(values) == [box for box, value in zip(BOXES, wanted, strict=True) if np.isfinite(value)]
    assert len(values) == 5
    np.testing.assert_allclose(list(values.values()), wanted[np.isfinite(wanted)])


def test_the_scale_is_symmetric_about_0_red_is_positive_and_0_is_seen_through(patched: xr.Dataset) -> None:
    found = overlay(vp.plot.image(patched, "a", PICTURE, layer=4))
    low, high = found.get_clim()
    assert -low == high == pytest.approx(max(abs(found.get_array())))
    negative, nothing, positive = found.get_cmap()([0.0, 0.5, 1.0])
    assert positive[0] > positive[2] and negative[2] > negative[0] and nothing[3] < 0.1 < positive[3]
    assert overlay(vp.plot.image(patched, "a", PICTURE, layer=4, limit=0.7)).get_clim() == (-0.7, 0.7)


def test_the_pictures_pixels_lie_under_their_patches(patched: xr.Dataset) -> None:
    picture = Image.new("RGB", (60, 40), "white")
    picture.paste("black", BOXES[4])
    patched["probability"][:] = 0.3
    figure = vp.plot.image(patched, "a", picture, layer=4, region=None, limit=1.0)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    ax = figure.axes[0]
    darkness = []
    for x0, y0, x1, y1 in BOXES:
        x, y = ax.transData.transform(((x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5))
        darkness.append(255 - pixels[int(len(pixels) - y), int(x)].mean())
    assert np.argmax(darkness) == 4 and sorted(darkness)[-2] < 0.5 * max(darkness)


def test_a_frame_is_around_the_regions_patches(attention: xr.Dataset) -> None:
    (frame,) = [p for p in vp.plot.image(attention, "a", PICTURE, layer=4, head=0).axes[0].patches]
    assert isinstance(frame, Rectangle)
    x0, y0, x1, y1 = np.array(frame.get_bbox().extents) + 0.5
    assert (x0, y0, x1, y1) == (BOXES[1][0], BOXES[1][1], BOXES[2][2], BOXES[2][3])
    assert not vp.plot.image(attention, "a", PICTURE, layer=4, head=0, region=None).axes[0].patches


def test_the_title_says_what_is_drawn(attention: xr.Dataset) -> None:
    title = vp.plot.image(attention, "a", PICTURE, layer=4, head=1).axes[0].get_title(loc="left")
    for wanted in ("language.attn_pattern", "layer 4", "head 1", "at last", "is the ring black or cyan?", "cyan", "a:"):
        assert wanted in title


def test_given_axes_are_drawn_in_and_no_figure_is_made(patched: xr.Dataset) -> None:
    figure, ax = plt.subplots()
    before = plt.get_fignums()
    assert vp.plot.image(patched, "a", PICTURE, layer=4, ax=ax) is figure
    assert plt.get_fignums() == before and len(drawn(figure)) == 6


def test_a_knockout_of_single_patches_would_be_drawn_by_its_effect(patched: xr.Dataset) -> None:
    ds = patched.drop_vars("probability_corrupted").assign_attrs(method="ablate").isel(draw=0)
    values = drawn(vp.plot.image(ds, "a", PICTURE, layer=4))
    np.testing.assert_allclose(list(values.values()), 0.9 - ds["probability"].values[0, 0, 0, 1:], rtol=1e-6)


def test_a_wrong_call_is_refused_and_names_what_there_is(attention: xr.Dataset, patched: xr.Dataset) -> None:
    groups = patched.isel(position=[0])
    small = Image.new("RGB", (50, 40))
    for call, named in (
        (lambda: vp.plot.image(attention, "c", PICTURE), "Known: a, b"),
        (lambda: vp.plot.image(attention, "b", PICTURE), "not kept: dropped: the clean run says"),
        (lambda: vp.plot.image(attention, "a", PICTURE, layer=4), "Name one head of 0, 1"),
        (lambda: vp.plot.image(attention, "a", PICTURE, layer=9, head=0), "Known: 4, 5"),
        (lambda: vp.plot.image(attention, "a", PICTURE, layer=4, hed=0), "Did you mean 'head'"),
        (lambda: vp.plot.image(attention, "a", small, layer=4, head=0), "60 × 40.*50 × 40"),
        (lambda: vp.plot.image(attention.isel(layer=[0], head=[0]), "a", PICTURE), "minus_mean"),
        (lambda: vp.plot.image(patched, "a", PICTURE, metric="probabilty", layer=4), "Did you mean 'probability'"),
        (lambda: vp.plot.image(patched.assign_attrs(method="lens"), "a", PICTURE, layer=4), "plot.lens"),
        (lambda: vp.plot.image(patched.drop_vars("box"), "a", PICTURE, layer=4), "each:image"),
        (lambda: vp.plot.image(groups, "a", PICTURE, layer=4), "no number at a single patch"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()  # type: ignore[no-untyped-call]
