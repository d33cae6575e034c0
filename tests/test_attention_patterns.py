"""Attention probabilities that are read equal the oracle's softmax, and the keys are what the tokenizer and the patch
grid say."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.cases import NAMES, Case, make_case, results
from tests.oracle.attention import pattern

TOLERANCE = 1e-5
KEYS = {
    "vision.attn_pattern": "vision",
    "language.attn_pattern": "language",
    "question_encoder.attn_pattern": "question_encoder",
    "question_encoder.cross_attn_pattern": "vision",
    "answer_decoder.attn_pattern": "answer_decoder",
    "answer_decoder.cross_attn_pattern": "question_encoder",
}
QUERIES = {
    "vision": ["image:other", "each:image:object", "cls"],
    "language": ["image:object", "question", "each:subject", "last"],
    "question_encoder": ["question", "each:subject", "last"],
    "answer_decoder": ["decoding"],
}
OF_BLIP = ("question_encoder", "answer_decoder")
SITES = [
    (name, site)
    for name in NAMES
    for site in KEYS
    if site.split(".")[0] in (("vision", *OF_BLIP) if "blip" in name else ("vision", "language"))
]


def read(model: Any, case: Case, sites: list[str], positions: list[str], keys: str = "all", **more: Any) -> xr.Dataset:
    section = {"sites": sites, "positions": positions, "keys": keys, **more}
    return results(model, [case], {"attention": section}, metrics=["probability"])


def assert_equals_pattern(found: xr.DataArray, case: Case) -> None:
    """Every row is the oracle's mean over the queries of its group; keys of other sites are not run."""
    for site, layer in product(found["site"].values.tolist(), found["layer"].values.tolist()):
        probabilities = pattern(case.module, case.inputs["clean"], site, layer)
        stack, labels = site.split(".")[0], found["key"].values.tolist()
        own = [label for label in labels if label in names_of_keys(case, site)]
        keys = [case.indices(KEYS[site], label)[0] for label in own]
        for head, position in product(found["head"].values.tolist(), found["position"].values.tolist()):
            row = found.sel(site=site, layer=layer, head=head, position=position)[0]
            wanted = probabilities[head, case.indices(stack, position)].mean(0)[keys]
            np.testing.assert_allclose(row.sel(key=own).values, wanted, rtol=0, atol=TOLERANCE, err_msg=f"{site}")
            others = [label for label in labels if label not in own]
            assert np.isnan(row.sel(key=others).values).all()
    assert np.nanmax(found.values) - np.nanmin(found.values) >= 100 * TOLERANCE


def names_of_keys(case: Case, site: str) -> list[str]:
    """The labels of all keys of a site, in order."""
    grid = [f"r{row}c{col}" for row, col in product(range(case.columns), repeat=2)]
    if KEYS[site] == "vision":
        return ["cls", *grid]
    if KEYS[site] == "answer_decoder":
        return ["decoding"]
    return [str(i) for i in case.indices(KEYS[site], "all")]


@pytest.mark.parametrize(("name", "site"), SITES)
def test_patterns_of_single_queries_and_means_of_groups_equal_the_oracle(
    name: str, site: str, loaded: dict[str, Any]
) -> None:
    case = make_case(loaded[name])
    found = read(loaded[name], case, [site], QUERIES[site.split(".")[0]])["attention"]
    assert found.dims == ("example", "site", "layer", "head", "position", "key")
    assert found["key"].values.tolist() == names_of_keys(case, site)
    assert np.isfinite(found.values).all()
    np.testing.assert_allclose(found.sum("key").values, 1, atol=1e-5)
    if site == "answer_decoder.attn_pattern":  # there is one key, and nothing to be wrong about
        np.testing.assert_array_equal(found.values, 1)
    else:
        assert_equals_pattern(found, case)


@pytest.mark.parametrize("name", NAMES)
def test_chosen_layers_heads_and_keys_are_those_that_come_back(name: str, loaded: dict[str, Any]) -> None:
    case = make_case(loaded[name])
    site = "question_encoder.cross_attn_pattern" if "blip" in name else "language.attn_pattern"
    found = read(loaded[name], case, [site], ["last", "question"], keys="image:object", layers=[2, 0], heads=[1])[
        "attention"
    ]
    labels = [names_of_keys(case, site)[i] for i in case.indices(KEYS[site], "image:object")]
    assert found["key"].values.tolist() == labels
    assert found["layer"].values.tolist() == [2, 0] and found["head"].values.tolist() == [1]
    assert_equals_pattern(found, case)


@pytest.mark.parametrize("name", [name for name in NAMES if "blip" in name])
def test_sites_with_other_keys_share_an_array_in_which_keys_they_lack_are_not_run(
    name: str, loaded: dict[str, Any]
) -> None:
    case = make_case(loaded[name])
    sites = ["question_encoder.attn_pattern", "question_encoder.cross_attn_pattern"]
    found = read(loaded[name], case, sites, ["subject", "last"])["attention"]
    assert found["key"].values.tolist() == [label for site in sites for label in names_of_keys(case, site)]
    assert np.isnan(found.values).any(axis=-1).all()
    assert_equals_pattern(found, case)


@pytest.mark.parametrize(("name", "site"), SITES)
def test_coordinates_say_what_every_key_is(name: str, site: str, loaded: dict[str, Any]) -> None:
    case = make_case(loaded[name])
    found = read(loaded[name], case, [site], QUERIES[site.split(".")[0]][-1:]).isel(example=0)
    groups = case.groups(KEYS[site])
    ids = case.inputs["clean"]["decoder_input_ids" if KEYS[site] == "answer_decoder" else "input_ids"][0].tolist()
    tokens = case.tokenizer.convert_ids_to_tokens(ids)
    side = case.pair.clean.picture().size[0] // case.columns
    for i, label in enumerate(names_of_keys(case, site)):
        key = found.sel(key=label)
        if i not in groups.get("image", []):
            assert (int(key["key_row"]), int(key["key_col"])) == (-1, -1)
            assert key["key_modality"] == ("image" if label == "cls" else "text")
            assert label == "cls" or key["key_token"] == tokens[i]
            for role in ("subject", "answer_option", "foil_option"):
                assert (key["key_role"] == role) == (i in groups.get(role, []))
            continue
        row, col = divmod(i - groups["image"][0], case.columns)
        assert (int(key["key_row"]), int(key["key_col"])) == (row, col)
        assert key["key_modality"] == "image"
        assert (key["key_role"] == "object") == (i in groups["image:object"])
        assert key["key_box"].values.tolist() == [col * side, row * side, (col + 1) * side, (row + 1) * side]
