"""Graphs that cannot run as they are written are refused in one readable paragraph that says where and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

import vlm_patching as vp
from tests.refusals import (
    BLIP,
    MISSING,
    changed,
    refusal,
    says,
    shown,
)

pytestmark = pytest.mark.usefixtures("weights_stay_where_they_are")

# Graphs


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    return vp.Experiment.from_dict(BLIP).graph().to_dict()


@pytest.fixture(scope="module")
def pairs() -> list[vp.Pair]:
    return vp.load_pairs("shapes", n=2)


@pytest.mark.parametrize("given", [{}, {"model": "shapes-blip"}, {"inputs": ()}])
def test_a_graph_without_a_model_or_inputs_is_refused(graph: dict[str, Any], given: dict[str, Any]) -> None:
    read = vp.InterventionGraph.from_json(json.dumps(graph))
    says(refusal(lambda: vp.run(read, **given)), "model", "inputs")


def test_a_graph_on_a_model_that_lacks_its_site_is_refused(graph: dict[str, Any], pairs: list[vp.Pair]) -> None:
    read = vp.InterventionGraph.from_json(json.dumps(graph))
    says(refusal(lambda: vp.run(read, model="shapes-llava", inputs=pairs)), "llava", "'question_encoder'", "language")


def test_no_pairs_repeated_pairs_and_things_that_are_no_pairs_are_refused(
    graph: dict[str, Any], pairs: list[vp.Pair]
) -> None:
    read = vp.InterventionGraph.from_json(json.dumps(graph))
    says(refusal(lambda: vp.run(read, model="shapes-blip", inputs=[])), "no pairs")
    says(refusal(lambda: vp.run(read, model="shapes-blip", inputs=[*pairs, pairs[0]])), "'shapes-0-0'", "unique")
    refusal(lambda: vp.run(read, model="shapes-blip", inputs=["a", "b"]))  # type: ignore[list-item]


@pytest.mark.parametrize("what", [BLIP, ["palit2023"], None, 3], ids=["dict", "list", "None", "number"])
def test_something_that_is_neither_experiment_nor_graph_is_refused(what: Any) -> None:
    refusal(lambda: vp.run(what))


@pytest.mark.parametrize("text", ["", "{oops", "[]", "null", "3"])
def test_text_that_is_no_graph_is_refused(text: str) -> None:
    says(refusal(lambda: vp.InterventionGraph.from_json(text)), "graph")


REPLACE = "runs.2.edits.0"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"name": MISSING}, ("name", "missing")),
        ({"runs": MISSING}, ("runs", "missing")),
        ({"runs": 5}, ("runs", "5")),
        ({"runs": None}, ("runs", "None")),
        ({"runs": []}, ("clean", "corrupted", "patched", "none")),
        ({"dimensions": 5}, ("dimensions", "5")),
        ({"metrics": 5}, ("metrics", "5")),
        ({"metrics": "probability"}, ("metrics", "list")),
        ({"runs.0.name": 3}, ("name", "3")),
        ({"runs.2.over": 5}, ("over", "5")),
        ({"rnus": []}, ("'rnus'", "Did you mean 'runs'?")),
        ({"runs.1.edit": []}, ("'runs[1].edit'", "Did you mean 'edits'?")),
        ({f"{REPLACE}.at.sites": "x"}, ("edits[0].at.sites", "Did you mean 'site'?")),
        ({f"{REPLACE}.at": {}}, ("edits[0].at", "site", "missing")),
        ({f"{REPLACE}.kind": "swap"}, ("'swap'", "replace", "add_noise")),
        ({"runs.1.on": "corupted"}, ("corrupted", "'corupted'", "Did you mean 'corrupted'?")),
        ({"direction": "denoize"}, ("direction", "'denoize'", "Did you mean 'denoise'?")),
        ({"runs.2.over": ["laier"]}, ("patched", "'laier'", "layer")),
        ({"runs.0.reads": []}, ("patched", "'clean.z'", "no earlier run has read", "nothing")),
        ({f"{REPLACE}.source": "clean.y"}, ("patched", "'clean.y'", "no earlier run has read", "clean.z")),
        ({f"{REPLACE}.source": "patched.z"}, ("patched", "'patched.z'", "no earlier run has read")),
    ],
    ids=shown,
)
def test_a_malformed_graph_is_refused_with_where_and_why(
    graph: dict[str, Any], changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    text = json.dumps(changed(graph, changes))
    says(refusal(lambda: vp.InterventionGraph.from_json(text)), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"metrics": ["probabilty"]}, ("metric", "'probabilty'", "Did you mean 'probability'?")),
        ({"keep": "clean_corect"}, ("keep", "'clean_corect'", "Did you mean 'clean_correct'?")),
        ({"seed": "zero"}, ("seed", "'zero'")),
        ({"dimensions.1.values": [0, 99]}, ("layer", "99", "0 to 5")),
        ({"dimensions.1.values": [-1]}, ("layer", "-1", "whole numbers from 0")),
        ({"dimensions.1.values": ["a"]}, ("layer", "'a'")),
        ({"dimensions.1.values": []}, ("layer", "empty")),
        ({f"{REPLACE}.at.layer": "laier"}, ("'laier'",)),
        ({f"{REPLACE}.at.window": 0}, ("window", "0")),
        ({f"{REPLACE}.at.window": 7}, ("window", "7")),
        ({f"{REPLACE}.at.head": 0}, ("head", "question_encoder.resid_post")),
        ({f"{REPLACE}.at.site": "question_encoder.resid_pst"}, ("'resid_pst'", "Did you mean 'resid_post'?")),
        ({f"{REPLACE}.at.position": "lst"}, ("shapes-0-0", "'lst'")),
        ({"runs.2.over": []}, ("patched", "layer")),
    ],
    ids=shown,
)
def test_a_graph_that_cannot_run_on_a_model_is_refused_with_why(
    graph: dict[str, Any], pairs: list[vp.Pair], changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    if f"{REPLACE}.at.position" in changes:
        changes = {**changes, "dimensions.2": MISSING, "runs.2.over": ["site", "layer"]}
    if f"{REPLACE}.at.site" in changes:
        changes = {**changes, "dimensions.0": MISSING, "runs.2.over": ["layer", "position"]}
    read = {key.replace(REPLACE, "runs.0.reads.0"): value for key, value in changes.items() if REPLACE in key}
    changes = {**changes, **read}
    text = json.dumps(changed(graph, changes))
    message = refusal(
        lambda: vp.run(vp.InterventionGraph.from_json(text), model="shapes-blip", inputs=pairs, progress=False)
    )
    says(message, *parts)


def test_a_graph_that_reads_at_one_site_and_replaces_at_another_is_not_run_as_if_it_read_there(
    graph: dict[str, Any], pairs: list[vp.Pair]
) -> None:
    text = json.dumps(changed(graph, {"runs.0.reads.0.at.site": "question_encoder.mlp_out"}))
    message = refusal(
        lambda: vp.run(vp.InterventionGraph.from_json(text), model="shapes-blip", inputs=pairs, progress=False)
    )
    says(message, "question_encoder.mlp_out", "question_encoder.resid_post")
