"""Blocked attention equals the oracle's, which computes q, k, v, the softmax and z by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.cases import NAMES, TOLERANCE, Case, Cell, assert_equals_oracle, results, unsure_cases, window
from tests.oracle.attention import blocked
from tests.oracle.patching import head_count, layer_count

KEYS = {
    "language.attn_pattern": "language",
    "question_encoder.attn_pattern": "question_encoder",
    "question_encoder.cross_attn_pattern": "vision",
    "answer_decoder.attn_pattern": "answer_decoder",
    "answer_decoder.cross_attn_pattern": "question_encoder",
}
EDGES = {
    "language.attn_pattern": [
        "image -> question",
        "image -> last",
        "question -> last",
        "last -> last",
        "image:object -> question",
        "image:other -> question",
        "answer_option -> last",
        "all -> question",
    ],
    "question_encoder.attn_pattern": [
        "question -> last",
        "answer_option -> last",
        "last -> last",
        "subject -> question",
        "all -> question",
    ],
    "question_encoder.cross_attn_pattern": [
        "image -> question",
        "image -> last",
        "image:object -> question",
        "image:other -> question",
        "cls -> all",
        "all -> question",
    ],
    "answer_decoder.cross_attn_pattern": [
        "question -> decoding",
        "answer_option -> decoding",
        "last -> last",
        "all -> decoding",
    ],
}
SITES = [(name, site) for name in NAMES for site in EDGES if ("language" in site) == ("llava" in name)]


@pytest.fixture(scope="module")
def cases(loaded: dict[str, Any]) -> dict[str, Case]:
    return {name: unsure_cases(model)[0] for name, model in loaded.items()}


def fits(case: Case, site: str, edges: str) -> bool:
    """Whether a site has the edges' source among its keys and their target among its queries."""
    source, target = edges.split(" -> ")
    return source in case.groups(KEYS[site]) and target in case.groups(site.split(".")[0])


def by_oracle(case: Case, cell: Cell, layers: list[int], heads: list[int] | None = None) -> dict[str, float]:
    source, target = cell["edges"].split(" -> ")
    queries = case.indices(cell["site"].split(".")[0], target)
    keys = case.indices(KEYS[cell["site"]], source)
    return case.metrics(blocked(case.module, case.inputs["clean"], cell["site"], layers, queries, keys, heads))


@pytest.mark.parametrize(("name", "site"), SITES)
def test_blocked_edges_in_windows_of_several_widths_equal_the_oracle(
    name: str, site: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case = cases[name]
    section = {"knockout": {"edges": EDGES[site], "sites": [site], "window": [1, 3]}}
    ds = results(loaded[name], [case], section)
    count = layer_count(case.module, site)
    assert ds["probability"].dims == ("example", "site", "edges", "layer", "window")
    assert ds["edges"].values.tolist() == EDGES[site]
    assert ds["window"].values.tolist() == [1, 3] and ds["layer"].values.tolist() == list(range(count))
    assert_equals_oracle(ds, lambda cell: by_oracle(case, cell, window(cell["layer"], cell["window"], count)))


@pytest.mark.parametrize(("name", "site"), SITES)
def test_blocking_some_heads_leaves_the_others_and_equals_the_oracle(
    name: str, site: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case = cases[name]
    heads = [0, head_count(case.module, site) - 1]
    count = layer_count(case.module, site)
    section: dict[str, Any] = {"edges": EDGES[site], "sites": [site], "heads": heads, "window": 2}
    ds = results(loaded[name], [case], {"knockout": section})
    assert ds["probability"].dims == ("example", "site", "edges", "layer")
    assert_equals_oracle(ds, lambda cell: by_oracle(case, cell, window(cell["layer"], 2, count), heads))
    ds = results(loaded[name], [case], {"knockout": section | {"heads": [1]}})
    assert_equals_oracle(ds, lambda cell: by_oracle(case, cell, window(cell["layer"], 2, count), [1]))


@pytest.mark.parametrize("name", NAMES)
def test_sites_are_those_with_both_groups_and_edges_that_a_site_lacks_are_not_run(
    name: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case = cases[name]
    edges = ["image -> question", "question -> last", "last -> last"]
    edges += ["all -> decoding", "cls -> last"] if "blip" in name else []
    ds = results(loaded[name], [case], {"knockout": {"edges": edges, "layers": [1]}})

    def wanted(cell: Cell) -> dict[str, float] | None:
        return by_oracle(case, cell, [1]) if fits(case, cell["site"], cell["edges"]) else None

    assert_equals_oracle(ds, wanted)
    found = np.isfinite(ds["probability"].values[0, :, :, 0])
    own = [site for site in KEYS if ("language" in site) == ("llava" in name)]
    assert sorted(site for site, run in zip(ds["site"].values, found, strict=True) if run.any()) == sorted(own)
    assert found.all() == ("llava" in name)


@pytest.mark.parametrize(("name", "site"), [(name, site) for name, site in SITES if "language" not in site])
def test_a_query_that_is_left_without_keys_gets_no_attention_output(
    name: str, site: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    """As if the output projection were given zeros there: done with one hook, apart from the oracle's softmax."""
    case = cases[name]
    target = "decoding" if "decoder" in site else "question"
    ds = results(loaded[name], [case], {"knockout": {"edges": [f"all -> {target}"], "sites": [site]}})
    stack, queries = site.split(".")[0], case.indices(site.split(".")[0], target)
    root = {"question_encoder": "text_encoder.encoder.layer", "answer_decoder": "text_decoder.bert.encoder.layer"}
    block = "crossattention" if "cross" in site else "attention"

    def wanted(cell: Cell) -> dict[str, float]:
        def empty(_: Any, args: tuple) -> tuple:
            z = args[0].clone()
            z[:, queries] = 0
            return (z, *args[1:])

        projection = case.module.get_submodule(f"{root[stack]}.{cell['layer']}.{block}.output.dense")
        decoded: list[Any] = []
        handles = [
            projection.register_forward_pre_hook(empty),
            case.module.text_decoder.register_forward_hook(lambda _, __, output: decoded.append(output.logits)),
        ]
        try:
            with torch.no_grad():
                case.module(**case.inputs["clean"])
        finally:
            for handle in handles:
                handle.remove()
        return case.metrics(decoded[0][0, -1])

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if "llava" in name])
def test_attention_stays_sdpa_whether_edges_are_blocked_or_patterns_are_read(
    name: str, loaded: dict[str, Any], cases: dict[str, Case]
) -> None:
    case = cases[name]
    configs = [case.module.config, case.module.config.text_config, case.module.config.vision_config]

    def kinds() -> list[str]:
        return [config._attn_implementation for config in configs]

    assert kinds() == ["sdpa"] * 3
    ds = results(loaded[name], [case], {"knockout": {"edges": EDGES["language.attn_pattern"]}})
    assert kinds() == ["sdpa"] * 3
    sites = ["language.attn_pattern", "vision.attn_pattern"]
    results(loaded[name], [case], {"attention": {"sites": sites, "positions": ["image:object"], "keys": "image"}})
    assert kinds() == ["sdpa"] * 3
    again = results(loaded[name], [case], {"knockout": {"edges": EDGES["language.attn_pattern"]}})
    for metric, tolerance in TOLERANCE.items():
        np.testing.assert_array_equal(again[metric].values, ds[metric].values)
        assert np.ptp(ds[metric].values) >= 100 * tolerance
