"""Heatmaps: what is drawn is the mean effect, with its labels, on a colour scale symmetric about 0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from PIL import Image

import vlm_patching as vp


def run(sites: list[str], positions: list[str], **changes: Any) -> Any:
    spec = {
        "name": "figure-name",
        "model": {"name": "shapes-blip"},
        "pairs": {"dataset": "shapes", "n": 2, "seed": 3, "keep": "all"},
        "corruption": {"kind": "gaussian_noise", "std": 1.0, "draws": 2},
        "patch": {"sites": sites, "positions": positions},
    }
    return vp.run(vp.Experiment.from_dict(spec | changes), progress=False)


@pytest.fixture(scope="module")
def modules() -> Any:
    return run(["question_encoder.resid_post", "answer_decoder.resid_post"], ["subject", "each:question", "decoding"])


@pytest.fixture(scope="module")
def heads() -> Any:
    return run(["question_encoder.attn_head"], ["answer_option", "last"])


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def meshes(drawn: Any) -> list[tuple[Any, QuadMesh]]:
    """The panels and what is drawn in each."""
    return [(ax, next(c for c in ax.collections if isinstance(c, QuadMesh))) for ax in np.ravel(drawn)]


def table(ax: Any, mesh: QuadMesh) -> dict[tuple[str, int], float]:
    """(layer, column) → the drawn value."""
    values = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)
    rows = [tick.label1.get_text() for tick in ax.yaxis.get_major_ticks()]  # shown or not
    values = values.reshape(len(rows), -1)
    return {(rows[r], c): values[r, c] for r in range(values.shape[0]) for c in range(values.shape[1])}


def by_hand(ds: Any, metric: str, normalize: bool, **where: Any) -> np.ndarray:
    """Mean effect, [layer, position or head]; normalised, over the mean total effect of the examples with the cell."""
    picked = ds.sel(**where)
    across = next(d for d in picked[metric].dims if d not in ("example", "layer", "draw"))
    patched = picked[metric].transpose("layer", across, "example", "draw").values
    clean, corrupted = ds[f"{metric}_clean"].values[:, None], ds[f"{metric}_corrupted"].values
    means = np.full(patched.shape[:2], np.nan)
    for cell in np.ndindex(means.shape):
        here = np.isfinite(patched[cell])
        if here.any():
            total = (clean - corrupted)[here].mean() if normalize else 1.0
            means[cell] = (patched[cell] - corrupted)[here].mean() / total
    return means


@pytest.mark.parametrize(("metric", "normalize"), [("probability", False), ("logit_difference", True)])
def test_a_heatmap_shows_the_mean_effect_of_every_layer_and_position(
    modules: Any, metric: str, normalize: bool
) -> None:
    panels = meshes(vp.plot.heatmap(modules, metric, normalize=normalize))
    assert [ax.get_title().replace("\n", "") for ax, _ in panels] == modules["site"].values.tolist()
    for (ax, mesh), site in zip(panels, modules["site"].values, strict=True):
        wanted = by_hand(modules, metric, normalize, site=site)
        wanted = wanted[:, np.isfinite(wanted).any(0)]
        drawn = table(ax, mesh)
        assert len(drawn) == wanted.size
        for (layer, column), value in drawn.items():
            np.testing.assert_allclose(value, wanted[int(layer), column], atol=1e-6)


def test_layer_0_is_at_the_bottom_and_axes_are_named(modules: Any) -> None:
    ax, _ = meshes(vp.plot.heatmap(modules))[0]
    labels = {label.get_text(): label.get_window_extent().y0 for label in ax.get_yticklabels()}
    assert sorted(labels, key=lambda name: labels[name]) == ["0", "1", "2", "3", "4", "5"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("position", "layer")


def test_columns_are_labelled_with_the_positions_that_the_site_has(modules: Any) -> None:
    (encoder, _), (decoder, _) = meshes(vp.plot.heatmap(modules))
    assert len(decoder.get_xticklabels()) == 1
    assert decoder.get_xticklabels()[0].get_text() in ("decoding", *modules["token"].sel(position="decoding").values)
    words = [label.get_text() for label in encoder.get_xticklabels()]
    assert len(words) == modules.sizes["position"] - 1
    assert words[:4] == ["subject", "is", "the", "[subject]"]
    assert words[-1] == "?" and "or" in words and "decoding" not in words


def test_all_panels_share_one_colour_scale_symmetric_about_0(modules: Any) -> None:
    panels = meshes(vp.plot.heatmap(modules, "logit_difference"))
    limits = {mesh.get_clim() for _, mesh in panels}
    assert len(limits) == 1
    low, high = limits.pop()
    largest = max(
        np.nanmax(np.abs(by_hand(modules, "logit_difference", False, site=s))) for s in modules["site"].values
    )
    assert -low == high == pytest.approx(largest, rel=1e-5)


def test_the_figure_says_what_it_is_of(modules: Any) -> None:
    figure = vp.plot.figure_of(vp.plot.heatmap(modules, "logit_difference"))
    words = figure.get_suptitle() + " ".join(ax.get_ylabel() for ax in figure.axes)
    for wanted in (
        "figure-name",
        "shapes-blip",
        "2 of 2 pairs",
        "logit difference",
        "restored",
        "(logits)",
        "+\xa0carries",
    ):
        assert wanted in words
    total = float(vp.total_effect(modules, "logit_difference").mean())
    assert f"{total:.3g}" in words


def test_heads_shows_the_mean_effect_of_every_layer_and_head(heads: Any) -> None:
    for position in ("answer_option", "last"):
        ((ax, mesh),) = meshes(vp.plot.heads(heads, "logit_difference", position=position))
        wanted = by_hand(heads, "logit_difference", False, site="question_encoder.attn_head", position=position)
        for (layer, column), value in table(ax, mesh).items():
            np.testing.assert_allclose(value, wanted[int(layer), column], atol=1e-6)
        assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3"]
        assert ax.get_xlabel() == "head"
        low, high = mesh.get_clim()
        assert -low == high > 0
    assert meshes(vp.plot.heads(heads.isel(position=[0])))


def test_given_axes_are_drawn_in_and_no_figure_is_made(modules: Any, heads: Any) -> None:
    _, (left, right) = plt.subplots(1, 2)
    before = plt.get_fignums()
    assert vp.plot.heatmap(modules, site="question_encoder.resid_post", ax=left) is left
    assert vp.plot.heads(heads, position="last", ax=right) is right
    assert plt.get_fignums() == before
    assert left.get_title() == "question_encoder.resid_post" and right.get_title() == "question_encoder.attn_head"
    assert [c for c in left.collections if isinstance(c, QuadMesh)]
    assert [c for c in right.collections if isinstance(c, QuadMesh)]


def test_given_axes_show_only_the_positions_that_the_site_has(modules: Any) -> None:
    _, ax = plt.subplots()
    vp.plot.heatmap(modules, site="answer_decoder.resid_post", ax=ax)
    assert len(ax.get_xticklabels()) == 1


def test_a_dataset_that_kept_no_pair_is_refused_and_not_drawn_empty(modules: Any) -> None:
    ds = modules.copy(deep=True)
    ds["kept"] = ("example", ["dropped: a", "dropped: b"])
    for metric in ("probability", "logit_difference"):
        ds[metric] = ds[metric] * np.nan
    with pytest.raises(vp.SpecError, match="kept"):
        vp.plot.heatmap(ds)


def test_a_wrong_call_is_refused_and_names_what_there_is(modules: Any, heads: Any) -> None:
    for call, named in (
        (lambda: vp.plot.heads(modules), "heatmap"),
        (lambda: vp.plot.heatmap(heads), "heads"),
        (lambda: vp.plot.heatmap(modules, ax=plt.gca()), "question_encoder.resid_post"),
        (lambda: vp.plot.heatmap(modules, "probabilty"), "Did you mean 'probability'"),
        (lambda: vp.plot.heatmap(modules, site="question_encoder.resid_pots"), "question_encoder.resid_post"),
        (lambda: vp.plot.heads(heads, ax=plt.gca()), "position: answer_option, last"),
        (lambda: vp.plot.heatmap(modules, window=3), "no dimension window"),
        (lambda: vp.plot.heatmap(modules, scale="metrics"), "Did you mean 'metric'"),
        (lambda: vp.plot.heatmap(modules, scale="metric", normalize=True), "normalize"),
        (lambda: vp.plot.heatmap(modules, layers="z"), "Known: y, x"),
        (lambda: vp.plot.heads(heads, position="lst"), "Did you mean 'last'"),
        (lambda: vp.plot.heads(heads, site="language.attn_head", position="last"), "question_encoder.attn_head"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()  # type: ignore[no-untyped-call]


def test_a_saved_picture_is_not_blank(modules: Any, heads: Any, tmp_path: Path) -> None:
    for name, drawn in (
        ("a", vp.plot.heatmap(modules)),
        ("b", vp.plot.heads(heads, "logit_difference", position="last", normalize=True)),
    ):
        vp.plot.save(drawn, tmp_path / f"{name}.png", dpi=60)
        with Image.open(tmp_path / f"{name}.png") as image:
            colors = image.convert("RGB").getcolors(maxcolors=2**24)
        assert image.width > 200 and image.height > 100
        assert len(colors) > 50
        assert max(count for count, _ in colors) < 0.97 * image.width * image.height


def test_a_figure_of_heads_says_at_which_position(heads: Any) -> None:
    for position in heads["position"].values:
        figure = vp.plot.figure_of(vp.plot.heads(heads, position=position))
        assert f"heads at {position}" in figure.get_suptitle()


def test_heads_at_several_positions_are_a_panel_each_in_one_scale(heads: Any) -> None:
    panels = meshes(vp.plot.heads(heads, "logit_difference"))
    assert [ax.get_title().split(",")[-1].strip() for ax, _ in panels] == ["answer_option", "last"]
    assert len({mesh.get_clim() for _, mesh in panels}) == 1


def test_layers_on_x_turn_the_map_and_keep_positions_in_reading_order(modules: Any) -> None:
    plain, turned = (meshes(vp.plot.heatmap(modules, layers=layers))[0] for layers in ("y", "x"))
    assert (turned[0].get_xlabel(), turned[0].get_ylabel()) == ("layer", "position")
    assert [t.get_text() for t in turned[0].get_xticklabels()] == ["0", "1", "2", "3", "4", "5"]
    words = [t.get_text() for t in turned[0].get_yticklabels()]
    assert words == [t.get_text() for t in plain[0].get_xticklabels()]
    heights = [t.get_window_extent().y0 for t in turned[0].get_yticklabels()]
    assert heights == sorted(heights, reverse=True)
    np.testing.assert_array_equal(turned[1].get_array(), plain[1].get_array()[::-1].T)


def test_the_metric_itself_has_colours_from_the_corrupted_run_upwards(modules: Any) -> None:
    drawn = vp.plot.heatmap(modules, scale="metric", layers="x")
    for (_, mesh), site in zip(meshes(drawn), modules["site"].values, strict=True):
        mean = modules["probability"].sel(site=site).mean(("example", "draw")).transpose("position", "layer").values
        np.testing.assert_allclose(mesh.get_array(), mean[np.isfinite(mean).any(1)], rtol=1e-5)
        assert mesh.get_clim()[0] == pytest.approx(float(modules["probability_corrupted"].mean()))
        light, dark = mesh.get_cmap()([0.0, 1.0])
        assert light[:3].sum() > dark[:3].sum()


def test_minmax_takes_every_panel_from_0_to_1(modules: Any) -> None:
    for (_, mesh), site in zip(meshes(vp.plot.heatmap(modules, scale="minmax")), modules["site"].values, strict=True):
        wanted = by_hand(modules, "probability", False, site=site)
        wanted = wanted[:, np.isfinite(wanted).any(0)]
        low, high = np.nanmin(wanted), np.nanmax(wanted)
        np.testing.assert_allclose(mesh.get_array()[::-1], (wanted - low) / (high - low), atol=1e-6)
        assert mesh.get_clim() == (0, 1)


def test_what_was_not_run_is_hatched_and_said_so(modules: Any) -> None:
    ds = modules.sel(site=["question_encoder.resid_post"]).copy(deep=True)
    ds["probability"][:, :, 2, 3] = np.nan
    ((ax, mesh),) = meshes(vp.plot.heatmap(ds))
    assert ax.patch.get_hatch() and np.ma.getmaskarray(mesh.get_array())[5 - 2, 3]
    assert np.ma.getmaskarray(mesh.get_array()).sum() == 1
    assert "hatched: not run" in ax.figure.get_suptitle()
    ((whole, _),) = meshes(vp.plot.heatmap(modules, site="question_encoder.resid_post"))
    assert "hatched" not in whole.figure.get_suptitle()


def test_a_figure_of_one_window_says_how_many_layers_it_has() -> None:
    ds = run(["question_encoder.mlp_out"], ["subject"], patch={"sites": ["question_encoder.mlp_out"], "window": 3})
    assert "cells restored in windows of 3 layers" in " ".join(vp.plot.heatmap(ds).figure.get_suptitle().split())


def test_a_given_limit_ends_the_colour_scale(modules: Any) -> None:
    for _, mesh in meshes(vp.plot.heatmap(modules, limit=0.7)):
        assert mesh.get_clim() == (-0.7, 0.7)
