"""The pairs of results, made anew: the very ones that were run, or a reason why not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import vlm_patching as vp
from tests.refusals import refusal, says
from vlm_patching.pairs import pairs_digest
from vlm_patching.pairs.exporting import write_folder

CORRUPTIONS: list[dict[str, Any]] = [
    {"kind": "semantic_image_pair"},
    {"kind": "blurred_image", "radius": 3},
    {"kind": "symmetric_token_replacement", "automatic": True},
    {"kind": "constraint_replacement", "span": "subject"},
    {"kind": "gaussian_noise", "std": 1.0, "draws": 2},
]


def run(
    corruption: dict[str, Any], inputs: Sequence[vp.Pair] | None = None, changes: Mapping[str, Any] | None = None
) -> Any:
    patch = {"sites": ["language.resid_post"], "layers": [1], "positions": ["last"]}
    pairs = {"dataset": "shapes", "n": 4, "seed": 3, "keep": "all"}
    spec = {
        "name": "again",
        "model": {"name": "shapes-llava"},
        "pairs": pairs,
        "corruption": corruption,
        "patch": patch,
        **(changes or {}),
    }
    return vp.run(vp.Experiment.from_dict(spec), inputs=inputs, progress=False)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda one: one["kind"])
def test_pairs_are_made_anew_as_they_were_run(corruption: dict[str, Any]) -> None:
    ds = run(corruption)
    pairs = vp.rebuild_pairs(ds)
    assert pairs_digest(pairs) == ds.attrs["pairs_sha256"]
    assert [pair.id for pair in pairs] == ds["example"].values.tolist()
    assert pairs_digest(vp.rebuild_pairs(ds, pairs)) == ds.attrs["pairs_sha256"], "given back, they are the same"


def test_pairs_that_were_given_to_the_run_are_given_again() -> None:
    own = vp.load_pairs("shapes", n=4, seed=8)
    ds = run(CORRUPTIONS[1], own)
    pairs = vp.rebuild_pairs(ds, own)
    assert pairs_digest(pairs) == ds.attrs["pairs_sha256"]
    assert pairs[0].corrupted.picture().tobytes() != own[0].corrupted.picture().tobytes(), "blurred, as they were run"
    says(refusal(lambda: vp.rebuild_pairs(ds)), "other pairs", "as they are now", ds.attrs["pairs_sha256"][:12])


def test_pairs_that_turned_out_to_be_unusable_are_not_there_again(tmp_path: Path) -> None:
    pairs = vp.load_pairs("shapes", n=3, seed=3)
    write_folder(pairs, tmp_path / "mine")
    lines = (tmp_path / "mine" / "pairs.jsonl").read_text().splitlines()
    twice = json.loads(lines[1])
    twice["corrupted"]["image"] = twice["clean"]["image"]
    lines[1] = json.dumps(twice)
    (tmp_path / "mine" / "pairs.jsonl").write_text("\n".join(lines))
    spec = {"dataset": "folder", "path": str(tmp_path / "mine"), "keep": "all", "on_error": "skip"}
    ds = run(CORRUPTIONS[0], changes={"pairs": spec})
    assert ds.sizes["example"] == 2
    assert [pair.id for pair in vp.rebuild_pairs(ds)] == [pairs[0].id, pairs[2].id]


def test_other_pairs_are_refused() -> None:
    ds = run(CORRUPTIONS[0])
    says(refusal(lambda: vp.rebuild_pairs(ds, vp.load_pairs("shapes", n=4, seed=4))), "other pairs", "the given pairs")
    says(refusal(lambda: vp.rebuild_pairs(ds, vp.rebuild_pairs(ds)[::-1])), "in their order")
    says(refusal(lambda: vp.rebuild_pairs(ds, ["pair"])), "must be pairs")  # type: ignore[list-item]


def test_results_that_do_not_say_their_pairs_are_refused() -> None:
    ds = run(CORRUPTIONS[0])
    by_hand = ds.copy()
    del by_hand.attrs["experiment"]
    says(refusal(lambda: vp.rebuild_pairs(by_hand)), "graph written by hand", "give them")
    del by_hand.attrs["pairs_sha256"]
    says(refusal(lambda: vp.rebuild_pairs(by_hand)), "not one that a run gave", "pairs_sha256")
