"""What heads attend to: numbers of heads whose attention is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import vlm_patching as vp
from vlm_patching.analysis import above_mean, bootstrap, head_functions

NAN = float("nan")
NUMBERS = ("mass", "pointing_ratio", "top_k_share", "entropy")


def attention(
    values: Any, roles: list[list[str]], rows: list[list[int]] | None = None, kept: list[str] | None = None
) -> xr.Dataset:
    """values [example, layer, head, key], roles [example, key]: "text", "cls", "object" or "image"."""
    values = np.asarray(values, dtype=np.float32)[:, None, :, :, None]
    examples, keys = len(values), values.shape[-1]
    across = ("example", "key")
    labels = np.array(roles, dtype=object)
    image = np.isin(labels, ["cls", "object", "image"])
    if rows is None:
        rows = np.where(image & (labels != "cls"), 0, -1).tolist()
    return xr.Dataset(
        {"attention": (("example", "site", "layer", "head", "position", "key"), values)},
        {
            "example": [f"pair-{i}" for i in range(examples)],
            "site": ["question_encoder.cross_attn_pattern"],
            "layer": np.arange(values.shape[2]),
            "head": np.arange(values.shape[3]),
            "position": ["last"],
            "key": [str(i) for i in range(keys)],
            "kept": ("example", kept or ["kept"] * examples),
            "key_modality": (across, np.where(labels == "", "", np.where(image, "image", "text")).astype(object)),
            "key_role": (across, np.where(labels == "cls", "image", labels)),
            "key_row": (across, rows),
        },
        {"method": "attention", "model": "shapes-blip"},
    )


ROLES = [["text", "cls", "object", "image", "image", "object"]]


def numbers(ds: xr.Dataset) -> dict[str, Any]:
    return {name: ds[name].values[0, 0, 0, :, 0] for name in NUMBERS}


def test_heads_that_look_evenly_at_the_region_and_past_it_have_known_numbers() -> None:
    even = [0.1, 0.3, 0.15, 0.15, 0.15, 0.15]
    at_it = [0.5, 0.1, 0.2, 0.0, 0.0, 0.2]
    past_it = [0.0, 0.6, 0.0, 0.3, 0.1, 0.0]
    outlier = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    found = numbers(head_functions(attention([[[even, at_it, past_it, outlier]]], ROLES), top_k=2))
    np.testing.assert_allclose(found["mass"], [0.6, 0.4, 0.4, 1.0], atol=1e-6)
    np.testing.assert_allclose(found["pointing_ratio"], [1, 2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["top_k_share"], [0.5, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(
        found["entropy"], [np.log(4), np.log(2), stats.entropy([0.75, 0.25]), 0], rtol=1e-5, atol=1e-6
    )


def test_numbers_are_those_of_a_plain_loop_where_examples_have_other_patches_and_some_none() -> None:
    rng = np.random.default_rng(0)
    examples, layers, heads, keys = 5, 2, 3, 12
    roles = rng.choice(["text", "cls", "object", "image"], size=(examples, keys)).tolist()
    roles[1][6:] = [""] * 6
    roles[2] = ["text"] * keys
    values = rng.dirichlet(np.ones(keys), size=(examples, layers, heads))
    values[1, :, :, 6:] = NAN
    for i, role in enumerate(roles):
        if i != 2:
            role[:4] = ["object", "image", "image", "object"]
    ds = head_functions(attention(values, roles, kept=["kept"] * 4 + ["dropped: no"]), top_k=3)
    for i, layer, head in np.ndindex(examples, layers, heads):
        patches = [k for k in range(keys) if roles[i][k] in ("object", "image")]
        got = {name: ds[name].values[i, 0, layer, head, 0] for name in NUMBERS}
        if i in (2, 4):
            assert np.isnan(list(got.values())).all()
            continue
        a = np.float32(values[i, layer, head, patches])
        inside = np.array([roles[i][k] == "object" for k in patches])
        np.testing.assert_allclose(got["mass"], a.sum(), rtol=1e-5)
        np.testing.assert_allclose(got["pointing_ratio"], a[inside].sum() / a.sum() / inside.mean(), rtol=1e-5)
        np.testing.assert_allclose(got["top_k_share"], sorted(a)[-1:-4:-1] / a.sum() @ np.ones(3), rtol=1e-5)
        np.testing.assert_allclose(got["entropy"], stats.entropy(a), rtol=1e-5)


def test_where_no_attention_falls_on_the_picture_shares_are_nan_and_the_mass_is_0() -> None:
    found = numbers(head_functions(attention([[[[0.7, 0.3, 0, 0, 0, 0]]]], ROLES), top_k=1))
    assert found.pop("mass") == 0
    assert all(np.isnan(value).all() for value in found.values())


def test_an_example_without_the_region_has_no_pointing_ratio_and_all_else() -> None:
    ds = head_functions(attention(np.full((2, 1, 1, 3), 1 / 3), [["object", "image", "text"], ["image"] * 3]), top_k=2)
    np.testing.assert_array_equal(np.isnan(ds["pointing_ratio"].values.ravel()), [False, True])
    assert np.isfinite(ds["entropy"].values).all()


def test_above_mean_is_the_attention_minus_the_mean_of_all_heads_of_all_layers_at_patches_alone() -> None:
    values = np.random.default_rng(1).dirichlet(np.ones(6), size=(1, 3, 4))
    ds = attention(values, ROLES)
    found = head_functions(ds, top_k=1)["above_mean"]
    assert found["key"].values.tolist() == ["2", "3", "4", "5"]
    wanted = values[0] - values[0].mean(axis=(0, 1))
    np.testing.assert_allclose(found.values[0, 0, :, :, 0], wanted[..., 2:], atol=1e-6)
    np.testing.assert_allclose(found.sum(("layer", "head")).values, 0, atol=1e-5)
    assert np.isnan(above_mean(ds).isel(key=[0, 1]).values).all()


def test_of_a_single_head_there_is_no_mean_to_be_above() -> None:
    assert np.isnan(above_mean(attention(np.full((1, 1, 1, 6), 1 / 6), ROLES)).values).all()


def test_one_position_can_be_chosen_and_is_then_no_dimension() -> None:
    ds = attention(np.random.default_rng(2).dirichlet(np.ones(6), size=(1, 2, 2)), ROLES)
    two = xr.concat(
        [ds.assign_coords(position=["subject"]), 0.5 * ds], "position", data_vars="minimal", coords="minimal"
    )
    two.attrs = ds.attrs
    everywhere, last = head_functions(two, top_k=2), head_functions(two, top_k=2, position="last")
    assert last["mass"].dims == ("example", "site", "layer", "head") and "position" in everywhere.dims
    xr.testing.assert_allclose(everywhere.sel(position="last"), last)
    assert last.attrs["top_k"] == 2 and last.attrs["region"] == "object" and last.attrs["model"] == "shapes-blip"


def test_a_region_of_another_name_can_be_asked_about() -> None:
    ds = attention([[[[0.4, 0.4, 0.1, 0.1]]]], [["image", "object", "image", "image"]])
    ds["key_role"] = (("example", "key"), [["sky", "sky", "object", "image"]])
    for region, wanted in (("sky", 1.6), ("object", 0.4)):
        assert head_functions(ds, top_k=1, region=region)["pointing_ratio"].item() == pytest.approx(wanted)


def test_a_head_that_points_stands_out_in_the_bootstrap_of_its_pointing_ratio() -> None:
    rng = np.random.default_rng(3)
    values = rng.dirichlet(np.ones(6), size=(40, 1, 2))
    values[:, 0, 1, 2] += 0.5
    ds = bootstrap(head_functions(attention(values, ROLES * 40), top_k=1)["pointing_ratio"])
    low, high = ds["low"].values.ravel(), ds["high"].values.ravel()
    assert low[0] < 1 < high[0] and low[1] > 1.2


def test_a_wrong_call_is_refused_and_names_what_there_is() -> None:
    ds = attention(np.full((1, 1, 2, 6), 1 / 6), ROLES)
    for call, named in (
        (lambda: head_functions(ds, position="lst"), "Did you mean 'last'"),
        (lambda: head_functions(ds, region="objekt"), "Did you mean 'object'"),
        (lambda: head_functions(ds, top_k=5), "between 1 and 4"),
        (lambda: head_functions(ds, top_k=0), "between 1 and 4"),
        (lambda: head_functions(ds.assign_attrs(method="patch")), "analysis.effect"),
        (lambda: above_mean(ds.isel(site=0)), r"no dimension site.*ds\.sel"),
    ):
        with pytest.raises(vp.SpecError, match=named):
            call()  # type: ignore[no-untyped-call]
