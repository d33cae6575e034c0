"""Metrics of whole answers of several tokens equal the oracle's teacher forcing, in sweeps of every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

import vlm_patching as vp
from tests.cases import NAMES, TOLERANCE, Case, Cell, Inputs, assert_equals_oracle, family, make_cases, results
from tests.oracle import edits, paths
from tests.oracle.attention import blocked
from tests.oracle.patching import Edit, layer_count, run
from tests.oracle.readouts import answer_log_probability, extended

# A rank is a whole number: half a percent off is wrong.
WHOLE = {"answer_log_probability": 1e-4, "answer_log_odds": 1e-4, "answer_ranking": 5e-3}
SMOOTH = {name: WHOLE[name] for name in ("answer_log_probability", "answer_log_odds")}
NEAR_TIE = 1e-3
SITES = {
    "blip": (["question_encoder.resid_post", "answer_decoder.cross_attn_out"], ["question", "last", "decoding"]),
    "llava": (["language.resid_post", "language.attn_out"], ["image:object", "question", "last"]),
}
RUNS = [
    ("apart", "semantic_image_pair", "denoise"),
    ("apart", "gaussian_noise", "denoise"),
    ("alike", "semantic_image_pair", "denoise"),
    ("alike", "semantic_image_pair", "noise"),
]
HEAD = {"blip": "question_encoder.cross_attn_head", "llava": "language.attn_head"}


@pytest.fixture(scope="module")
def apart(loaded: dict[str, Any]) -> dict[str, list[Case]]:
    """Answers and foils of two and three tokens, which differ in their first token."""
    tails = ["{} object", "{} object", "{} ring", "{} small ring", "{} object", "{} ring object"]
    return {name: named(model, [], tails) for name, model in loaded.items()}


@pytest.fixture(scope="module")
def alike(loaded: dict[str, Any]) -> dict[str, list[Case]]:
    """Answers and foils of two and three tokens, which share their first token."""
    return {name: named(model, ["small"], ["small {}"] * 5 + ["small {} ring"]) for name, model in loaded.items()}


def named(model: Any, before: list[str], phrases: list[str]) -> list[Case]:
    """Three pairs whose answers and foils are phrases with words that are likely after what comes before."""
    cases = make_cases(model, vp.load_pairs("shapes", n=3, seed=5))
    given = cases[0].word_ids(" ".join(before))
    orders = []
    for kind in ("clean", "semantic_image_pair"):
        logits = run(cases[0].module, extended(cases[0].module, cases[0].inputs[kind], given))[0]
        words = cases[0].tokenizer.convert_ids_to_tokens(logits.argsort(descending=True).tolist())
        orders.append([word for word in words if word.isalpha()])
    likely = dict.fromkeys(word for both in zip(*orders, strict=True) for word in both)
    answers = [phrase.format(word) for phrase, word in zip(phrases, likely, strict=False)]
    made = []
    for case, answer, foil in zip(cases, answers[::2], answers[1::2], strict=True):
        first, other = (case.word_ids(phrase)[0] for phrase in (answer, foil))
        made.append(replace(case, pair=replace(case.pair, answer=answer, foil=foil), answer=first, foil=other))
    return made


def is_second_name(cell: Cell) -> bool:
    """The decoder's one position is called "decoding", also where it was asked for as "last"."""
    return cell["site"].startswith("answer_decoder") and cell["position"] != "decoding"


def scored(case: Case, log_probability: Callable[[list[int]], float]) -> dict[str, float]:
    """Log-probability and log-odds, of an answer's tokens all at once."""
    answer = log_probability(case.word_ids(case.pair.answer))
    return {
        "answer_log_probability": answer,
        "answer_log_odds": answer - log_probability(case.word_ids(case.pair.foil)),
    }


def ranked(case: Case, cases: Sequence[Case], log_probability: Callable[[list[int]], float]) -> dict[str, float]:
    """Candidates are the answers and foils of all pairs."""
    words = {word for one in cases for word in (one.pair.answer, one.pair.foil)} - {case.pair.answer}
    own = log_probability(case.word_ids(case.pair.answer))
    others = [log_probability(case.word_ids(word)) for word in words]
    assert len(others) == 2 * len(cases) - 1 and min(abs(other - own) for other in others) > NEAR_TIE
    return {"answer_ranking": 1 + sum(other > own for other in others)}


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


@pytest.mark.parametrize(("first_tokens", "corruption", "direction"), RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_whole_answers_in_a_patch_sweep_equal_teacher_forcing(
    name: str,
    first_tokens: str,
    corruption: str,
    direction: str,
    loaded: dict[str, Any],
    apart: dict[str, list[Case]],
    alike: dict[str, list[Case]],
) -> None:
    cases = {"apart": apart, "alike": alike}[first_tokens][name]
    case = cases[0]
    sites, positions = SITES[family(name)]
    section = {"sites": sites, "layers": [0, 2], "positions": positions, "direction": direction}
    ds = results(loaded[name], cases, {"patch": section}, case.settings(corruption), list(SMOOTH))

    def wanted(cell: Cell) -> dict[str, float] | None:
        if cell["position"] not in case.groups(cell["site"].split(".")[0]) or is_second_name(cell):
            return None
        base, changes = patching_edits(case, cell, corruption, direction)
        return scored(case, lambda tokens: answer_log_probability(case.module, base, tokens, changes))

    assert_equals_oracle(ds, wanted, SMOOTH)


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_ranked_among_the_answers_and_foils_of_all_pairs(
    name: str, loaded: dict[str, Any], apart: dict[str, list[Case]]
) -> None:
    case, (sites, positions) = apart[name][0], SITES[family(name)]
    section = {"sites": sites, "layers": [0, 2], "positions": positions}
    ds = results(loaded[name], apart[name], {"patch": section}, case.settings("gaussian_noise"), ["answer_ranking"])

    def wanted(cell: Cell) -> dict[str, float] | None:
        if cell["position"] not in case.groups(cell["site"].split(".")[0]) or is_second_name(cell):
            return None
        base, changes = patching_edits(case, cell, "gaussian_noise", "denoise")
        return ranked(case, apart[name], lambda tokens: answer_log_probability(case.module, base, tokens, changes))

    assert_equals_oracle(ds, wanted, {"answer_ranking": WHOLE["answer_ranking"]})


@pytest.mark.parametrize("name", NAMES)
def test_the_base_runs_are_scored_alike(
    name: str, loaded: dict[str, Any], apart: dict[str, list[Case]], alike: dict[str, list[Case]]
) -> None:
    site = SITES[family(name)][0][0]
    for cases in (apart[name], alike[name][:1]):
        section = {"patch": {"sites": [site], "layers": [1], "positions": ["last"]}}
        ds = results(loaded[name], cases, section, cases[0].settings("semantic_image_pair"), list(WHOLE))
        for i, case in enumerate(cases):
            assert_base_run_equals(ds[{"example": i}], "clean", case, cases, case.inputs["clean"])
            assert_base_run_equals(ds[{"example": i}], "corrupted", case, cases, case.inputs["semantic_image_pair"])


def assert_base_run_equals(ds: Any, run_name: str, case: Case, cases: list[Case], inputs: Inputs) -> None:
    def log_probability(tokens: list[int]) -> float:
        return answer_log_probability(case.module, inputs, tokens)

    wanted = scored(case, log_probability) | ranked(case, cases, log_probability)
    for metric, tolerance in WHOLE.items():
        assert abs(float(ds[f"{metric}_{run_name}"]) - wanted[metric]) <= tolerance


@pytest.mark.parametrize("name", NAMES)
def test_metrics_of_the_first_token_refuse_answers_that_share_it(
    name: str, loaded: dict[str, Any], apart: dict[str, list[Case]], alike: dict[str, list[Case]]
) -> None:
    site = SITES[family(name)][0][0]
    section = {"patch": {"sites": [site], "layers": [1], "positions": ["last"]}}
    corruption = apart[name][0].settings("semantic_image_pair")
    for metrics in (["probability"], ["answer_log_odds", "logit_difference"]):
        with pytest.raises(vp.SpecError, match=r"shapes-5-0.*same first token 'small'.*answer_log_odds"):
            results(loaded[name], alike[name], section, corruption, metrics)
    ds = results(loaded[name], apart[name], section, corruption, [*TOLERANCE, *WHOLE])
    case = apart[name][0]
    wanted = case.metrics(run(case.module, case.inputs["clean"])[0])
    for metric, tolerance in TOLERANCE.items():
        assert abs(float(ds[f"{metric}_clean"][0]) - wanted[metric]) <= tolerance


@pytest.mark.parametrize("name", NAMES)
def test_blocked_edges_stay_blocked_while_the_answer_is_forced(
    name: str, loaded: dict[str, Any], apart: dict[str, list[Case]]
) -> None:
    case = apart[name][0]
    site, queries, keys = ("language.attn_pattern", "language", "language")
    edges = ["image -> question", "question -> last", "all -> last"]
    if "blip" in name:
        site, queries, keys = ("answer_decoder.cross_attn_pattern", "answer_decoder", "question_encoder")
        edges = ["question -> decoding", "last -> decoding", "all -> decoding"]
    section = {"knockout": {"sites": [site], "edges": edges}}
    ds = results(loaded[name], [case], section, metrics=list(SMOOTH))

    def wanted(cell: Cell) -> dict[str, float]:
        source, target = cell["edges"].split(" -> ")
        where = (case.indices(queries, target), case.indices(keys, source))
        return chained(case, "clean", lambda inputs: blocked(case.module, inputs, site, [cell["layer"]], *where))

    assert_equals_oracle(ds, wanted, SMOOTH)


@pytest.mark.parametrize("name", NAMES)
def test_heads_stay_ablated_while_the_answer_is_forced(
    name: str, loaded: dict[str, Any], apart: dict[str, list[Case]]
) -> None:
    case, site = apart[name][0], HEAD[family(name)]
    section = {"ablate": {"sites": [site], "layers": [0, 2], "positions": ["question", "last"]}}
    ds = results(loaded[name], [case], section, metrics=list(SMOOTH))

    def wanted(cell: Cell) -> dict[str, float]:
        positions = case.indices(case.text_stack, cell["position"])
        return chained(
            case,
            "clean",
            lambda inputs: edits.ablated(case.module, inputs, site, [cell["layer"]], positions, "zero", cell["head"]),
        )

    assert_equals_oracle(ds, wanted, SMOOTH)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_stays_frozen_while_the_answer_is_forced(
    name: str, loaded: dict[str, Any], apart: dict[str, list[Case]]
) -> None:
    case, site = apart[name][0], HEAD[family(name)]
    stack = case.text_stack
    frozen = [f"{stack}.attn_context"]
    frozen += [f"{stack}.cross_attn_context", "answer_decoder.attn_context"] if "blip" in name else []
    top = layer_count(case.module, site) - 1
    section = {"path": {"sites": [site], "layers": [top - 1], "positions": ["question", "last"]}}
    ds = results(loaded[name], [case], section, case.settings("semantic_image_pair"), list(SMOOTH))

    def wanted(cell: Cell) -> dict[str, float]:
        sender = (site, cell["layer"], cell["head"], case.indices(stack, cell["position"]))

        def logits(inputs: Inputs) -> Tensor:
            source = {**inputs, "pixel_values": case.inputs["clean"]["pixel_values"]}
            return paths.path_patched(case.module, inputs, source, sender, None, frozen)

        return chained(case, "semantic_image_pair", logits)

    assert_equals_oracle(ds, wanted, SMOOTH)


@pytest.mark.parametrize("method", ["attribution", "integrated_gradients"])
def test_estimates_refuse_metrics_of_whole_answers(
    method: str, loaded: dict[str, Any], apart: dict[str, list[Case]]
) -> None:
    section = {"sites": ["language.mlp_out"], "method": method}
    settings = apart["shapes-llava"][0].settings("semantic_image_pair")
    with pytest.raises(vp.SpecError, match="answer_log_odds is of whole answers"):
        results(loaded["shapes-llava"], apart["shapes-llava"], {"patch": section}, settings, ["answer_log_odds"])
