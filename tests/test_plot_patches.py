"""Hundreds of patches become a few columns: each a mean over an example's own patches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import vlm_patching as vp
from vlm_patching.plots.columns import MOST_PATCHES, gather

ROWS, COLUMNS = 4, 6
PATCHES = ROWS * COLUMNS


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def dataset(columns: int = COLUMNS) -> xr.Dataset:
    """A token, the patches, and a token; where the object is differs from example to example."""
    count = ROWS * columns
    rng = np.random.default_rng(0)
    across = ("example", "position")
    places = [(row, col) for row in range(ROWS) for col in range(columns)]
    objects = [[0, 1], [2], [5, 7, 8]]
    roles = [["special", *("object" if i in objects[e] else "image" for i in range(count)), "last"] for e in range(3)]
    return xr.Dataset(
        {
            "probability": (("example", "site", "layer", "position"), rng.uniform(0, 1, (3, 1, 2, count + 2))),
            "probability_clean": ("example", [0.9, 0.8, 0.7]),
            "probability_corrupted": ("example", [0.1, 0.2, 0.1]),
        },
        {
            "example": ["a", "b", "c"],
            "kept": ("example", ["kept", "kept", "dropped: no"]),
            "site": ["language.resid_post"],
            "layer": [0, 1],
            "position": [str(i) for i in range(count + 2)],
            "token": (across, [["<s>", *["<image>"] * count, ":"]] * 3),
            "modality": (across, [["text", *["image"] * count, "text"]] * 3),
            "role": (across, roles),
            "row": (across, [[-1, *(row for row, _ in places), -1]] * 3),
            "col": (across, [[-1, *(col for _, col in places), -1]] * 3),
        },
        {"name": "figure-name", "model": "m"},
    )


def columns(ax: Any) -> dict[str, np.ndarray]:
    """Label → the drawn values, the lowest layer first."""
    names = [text.get_text() for text in ax.get_xticklabels()]
    return dict(zip(names, np.asarray(ax.collections[0].get_array())[::-1].T, strict=True))


def test_a_block_is_the_mean_over_all_patches_between_the_tokens() -> None:
    ds = dataset()
    drawn = columns(vp.plot.heatmap(ds, patches="block"))
    assert list(drawn) == ["<s>", "image, mean", ":"]
    effect = vp.effect(ds).isel(site=0, example=[0, 1])
    np.testing.assert_allclose(drawn["image, mean"], effect.isel(position=slice(1, -1)).mean(("example", "position")))
    np.testing.assert_allclose(drawn[":"], effect.isel(position=-1).mean("example"))


def test_regions_are_means_over_each_examples_own_patches_and_the_rest_is_other() -> None:
    ds = dataset()
    drawn = columns(vp.plot.heatmap(ds))
    assert list(drawn) == ["<s>", "image:object, mean", "image:other, mean", ":"]
    effect = vp.effect(ds).isel(site=0)
    by_hand = np.mean([effect[0].isel(position=[1, 2]).mean("position"), effect[1].isel(position=3)], axis=0)
    np.testing.assert_allclose(drawn["image:object, mean"], by_hand)
    others = [
        effect[i].isel(position=[p + 1 for p in range(PATCHES) if p not in o]) for i, o in enumerate([(0, 1), (2,)])
    ]
    np.testing.assert_allclose(drawn["image:other, mean"], np.mean([o.mean("position") for o in others], axis=0))


def test_rows_are_means_over_the_rows_of_the_grid() -> None:
    ds = dataset()
    drawn = columns(vp.plot.heatmap(ds, patches="rows"))
    assert list(drawn) == ["<s>", *(f"image row {row}, mean" for row in range(ROWS)), ":"]
    effect = vp.effect(ds).isel(site=0, example=[0, 1])
    wanted = effect.isel(position=slice(1 + 2 * COLUMNS, 1 + 3 * COLUMNS)).mean(("example", "position"))
    np.testing.assert_allclose(drawn["image row 2, mean"], wanted)


def test_expanded_patches_are_a_column_each_called_by_row_and_column() -> None:
    ds = dataset(columns=2)
    drawn = columns(vp.plot.heatmap(ds, patches="expanded"))
    assert list(drawn) == ["<s>", *(f"r{row}c{col}" for row in range(ROWS) for col in range(2)), ":"]
    assert ROWS * 2 <= MOST_PATCHES < PATCHES
    assert list(columns(vp.plot.heatmap(ds))) == list(drawn), (
        "few patches are not put together where nobody asks for it"
    )


def test_normalised_means_are_mean_effect_over_mean_total_effect() -> None:
    ds = dataset()
    drawn = columns(vp.plot.heatmap(ds, patches="block", normalize=True))
    effect = vp.effect(ds).isel(site=0, example=[0, 1], position=slice(1, -1)).mean(("example", "position"))
    total = vp.total_effect(ds, "probability").isel(example=[0, 1]).mean()
    np.testing.assert_allclose(drawn["image, mean"], effect / total)


def test_every_array_is_gathered_alike_and_keeps_its_dimensions() -> None:
    ds = dataset()
    effect = vp.effect(ds)
    (first, second), names = gather([effect, effect.transpose("position", ...)], ds, "regions")
    xr.testing.assert_allclose(first, second.transpose(*first.dims))
    assert first.dims == effect.dims and len(names) == first.sizes["position"] == 4


def test_a_group_that_happens_to_have_one_patch_stays_a_group() -> None:
    ds = dataset().isel(position=[0, 1, 5, 25])
    ds = ds.assign_coords(position=["0", "image:object", "image:other", "25"])
    drawn = columns(vp.plot.heatmap(ds, patches="regions"))
    assert list(drawn) == ["<s>", "image:object", "image:other", ":"]


def test_another_word_is_refused() -> None:
    with pytest.raises(vp.SpecError, match="Did you mean 'block'"):
        vp.plot.heatmap(dataset(), patches="blocks")
