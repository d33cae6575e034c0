"""Cells that are zeroed, averaged, resampled or scaled equal the oracle's, which edits layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vlm_patching as vp
from tests.cases import NAMES, Case, Cell, assert_equals_oracle, family, results, unsure_cases, window
from tests.oracle.edits import ablated, site_mean
from tests.oracle.patching import head_count, layer_count, run

KINDS: dict[str, dict[str, Any]] = {
    "zero": {"kind": "zero"},
    "mean": {"kind": "mean"},
    "resample": {"kind": "resample"},
    "scale": {"kind": "scale", "factor": -1.5},
}
MODULE = {"blip": "question_encoder.mlp_out", "llava": "language.resid_post"}
HEAD = {"blip": "question_encoder.cross_attn_head", "llava": "language.attn_head"}


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[str, list[Case]]:
    """Pairs whose subjects are 1, 3, 1 and 3 tokens long, in this order."""
    made = {}
    for name, model in loaded.items():
        short, long = unsure_cases(model, "object", 2), unsure_cases(model, "small red object", 2)
        made[name] = [short[0], long[0], short[1], long[1]]
        assert [len(case.indices(case.text_stack, "subject")) for case in made[name]] == [1, 3, 1, 3]
    return made


def pooled_mean(cases: list[Case], site: str, layer: int, selector: str) -> Tensor:
    """The mean over the clean runs of all pairs and all positions of a selector."""
    positions = [case.indices(site.split(".")[0], selector) for case in cases]
    return site_mean(cases[0].module, [case.inputs["clean"] for case in cases], site, layer, positions)


def by_oracle(cases: list[Case], number: int, cell: Cell, kind: str, selector: str, layers: list[int]) -> Tensor:
    """One cell of one pair. Resampled values are those of the next pair whose subject is as long."""
    case, site = cases[number], cell["site"]
    stack = site.split(".")[0]
    donor = cases[(number + 2) % 4]
    mean: dict[int | None, Tensor] | None = None
    if kind == "mean":
        mean = {layer: pooled_mean(cases, site, layer, selector) for layer in layers}
    return ablated(
        case.module,
        case.inputs["clean"],
        site,
        layers,
        case.indices(stack, cell["position"]),
        kind,
        cell.get("head"),
        mean=mean,
        other=donor.inputs["clean"],
        other_positions=donor.indices(stack, cell["position"]),
        factor=KINDS[kind].get("factor"),
    )


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", NAMES)
def test_modules_ablated_in_windows_equal_the_oracle(
    name: str, kind: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    site, made = MODULE[family(name)], cases[name]
    section = {"sites": [site], "positions": ["subject", "last"], "window": [1, 3], "layers": [0, 2], **KINDS[kind]}
    ds = results(loaded[name], made, {"ablate": section})
    assert ds["probability"].dims == ("example", "site", "layer", "window", "position")
    count = layer_count(made[0].module, site)
    assert_case(ds, made, 3, kind, count)


def assert_case(ds: Any, cases: list[Case], number: int, kind: str, count: int) -> None:
    def wanted(cell: Cell) -> dict[str, float]:
        layers = window(cell["layer"], cell.get("window", 1), count)
        return cases[number].metrics(by_oracle(cases, number, cell, kind, cell["position"], layers))

    assert_equals_oracle(ds, wanted, example=number)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", NAMES)
def test_heads_ablated_one_by_one_equal_the_oracle(
    name: str, kind: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    site, made = HEAD[family(name)], cases[name]
    top = layer_count(made[0].module, site) - 1
    section = {"sites": [site], "positions": ["subject"], "layers": [1, top], **KINDS[kind]}
    ds = results(loaded[name], made, {"ablate": section})
    assert ds.sizes["head"] == head_count(made[0].module, site)
    assert_case(ds, made, 1, kind, top + 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_single_positions_is_over_all_positions_of_their_group(
    name: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    site, made = MODULE[family(name)], cases[name]
    section = {"sites": [site], "positions": ["each:subject", "last"], "layers": [0, 1], "kind": "mean"}
    ds = results(loaded[name], made, {"ablate": section})
    stack, number = site.split(".")[0], 3

    def wanted(cell: Cell) -> dict[str, float] | None:
        subject = [str(i) for i in made[number].indices(stack, "subject")]
        if cell["position"] not in [*subject, "last"]:
            return None  # a position of another pair's subject
        selector = "last" if cell["position"] == "last" else "subject"
        return made[number].metrics(by_oracle(made, number, cell, "mean", selector, [cell["layer"]]))

    assert_equals_oracle(ds, wanted, example=number)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_of_one_length_lend_their_values_to_the_one_before_and_the_last_takes_the_first_s(
    name: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    """With groups that are as long in every pair, the next pair is simply the next."""
    site, made = MODULE[family(name)], cases[name]
    stack = site.split(".")[0]
    ds = results(loaded[name], made, {"ablate": {"sites": [site], "positions": ["last"], "kind": "resample"}})
    for number, donor in ((0, 1), (3, 0)):
        assert_donor(ds, made, number, made[donor], stack)


def assert_donor(ds: Any, cases: list[Case], number: int, donor: Case, stack: str) -> None:
    case = cases[number]
    last, last_there = case.indices(stack, "last"), donor.indices(stack, "last")

    def wanted(cell: Cell) -> dict[str, float]:
        logits = ablated(
            case.module,
            case.inputs["clean"],
            cell["site"],
            [cell["layer"]],
            last,
            "resample",
            other=donor.inputs["clean"],
            other_positions=last_there,
        )
        return case.metrics(logits)

    assert_equals_oracle(ds, wanted, example=number)


@pytest.mark.parametrize("name", NAMES)
def test_image_embeddings_are_ablated_before_any_layer(
    name: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    case = cases[name][0]
    section = {"sites": ["image_embeds"], "positions": ["each:image"]}
    ds = results(loaded[name], cases[name], {"ablate": section})

    def wanted(cell: Cell) -> dict[str, float]:
        positions = case.indices("image_embeds", cell["position"])
        return case.metrics(ablated(case.module, case.inputs["clean"], "image_embeds", [None], positions, "zero"))

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_joined_sites_are_ablated_together(name: str, loaded: dict[str, Any], cases: dict[str, list[Case]]) -> None:
    case = cases[name][0]
    parts = [f"{case.text_stack}.{part}" for part in ("attn_out", "mlp_out")]
    ds = results(loaded[name], cases[name], {"ablate": {"sites": ["+".join(parts)], "positions": ["subject", "last"]}})

    def wanted(cell: Cell) -> dict[str, float]:
        positions = case.indices(case.text_stack, cell["position"])
        keys = [(part, cell["layer"]) for part in parts]
        values = run(case.module, case.inputs["clean"], read=keys)[1]
        edits = [("replace", *key, None, positions, torch.zeros_like(values[key])) for key in keys]
        return case.metrics(run(case.module, case.inputs["clean"], edits)[0])

    assert_equals_oracle(ds, wanted)


def test_a_pair_without_another_of_its_length_is_refused_by_name(
    loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    section = {"sites": ["language.mlp_out"], "positions": ["subject"], "kind": "resample"}
    made = [replace(case) for case in cases["shapes-llava"][1:]]
    with pytest.raises(vp.SpecError, match=made[1].pair.id):
        results(loaded["shapes-llava"], made, {"ablate": section})
