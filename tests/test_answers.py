"""Metrics of whole answers of several tokens equal the oracle's teacher forcing, in sweeps of every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

import vlm_patching as vp
from tests.cases import NAMES, TOLERANCE, Case, Cell, Inputs, assert_equals_oracle, make_cases, results
from tests.oracle import edits, paths
from tests.oracle.attention import blocked
from tests.oracle.gradients import attribution
from tests.oracle.patching import Edit, run
from tests.oracle.readouts import answer_log_probability, extended

# A rank is a whole number: half a percent off is wrong.
WHOLE = {"answer_log_probability": 1e-4, "answer_log_odds": 1e-4, "answer_ranking": 5e-3}
SMOOTH = {name: WHOLE[name] for name in ("answer_log_probability", "answer_log_odds")}
NEAR_TIE = 1e-3
SITES = {
    "blip": {"question_encoder.resid_post": ["question", "last"], "answer_decoder.mlp_out": ["decoding"]},
    "llava": {"language.resid_post": ["image:object", "last"], "language.attn_out": ["question", "last"]},
}
RUNS = [("semantic_image_pair", "denoise"), ("semantic_image_pair", "noise"), ("gaussian_noise", "denoise")]
HEAD = {"blip": "question_encoder.cross_attn_head", "llava": "language.attn_head"}


def family(name: str) -> str:
    return "blip" if "blip" in name else "llava"


@pytest.fixture(scope="module")
def apart(loaded: dict[str, Any]) -> dict[str, list[Case]]:
    """Answers of two tokens, foils of three, which differ in their first token."""
    return {name: _cases(model, "{} object", "{} small ring") for name, model in loaded.items()}


@pytest.fixture(scope="module")
def alike(loaded: dict[str, Any]) -> dict[str, list[Case]]:
    """Answers of two tokens, foils of three, which share their first token."""
    return {name: _cases(model, "small {}", "small {} ring") for name, model in loaded.items()}


def _cases(model: Any, answer: str, foil: str) -> list[Case]:
    made = make_cases(model, vp.load_pairs("shapes", n=3, seed=5))
    renamed = []
    for case in made:
        pair = replace(case.pair, answer=answer.format(case.pair.answer), foil=foil.format(case.pair.foil))
        renamed.append(replace(case, pair=pair))
    return renamed


def scored(case: Case, cases: Sequence[Case], log_probability: Callable[[list[int]], float]) -> dict[str, float]:
    """The metrics of whole answers; candidates are the answers and foils of all pairs."""
    answer, foil = case.word_ids(case.pair.answer), case.word_ids(case.pair.foil)
    words = {word for one in cases for word in (one.pair.answer, one.pair.foil)} - {case.pair.answer}
    own = log_probability(answer)
    others = [log_probability(case.word_ids(word)) for word in words]
    assert min(abs(other - own) for other in others) > NEAR_TIE
    return {
        "answer_log_probability": own,
        "answer_log_odds": own - log_probability(foil),
        "answer_ranking": 1 + sum(other > own for other in others),
    }


def chained(case: Case, kind: str, logits_of: Callable[[Inputs], Tensor]) -> dict[str, float]:
    """Log-probability and log-odds, token by token, each run on what has been said before it."""

    def log_probability(words: str) -> float:
        tokens, total = case.word_ids(words), 0.0
        for i, token in enumerate(tokens):
            logits = logits_of(extended(case.module, case.inputs[kind], tokens[:i]))
            total += logits.double().log_softmax(-1)[token].item()
        return total

    answer = log_probability(case.pair.answer)
    return {"answer_log_probability": answer, "answer_log_odds": answer - log_probability(case.pair.foil)}


def patching_edits(case: Case, cell: Cell, corruption: str, direction: str) -> tuple[Inputs, list[Edit]]:
    """The base run's inputs, and what a patched cell changes in it."""
    base, source, noise = case.sides(corruption, direction, cell.get("draw", 0))
    key = (cell["site"], cell["layer"])
    value = run(case.module, source, edits.noise_edits(noise["source_noise"]), [key])[1][key]
    positions = case.indices(cell["site"].split(".")[0], cell["position"])
    return base, [*edits.noise_edits(noise["base_noise"]), ("replace", *key, None, positions, value)]


@pytest.mark.parametrize("same_first_token", [False, True], ids=["apart", "alike"])
@pytest.mark.parametrize(("corruption", "direction"), RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_whole_answers_in_a_patch_sweep_equal_teacher_forcing(
    name: str,
    corruption: str,
    direction: str,
    same_first_token: bool,
    loaded: dict[str, Any],
    apart: dict[str, list[Case]],
    alike: dict[str, list[Case]],
) -> None:
    cases = (alike if same_first_token else apart)[name]
    case = cases[0]
    for site, positions in SITES[family(name)].items():
        section = {"sites": [site], "layers": [0, 2], "positions": positions, "direction": direction}
        ds = results(loaded[name], cases, {"patch": section}, case.settings(corruption), list(WHOLE))

        def wanted(cell: Cell) -> dict[str, float]:
            base, changes = patching_edits(case, cell, corruption, direction)
            return scored(case, cases, lambda tokens: answer_log_probability(case.module, base, tokens, changes))

        assert_equals_oracle(ds, wanted, SMOOTH)


@pytest.mark.parametrize("name", NAMES)
def test_the_base_runs_are_scored_alike(
    name: str, loaded: dict[str, Any], apart: dict[str, list[Case]], alike: dict[str, list[Case]]
) -> None:
    site = next(iter(SITES[family(name)]))
    for cases in (apart[name], alike[name]):
        section = {"patch": {"sites": [site], "layers": [1], "positions": ["last"]}}
        ds = results(loaded[name], cases, section, cases[0].settings("semantic_image_pair"), list(WHOLE))
        for i, case in enumerate(cases):
            for run_name, kind in (("clean", "clean"), ("corrupted", "semantic_image_pair")):
                inputs = case.inputs[kind]
                wanted = scored(case, cases, lambda tokens: answer_log_probability(case.module, inputs, tokens))
                for metric, tolerance in WHOLE.items():
                    assert abs(float(ds[f"{metric}_{run_name}"][i]) - wanted[metric]) <= tolerance
