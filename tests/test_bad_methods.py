"""What cannot work of a method is refused in one clear paragraph, before any weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vlm_patching as vp

pytestmark = pytest.mark.usefixtures("weights_stay_where_they_are")
SIP = {"corruption": {"kind": "semantic_image_pair"}}
PATCH = {"sites": ["language.mlp_out"]}
HEADS = {"sites": ["language.attn_head"]}
RECEIVER = {"site": "language.attn_head", "layer": 4, "head": 1}


def spec(model: str = "shapes-llava", **changes: Any) -> dict[str, Any]:
    start = {"name": "bad", "model": {"name": model}, "pairs": {"dataset": "shapes", "n": 2}}
    return start | changes


def refusal(data: dict[str, Any], **more: Any) -> str:
    with pytest.raises(vp.SpecError) as caught:
        vp.run(vp.Experiment.from_dict(data), progress=False, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ("one section", "patch, knockout, ablate", "none is given")),
        ({"patch": PATCH, "lens": {}, **SIP}, ("one section", "patch and lens are given")),
        ({"patch": PATCH}, ("patch", "corruption")),
        ({"knockout": {"edges": ["image -> last"]}, **SIP}, ("knockout", "leave corruption out")),
        ({"steer": {"sites": ["language.resid_post"]}}, ("steer", "corruption")),
        ({"steer": {"sites": ["language.resid_post"], "strengths": []}, **SIP}, ("steer.strengths", "empty")),
        ({"steer": {"sites": ["language.resid_post"], "strengths": [1, 1.0]}, **SIP}, ("strengths", "twice")),
        ({"ablate": {**PATCH, "kind": "scale"}}, ("factor", "scale")),
        ({"ablate": {**PATCH, "factor": 0.5}}, ("factor", "zero")),
        ({"ablate": {**PATCH, "kind": "meen"}}, ("'meen'", "Did you mean 'mean'?")),
        ({"patch": {**PATCH, "steps": 4}, **SIP}, ("steps", "integrated_gradients")),
        ({"patch": {**PATCH, "verify": 4}, **SIP}, ("verify", "attribution")),
        ({"patch": {**PATCH, "method": "attribution", "placebo": True}, **SIP}, ("attribution", "placebo")),
        ({"patch": {**PATCH, "method": "attribution", "sever": "mlp_out"}, **SIP}, ("attribution", "sever")),
        ({"patch": {**PATCH, "window": [3, 3]}, **SIP}, ("patch.window", "3 twice")),
        ({"patch": {**PATCH, "window": []}, **SIP}, ("patch.window", "whole number of layers")),
        ({"path": {**HEADS, "receiver": "logit"}, **SIP}, ("path.receiver", "'logit'", "'logits'")),
        ({"path": {**HEADS, "receiver": {**RECEIVER, "hed": 1}}, **SIP}, ("path.receiver.hed", "Did you mean 'head'?")),
        ({"corruption": {"kind": "constraint_replacement", "k": 2}, "patch": PATCH}, ("k", "gaussian_noise")),
        (
            {"corruption": {"kind": "semantic_image_pair", "automatic": True}, "patch": PATCH},
            ("automatic", "symmetric"),
        ),
    ],
)
def test_a_spec_that_says_too_much_or_too_little_is_refused(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    said = refusal(spec(**changes))
    for part in parts:
        assert part in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("model", "changes", "parts"),
    [
        ("shapes-llava", {"knockout": {"edges": ["imag -> last"]}}, ("'imag -> last'", "image:object")),
        ("shapes-llava", {"knockout": {"edges": ["image -> decoding"]}}, ("'image -> decoding'",)),
        ("shapes-llava", {"knockout": {"edges": ["image to last"]}}, ("source -> target", "'image to last'")),
        ("shapes-llava", {"knockout": {"edges": ["image -> last"], "window": 9}}, ("window is 9", "6 layers")),
        ("shapes-llava", {"knockout": {"edges": ["image -> last"], "heads": [7]}}, ("heads has 7", "0 to 3")),
        (
            "shapes-llava",
            {"knockout": {"edges": ["image -> last"], "sites": ["language.cross_attn_pattern"]}},
            ("knockout.sites", "Did you mean 'language.attn_pattern'?"),
        ),
        (
            "shapes-blip",
            {"knockout": {"edges": ["image -> image"], "sites": ["vision.attn_pattern"]}},
            ("vision.attn_pattern", "no attention mask", "blip"),
        ),
        ("shapes-llava", {**SIP, "patch": {"sites": ["language.attn_pattern"]}}, ("read or blocked, not edited",)),
        ("shapes-llava", {**SIP, "patch": {"sites": ["language.mlp_out+vision.mlp_out"]}}, ("several stacks",)),
        ("shapes-llava", {**SIP, "patch": {"sites": ["language.mlp_out+language.attn_head"]}}, ("mix heads",)),
        ("shapes-llava", {**SIP, "patch": {"sites": ["language.mlp_out+language.mlp_out"]}}, ("with itself",)),
        ("shapes-llava", {**SIP, "patch": {**PATCH, "sever": "mlp"}}, ("patch.sever", "Did you mean 'mlp_out'?")),
        ("shapes-llava", {**SIP, "patch": {**PATCH, "heads": [0]}}, ("patch.heads", "no heads")),
        ("shapes-llava", {"ablate": {**PATCH, "heads": [0]}}, ("ablate.heads", "no heads")),
        ("shapes-llava", {**SIP, "patch": {**PATCH, "window": [1, 7]}}, ("window is 7", "6 layers")),
        ("shapes-llava", {**SIP, "patch": {**PATCH, "positions": ["subject_middle"]}}, ("'subject_middle'", "It has")),
        ("shapes-llava", {**SIP, "patch": {"sites": ["image_embeds"]}}, ("'last'", "image:object")),
        ("shapes-llava", {**SIP, "path": {**HEADS, "receiver": {**RECEIVER, "head": None}}}, ("needs a head",)),
        ("shapes-llava", {**SIP, "path": {**HEADS, "receiver": {**RECEIVER, "layer": 6}}}, ("layer 6", "0 to 5")),
        ("shapes-llava", {**SIP, "path": {**HEADS, "receiver": {**RECEIVER, "head": 4}}}, ("head 4", "0 to 3")),
        (
            "shapes-llava",
            {**SIP, "path": {**HEADS, "receiver": {**RECEIVER, "position": "decoding"}}},
            ("'decoding'", "shapes-0-0"),
        ),
        (
            "shapes-llava",
            {**SIP, "path": {**HEADS, "receiver": {"site": "vision.mlp_out", "layer": 1, "position": "image"}}},
            ("Nothing passes from language", "vision"),
        ),
        ("shapes-llava", {**SIP, "path": {**HEADS, "freeze": ["language.attn_head"]}}, ("attn_context",)),
        ("shapes-llava", {**SIP, "path": {**HEADS, "freeze": ["language.attn"]}}, ("path.freeze", "attn_out")),
        ("shapes-llava", {"lens": {"sites": ["vision.resid_post"]}}, ("unembedding", "language")),
        ("shapes-llava", {"lens": {"sites": ["language.mlp_out"]}}, ("'mlp_out'", "resid_post")),
        ("shapes-llava", {"lens": {"positions": ["question"]}}, ("each:question",)),
        ("shapes-llava", {"lens": {}, "metrics": ["answer_ranking"]}, ("answer_ranking", "first token")),
        ("shapes-llava", {"attention": {"sites": ["language.attn_head"]}}, ("attention.sites", "attn_pattern")),
        ("shapes-llava", {"attention": {"sites": ["language.attn_pattern"], "keys": "imag"}}, ("'imag'", "'image'")),
        (
            "shapes-llava",
            {**SIP, "patch": {**PATCH, "method": "attribution"}, "metrics": ["answer_rank"]},
            ("answer_rank", "no gradient", "attribution"),
        ),
        (
            "shapes-llava",
            {**SIP, "patch": {**PATCH, "method": "attribution"}, "metrics": ["answer_log_probability"]},
            ("whole answers", "attribution"),
        ),
        (
            "shapes-llava",
            {"ablate": PATCH, "pairs": {"dataset": "shapes", "n": 1, "keep": "clean_correct_corrupted_wrong"}},
            ("corrupted run", "ablate"),
        ),
        (
            "shapes-llava",
            {"ablate": {**PATCH, "kind": "resample"}, "pairs": {"dataset": "shapes", "n": 1}},
            ("another pair", "shapes-0-0"),
        ),
        (
            "shapes-llava",
            {"corruption": {"kind": "constraint_replacement"}, "patch": PATCH},
            ("'constraint'", "subject", "shapes-0-0"),
        ),
        (
            "shapes-llava",
            {
                "corruption": {"kind": "symmetric_token_replacement", "automatic": True},
                "patch": PATCH,
                "pairs": {"dataset": "shapes", "n": 3, "questions": ["size_choice"]},
            },
            ("no two words", "shapes-0-0"),
        ),
    ],
)
def test_what_a_model_or_a_pair_lacks_is_refused_by_name(
    model: str, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    said = refusal(spec(model, **changes))
    for part in parts:
        assert part in said
    assert "\n" not in said


def pair(clean: str, corrupted: str, spans: dict[str, Any], spans_corrupted: dict[str, Any]) -> vp.Pair:
    images = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    prompts = [vp.Prompt(image, text) for image, text in zip(images, (clean, corrupted), strict=True)]
    return vp.Pair("odd", *prompts, "red", "blue", spans, spans_corrupted)


@pytest.mark.parametrize(
    ("spans", "spans_corrupted", "part"),
    [
        ({}, {}, "name the part that differs as a span"),
        ({"subject": (18, 24)}, {}, "name the part that differs as a span"),
        ({"subject": (18, 24)}, {"subject": (18, 27)}, "differ in length outside of their spans"),
        ({"subject": (18, 24)}, {"subject": (8, 13)}, "outside of their spans"),
    ],
)
def test_spans_that_do_not_explain_the_difference_are_refused(
    spans: dict[str, Any], spans_corrupted: dict[str, Any], part: str
) -> None:
    odd = pair("what color is the circle?", "what color is the small red ring?", spans, spans_corrupted)
    corrupted = {"corruption": {"kind": "symmetric_token_replacement"}, "patch": PATCH}
    said = refusal(spec(**corrupted), inputs=[odd])
    assert "'odd'" in said and part in said


def test_a_position_that_only_the_longer_prompt_has_leaves_no_cell() -> None:
    text, longer = "what color is the small ring?", "what color is the ring?"
    odd = pair(text, longer, {"subject": (18, 28)}, {"subject": (18, 22)})
    patch = {"sites": ["language.mlp_out"], "positions": ["subject_first"]}
    said = refusal(spec(corruption={"kind": "symmetric_token_replacement"}, patch=patch), inputs=[odd])
    assert "'odd'" in said and "both the clean and the corrupted prompt" in said


@pytest.mark.parametrize(
    ("tensors", "parts"),
    [
        (None, ("does not exist",)),
        ({}, ("no tensor",)),
        ({"vector": torch.zeros(2, 64)}, ("'vector'", "[2, 64]")),
        ({"vector": torch.full((64,), float("nan"))}, ("'vector'", "finite")),
    ],
)
def test_a_file_that_holds_no_vectors_is_refused(tmp_path: Path, tensors: Any, parts: tuple[str, ...]) -> None:
    path = tmp_path / "vector.safetensors"
    if tensors is not None:
        save_file(tensors, path)
    said = refusal(spec(steer={"sites": ["language.resid_post"], "vector": str(path), "on": "clean"}))
    for part in (str(path), *parts):
        assert part in said
