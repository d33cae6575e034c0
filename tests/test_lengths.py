"""Methods on clean and corrupted prompts of different lengths: what is paired is the oracle's, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import NAMES, PHRASES, Case, Cell, Inputs, assert_equals_oracle, results, unsure_cases, with_phrase
from tests.oracle.edits import moved, steered
from tests.oracle.gradients import forward
from tests.oracle.patching import Edit, layer_count, run

RUNS = [("shorter", "denoise"), ("shorter", "noise"), ("longer", "noise")]
POSITIONS = ["question", "each:subject", "last"]
STEPS = 4


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[tuple[str, str], tuple[Case, dict[int, int]]]:
    made = {name: unsure_cases(model)[0] for name, model in loaded.items()}
    return {
        (name, length): with_phrase(loaded[name], case, phrase)
        for name, case in made.items()
        for length, phrase in PHRASES.items()
    }


def settings(length: str) -> dict[str, Any]:
    return {"kind": "constraint_replacement", "span": "subject", "phrase": PHRASES[length]}


class Sides:
    """The base and the source run, and where a group's tokens that are in both prompts are in each."""

    def __init__(self, case: Case, partners: dict[int, int], direction: str) -> None:
        self.case, self.partners, self.denoise = case, partners, direction == "denoise"
        clean, corrupted = case.inputs["clean"], case.inputs["constraint_replacement"]
        self.base, self.source = (corrupted, clean) if self.denoise else (clean, corrupted)

    def where(self, label: str) -> tuple[list[int], list[int]]:
        clean = [i for i in self.case.indices(self.case.text_stack, label) if i in self.partners]
        corrupted = [self.partners[i] for i in clean]
        return (corrupted, clean) if self.denoise else (clean, corrupted)

    def patched_value(self, site: str, layer: int, label: str) -> Tensor:
        """What the base has at a site, once a group's tokens are the source's."""
        base, source = (run(self.case.module, inputs, read=[(site, layer)])[1] for inputs in (self.base, self.source))
        return moved(base[site, layer], source[site, layer], *self.where(label))


@pytest.mark.parametrize(("length", "direction"), RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_a_severed_trace_holds_the_positions_that_it_patches(
    name: str, length: str, direction: str, loaded: dict[str, Any], cases: dict[tuple[str, str], Any]
) -> None:
    case, partners = cases[name, length]
    site, cut = f"{case.text_stack}.resid_post", f"{case.text_stack}.mlp_out"
    section = {"sites": [site], "layers": [0, 2], "positions": POSITIONS, "sever": "mlp_out"}
    ds = results(loaded[name], [case], {"patch": section | {"direction": direction}}, settings(length))
    sides = Sides(case, partners, direction)

    def wanted(cell: Cell) -> dict[str, float] | None:
        where, _ = sides.where(cell["position"])
        if not where:
            return None
        above = [(cut, layer) for layer in range(cell["layer"] + 1, layer_count(case.module, site))]
        held = run(case.module, sides.base, read=above)[1]
        value = sides.patched_value(site, cell["layer"], cell["position"])
        edits: list[Edit] = [("replace", site, cell["layer"], None, where, value)]
        edits += [("replace", *key, None, where, held[key]) for key in above]
        return case.metrics(run(case.module, sides.base, edits)[0])

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize(
    ("length", "direction", "method"),
    [
        ("shorter", "denoise", "integrated_gradients"),
        ("shorter", "noise", "integrated_gradients"),
        ("longer", "noise", "attribution"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_over_the_tokens_that_are_in_both_prompts(
    name: str,
    length: str,
    direction: str,
    method: str,
    loaded: dict[str, Any],
    cases: dict[tuple[str, str], Any],
) -> None:
    """On the way of integrated gradients, tokens that are not in both keep the base's values."""
    case, partners = cases[name, length]
    site, steps = f"{case.text_stack}.resid_post", STEPS if method == "integrated_gradients" else 1
    section = {"sites": [site], "layers": [1], "positions": POSITIONS, "direction": direction, "method": method}
    section |= {"steps": STEPS} if steps > 1 else {}
    ds = results(loaded[name], [case], {"patch": section}, settings(length))
    sides = Sides(case, partners, direction)
    base = run(case.module, sides.base, read=[(site, 1)])[1][site, 1]
    change = sides.patched_value(site, 1, "all") - base
    functions = case.functions()

    def estimate(metric: str, where: list[int]) -> float:
        total = functions[metric](forward(case.module, sides.base)).item()
        for step in range(steps):
            way = (step + 0.5) / steps if steps > 1 else 0
            point = (base + way * change).requires_grad_()
            value = functions[metric](forward(case.module, sides.base, [("put", site, 1, point)]))
            (gradient,) = torch.autograd.grad(value, [point])
            total += (change * gradient)[0, where].sum().item() / steps
        return total

    def wanted(cell: Cell) -> dict[str, float] | None:
        where, _ = sides.where(cell["position"])
        return {metric: estimate(metric, where) for metric in functions} if where else None

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize("on", ["clean", "corrupted"])
@pytest.mark.parametrize("length", ["shorter", "longer"])
@pytest.mark.parametrize("name", NAMES)
def test_a_difference_is_of_the_groups_tokens_in_either_prompt_and_added_where_they_are(
    name: str, length: str, on: str, loaded: dict[str, Any], cases: dict[tuple[str, str], Any]
) -> None:
    case, partners = cases[name, length]
    site = f"{case.text_stack}.resid_post"
    section = {"sites": [site], "layers": [1], "positions": ["subject", "last"], "strengths": [-4, 4], "on": on}
    ds = results(loaded[name], [case], {"steer": section}, settings(length))
    sides = Sides(case, partners, "noise")

    def mean(inputs: Inputs, layer: int, where: list[int]) -> Tensor:
        return run(case.module, inputs, read=[(site, layer)])[1][site, layer][0, where].mean(0)

    def wanted(cell: Cell) -> dict[str, float]:
        layer, clean = cell["layer"], case.indices(case.text_stack, cell["position"])
        _, corrupted = sides.where(cell["position"])
        vector = mean(sides.base, layer, clean) - mean(sides.source, layer, corrupted)
        inputs, where = (sides.base, clean) if on == "clean" else (sides.source, corrupted)
        return case.metrics(steered(case.module, inputs, site, [layer], where, vector, cell["strength"]))

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize(("length", "direction"), [*RUNS, ("longer", "denoise")])
@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_received_where_the_receiver_is_in_the_prompt_that_is_patched(
    name: str, length: str, direction: str, loaded: dict[str, Any], cases: dict[tuple[str, str], Any]
) -> None:
    case, partners = cases[name, length]
    site, at = f"{case.text_stack}.resid_post", "last" if case.text_stack == "language" else "answer_option"
    end = (site, layer_count(case.module, site) - 1)
    receiver = {"site": end[0], "layer": end[1], "position": at}
    section = {"sites": [site], "layers": [0, 1], "positions": ["question", "last"], "receiver": receiver}
    ds = results(loaded[name], [case], {"path": section | {"freeze": [], "direction": direction}}, settings(length))
    sides = Sides(case, partners, direction)

    def wanted(cell: Cell) -> dict[str, float]:
        where, _ = sides.where(cell["position"])
        value = sides.patched_value(site, cell["layer"], cell["position"])
        sent = run(case.module, sides.base, [("replace", site, cell["layer"], None, where, value)], [end])[1][end]
        return case.metrics(run(case.module, sides.base, [("replace", *end, None, sides.where(at)[0], sent)])[0])

    assert_equals_oracle(ds, wanted)
