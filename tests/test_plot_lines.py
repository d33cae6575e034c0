"""Lines over layers: what is drawn is the mean and its interval, one line an edge set or position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PolyCollection, QuadMesh
from PIL import Image

import vlm_patching as vp
from vlm_patching.analysis import bootstrap, knockout_change

NAN = float("nan")
EDGES = ["image -> question", "image -> last", "question -> last"]
WORDS = ["image → question", "image → last", "question → last"]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def labels(examples: int, kept: int, sites: list[str], layers: int) -> dict[str, Any]:
    return {
        "example": [f"pair-{i}" for i in range(examples)],
        "kept": ("example", ["kept"] * kept + ["dropped: no"] * (examples - kept)),
        "site": sites,
        "layer": np.arange(layers),
    }


def knocked_out(examples: int = 8, kept: int = 7, windows: tuple[int, ...] = ()) -> xr.Dataset:
    """Two sites of which the second has no layer 4."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 0.8, (examples, 2, 3, 5, *([len(windows)] if windows else []))).astype(np.float32)
    values[:, 1, :, 4] = NAN
    coords = labels(examples, kept, ["language", "question_encoder"], 5) | {"edges": EDGES}
    dims = ["example", "site", "edges", "layer"]
    if windows:
        coords["window"] = list(windows)
        dims.append("window")
    clean = rng.uniform(0.4, 0.9, examples).astype(np.float32)
    return xr.Dataset(
        {"probability": (dims, values), "probability_clean": ("example", clean)},
        coords,
        {"method": "knockout", "name": "figure-name", "model": "shapes-llava"},
    )


def read(positions: int, examples: int = 6, metric: str = "probability") -> xr.Dataset:
    """A lens of two sites; the second has the last two positions and no others."""
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 1, (examples, 2, 4, positions)).astype(np.float32)
    if metric != "probability":
        values -= 0.3
    values[:, 1, :, :-2] = NAN
    coords = labels(examples, examples - 1, ["language.resid_post", "vision.resid_post"], 4)
    coords["position"] = [f"group-{i}" for i in range(positions)]
    clean = rng.uniform(0, 1, examples).astype(np.float32)
    return xr.Dataset(
        {metric: (("example", "site", "layer", "position"), values), f"{metric}_clean": ("example", clean)},
        coords,
        {"method": "lens", "name": "figure-name", "model": "shapes-llava"},
    )


def lines(ax: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def check_band(ax: Any, i: int, interval: xr.Dataset) -> None:
    """The i-th band's corners are the ends of the interval at each layer."""
    (path,) = [c for c in ax.collections if isinstance(c, PolyCollection)][i].get_paths()
    for layer, low, high in zip(interval["layer"].values, interval["low"].values, interval["high"].values, strict=True):
        at = path.vertices[path.vertices[:, 0] == layer, 1]
        np.testing.assert_allclose([at.min(), at.max()], [low, high], rtol=1e-6, atol=1e-9)


def test_a_knockout_shows_the_mean_change_and_its_interval_at_every_layer_a_line_for_each_edge_set() -> None:
    ds = knocked_out()
    axes = vp.plot.knockout(ds)
    change = knockout_change(ds)
    assert [ax.get_title() for ax in axes] == ["language", "question_encoder"]
    for ax, site, layers in zip(axes, ds["site"].values, (5, 4), strict=True):
        drawn = lines(ax)
        assert list(drawn) == WORDS
        for i, edges in enumerate(EDGES):
            x, y = drawn[WORDS[i]].get_data()
            np.testing.assert_array_equal(x, np.arange(layers))
            wanted = change.sel(site=site, edges=edges).isel(layer=slice(layers))
            np.testing.assert_allclose(y, wanted.mean("example").values)
            check_band(ax, i, bootstrap(wanted))
    assert axes[0].get_xlabel() == "layer" and "%" in axes[0].get_ylabel()


def test_every_edge_set_has_one_colour_in_all_panels_and_one_entry_in_the_legend() -> None:
    axes = vp.plot.knockout(knocked_out())
    first, second = ({name: line.get_color() for name, line in lines(ax).items()} for ax in axes)
    assert first == second and len(set(first.values())) == 3
    (legend,) = vp.plot.figure_of(axes).legends
    assert [text.get_text() for text in legend.get_texts()] == WORDS


def test_windows_are_panels_too_and_one_can_be_chosen() -> None:
    ds = knocked_out(windows=(1, 9))
    titles = [ax.get_title() for ax in vp.plot.knockout(ds)]
    assert titles == [f"{site}, window {w}" for site in ("language", "question_encoder") for w in (1, 9)]
    ax = vp.plot.knockout(ds, site="language", window=9)
    wanted = knockout_change(ds).sel(site="language", window=9, edges=EDGES[1]).mean("example")
    np.testing.assert_allclose(lines(ax)[WORDS[1]].get_ydata(), wanted.values)


def test_of_one_example_there_are_lines_without_a_band() -> None:
    ds = knocked_out(kept=1)
    ax = vp.plot.knockout(ds)[0]
    wanted = knockout_change(ds).isel(example=0, site=0, edges=0)
    np.testing.assert_allclose(lines(ax)[WORDS[0]].get_ydata(), wanted.values)
    for band in ax.collections:
        assert not np.isfinite(band.get_paths()[0].vertices).all() if band.get_paths() else True


def test_few_positions_of_a_lens_are_lines_of_the_metric_beside_the_models_own() -> None:
    ds = read(3)
    axes = vp.plot.lens(ds)
    kept = ds.isel(example=slice(5))
    for ax, site, names in zip(
        axes, ds["site"].values, (["group-0", "group-1", "group-2"], ["group-1", "group-2"]), strict=True
    ):
        drawn = lines(ax)
        assert list(drawn) == ["the model", *names]
        np.testing.assert_allclose(drawn["the model"].get_ydata(), kept["probability_clean"].mean(), rtol=1e-6)
        for i, name in enumerate(names):
            wanted = kept["probability"].sel(site=site, position=name)
            np.testing.assert_allclose(drawn[name].get_ydata(), wanted.mean("example").values, rtol=1e-6)
            check_band(ax, i, bootstrap(wanted.astype(float)))
    assert axes[0].get_ylabel() == "probability of the answer"


@pytest.mark.parametrize(("metric", "low"), [("probability", None), ("logit_difference", "-high")])
def test_many_positions_of_a_lens_are_a_heatmap_of_the_means(metric: str, low: str | None) -> None:
    ds = read(12, metric=metric)
    panels = vp.plot.lens(ds, metric)
    mean = ds[metric].isel(example=slice(5)).mean("example")
    for ax, columns in zip(panels, (slice(0, 12), slice(10, 12)), strict=True):
        (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
        wanted = (
            mean.sel(site=ax.get_title().replace("\n", "")).isel(position=columns).transpose("layer", "position").values
        )
        drawn = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), NAN).reshape(wanted.shape)
        np.testing.assert_allclose(drawn[::-1], wanted, rtol=1e-6)
        assert [t.label1.get_text() for t in ax.yaxis.get_major_ticks()] == ["3", "2", "1", "0"]
        assert len(ax.get_xticklabels()) == wanted.shape[1]
        least, most = mesh.get_clim()
        assert least == -most if low else least == pytest.approx(float(mean.min()))


def test_the_figure_says_what_it_is_of() -> None:
    for drawn in (vp.plot.knockout(knocked_out()), vp.plot.lens(read(3))):
        for wanted in ("figure-name", "shapes-llava", "pairs", "clean run"):
            assert wanted in vp.plot.figure_of(drawn).get_suptitle()
    assert "7 of 8 pairs" in vp.plot.figure_of(vp.plot.knockout(knocked_out())).get_suptitle()


def test_given_axes_are_drawn_in_and_no_figure_is_made() -> None:
    _, (left, middle, right) = plt.subplots(1, 3)
    before = plt.get_fignums()
    assert vp.plot.knockout(knocked_out(), site="language", ax=left) is left
    assert vp.plot.lens(read(3), site="language.resid_post", ax=middle) is middle
    assert vp.plot.lens(read(12), site="language.resid_post", ax=right) is right
    assert plt.get_fignums() == before
    assert set(WORDS) <= set(lines(left)) and left.get_legend() is not None and "group-0" in lines(middle)
    assert [c for c in right.collections if isinstance(c, QuadMesh)]


def test_a_wrong_call_is_refused_and_names_what_there_is() -> None:
    blocked, lens = knocked_out(), read(3)
    empty = blocked.assign_coords(kept=("example", ["dropped: no"] * 8))
    _, ax = plt.subplots()
    for call, named in (
        (lambda: vp.plot.knockout(lens), "method is lens"),
        (lambda: vp.plot.lens(blocked), "method is knockout"),
        (lambda: vp.plot.knockout(blocked, "logit_difference"), "Known: probability"),
        (lambda: vp.plot.lens(lens, "probabilty"), "Did you mean 'probability'"),
        (lambda: vp.plot.knockout(blocked, site="langage"), "Did you mean 'language'"),
        (lambda: vp.plot.knockout(blocked, window=3), "no dimension window"),
        (lambda: vp.plot.knockout(knocked_out(windows=(1, 9)), window=3), "Known: 1, 9"),
        (lambda: vp.plot.knockout(blocked, ax=ax), "language, question_encoder"),
        (lambda: vp.plot.lens(lens, ax=ax), "vision.resid_post"),
        (lambda: vp.plot.knockout(empty), "kept"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()  # type: ignore[no-untyped-call]


def test_a_saved_picture_is_not_blank(tmp_path: Path) -> None:
    for i, drawn in enumerate((vp.plot.knockout(knocked_out()), vp.plot.lens(read(3)), vp.plot.lens(read(12)))):
        vp.plot.save(drawn, tmp_path / f"{i}.png", dpi=60)
        with Image.open(tmp_path / f"{i}.png") as image:
            assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 50


# Effects: lines and windows


def patched(positions: tuple[str, ...] = ("subject", "last"), windows: tuple[int, ...] = (1,)) -> xr.Dataset:
    """Two sites, four layers, two draws; the last example was not kept."""
    rng = np.random.default_rng(2)
    values = rng.uniform(0.1, 0.9, (6, 2, 4, len(windows), len(positions), 2)).astype(np.float32)
    coords = labels(6, 5, ["language.mlp_out", "language.attn_out"], 4)
    covered = [[[min(4, layer + (w + 1) // 2) - max(0, layer - w // 2) for w in windows] for layer in range(4)]] * 2
    return xr.Dataset(
        {
            "probability": (("example", "site", "layer", "window", "position", "draw"), values),
            "probability_clean": ("example", np.full(6, 0.95, np.float32)),
            "probability_corrupted": (("example", "draw"), rng.uniform(0, 0.1, (6, 2)).astype(np.float32)),
        },
        coords
        | {
            "window": list(windows),
            "position": list(positions),
            "layers_covered": (("site", "layer", "window"), covered),
        },
        {"method": "patch", "direction": "denoise", "name": "figure-name", "model": "shapes-llava"},
    )


def test_lines_show_the_mean_effect_and_its_interval_of_every_position_a_panel_for_each_site() -> None:
    ds = patched()
    axes = vp.plot.lines(ds)
    effect = vp.effect(ds).isel(window=0)
    for ax, site in zip(axes, ds["site"].values, strict=True):
        assert ax.get_title() == site and list(lines(ax)) == ["subject", "last"]
        for i, position in enumerate(("subject", "last")):
            wanted = bootstrap(effect.sel(site=site, position=position))
            np.testing.assert_allclose(lines(ax)[position].get_ydata(), wanted["mean"], rtol=1e-6)
            check_band(ax, i, wanted)
    assert "indirect effect" in axes[0].get_ylabel() and "carries the answer" in axes[0].get_ylabel().replace("\n", " ")


def test_normalised_lines_are_those_of_the_heatmap() -> None:
    ds = patched()
    ax = vp.plot.lines(ds, site="language.mlp_out", normalize=True)
    mesh = vp.plot.heatmap(ds, site="language.mlp_out", normalize=True).collections[0]
    for i, name in enumerate(("subject", "last")):
        np.testing.assert_allclose(lines(ax)[name].get_ydata(), mesh.get_array()[::-1, i], rtol=1e-5)


def test_a_cell_that_gives_back_all_of_every_total_effect_has_a_share_of_1_without_an_interval() -> None:
    ds = patched()
    ds["probability"][:, 0, :, :, 1] = (
        ds["probability_clean"].expand_dims(layer=4, window=1, draw=2).transpose("example", "layer", "window", "draw")
    )
    ax = vp.plot.lines(ds, site="language.mlp_out", position="last", normalize=True)
    np.testing.assert_allclose(lines(ax)["last"].get_ydata(), 1, rtol=1e-6)
    (band,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
    np.testing.assert_allclose(band.get_paths()[0].vertices[:, 1], 1, rtol=1e-5)


def test_lines_may_be_for_sites_or_windows_and_the_rest_are_panels() -> None:
    ds = patched(windows=(1, 3))
    axes = vp.plot.lines(ds, by="site", position="last")
    assert [ax.get_title() for ax in axes] == ["window 1", "window 3"]
    assert list(lines(axes[0])) == ds["site"].values.tolist()
    chosen = vp.plot.lines(ds, position=["last", "subject"], site="language.mlp_out", window=3)
    assert list(lines(chosen)) == ["last", "subject"]


def test_a_knockout_in_lines_is_in_percent() -> None:
    ds = knocked_out()
    ax, same = vp.plot.lines(ds, site="language"), vp.plot.knockout(ds, site="language")
    for name in WORDS:
        np.testing.assert_array_equal(lines(ax)[name].get_ydata(), lines(same)[name].get_ydata())


def test_windows_are_lines_beside_the_sums_of_their_single_layers() -> None:
    ds = patched(windows=(1, 2, 3))
    axes = vp.plot.windows(ds)
    assert [ax.get_title() for ax in axes] == [
        f"{site}, {position}" for site in ds["site"].values for position in ("subject", "last")
    ]
    single = vp.effect(ds).mean(("example", "draw")).sel(site="language.mlp_out", position="last")
    found = lines(axes[1])
    assert list(found) == ["1", "2", "3", "sum of single layers"]
    np.testing.assert_allclose(found["3"].get_ydata(), single.sel(window=3), rtol=1e-5)
    alone = single.sel(window=1).values
    wanted = {2: [alone[0], *(alone[i - 1] + alone[i] for i in (1, 2, 3))], 3: np.convolve(alone, [1, 1, 1], "same")}
    for width, sums in wanted.items():
        (dashed,) = [
            line
            for line in axes[1].get_lines()
            if line.get_linestyle() == "--" and line.get_color() == found[str(width)].get_color()
        ]
        np.testing.assert_allclose(dashed.get_ydata(), sums, rtol=1e-5)
    assert "sum of single layers" not in lines(vp.plot.windows(ds, sums=False)[0])


def test_sums_are_left_out_where_layers_of_a_window_were_not_run() -> None:
    ds = patched(windows=(1, 3)).isel(layer=[0, 3])
    assert "sum of single layers" not in lines(vp.plot.windows(ds)[0])


def test_more_lines_than_can_be_told_apart_are_refused() -> None:
    many = patched(tuple(f"group-{i}" for i in range(9)))
    one = patched()
    for call, named in (
        (lambda: vp.plot.lines(many), "9 lines.*heatmap"),
        (lambda: vp.plot.windows(one), "plot.lines"),
        (lambda: vp.plot.lines(one, by="layer"), "Known: position"),
        (lambda: vp.plot.lines(one, by="head"), "no dimension head"),
        (lambda: vp.plot.lines(one, position="lst"), "Did you mean 'last'"),
        (lambda: vp.plot.lines(one, ax=plt.gca()), "site: language.mlp_out, language.attn_out"),
        (lambda: vp.plot.lines(read(3)), "plot.lens"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()  # type: ignore[no-untyped-call]
