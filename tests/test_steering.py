"""Vectors that are added equal the oracle's: differences of means over all pairs, and vectors out of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.cases import (
    DRAWS,
    NAMES,
    Case,
    Cell,
    assert_equals_oracle,
    family,
    results,
    unsure_cases,
    window,
    with_one_noise,
)
from tests.oracle.edits import edited_in_turn, noise_edits, steered
from tests.oracle.patching import layer_count, run

CORRUPTIONS = ["semantic_image_pair", "gaussian_noise"]
STRENGTHS = [4.0, -0.5]
MODULE = {"blip": "question_encoder.resid_post", "llava": "language.mlp_out"}
HEAD = {"blip": "question_encoder.attn_head", "llava": "language.attn_head"}


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[str, list[Case]]:
    """Three pairs, whose subjects are 1, 3 and 1 tokens long."""
    made = {}
    for name, model in loaded.items():
        short, long = unsure_cases(model, "object", 2), unsure_cases(model, "small red object", 1)
        made[name] = with_one_noise([short[0], long[0], short[1]])
    return made


def difference(cases: list[Case], site: str, layer: int, selector: str, corruption: str) -> Tensor:
    """Mean of the clean minus mean of the corrupted run: over all pairs, draws and positions of a selector."""
    sides: dict[str, list[Tensor]] = {"clean": [], "corrupted": []}
    for case in cases:
        noises: list[Any] = case.draws() if corruption == "gaussian_noise" else [None]
        runs = [("clean", case.inputs["clean"], None)]
        runs += [("corrupted", case.inputs.get(corruption, case.inputs["clean"]), noise) for noise in noises]
        for side, inputs, noise in runs:
            value = run(case.module, inputs, noise_edits(noise), [(site, layer)])[1][site, layer]
            sides[side] += [value[0, i].double() for i in case.indices(site.split(".")[0], selector)]
    clean, corrupted = (torch.stack(sides[side]).mean(0) for side in ("clean", "corrupted"))
    return (clean - corrupted).float()


def by_oracle(case: Case, cell: Cell, on: str, corruption: str, vector: Tensor) -> dict[str, float]:
    corrupted, clean, noise = case.sides(corruption, "denoise", cell.get("draw", 0))
    logits = steered(
        case.module,
        corrupted if on == "corrupted" else clean,
        cell["site"],
        [cell["layer"]],
        case.indices(case.text_stack, cell["position"]),
        vector,
        cell["strength"],
        cell.get("head"),
        noise["base_noise"] if on == "corrupted" else None,
    )
    return case.metrics(logits)


@pytest.mark.parametrize("on", ["clean", "corrupted"])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_differences_of_means_added_to_modules_equal_the_oracle(
    name: str, corruption: str, on: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    site, made, labels = MODULE[family(name)], cases[name], ["subject", "last"]
    layers = [1, layer_count(made[0].module, site) - 1]
    section = {"sites": [site], "positions": labels, "layers": layers, "strengths": STRENGTHS, "on": on}
    ds = results(loaded[name], made, {"steer": section}, made[0].settings(corruption))
    assert ds["strength"].values.tolist() == STRENGTHS
    assert ds.sizes.get("draw", 0) == (DRAWS if corruption == "gaussian_noise" else 0)
    vectors = {(layer, label): difference(made, site, layer, label, corruption) for layer in layers for label in labels}

    def wanted(cell: Cell) -> dict[str, float]:
        return by_oracle(made[1], cell, on, corruption, vectors[cell["layer"], cell["position"]])

    assert_equals_oracle(ds, wanted, example=1)


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_steered_by_their_part_of_the_difference(
    name: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    site, made = HEAD[family(name)], cases[name]
    section = {"sites": [site], "positions": ["last"], "strengths": [-12, 12]}
    ds = results(loaded[name], made, {"steer": section}, made[0].settings("semantic_image_pair"))
    vectors = [
        difference(made, site, layer, "last", "semantic_image_pair")
        for layer in range(layer_count(made[0].module, site))
    ]

    def wanted(cell: Cell) -> dict[str, float]:
        return by_oracle(made[0], cell, "corrupted", "semantic_image_pair", vectors[cell["layer"]])

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_single_positions_of_a_group_are_steered_by_the_difference_over_the_group(
    name: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    site, made = MODULE[family(name)], cases[name]
    section = {"sites": [site], "positions": ["each:subject"], "layers": [0, 1], "strengths": [3.0]}
    ds = results(loaded[name], made, {"steer": section}, made[0].settings("semantic_image_pair"))
    vectors = [difference(made, site, layer, "subject", "semantic_image_pair") for layer in (0, 1)]

    def wanted(cell: Cell) -> dict[str, float] | None:
        if int(cell["position"]) not in made[1].indices(made[1].text_stack, "subject"):
            return None  # a position of another pair's subject
        return by_oracle(made[1], cell, "corrupted", "semantic_image_pair", vectors[cell["layer"]])

    assert_equals_oracle(ds, wanted, example=1)


@pytest.mark.parametrize("by_head", [False, True], ids=["module", "heads"])
@pytest.mark.parametrize("per_layer", [False, True], ids=["one vector", "a vector a layer"])
@pytest.mark.parametrize("name", NAMES)
def test_vectors_out_of_a_file_added_in_windows_equal_the_oracle(
    name: str, per_layer: bool, by_head: bool, tmp_path: Path, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    case, site = cases[name][0], (HEAD if by_head else MODULE)[family(name)]
    count = layer_count(case.module, site)
    clean = run(case.module, case.inputs["clean"], read=[(site, 0)])[1][site, 0]
    generator = torch.Generator().manual_seed(0)
    drawn = {str(layer): clean.std() * torch.randn(clean.shape[-1], generator=generator) for layer in range(count)}
    vectors = drawn if per_layer else {"vector": drawn["0"]}
    save_file(vectors, tmp_path / "vectors.safetensors")
    section = {
        "sites": [site],
        "positions": ["subject", "last"],
        "layers": [0, count - 1],
        "window": [1, 3],
        "vector": str(tmp_path / "vectors.safetensors"),
        "strengths": [2, -0.5],
        **({"heads": [1]} if by_head else {}),
        "on": "clean",
    }
    ds = results(loaded[name], [case], {"steer": section})

    def wanted(cell: Cell) -> dict[str, float]:
        logits = edited_in_turn(
            case.module,
            case.inputs["clean"],
            site,
            window(cell["layer"], cell["window"], count),
            case.indices(case.text_stack, cell["position"]),
            cell.get("head"),
            lambda layer, old: old + cell["strength"] * vectors[str(layer) if per_layer else "vector"],
        )
        return case.metrics(logits)

    assert_equals_oracle(ds, wanted)
