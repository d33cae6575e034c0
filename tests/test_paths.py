"""Path patching and severed traces equal the oracle's, which freezes and holds everything by plain hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.cases import NAMES, TOLERANCE, Case, Cell, assert_equals_oracle, family, results, unsure_cases, window
from tests.oracle.patching import Edit, head_count, layer_count, patched, run
from tests.oracle.paths import path_patched, severed

# What passes along one path is little; the less it may be off.
SMALL = {metric: tolerance / 4 for metric, tolerance in TOLERANCE.items()}
RUNS = [("semantic_image_pair", "denoise"), ("semantic_image_pair", "noise"), ("gaussian_noise", "denoise")]
SEVERED = [
    ("semantic_image_pair", "denoise", "mlp_out"),
    ("semantic_image_pair", "noise", "attn_out"),
    ("gaussian_noise", "denoise", "attn_out"),
    ("gaussian_noise", "noise", "mlp_out"),
]
SENDER = {"blip": "question_encoder.cross_attn_head", "llava": "language.attn_head"}
STACK = {"blip": "question_encoder", "llava": "language"}
CONTEXTS = {
    "blip": ["question_encoder.attn_context", "question_encoder.cross_attn_context", "answer_decoder.attn_context"],
    "llava": ["language.attn_context"],
}
BEHIND_VISION = {
    "blip": ["vision.attn_context", "question_encoder.attn_context", "answer_decoder.attn_context"],
    "llava": ["vision.attn_context", "language.attn_context"],
}
FROM = {"blip": ["question", "last"], "llava": ["image:object", "question", "last"]}
Busiest = dict[tuple[str, str], tuple[int, int]]
AT = {"question_encoder": "question", "answer_decoder": "decoding", "language": "last"}


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[str, Case]:
    return {name: unsure_cases(model)[0] for name, model in loaded.items()}


@pytest.fixture(scope="module")
def busiest(cases: dict[str, Case]) -> Busiest:
    """Model and site → the layer and number of its busiest head."""
    found = {}
    for name, case in cases.items():
        decoder = ["answer_decoder.cross_attn_head"] if "blip" in name else []
        for site in [f"{STACK[family(name)]}.attn_head", *decoder]:
            found[name, site] = busiest_head(case, site)
    return found


def assert_path(
    model: Any,
    case: Case,
    corruption: str,
    section: dict[str, Any],
    frozen: Sequence[str],
    direction: str = "denoise",
) -> None:
    """Hold a section `path` against the oracle; `frozen` is what the section, or its default, should freeze."""
    ds = results(model, [case], {"path": section | {"direction": direction}}, case.settings(corruption))
    receiver = section.get("receiver", "logits")
    end = None
    if receiver != "logits":
        stack = receiver["site"].split(".")[0]
        end = (receiver["site"], receiver["layer"], receiver.get("head"), case.indices(stack, receiver["position"]))

    def wanted(cell: Cell) -> dict[str, float]:
        base, source, noise = case.sides(corruption, direction, cell.get("draw", 0))
        positions = case.indices(cell["site"].split(".")[0], cell["position"])
        sender = (cell["site"], cell["layer"], cell.get("head"), positions)
        return case.metrics(path_patched(case.module, base, source, sender, end, frozen, **noise))

    assert_equals_oracle(ds, wanted, SMALL)


@pytest.mark.parametrize(("corruption", "direction"), RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_the_direct_path_of_a_head_to_the_logits_equals_the_oracle(
    name: str, corruption: str, direction: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case, site = cases[name], SENDER[family(name)]
    top = layer_count(case.module, site) - 1
    section = {"sites": [site], "positions": ["last"], "layers": [top - 1, top]}
    assert_path(loaded[name], case, corruption, section, CONTEXTS[family(name)], direction)


@pytest.mark.parametrize(
    ("receiver", "freeze"),
    [
        ("head", "default"),
        ("head", "nothing"),
        ("head", "mlp"),
        ("resid_post", "default"),
        ("resid_post", "nothing"),
        ("resid_post", "everything"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_path_from_head_to_receiver_equals_the_oracle(
    name: str, receiver: str, freeze: str, loaded: dict[str, Any], cases: dict[str, Case], busiest: Busiest
) -> None:
    case, site, stack = cases[name], SENDER[family(name)], STACK[family(name)]
    layer, head = busiest[name, f"{stack}.attn_head"]
    top = layer_count(case.module, site) - 1
    end: dict[str, Any] = {"site": f"{stack}.resid_post", "layer": top, "position": AT[stack]}
    if receiver == "head":
        end = {"site": f"{stack}.attn_head", "layer": layer, "head": head, "position": AT[stack]}
    frozen = {
        "default": CONTEXTS[family(name)],
        "nothing": [],
        "mlp": [f"{stack}.mlp_out"],
        "everything": [*CONTEXTS[family(name)], f"{stack}.mlp_out"],
    }[freeze]
    section: dict[str, Any] = {"sites": [site], "heads": [0, 1], "positions": FROM[family(name)], "receiver": end}
    section["layers"] = sorted({0, layer - 1}) if receiver == "head" else [top - 2, top - 1]
    section |= {} if freeze == "default" else {"freeze": frozen}
    assert_path(loaded[name], case, "semantic_image_pair", section, frozen)


def busiest_head(case: Case, site: str) -> tuple[int, int]:
    """The head, not of the lowest layer, whose value in the corrupted run changes the clean run most."""
    base, source, _ = case.sides("semantic_image_pair", "noise")
    positions = case.indices(site.split(".")[0], AT[site.split(".")[0]])
    before = run(case.module, base)[0]
    change = {
        (layer, head): (patched(case.module, base, source, site, layer, positions, head) - before).abs().max().item()
        for layer in range(1, layer_count(case.module, site))
        for head in range(head_count(case.module, site))
    }
    return max(change, key=lambda place: change[place])


@pytest.mark.parametrize(("corruption", "direction"), [("semantic_image_pair", "denoise"), ("gaussian_noise", "noise")])
@pytest.mark.parametrize("name", [name for name in NAMES if "blip" in name])
def test_a_path_across_stacks_equals_the_oracle(
    name: str, corruption: str, direction: str, loaded: dict[str, Any], cases: dict[str, Case], busiest: Busiest
) -> None:
    case, site = cases[name], "answer_decoder.cross_attn_head"
    layer, head = busiest[name, site]
    receiver = {"site": site, "layer": layer, "head": head, "position": "decoding"}
    top = layer_count(case.module, site) - 1
    section = {"sites": [SENDER["blip"]], "positions": ["question", "last"], "layers": [1, top], "receiver": receiver}
    assert_path(loaded[name], case, corruption, section, CONTEXTS["blip"], direction)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_module_sends_and_a_receiver_under_another_name_of_a_frozen_place_is_read(
    name: str, loaded: dict[str, Any], cases: dict[str, Case], busiest: Busiest
) -> None:
    """The contexts are frozen, but for the layer that the receiver is a head of."""
    case, stack = cases[name], STACK[family(name)]
    layer, head = busiest[name, f"{stack}.attn_head"]
    receiver = {"site": f"{stack}.attn_head", "layer": layer, "head": head, "position": AT[stack]}
    section = {"sites": [f"{stack}.resid_post"], "positions": FROM[family(name)], "receiver": receiver}
    assert_path(loaded[name], case, "semantic_image_pair", section, CONTEXTS[family(name)])


@pytest.mark.parametrize(("freeze", "receiver"), [("default", "text"), ("nothing", "logits")])
@pytest.mark.parametrize("name", NAMES)
def test_a_path_out_of_the_image_encoder_equals_the_oracle(
    name: str, freeze: str, receiver: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case, stack = cases[name], STACK[family(name)]
    section: dict[str, Any] = {"sites": ["vision.attn_head"], "positions": ["image:object", "image:other"]}
    if receiver == "text":
        at = AT[stack] if family(name) == "blip" else "image:object"  # all attention of LLaVA's language is frozen
        section["receiver"] = {"site": f"{stack}.resid_post", "layer": 1, "position": at}
    section |= {} if freeze == "default" else {"freeze": []}
    assert_path(
        loaded[name], case, "semantic_image_pair", section, BEHIND_VISION[family(name)] if freeze == "default" else []
    )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("name", NAMES)
def test_the_image_encoder_may_be_frozen_too_and_holds_nothing_that_the_text_sends(
    name: str, direction: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case, site = cases[name], SENDER[family(name)]
    frozen = ["vision.resid_post", *CONTEXTS[family(name)]]
    top = layer_count(case.module, site) - 1
    section = {"sites": [site], "positions": ["last"], "layers": [top - 1, top], "freeze": frozen}
    assert_path(loaded[name], case, "semantic_image_pair", section, frozen, direction)


@pytest.mark.parametrize("kind", ["joint", "heads"])
@pytest.mark.parametrize("name", NAMES)
def test_senders_of_several_sites_and_layers_send_together(
    name: str, kind: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    """What is put into a frozen place is sent, all the rest of it is held."""
    case, stack, frozen = cases[name], STACK[family(name)], CONTEXTS[family(name)]
    site = f"{stack}.attn_head" if kind == "heads" else f"{stack}.attn_out+{stack}.mlp_out"
    count = layer_count(case.module, f"{stack}.attn_out")
    receiver = {"site": f"{stack}.resid_post", "layer": count - 1, "position": AT[stack]}
    section = {"sites": [site], "positions": FROM[family(name)], "window": 3, "receiver": receiver, "layers": [1]}
    ds = results(loaded[name], [case], {"path": section}, case.settings("semantic_image_pair"))
    base, source, _ = case.sides("semantic_image_pair", "denoise")
    held = [(context, layer) for context in frozen for layer in range(count)]
    kept = run(case.module, base, read=held)[1]
    end = (f"{stack}.resid_post", count - 1)

    def wanted(cell: Cell) -> dict[str, float]:
        sent = [(part, layer) for part in site.split("+") for layer in window(cell["layer"], 3, count)]
        values = run(case.module, source, read=sent)[1]
        edits: list[Edit] = [("replace", *key, None, range(kept[key].shape[1]), kept[key]) for key in held]
        where = case.indices(stack, cell["position"])
        edits += [("replace", *key, cell.get("head"), where, values[key]) for key in sent]
        reached = run(case.module, base, edits, [end])[1][end]
        received: Edit = ("replace", *end, None, case.indices(stack, AT[stack]), reached)
        return case.metrics(run(case.module, base, [received])[0])

    assert_equals_oracle(ds, wanted, SMALL)


@pytest.mark.parametrize(("corruption", "direction", "sever"), SEVERED)
@pytest.mark.parametrize("name", NAMES)
def test_severed_traces_equal_the_oracle(
    name: str,
    corruption: str,
    direction: str,
    sever: str,
    loaded: dict[str, Any],
    cases: dict[str, Case],
) -> None:
    case, stack = cases[name], STACK[family(name)]
    section = {
        "sites": [f"{stack}.resid_post"],
        "positions": FROM[family(name)],
        "direction": direction,
        "sever": sever,
    }
    ds = results(loaded[name], [case], {"patch": section}, case.settings(corruption))

    def wanted(cell: Cell) -> dict[str, float]:
        base, source, noise = case.sides(corruption, direction, cell.get("draw", 0))
        positions = case.indices(stack, cell["position"])
        logits = severed(case.module, base, source, cell["site"], cell["layer"], positions, sever, **noise)
        return case.metrics(logits)

    assert_equals_oracle(ds, wanted)
