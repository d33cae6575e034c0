"""Maps of heads: those that stand out are outlined; universal heads by both rules; what heads look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.patches import Rectangle

import vlm_patching as vp

LAYERS, HEADS = 5, 3
STRONG = {(4, 1), (2, 0)}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def dataset(examples: int = 12, strong: set[tuple[int, int]] = STRONG, seed: int = 0) -> xr.Dataset:
    """Effects near 0 but at the strong heads; two tasks in turn."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.01, (examples, 1, LAYERS, HEADS, 1))
    for layer, head in strong:
        values[:, 0, layer, head, 0] += rng.uniform(0.2, 0.4, examples)
    return xr.Dataset(
        {
            "probability": (("example", "site", "layer", "head", "position"), values + 0.1),
            "probability_clean": ("example", np.full(examples, 0.9)),
            "probability_corrupted": ("example", np.full(examples, 0.1)),
        },
        {
            "example": [f"pair-{i}" for i in range(examples)],
            "kept": ("example", ["kept"] * examples),
            "task": ("example", ["color", "shape"] * (examples // 2)),
            "site": ["language.attn_head"],
            "layer": np.arange(LAYERS),
            "head": np.arange(HEADS),
            "position": ["last"],
        },
        {"method": "patch", "name": "figure-name", "model": "m"},
    )


def outlined(ax: Any) -> set[tuple[int, int]]:
    """Layer and head of every frame, from where it stands."""
    names = [tick.label1.get_text() for tick in ax.yaxis.get_major_ticks()]
    frames = [p for p in ax.patches if isinstance(p, Rectangle)]
    return {(int(names[int(p.get_y())]), int(p.get_x())) for p in frames}


def test_heads_that_stand_out_are_outlined_and_the_figure_says_by_which_test() -> None:
    ds = dataset()
    ax = vp.plot.heads(ds)
    significant = vp.analysis.permutation_max_t(vp.effect(ds))["significant"].squeeze()
    wanted = {(layer, head) for layer, head in np.argwhere(significant.values).tolist()}
    assert outlined(ax) == wanted and wanted >= STRONG
    assert "outlined: stands out (max-T, family-wise 5%)" in " ".join(ax.figure.get_suptitle().split())
    assert not outlined(vp.plot.heads(ds, mark=False))


def test_where_no_head_stands_out_the_figure_says_so() -> None:
    ax = vp.plot.heads(dataset(strong=set()))
    assert outlined(ax) == set() and "no cell stands out" in " ".join(ax.figure.get_suptitle().split())


def test_of_one_example_nothing_is_tested() -> None:
    ax = vp.plot.heads(dataset().isel(example=[0]))
    assert outlined(ax) == set() and "max-T" not in ax.figure.get_suptitle()


def test_any_verdict_on_heads_can_be_outlined() -> None:
    verdict = xr.zeros_like(dataset()["probability"].isel(example=0, site=0, position=0, drop=True), dtype=bool)
    verdict[3, 2] = True
    ax = vp.plot.heads(dataset(), mark=verdict.rename("mine"))
    assert outlined(ax) == {(3, 2)} and "outlined: mine" in ax.figure.get_suptitle()
    assert outlined(vp.plot.heads(dataset(), mark=verdict, layers="x", ax=plt.subplots()[1])) != {(3, 2)}
    with pytest.raises(vp.SpecError, match="true or false"):
        vp.plot.heads(dataset(), mark=verdict.astype(float))
    with pytest.raises(vp.SpecError, match="task"):
        vp.plot.heads(dataset(), mark=verdict.expand_dims(task=["color"]))


def test_universal_heads_are_framed_by_the_published_rule_and_dotted_by_the_tested_one() -> None:
    ds = dataset(examples=24)
    axes = vp.plot.universal_heads(ds)
    found = vp.analysis.universal_heads(vp.analysis.by_task(vp.effect(ds)))
    assert [ax.get_title() for ax in axes] == ["color", "shape", "universal"]
    for i, ax in enumerate(axes[:-1]):
        mean = found["mean"].isel(task=i).squeeze().values
        np.testing.assert_allclose(ax.collections[0].get_array()[::-1], mean, rtol=1e-6)
        assert outlined(ax) == set(map(tuple, np.argwhere(found["important"].isel(task=i).squeeze().values).tolist()))
    last = axes[-1]
    assert outlined(last) == set(map(tuple, np.argwhere(found["universal"].squeeze().values).tolist())) != set()
    dots = {(LAYERS - 1 - int(y[0]), int(x[0])) for x, y in (line.get_data() for line in last.get_lines())}
    assert dots == set(map(tuple, np.argwhere(found["universal_tested"].squeeze().values).tolist())) >= STRONG
    counts = found["important"].sum("task").squeeze().values
    np.testing.assert_array_equal(last.collections[0].get_array()[::-1], counts)


def test_what_universal_heads_found_can_be_drawn_itself_and_into_given_axes() -> None:
    found = vp.analysis.universal_heads(vp.analysis.by_task(vp.effect(dataset(24))), deviations=1.0)
    _, ax = plt.subplots()
    assert vp.plot.universal_heads(found, ax=ax) is ax
    assert outlined(ax) == set(map(tuple, np.argwhere(found["universal"].squeeze().values).tolist()))


def test_two_corruptions_say_what_heads_are_for() -> None:
    image, text = dataset(24), dataset(24, {(4, 1), (0, 2)}, seed=1)
    _, ax = plt.subplots()
    vp.plot.universal_heads(image, text=text, ax=ax)
    codes = np.asarray(ax.collections[0].get_array())[::-1]
    found = {name: set(map(tuple, np.argwhere(codes == i).tolist())) for i, name in enumerate(("", "v", "t", "m"))}
    assert found["m"] == {(4, 1)} and found["v"] == {(2, 0)} and found["t"] == {(0, 2)}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["vision", "text", "multimodal"]


def test_universal_heads_of_one_task_are_refused() -> None:
    ds = dataset()
    one = ds.isel(example=(ds["task"] == "color").values)
    with pytest.raises(vp.SpecError, match=r"one task.*plot\.heads"):
        vp.plot.universal_heads(one)
    with pytest.raises(vp.SpecError, match=r"plot\.heatmap"):
        vp.plot.universal_heads(ds.isel(head=0, drop=True))


@pytest.fixture
def attention() -> xr.Dataset:
    """Four patches, of which the second is the object's; head 1 of layer 0 looks at it alone."""
    values = np.full((3, 1, 2, 2, 1, 4), 0.2)
    values[:, 0, 0, 1, 0] = [0, 0.9, 0, 0]
    across = ("example", "key")
    return xr.Dataset(
        {
            "attention": (("example", "site", "layer", "head", "position", "key"), values),
            "probability_clean": ("example", [0.9] * 3),
        },
        {
            "example": ["a", "b", "c"],
            "kept": ("example", ["kept"] * 3),
            "site": ["language.attn_pattern"],
            "layer": [0, 1],
            "head": [0, 1],
            "position": ["last"],
            "key": ["r0c0", "r0c1", "r1c0", "r1c1"],
            "key_modality": (across, [["image"] * 4] * 3),
            "key_role": (across, [["image", "object", "image", "image"]] * 3),
            "key_row": (across, [[0, 0, 1, 1]] * 3),
            "key_col": (across, [[0, 1, 0, 1]] * 3),
        },
        {"method": "attention", "name": "figure-name", "model": "m"},
    )


def test_a_pointing_ratio_is_drawn_as_its_distance_from_1_and_others_as_they_are(attention: xr.Dataset) -> None:
    mesh = vp.plot.head_function(attention).collections[0]
    np.testing.assert_allclose(mesh.get_array()[::-1], [[0, 3], [0, 0]], atol=1e-12)
    assert mesh.get_clim() == (-3, 3)
    ax = vp.plot.head_function(attention, "mass")
    np.testing.assert_allclose(ax.collections[0].get_array()[::-1], [[0.8, 0.9], [0.8, 0.8]])
    assert ax.collections[0].get_clim() == (0, pytest.approx(0.9))
    assert "heads at last" in ax.figure.get_suptitle()
    for call, named in (
        (lambda: vp.plot.head_function(attention, "pointing"), "Known: mass, pointing_ratio"),
        (lambda: vp.plot.head_function(dataset()), "plot.heads"),
        (lambda: vp.plot.heads(attention), "plot.head_function and plot.attention draw it"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()
