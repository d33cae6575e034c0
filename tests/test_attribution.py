"""Estimates from gradients equal the oracle's, which takes one backward pass for each cell, metric and step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from tests.cases import NAMES, TOLERANCE, Case, Cell, assert_equals_oracle, family, results, unsure_cases, window
from tests.oracle.gradients import attribution, integrated
from tests.oracle.patching import layer_count, patched, run

METHODS: dict[str, dict[str, Any]] = {
    "attribution": {"method": "attribution"},
    "integrated": {"method": "integrated_gradients", "steps": 4},
}
SITES = {
    "blip": {
        "module": "question_encoder.mlp_out",
        "heads": "question_encoder.cross_attn_head",
        "joint": "question_encoder.attn_out+question_encoder.cross_attn_out",
    },
    "llava": {
        "module": "language.resid_post",
        "heads": "language.attn_head",
        "joint": "language.attn_out+language.mlp_out",
    },
}
RUNS = [
    ("module", "semantic_image_pair", "denoise"),
    ("module", "gaussian_noise", "noise"),
    ("heads", "semantic_image_pair", "noise"),
    ("heads", "gaussian_noise", "denoise"),
    ("joint", "gaussian_noise", "denoise"),
]
# Each metric is a backward pass of its own; the third is held where fewer cells are.
TWO = {metric: TOLERANCE[metric] for metric in ("probability", "logit_difference")}
POSITIONS = {"blip": ["question", "last"], "llava": ["image:object", "last"]}


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[str, Case]:
    return {name: unsure_cases(model)[0] for name, model in loaded.items()}


def estimate(
    case: Case,
    cell: Cell,
    method: str,
    corruption: str,
    direction: str,
    layers: list[int],
    metrics: Iterable[str] = tuple(TOLERANCE),
) -> dict[str, float]:
    base, source, noise = case.sides(corruption, direction, cell.get("draw", 0))
    positions = case.indices(cell["site"].split(".")[0], cell["position"])
    place = (cell["site"], layers, positions)
    found = {}
    for metric in metrics:
        where = (case.module, base, source, *place, case.functions()[metric], cell.get("head"), *noise.values())
        found[metric] = attribution(*where) if method == "attribution" else integrated(*where, steps=4)
    return found


@pytest.mark.parametrize(("kind", "corruption", "direction"), RUNS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_estimates_equal_the_oracle(
    name: str,
    method: str,
    kind: str,
    corruption: str,
    direction: str,
    loaded: dict[str, Any],
    cases: dict[str, Case],
) -> None:
    case = cases[name]
    section = {
        "sites": [SITES[family(name)][kind]],
        "layers": [1],
        "positions": POSITIONS[family(name)],
        "direction": direction,
        **METHODS[method],
    }
    section |= {"heads": [1, 0]} if kind == "heads" else {}
    section |= {"positions": POSITIONS[family(name)][:1]} if corruption == "gaussian_noise" else {}
    ds = results(loaded[name], [case], {"patch": section}, case.settings(corruption), list(TWO))

    def wanted(cell: Cell) -> dict[str, float]:
        return estimate(case, cell, method, corruption, direction, [cell["layer"]], TWO)

    assert_equals_oracle(ds, wanted, TWO)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_estimates_for_windows_of_layers_equal_the_oracle(
    name: str, method: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case, site = cases[name], SITES[family(name)]["joint"]
    count = layer_count(case.module, site)
    section = {"sites": [site], "layers": [1], "window": [2, 3], "positions": POSITIONS[family(name)]}
    ds = results(loaded[name], [case], {"patch": section | METHODS[method]}, case.settings("semantic_image_pair"))

    def wanted(cell: Cell) -> dict[str, float]:
        layers = window(cell["layer"], cell["window"], count)
        return estimate(case, cell, method, "semantic_image_pair", "denoise", layers)

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_integrated_effects_of_all_positions_approach_the_effect_of_patching_them_together(
    name: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case, stack = cases[name], cases[name].text_stack
    base, source, _ = case.sides("semantic_image_pair", "denoise")
    before = case.metrics(run(case.module, base)[0])
    everywhere = case.indices(stack, "all")
    layer = 1 if stack == "language" else layer_count(case.module, f"{stack}.resid_post") - 1
    after = case.metrics(patched(case.module, base, source, f"{stack}.resid_post", layer, everywhere))
    errors: dict[str, list[float]] = {metric: [] for metric in TOLERANCE}
    for steps in (1, 4, 64):
        section = {"sites": [f"{stack}.resid_post"], "layers": [layer], "positions": "all"}
        method = {"method": "integrated_gradients", "steps": steps}
        ds = results(loaded[name], [case], {"patch": section | method}, case.settings("semantic_image_pair"))
        assert ds.sizes["position"] == len(everywhere)
        for metric in TOLERANCE:
            effects = ds[metric].values.astype(float) - before[metric]
            errors[metric].append(abs(effects.sum() - (after[metric] - before[metric])))
    for metric, tolerance in TOLERANCE.items():
        effect = abs(after[metric] - before[metric])
        assert effect >= 100 * tolerance
        assert errors[metric][2] <= 0.01 * effect + tolerance, (metric, errors[metric], effect)
        assert errors[metric][2] < errors[metric][1], (metric, errors[metric])


@pytest.mark.parametrize(
    ("method", "corruption"), [("attribution", "gaussian_noise"), ("integrated", "semantic_image_pair")]
)
@pytest.mark.parametrize("name", NAMES)
def test_the_strongest_estimates_are_verified_by_exact_runs_and_no_others(
    name: str, method: str, corruption: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case, stack, count = cases[name], cases[name].text_stack, 5
    metrics = ["logit_difference", "probability", "log_probability"]
    section = {"sites": [f"{stack}.resid_post"], "positions": POSITIONS[family(name)]}
    estimated = {"patch": section | METHODS[method] | {"verify": count}}
    ds = results(loaded[name], [case], estimated, case.settings(corruption), metrics)
    effects = abs(ds["logit_difference"] - ds["logit_difference_corrupted"]).transpose(*ds["logit_difference"].dims)
    weakest = np.sort(effects.values.ravel())[-count]
    chosen = effects.values >= weakest
    assert chosen.sum() == count
    exact = results(loaded[name], [case], {"patch": section}, case.settings(corruption), metrics)
    for metric in metrics:
        found = ds[f"{metric}_exact"].values
        np.testing.assert_array_equal(np.isfinite(found), chosen)
        np.testing.assert_allclose(found[chosen], exact[metric].values[chosen], rtol=0, atol=TOLERANCE[metric] / 10)

    def wanted(cell: Cell) -> dict[str, float] | None:
        if not bool(chosen[0][tuple(list(ds[dim].values).index(cell[dim]) for dim in cell)]):
            return None
        base, source, noise = case.sides(corruption, "denoise", cell.get("draw", 0))
        positions = case.indices(stack, cell["position"])
        place = (cell["site"], cell["layer"], positions, None)
        return case.metrics(patched(case.module, base, source, *place, *noise.values()))

    assert_equals_oracle(ds, wanted, suffix="_exact")
