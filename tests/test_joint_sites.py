"""Cells of several sites, embeddings as sites, placebos, and the position roles of causal tracing equal the oracle."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cases import (
    DRAWS,
    NAMES,
    SEED,
    Case,
    Cell,
    assert_equals_oracle,
    make_case,
    results,
    standard_normal,
    unsure_cases,
    window,
    with_one_noise,
)
from tests.oracle.edits import patched_jointly, replaced_embeds
from tests.oracle.noise import run_perturbed
from tests.oracle.patching import head_count, layer_count, run

RUNS = [("semantic_image_pair", "denoise"), ("semantic_image_pair", "noise"), ("gaussian_noise", "denoise")]
JOINT = {
    "blip": ["question_encoder.mlp_out+question_encoder.attn_out+question_encoder.cross_attn_out"],
    "llava": ["language.mlp_out+language.attn_out", "language.attn_out"],
}
HEADS = {"blip": "question_encoder.attn_head+question_encoder.cross_attn_head", "llava": "vision.attn_head"}
POSITIONS = {"blip": ["question", "last"], "llava": ["image:object", "question", "last"]}
ROLES = ["subject_first", "subject_middle", "subject_last", "first_subsequent", "further", "last"]


def family(name: str) -> str:
    return "blip" if "blip" in name else "llava"


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[str, list[Case]]:
    """Three pairs, whose subjects are 3, 1 and 3 tokens long."""
    made = {}
    for name, model in loaded.items():
        long, short = unsure_cases(model, n=2), unsure_cases(model, "object")
        made[name] = with_one_noise([long[0], short[0], long[1]])
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
    section = {"sites": sites, "positions": POSITIONS[family(name)], "window": [1, 2, 3], "direction": direction}
    ds = results(loaded[name], [case], {"patch": section}, case.settings(corruption))
    assert ds["window"].values.tolist() == [1, 2, 3] and ds["site"].values.tolist() == sites

    def wanted(cell: Cell) -> dict[str, float]:
        layers: list[int | None] = [*window(cell["layer"], cell["window"], count)]
        return jointly(case, cell, corruption, direction, layers)

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if "blip" in name])
def test_heads_of_self_and_cross_attention_with_one_number_are_patched_together(
    name: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    case, site = cases[name][0], "question_encoder.attn_head+question_encoder.cross_attn_head"
    section = {"sites": [site], "positions": ["question", "last"]}
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
    """The second pair's subject is shorter, so that the first lends to the third and the third to the first."""
    made, stack = [cases[name][0], cases[name][2], cases[name][1]], cases[name][0].text_stack
    made = [made[0], made[2], made[1], unsure_cases(loaded[name], "object", 2)[1]]
    site = f"{stack}.resid_post"
    section = {"sites": [site], "positions": ["each:subject", "last"], "direction": direction, "placebo": True}
    section |= {"layers": [0, 1, 2]}
    ds = results(loaded[name], with_one_noise(made), {"patch": section}, made[0].settings(corruption))
    case, donor = made[0], made[2]
    pairs = {str(i): j for i, j in zip(case.indices(stack, "subject"), donor.indices(stack, "subject"), strict=True)}
    pairs["last"] = donor.indices(stack, "last")[0]

    def placebo(cell: Cell) -> dict[str, float] | None:
        base, _, noise = case.sides(corruption, direction, cell.get("draw", 0))
        here, there = case.indices(stack, cell["position"]), [pairs[cell["position"]]]
        places = [(site, cell["layer"], None)]
        source = donor.inputs["clean"]
        return case.metrics(patched_jointly(case.module, base, source, places, here, there, noise["base_noise"]))

    assert_equals_oracle(ds, placebo, suffix="_placebo")
    assert_equals_oracle(ds, lambda cell: jointly(case, cell, corruption, direction, [cell["layer"]]))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("component", ["resid_post", "mlp_out"])
@pytest.mark.parametrize("name", NAMES)
def test_position_roles_of_causal_tracing_equal_the_oracle(
    name: str, component: str, direction: str, loaded: dict[str, Any], cases: dict[str, list[Case]]
) -> None:
    case = cases[name][0]
    stack, width = case.text_stack, case.module.config.text_config.hidden_size
    site, clean, subject = f"{stack}.{component}", case.inputs["clean"], case.indices(stack, "subject")
    table = case.module.get_input_embeddings().weight if "llava" in name else None
    if table is None:
        table = case.module.text_encoder.embeddings.word_embeddings.weight
    std = 3 * table.std().item()
    drawn = standard_normal(case.pair.id, SEED, DRAWS, (1, len(subject), width), "token_embeds")
    wide = 1 if component == "resid_post" else 3
    section = {"sites": [site], "positions": ROLES, "window": wide, "direction": direction}
    corruption = {"kind": "gaussian_noise", "site": "token_embeds", "span": "subject", "std": std, "draws": DRAWS}
    ds = results(loaded[name], [case], {"patch": section}, corruption)
    assert ds["position"].values.tolist() == ROLES
    count = layer_count(case.module, site)

    def wanted(cell: Cell) -> dict[str, float]:
        noise = std * drawn[cell["draw"]]
        layers, where = window(cell["layer"], wide, count), case.indices(stack, cell["position"])
        keys = [(site, layer) for layer in layers]
        noisy = (case.module, clean, "token_embeds", noise, None, subject)
        values = (
            run(case.module, clean, read=keys)[1] if direction == "denoise" else run_perturbed(*noisy, read=keys)[1]
        )
        edits = [("replace", *key, None, where, values[key]) for key in keys]
        if direction == "denoise":
            return case.metrics(run_perturbed(*noisy, edits=edits)[0])
        return case.metrics(run(case.module, clean, edits)[0])

    assert_equals_oracle(ds, wanted)
