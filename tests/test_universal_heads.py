"""Universal heads on planted data: what the published rule finds, and what the tested rule finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import vlm_patching as vp
from vlm_patching.analysis.heads import label_by_modality, universal_heads

NAN = float("nan")
TRUE, NOISY, OPPOSED = (2, 1), (4, 3), (5, 0)
TASKS = ("objects", "states", "emotions")


def effect(values: Any, prefix: str = "pair") -> xr.DataArray:
    """Values [example, layer, head] as an effect."""
    values = np.asarray(values, dtype=np.float32)
    coords: dict[str, Any] = {"example": [f"{prefix}-{i}" for i in range(len(values))]}
    coords |= {name: np.arange(n) for name, n in zip(("layer", "head"), values.shape[1:3], strict=True)}
    coords["layers_covered"] = ("layer", np.ones(values.shape[1]))
    attributes = {"metric": "probability", "direction": "denoise"}
    return xr.DataArray(values, coords, ("example", "layer", "head"), name="effect", attrs=attributes)


def planted(seed: int = 0) -> dict[str, xr.DataArray]:
    """Three tasks, 6 × 4 heads: one helps everywhere, one varies much and has no mean, one helps in all tasks but one,
    where it harms."""
    rng = np.random.default_rng(seed)
    effects = {}
    for i, task in enumerate(TASKS):
        values = 0.05 * rng.normal(size=(30 + i, 6, 4))
        values[:, TRUE[0], TRUE[1]] += 0.3
        values[:, NOISY[0], NOISY[1]] += 0.4 * rng.normal(size=30 + i)
        values[:, OPPOSED[0], OPPOSED[1]] += 0.3 if i else -0.3
        effects[task] = effect(values, task)
    return effects


def heads_of(mask: xr.DataArray) -> set[tuple[int, int]]:
    return {(int(layer), int(head)) for layer, head in np.argwhere(mask.transpose("layer", "head").values)}


def test_the_published_rule_is_mean_abs_above_mean_plus_2_std_in_every_task() -> None:
    effects = planted()
    important, thresholds = [], []
    for data in effects.values():
        mean_abs = np.mean(np.abs(data.values.astype(float)), axis=0)
        thresholds.append(mean_abs.mean() + 2 * np.sqrt(np.mean((mean_abs - mean_abs.mean()) ** 2)))
        important.append(mean_abs > thresholds[-1])
    ds = universal_heads(effects)
    np.testing.assert_allclose(ds["threshold"].values, thresholds)
    np.testing.assert_array_equal(ds["important"].transpose("task", "layer", "head").values, important)
    np.testing.assert_array_equal(ds["universal"].values, np.logical_and.reduce(important))
    assert ds["task"].values.tolist() == list(TASKS)
    assert ds.attrs["metric"] == "probability" and ds.attrs["deviations"] == 2.0


def test_the_published_rule_takes_a_head_that_only_varies_and_the_tested_rule_does_not() -> None:
    for seed in range(10):
        ds = universal_heads(planted(seed), 1.0, seed=seed, resamples=200)
        assert heads_of(ds["universal"]) == {TRUE, NOISY, OPPOSED}
        assert heads_of(ds["universal_tested"]) == {TRUE, OPPOSED}
        assert heads_of(ds["universal_tested"] & ds["same_sign"]) == {TRUE}


def test_with_fewer_heads_that_matter_two_deviations_still_take_the_noisy_one() -> None:
    effects = {task: data.where(data["layer"] != OPPOSED[0], 0.0) for task, data in planted().items()}
    ds = universal_heads(effects)
    assert heads_of(ds["universal"]) == {TRUE, NOISY}
    assert heads_of(ds["universal_tested"]) == {TRUE}


def test_among_heads_without_effect_the_tested_rule_is_wrong_at_most_as_often_as_its_level() -> None:
    rng = np.random.default_rng(1)
    simulations, level, published, tested = 120, 0.1, 0, 0
    scale = np.where(np.arange(24) == 7, 4.0, 1.0).reshape(6, 4)
    for seed in range(simulations):
        effects = {"one": effect(scale * rng.normal(size=(16, 6, 4)))}
        ds = universal_heads(effects, level=level, permutations=200, resamples=50, seed=seed)
        published += bool(ds["universal"].any())
        tested += bool(ds["universal_tested"].any())
    assert tested / simulations <= level + 3 * np.sqrt(level * (1 - level) / simulations)
    assert published / simulations > 0.9


def test_the_interval_and_the_sign_are_those_of_the_signed_mean() -> None:
    effects = planted()
    ds = universal_heads(effects)
    cell = ds.sel(task="objects", layer=OPPOSED[0], head=OPPOSED[1])
    assert cell["low"] < cell["mean"] < cell["high"] < 0 and cell["t"] < 0 < cell["mean_abs"]
    noisy = ds.sel(layer=NOISY[0], head=NOISY[1])
    assert ((noisy["low"] < 0) & (noisy["high"] > 0)).sum() >= 2
    np.testing.assert_allclose(ds["mean"].sel(task="states").values, effects["states"].mean("example"), atol=1e-6)


def test_draws_are_averaged_before_their_sign_is_dropped() -> None:
    data = effect(np.random.default_rng(2).normal(size=(8, 3, 4)))
    draws = xr.concat([data + 5, data - 5], dim="draw").transpose("example", "layer", "head", "draw")
    np.testing.assert_allclose(
        universal_heads({"a": draws})["mean_abs"], universal_heads({"a": data})["mean_abs"], rtol=1e-5
    )


def test_sites_are_ruled_apart() -> None:
    first, second = (planted(seed)["objects"] for seed in (0, 1))
    both = xr.concat([first, 100 * second.assign_coords(example=first["example"])], dim="site")
    ds = universal_heads({"a": both.assign_coords(site=["attn", "cross"])})
    assert ds["threshold"].dims == ("task", "site")
    for site, alone in (("attn", first), ("cross", second)):
        expected = universal_heads({"a": alone})["important"]
        np.testing.assert_array_equal(ds["important"].sel(site=site).transpose(*expected.dims), expected)


def test_a_head_that_was_not_run_is_nan_and_not_universal() -> None:
    effects = {task: data.where((data["layer"] != 2) | (task != "states")) for task, data in planted().items()}
    ds = universal_heads(effects)
    for name in ("mean", "low", "high", "mean_abs", "p"):
        assert ds[name].sel(task="states", layer=2).isnull().all()
        assert ds[name].sel(task="objects").notnull().all()
    assert not ds["universal"].sel(layer=2).any() and not ds["universal_tested"].sel(layer=2).any()


def test_the_seed_alone_decides_and_the_result_can_be_written(tmp_path: Path) -> None:
    ds = universal_heads(planted(), seed=3)
    xr.testing.assert_identical(ds, universal_heads(planted(), seed=3))
    assert not ds["low"].equals(universal_heads(planted(), seed=4)["low"])
    ds.to_netcdf(tmp_path / "heads.nc")
    with xr.open_dataset(tmp_path / "heads.nc") as read:
        xr.testing.assert_equal(read.load(), ds)


def test_heads_are_labelled_by_the_corruptions_that_find_them() -> None:
    coords = {"layer": [0, 1], "head": [0, 1]}
    image = xr.DataArray([[True, True], [False, False]], coords, ("layer", "head"))
    text = xr.DataArray([[False, True], [True, False]], coords, ("layer", "head"))
    labels = label_by_modality(image, text.transpose("head", "layer"))
    assert labels.values.tolist() == [["vision", "multimodal"], ["text", ""]]
    ds = universal_heads(planted())
    assert label_by_modality(ds["universal"], ds["universal_tested"]).sel(layer=4, head=3) == "vision"


def test_labels_of_other_heads_and_of_numbers_are_refused() -> None:
    image = xr.DataArray([True, False], {"head": [0, 1]}, ("head",))
    with pytest.raises(vp.SpecError, match="not tested on the same heads"):
        label_by_modality(image, image.assign_coords(head=[1, 2]))
    with pytest.raises(vp.SpecError, match="not tested on the same heads"):
        label_by_modality(image, image.rename(head="layer"))
    with pytest.raises(vp.SpecError, match="text must be true or false"):
        label_by_modality(image, image.astype(float))


def test_tasks_that_cannot_be_compared_are_refused() -> None:
    data = planted()["objects"]
    with pytest.raises(vp.SpecError, match="at least one task"):
        universal_heads({})
    with pytest.raises(vp.SpecError, match="deviations"):
        universal_heads({"a": data}, -1.0)
    with pytest.raises(vp.SpecError, match="level"):
        universal_heads({"a": data}, level=2.0)
    with pytest.raises(vp.SpecError, match="'a' has no dimension head"):
        universal_heads({"a": data.isel(head=0)})
    with pytest.raises(vp.SpecError, match="'a' has no dimension example"):
        universal_heads({"a": data.mean("example")})
    with pytest.raises(vp.SpecError, match=r"Task 'a': at least 2 examples .* there are 1"):
        universal_heads({"a": data.isel(example=[0])})
    with pytest.raises(vp.SpecError, match="do not have the same heads"):
        universal_heads({"a": data, "b": data.isel(head=[0, 1])})
    with pytest.raises(vp.SpecError, match="other dimensions"):
        universal_heads({"a": data, "b": data.expand_dims("site")})
