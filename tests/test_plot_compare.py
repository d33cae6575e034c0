"""Two maps against each other, and every example's effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PathCollection, QuadMesh

import vlm_patching as vp

SITES = ["language.mlp_out", "language.attn_out"]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def dataset(seed: int, name: str, positions: tuple[str, ...] = ("subject", "last"), examples: int = 6) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    shape = (examples, 2, 4, len(positions))
    dims = ("example", "site", "layer", "position")
    variables: dict[str, Any] = {}
    for metric, scale in (("probability", 1.0), ("logit_difference", 20.0)):
        variables[metric] = (dims, scale * rng.uniform(0, 1, shape))
        variables[f"{metric}_clean"] = ("example", np.full(examples, 0.9 * scale))
        variables[f"{metric}_corrupted"] = ("example", np.full(examples, 0.1 * scale))
    coordinates = {
        "example": [f"pair-{i}" for i in range(examples)],
        "kept": ("example", ["kept"] * (examples - 1) + ["dropped: no"]),
        "site": SITES,
        "layer": np.arange(4),
        "position": list(positions),
    }
    return xr.Dataset(variables, coordinates, {"method": "patch", "name": name, "model": "m"})


def dots(ax: Any) -> PathCollection:
    (found,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    return found


def mesh(ax: Any) -> np.ndarray:
    (found,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    return np.asarray(found.get_array())[::-1]


def test_two_datasets_are_two_maps_and_their_cells_against_each_other_a_row_for_each_site() -> None:
    a, b = dataset(0, "noise"), dataset(1, "sip")
    axes = vp.plot.compare(a, b)
    assert axes.shape == (6,)
    for row, site in enumerate(SITES):
        left, right, cells = axes[3 * row : 3 * row + 3]
        means = [vp.effect(ds).sel(site=site).mean("example") for ds in (a, b)]
        np.testing.assert_allclose(mesh(left), means[0])
        np.testing.assert_allclose(mesh(right), means[1])
        np.testing.assert_allclose(dots(cells).get_offsets(), np.column_stack([m.values.ravel() for m in means]))
        np.testing.assert_array_equal(dots(cells).get_array(), np.repeat(np.arange(4), 2))
        assert ("noise" in left.get_title(), "sip" in right.get_title()) == (True, True) and site in left.get_title()
        found = vp.analysis.agreement(*(vp.effect(ds).sel(site=site) for ds in (a, b)))
        said = cells.get_title(loc="left")
        low, high = float(found["spearman_low"]), float(found["spearman_high"])
        assert f"Spearman {float(found['spearman']):.2f} [{low:.2f}, {high:.2f}]" in said
        assert f"Kendall {float(found['kendall']):.2f}" in said


def test_maps_in_one_unit_have_one_scale_and_a_line_where_both_are_equal() -> None:
    a, b = dataset(0, "noise"), dataset(1, "sip")
    axes = vp.plot.compare(a, b, site=SITES[0])
    limits = {ax.collections[0].get_clim() for ax in axes[:2]}
    largest = max(float(abs(vp.effect(ds).sel(site=SITES[0]).mean("example")).max()) for ds in (a, b))
    assert len(limits) == 1 and limits.pop() == pytest.approx((-largest, largest))
    (line,) = [line for line in axes[2].get_lines() if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(*line.get_data())


def test_two_metrics_of_one_dataset_have_their_own_scales_unless_they_are_normalised() -> None:
    ds = dataset(0, "noise")
    axes = vp.plot.compare(ds, other_metric="logit_difference", site=SITES[0])
    assert axes[0].collections[0].get_clim() != axes[1].collections[0].get_clim()
    assert not [line for line in axes[2].get_lines() if line.get_linestyle() == "--"]
    shares = vp.plot.compare(ds, other_metric="logit_difference", site=SITES[0], normalize=True)
    assert shares[0].collections[0].get_clim() == shares[1].collections[0].get_clim()
    assert "logit difference" in shares[2].get_ylabel()


def test_cells_are_matched_by_their_labels_and_those_of_one_side_alone_are_left_out_of_the_cells() -> None:
    a, b = dataset(0, "noise"), dataset(1, "sip", ("last", "subject", "other"))
    ax = plt.subplots()[1]
    assert vp.plot.compare(a, b, site=SITES[0], ax=ax) is ax
    means = [vp.effect(ds).sel(site=SITES[0], position=["subject", "last"]).mean("example") for ds in (a, b)]
    wanted = np.column_stack([m.values.ravel() for m in means])
    found = np.asarray(dots(ax).get_offsets())
    np.testing.assert_allclose(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)])


def test_what_cannot_be_compared_is_refused() -> None:
    a, b = dataset(0, "noise"), dataset(1, "sip")
    for call, named in (
        (lambda: vp.plot.compare(a), "another dataset, or another metric"),
        (lambda: vp.plot.compare(a, metric="probability", other_metric="probability"), "another dataset"),
        (lambda: vp.plot.compare(a, b, ax=plt.gca()), "site: language.mlp_out"),
        (lambda: vp.plot.compare(a, b.assign_attrs(method="lens")), "plot.lens"),
        (lambda: vp.plot.compare(a, b.assign_coords(site=["vision.a", "vision.b"])), "no panel in common"),
        (lambda: vp.plot.compare(a.isel(layer=[0]), b, site=SITES[0]), "at least 3 cells"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()  # type: ignore[no-untyped-call]


# Distributions


def test_a_distribution_shows_every_kept_examples_effect_of_the_strongest_cells_the_strongest_at_the_top() -> None:
    ds = dataset(0, "noise")
    ax = vp.plot.distribution(ds, top=3)
    effect = vp.effect(ds).isel(example=slice(5))
    flat = effect.stack(cell=("site", "layer", "position")).transpose("example", "cell")
    best = np.argsort(-abs(flat.mean("example").values))[:3]
    points = [c for c in ax.collections if isinstance(c, PathCollection)]
    heights = []
    for found, cell in zip(points, best, strict=True):
        np.testing.assert_allclose(sorted(found.get_offsets()[:, 0]), sorted(flat.values[:, cell]))
        heights.append(found.get_offsets()[:, 1].mean().round())
    assert heights == [2, 1, 0]
    site, layer, position = flat["cell"].values[best[0]]
    assert ax.get_yticklabels()[0].get_text().replace("\n", "") == f"L{layer} @ {position}, {site}"
    assert "strongest cells" in ax.figure.get_suptitle()


def test_the_diamond_is_the_mean_and_the_line_its_interval() -> None:
    ds = dataset(0, "noise")
    ax = vp.plot.distribution(ds, site=SITES[0], layer=1, position="last", normalize=True)
    wanted = vp.analysis.bootstrap(vp.effect(ds).sel(site=SITES[0], layer=1, position="last") / 0.8)
    (diamond,) = [line for line in ax.get_lines() if line.get_marker() == "D"]
    assert diamond.get_xdata()[0] == pytest.approx(float(wanted["mean"]))
    spans = [line.get_xdata() for line in ax.get_lines() if line.get_color() == "k" and line.get_marker() == "None"]
    assert any(np.allclose(span, [wanted["low"], wanted["high"]]) for span in spans)
    assert "share of the total effect" in ax.get_xlabel()


def test_points_do_not_move_from_drawing_to_drawing_and_no_global_state_is_touched() -> None:
    ds = dataset(0, "noise")
    before = np.random.get_state()[1].copy()
    first, second = (vp.plot.distribution(ds, top=2) for _ in range(2))
    for a, b in zip(first.collections, second.collections, strict=True):
        np.testing.assert_array_equal(a.get_offsets(), b.get_offsets())
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_of_one_example_a_distribution_is_a_point_without_an_interval() -> None:
    ax = vp.plot.distribution(dataset(0, "noise").isel(example=[0]), top=1, ax=plt.subplots()[1])
    (points,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert len(points.get_offsets()) == 1
    assert len([line for line in ax.get_lines() if line.get_marker() == "D"]) == 1


def test_a_distribution_of_what_is_not_there_is_refused() -> None:
    ds = dataset(0, "noise")
    for call, named in (
        (lambda: vp.plot.distribution(ds, layer=9), "Known: 0, 1, 2, 3"),
        (lambda: vp.plot.distribution(ds, head=1), "no dimension head"),
        (lambda: vp.plot.distribution(ds, top=0), "at least 1"),
        (lambda: vp.plot.distribution(ds.assign_attrs(method="attention")), "plot.head_function"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()  # type: ignore[no-untyped-call]
