"""Cells of several sites, embeddings as sites, placebos, and the position roles of causal tracing equal the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from tests.cases import (
    DRAWS,
    NAMES,
    PHRASES,
    SEED,
    Case,
    Cell,
    assert_equals_oracle,
    family,
    make_case,
    results,
    standard_normal,
    unsure_cases,
    window,
    with_one_noise,
    with_phrase,
)
from tests.oracle.edits import patched_jointly, replaced_embeds
from tests.oracle.noise import run_perturbed
from tests.oracle.patching import head_count, layer_count, run

RUNS = [("semantic_image_pair", "denoise"), ("semantic_image_pair", "noise"), ("gaussian_noise", "denoise")]
JOINT = {
    "blip": ["question_encoder.mlp_out+question_encoder.attn_out+question_encoder.cross_attn_out"],
    "llava": ["language.mlp_out+language.attn_out", "language.attn_out"],
}
POSITIONS = {"blip": ["question", "last"], "llava": ["image:object", "question", "last"]}
IMAGE: dict[str, list[str]] = {"blip": [], "llava": ["image:object"]}
ROLES = ["subject_first", "subject_middle", "subject_last", "first_subsequent", "further", "last"]


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[str, list[Case]]:
    """Five pairs, whose subjects are 3, 1, 3, 1 and 3 tokens long."""
    made = {}
    for name, model in loaded.items():
        long, short = unsure_cases(model, n=3), unsure_cases(model, "object", 2)
        made[name] = with_one_noise([long[0], short[0], long[1], short[1], long[2]])
    return made


def jointly(case: Case, cell: Cell, corruption: str, direction: str, layers: list[int | None]) -> dict[str, float]:
    base, source, noise = case.sides(corruption, direction, cell.get("draw", 0))
    parts = cell["site"].split("+")
    where = case.indices(parts[0].split(".")[0], cell["position"])
    places = [(part, layer, cell.get("head")) for part in parts for layer in layers]
    return case.metrics(patched_jointly(case.module, base, source, places, where, where, *noise.values()))


@pytest.mark.parametrize(("corruption", "direction"), RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_sites_joined_by_a_plus_are_patched_together_in_windows_of_several_widths(
    name: str, corruption: str, direction: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    case, sites = cases[name][0], JOINT[family(name)]
    count = layer_count(case.module, sites[0].split("+")[0])
    section = {"sites": sites, "positions": POSITIONS[family(name)], "window": [1, 3], "direction": direction}
    section |= {"layers": [0, 2]}
    ds = results(loaded[name], [case], {"patch": section}, case.settings(corruption))
    assert ds["window"].values.tolist() == [1, 3] and ds["site"].values.tolist() == sites

    def wanted(cell: Cell) -> dict[str, float]:
        layers: list[int | None] = [*window(cell["layer"], cell["window"], count)]
        return jointly(case, cell, corruption, direction, layers)

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if "blip" in name])
def test_heads_of_self_and_cross_attention_with_one_number_are_patched_together(
    name: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    case, site = cases[name][0], "question_encoder.attn_head+question_encoder.cross_attn_head"
    section = {"sites": [site], "layers": [0, 2], "positions": ["question", "last"]}
    ds = results(loaded[name], [case], {"patch": section}, case.settings("semantic_image_pair"))
    assert ds.sizes["head"] == head_count(case.module, "question_encoder.attn_head")
    assert_equals_oracle(ds, lambda cell: jointly(case, cell, "semantic_image_pair", "denoise", [cell["layer"]]))


@pytest.mark.parametrize(("corruption", "direction"), RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_image_embeddings_as_a_site_equal_the_oracle(
    name: str, corruption: str, direction: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    case = cases[name][0]
    positions = ["image", "image:object", "image:other", "each:image:object", *(["cls"] if "blip" in name else [])]
    section = {"sites": ["image_embeds"], "positions": positions, "direction": direction}
    ds = results(loaded[name], [case], {"patch": section}, case.settings(corruption))
    assert ds["layer"].values.tolist() == [0]
    assert_equals_oracle(ds, lambda cell: jointly(case, cell, corruption, direction, [None]))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", NAMES)
def test_token_embeddings_as_a_site_equal_the_oracle(name: str, direction: str, loaded: dict[str, Any]) -> None:
    corruption = "symmetric_token_replacement"
    case = make_case(loaded[name], corruption)
    base, source, _ = case.sides(corruption, direction)
    section = {"sites": ["token_embeds"], "positions": ["question", "answer_option", "each:question"]}
    ds = results(loaded[name], [case], {"patch": section | {"direction": direction}}, case.settings(corruption))

    def wanted(cell: Cell) -> dict[str, float]:
        where = case.indices(case.text_stack, cell["position"])
        return case.metrics(replaced_embeds(case.module, base, source, "token_embeds", where, where))

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize(("corruption", "direction"), RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_a_placebo_is_the_value_in_the_clean_run_of_the_next_pair_of_that_length(
    name: str, corruption: str, direction: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    """Here not the second pair, whose subject is shorter, but the third."""
    case, _, donor, *_ = cases[name]
    stack = case.text_stack
    section = {"sites": [f"{stack}.resid_post"], "layers": [0, 2], "positions": ["each:subject", "last"]}
    section |= {"direction": direction, "placebo": True}
    ds = results(loaded[name], cases[name], {"patch": section}, case.settings(corruption))
    pairs = {str(i): j for i, j in zip(case.indices(stack, "subject"), donor.indices(stack, "subject"), strict=True)}
    pairs["last"] = donor.indices(stack, "last")[0]

    def placebo(cell: Cell) -> dict[str, float] | None:
        base, _, noise = case.sides(corruption, direction, cell.get("draw", 0))
        here, there = case.indices(stack, cell["position"]), [pairs[cell["position"]]]
        places = [(cell["site"], cell["layer"], None)]
        source = donor.inputs["clean"]
        return case.metrics(patched_jointly(case.module, base, source, places, here, there, noise["base_noise"]))

    assert_equals_oracle(ds, placebo, suffix="_placebo")
    assert_equals_oracle(ds, lambda cell: jointly(case, cell, corruption, direction, [cell["layer"]]))


@pytest.mark.parametrize(("component", "wide", "direction"), [("resid_post", 1, "denoise"), ("mlp_out", 3, "noise")])
@pytest.mark.parametrize("name", NAMES)
def test_position_roles_of_causal_tracing_equal_the_oracle(
    name: str, component: str, wide: int, direction: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    case = cases[name][0]
    stack, width = case.text_stack, case.module.config.text_config.hidden_size
    site, clean, subject = f"{stack}.{component}", case.inputs["clean"], case.indices(stack, "subject")
    drawn = standard_normal(case.pair.id, SEED, DRAWS, (1, len(subject), width), "token_embeds")
    section = {"sites": [site], "positions": ROLES, "window": wide, "direction": direction}
    corruption = {"kind": "gaussian_noise", "site": "token_embeds", "span": "subject", "std": 2.0, "draws": DRAWS}
    ds = results(loaded[name], [case], {"patch": section}, corruption)
    assert ds["position"].values.tolist() == ROLES
    count = layer_count(case.module, site)

    def wanted(cell: Cell) -> dict[str, float]:
        keys = [(site, layer) for layer in window(cell["layer"], wide, count)]
        where = case.indices(stack, cell["position"])
        noisy = (case.module, clean, "token_embeds", 2.0 * drawn[cell["draw"]], None, subject)
        if direction == "denoise":
            values = run(case.module, clean, read=keys)[1]
            edits = [("replace", *key, None, where, values[key]) for key in keys]
            return case.metrics(run_perturbed(*noisy, edits=edits)[0])
        values = run_perturbed(*noisy, read=keys)[1]
        return case.metrics(run(case.module, clean, [("replace", *key, None, where, values[key]) for key in keys])[0])

    assert_equals_oracle(ds, wanted)


def constraint_patched(case: Case, cell: Cell, partners: dict[int, int], direction: str) -> dict[str, float] | None:
    """Only tokens that are in both prompts are patched; None for a cell that has none."""
    clean = [i for i in case.indices(case.text_stack, cell["position"]) if i in partners]
    corrupted = [partners[i] for i in clean]
    if not clean:
        return None
    places = [(part, cell["layer"], None) for part in cell["site"].split("+")]
    runs, where = (case.inputs["constraint_replacement"], case.inputs["clean"]), (corrupted, clean)
    if direction == "noise":
        runs, where = runs[::-1], where[::-1]
    return case.metrics(patched_jointly(case.module, *runs, places, *where))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("length", ["shorter", "longer"])
@pytest.mark.parametrize("name", NAMES)
def test_a_replaced_constraint_of_another_length_is_paired_from_its_end(
    name: str, length: str, direction: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    phrase = PHRASES[length]
    case, partners = with_phrase(loaded[name], cases[name][0], phrase)
    site = f"{case.text_stack}.mlp_out+{case.text_stack}.attn_out"
    positions = ["each:subject", "subject", "answer_option", "last", *IMAGE[family(name)]]
    section = {"sites": [site], "layers": [0, 2], "positions": positions, "direction": direction}
    corruption = {"kind": "constraint_replacement", "span": "subject", "phrase": phrase}
    ds = results(loaded[name], [case], {"patch": section}, corruption)
    assert ds.sizes["position"] == len(positions) + 2
    assert bool(np.isnan(ds["probability"].values).any()) == (length == "shorter")
    assert_equals_oracle(ds, lambda cell: constraint_patched(case, cell, partners, direction))


@pytest.mark.parametrize("name", NAMES)
def test_pairs_whose_own_texts_differ_in_length_are_aligned_by_their_spans(
    name: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    phrase = PHRASES["longer"]
    case, partners = with_phrase(loaded[name], cases[name][0], phrase)
    start, stop = case.pair.spans["subject"]
    text = case.pair.clean.text[:start] + phrase + case.pair.clean.text[stop:]
    spans = {"subject": (start, start + len(phrase))}
    pair = replace(case.pair, corrupted=replace(case.pair.corrupted, text=text), spans_corrupted=spans)
    section = {"sites": [f"{case.text_stack}.resid_post"], "layers": [0, 1], "positions": ["each:question"]}
    section |= {"direction": "noise"}
    corruption = {"kind": "symmetric_token_replacement"}
    ds = results(loaded[name], [replace(case, pair=pair)], {"patch": section}, corruption)
    assert_equals_oracle(ds, lambda cell: constraint_patched(case, cell, partners, "noise"))
    unaligned = replace(case, pair=replace(pair, spans_corrupted={}))
    with pytest.raises(vp.SpecError, match="must align token by token"):
        results(loaded[name], [unaligned], {"patch": section}, corruption)
