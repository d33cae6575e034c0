"""What `vp.diagnose` found, drawn."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PathCollection

import vlm_patching as vp

NAMES = ["gaussian_noise k=3.0", "semantic_image_pair"]
SITES = ["vision.resid_post", "language.resid_post"]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def found() -> xr.Dataset:
    """Two corruptions, five pairs of which one was answered wrongly, and a vision stack of two layers."""
    rng = np.random.default_rng(0)
    flipped = rng.uniform(0, 1, (2, 5))
    flipped[:, 3] = np.nan
    total = rng.uniform(0, 1, (2, 5))
    total[:, 3] = np.nan
    moved = rng.uniform(0, 2, (2, 2, 4))
    moved[:, 0, 2:] = np.nan
    pairs, places = ("corruption", "example"), ("corruption", "site", "layer")
    return xr.Dataset(
        {
            "flipped": (pairs, flipped),
            "probability_total_effect": (pairs, total),
            "logit_difference_total_effect": (pairs, 20 * total),
            "moved": (places, moved),
            "spread": (places, 1 + moved),
        },
        {"corruption": NAMES, "example": list("abcde"), "site": SITES, "layer": np.arange(4)},
        {"method": "diagnose", "name": "figure-name", "model": "m"},
    )


def test_a_diagnosis_is_flips_total_effects_and_how_far_activations_move(found: xr.Dataset) -> None:
    axes = vp.plot.corruptions(found)
    assert axes.shape == (3 + 2 + 2,)
    for ax, name in zip(
        axes[:3], ("flipped", "probability_total_effect", "logit_difference_total_effect"), strict=True
    ):
        points = [c for c in ax.collections if isinstance(c, PathCollection)]
        for row, drawn in zip(found[name].values, points, strict=True):
            np.testing.assert_allclose(drawn.get_offsets()[:, 0], row[np.isfinite(row)])
    assert [label.get_text().replace("\n", " ") for label in axes[0].get_yticklabels()] == NAMES
    for i, ax in enumerate(axes[3:]):
        values = found["moved" if i < 2 else "spread"].isel(site=i % 2)
        assert ax.get_title() == SITES[i % 2]
        lines = {line.get_label(): line for line in ax.get_lines()}
        for name in NAMES:
            np.testing.assert_allclose(lines[name].get_ydata(), values.sel(corruption=name).dropna("layer"))
        usual = {"two unrelated pairs": np.sqrt(2)} if i < 2 else {"clean runs": 1}
        for name, value in usual.items():
            np.testing.assert_allclose(lines[name].get_ydata(), value)
    (legend,) = vp.plot.figure_of(axes).legends
    texts = {text.get_text().replace("\n", " ") for text in legend.get_texts()}
    assert texts == {*NAMES, "two unrelated pairs", "clean runs"}


def test_one_quantity_metric_or_site_can_be_chosen_and_drawn_into_given_axes(found: xr.Dataset) -> None:
    assert len(vp.plot.corruptions(found, quantity="moved")) == 2
    assert len(vp.plot.corruptions(found, "probability", site="vision.resid_post")) == 4
    _, (left, right) = plt.subplots(1, 2)
    assert vp.plot.corruptions(found, quantity="flipped", ax=left) is left
    assert vp.plot.corruptions(found, quantity="spread", site="language.resid_post", ax=right) is right
    assert right.get_legend() is not None


def test_what_is_not_there_is_refused(found: xr.Dataset) -> None:
    for call, named in (
        (lambda: vp.plot.corruptions(found, quantity="move"), "Did you mean 'moved'"),
        (lambda: vp.plot.corruptions(found, "kl_divergence"), "Known: probability, logit_difference"),
        (lambda: vp.plot.corruptions(found, site="vision.resid"), "Did you mean 'vision.resid_post'"),
        (lambda: vp.plot.corruptions(found, ax=plt.gca()), "name a quantity"),
        (lambda: vp.plot.corruptions(found.assign_attrs(method="lens")), "plot.lens draws it"),
        (lambda: vp.plot.heatmap(found), "plot.corruptions draws it"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()  # type: ignore[no-untyped-call]


def test_a_diagnosis_of_a_bundled_model_is_drawn() -> None:
    ds = vp.diagnose(
        vp.Experiment.from_spec("notice2024_llava_heads", {"pairs.n": 3}), ["semantic_image_pair", "blank_image"]
    )
    axes = vp.plot.corruptions(ds)
    assert [ax.get_title() for ax in axes[3:]] == SITES * 2
    np.testing.assert_allclose(axes[3].get_lines()[1].get_ydata(), ds["moved"].isel(corruption=0, site=0, layer=[0, 1]))
    assert list(vp.plot.draw(ds)) == ["corruptions"]
