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


def overlay(ax: Any) -> PatchCollection:
    (found,) = [c for c in ax.collections if isinstance(c, PatchCollection)]
    return found


def drawn(ax: Any) -> dict[tuple[int, ...], float]:
    """Box in pixels → value."""
    found = overlay(ax)
    corners = [np.concatenate([p.vertices.min(axis=0), p.vertices.max(axis=0)]) + 0.5 for p in found.get_paths()]
    return {tuple(np.round(c).astype(int).tolist()): v for c, v in zip(corners, found.get_array(), strict=True)}


def test_attention_minus_the_mean_of_all_heads_lies_at_each_patchs_box(attention: xr.Dataset) -> None:
    values = drawn(vp.plot.attention(attention, "a", PICTURE, layer=5, head=0))
    wanted = above_mean(attention).sel(example="a", layer=5, head=0).squeeze().values[1:]
    assert list(values) == BOXES
    np.testing.assert_allclose(list(values.values()), wanted)


def test_attention_itself_can_be_drawn_on_a_scale_from_0(attention: xr.Dataset) -> None:
    ax = vp.plot.attention(attention, "a", PICTURE, layer=5, head=0, minus_mean=False)
    wanted = attention["attention"].sel(example="a", layer=5, head=0).squeeze().values[1:]
    np.testing.assert_allclose(list(drawn(ax).values()), wanted)
    assert overlay(ax).get_clim() == (0, pytest.approx(wanted.max()))


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
    ax = vp.plot.image(patched, "a", picture, layer=4, region=None, limit=1.0)
    figure = vp.plot.figure_of(ax)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    darkness = []
    for x0, y0, x1, y1 in BOXES:
        x, y = ax.transData.transform(((x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5))
        darkness.append(255 - pixels[int(len(pixels) - y), int(x)].mean())
    assert np.argmax(darkness) == 4 and sorted(darkness)[-2] < 0.5 * max(darkness)


def test_a_group_of_one_patch_is_not_painted_as_a_patch(patched: xr.Dataset) -> None:
    ds = patched.assign_coords(position=["cls", "image:object", *patched["position"].values[2:]])
    assert list(drawn(vp.plot.image(ds, "a", PICTURE, layer=4))) == BOXES[1:]


def test_a_frame_is_around_the_regions_patches(attention: xr.Dataset) -> None:
    (frame,) = [p for p in vp.plot.attention(attention, "a", PICTURE, layer=4, head=0).patches]
    assert isinstance(frame, Rectangle)
    x0, y0, x1, y1 = np.array(frame.get_bbox().extents) + 0.5
    assert (x0, y0, x1, y1) == (BOXES[1][0], BOXES[1][1], BOXES[2][2], BOXES[2][3])
    assert not vp.plot.attention(attention, "a", PICTURE, layer=4, head=0, region=None).patches


def test_the_figure_says_what_is_drawn(attention: xr.Dataset) -> None:
    ax = vp.plot.attention(attention, "a", PICTURE, layer=4, head=1)
    words = f"{vp.plot.figure_of(ax).get_suptitle()} {ax.get_title()}"
    for wanted in ("language.attn_pattern", "L4.H1", "at last", "is the ring black or cyan?", "cyan", "a:"):
        assert wanted in words


def test_given_axes_are_drawn_in_and_no_figure_is_made(attention: xr.Dataset, patched: xr.Dataset) -> None:
    _, (left, right) = plt.subplots(1, 2)
    before = plt.get_fignums()
    assert vp.plot.image(patched, "a", PICTURE, layer=4, ax=left) is left
    assert vp.plot.attention(attention, "a", PICTURE, layer=4, head=0, ax=right) is right
    assert plt.get_fignums() == before and len(drawn(left)) == len(drawn(right)) == 6
    assert "layer 4" in " ".join(left.get_title().split()) and "L4.H0" in right.get_title()


def test_without_a_layer_every_layer_is_a_panel_in_one_scale(patched: xr.Dataset) -> None:
    axes = vp.plot.image(patched, "a", PICTURE)
    assert [ax.get_title() for ax in axes] == ["layer 4", "layer 5"]
    assert len({overlay(ax).get_clim() for ax in axes}) == 1
    for ax, layer in zip(axes, (4, 5), strict=True):
        assert drawn(ax) == drawn(vp.plot.image(patched, "a", PICTURE, layer=layer))


def test_without_a_head_those_that_attend_to_the_region_most_are_shown(attention: xr.Dataset) -> None:
    inside = attention["attention"].isel(example=0, key=[2, 3]).sum("key").squeeze()
    ranked = inside.stack(head_=("layer", "head"))
    best = sorted(ranked["head_"].values[np.argsort(-ranked.values)[:2]].tolist())
    axes = vp.plot.attention(attention, "a", PICTURE, top=2)
    assert [ax.get_title() for ax in axes] == [f"L{layer}.H{head}" for layer, head in best]


def test_boxes_are_drawn_with_their_names(patched: xr.Dataset) -> None:
    ax = vp.plot.image(patched, "a", PICTURE, layer=4, region=None, boxes={"thing": (10, 5, 30, 25)})
    (frame,) = ax.patches
    assert isinstance(frame, Rectangle)
    assert (np.array(frame.get_bbox().extents) + 0.5).tolist() == [10, 5, 30, 25]
    assert [text.get_text() for text in ax.texts] == ["thing"]


def test_tiles_and_the_picture_seen_small_are_a_panel_each(patched: xr.Dataset) -> None:
    tiles = np.array([[0, -1, -1, 0, 0, 0, 0]] * 2)
    small, cut = vp.plot.image(patched.assign_coords(tile=(("example", "position"), tiles)), "a", PICTURE, layer=4)
    assert ("seen small" in small.get_title(), "tiles" in cut.get_title()) == (True, True)
    assert list(drawn(small)) == BOXES[:2] and list(drawn(cut)) == BOXES[2:]
    one = drawn(vp.plot.image(patched, "a", PICTURE, layer=4))
    assert {**drawn(small), **drawn(cut)} == one


def test_several_pictures_are_a_panel_each_over_their_own_pixels(patched: xr.Dataset) -> None:
    images = np.array([[0, 0, 0, 0, 1, 1, 1]] * 2)
    ds = patched.assign_coords(image=(("example", "position"), images))
    dark = Image.new("RGB", (60, 40), "black")
    first, second = vp.plot.image(ds, "a", [PICTURE, dark], layer=4)
    assert list(drawn(first)) == BOXES[:3] and list(drawn(second)) == BOXES[3:]
    assert first.images[0].get_array().max() == 255 and second.images[0].get_array().max() == 0
    with pytest.raises(vp.SpecError, match="1 were given"):
        vp.plot.image(ds, "a", PICTURE, layer=4)


def test_a_knockout_of_single_patches_would_be_drawn_by_its_effect(patched: xr.Dataset) -> None:
    ds = patched.drop_vars("probability_corrupted").assign_attrs(method="ablate").isel(draw=0)
    values = drawn(vp.plot.image(ds, "a", PICTURE, layer=4))
    np.testing.assert_allclose(list(values.values()), 0.9 - ds["probability"].values[0, 0, 0, 1:], rtol=1e-6)


def test_a_wrong_call_is_refused_and_names_what_there_is(attention: xr.Dataset, patched: xr.Dataset) -> None:
    groups = patched.isel(position=[0])
    small = Image.new("RGB", (50, 40))
    for call, named in (
        (lambda: vp.plot.attention(attention, "c", PICTURE), "Known: a, b"),
        (lambda: vp.plot.attention(attention, "b", PICTURE), "not kept: dropped: the clean run says"),
        (lambda: vp.plot.attention(attention, "a", PICTURE, layer=4, ax=plt.gca()), "name its layer and head"),
        (lambda: vp.plot.attention(attention, "a", PICTURE, layer=9, head=0), "Known: 4, 5"),
        (lambda: vp.plot.image(attention, "a", PICTURE), "plot.head_function and plot.attention draw it"),
        (lambda: vp.plot.attention(patched, "a", PICTURE), "plot.heatmap"),
        (lambda: vp.plot.image(patched, "a", PICTURE, head=0), "no dimension head"),
        (lambda: vp.plot.attention(attention, "a", small, layer=4, head=0), "60 × 40.*50 × 40"),
        (lambda: vp.plot.attention(attention.isel(layer=[0], head=[0]), "a", PICTURE), "minus_mean"),
        (lambda: vp.plot.image(patched, "a", PICTURE, metric="probabilty", layer=4), "Did you mean 'probability'"),
        (lambda: vp.plot.image(patched.assign_attrs(method="lens"), "a", PICTURE, layer=4), "plot.lens"),
        (lambda: vp.plot.image(patched.drop_vars("box"), "a", PICTURE, layer=4), "each:image"),
        (lambda: vp.plot.image(groups, "a", PICTURE), "positions is a single patch: sweep them one by one"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()  # type: ignore[no-untyped-call]
