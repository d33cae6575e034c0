"""The path oracle's own sanity, on random models of two shapes of each family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from .patching import Edit, head_count, layer_count, locate, patched, run, stacks
from .paths import End, path_patched, severed
from .test_edits_itself import DECIDING, case, cell, far, last_of, read_out, value_of
from .test_oracle_itself import BLIP, CASES, SITES, logits

# Of two layers, and of three.
SHALLOW = {"blip-b": "answer_decoder", "llava-b": "language"}
DEEP = {"blip-a": "question_encoder", "llava-a": "language"}


def attention(name: str) -> list[str]:
    """Return the kinds of attention in a layer of the text side."""
    return ["attn", "cross_attn"] if name in BLIP else ["attn"]


def contexts(name: str, stack: str) -> list[str]:
    """Return the sites that hold all heads of a stack."""
    return [f"{stack}.{kind}_context" for kind in attention(name)]


def by_hand(model: PreTrainedModel, stack: str, index: int, state: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """Return a layer's output from its input and contributions; the MLP's is worked out where it is not given."""
    layer = model.get_submodule(f"{stacks(model)[stack][0]}.{index}")
    with torch.no_grad():
        if stack == "language":
            state = state + parts["attn_out"]
            return state + parts.get("mlp_out", layer.mlp(layer.post_attention_layernorm(state)))
        state = layer.attention.output.LayerNorm(state + parts["attn_out"])
        state = layer.crossattention.output.LayerNorm(state + parts["cross_attn_out"])
        return layer.output.LayerNorm(state + parts.get("mlp_out", layer.output.dense(layer.intermediate(state))))


def parts_of(name: str, stack: str, layer: int) -> dict[str, Tensor]:
    """Return what the attention of a layer contributes in the base, ``[1, position, width]`` by component."""
    return {f"{kind}_out": value_of(name, f"{stack}.{kind}_out", layer) for kind in attention(name)}


def sent(name: str, stack: str, head: int, position: int) -> Tensor:
    """Return layer 0's ``attn_out`` of the base with one head at one position from the source, by its projection."""
    site = f"{stack}.attn_head"
    z, new = (value_of(name, site, 0, which) for which in ("base", "source"))
    size = z.shape[-1] // head_count(case(name).model, site)
    z[0, position, head * size : (head + 1) * size] = new[0, position, head * size : (head + 1) * size]
    with torch.no_grad():
        return locate(case(name).model, site, 0)[0](z)


def test_the_models_worked_out_by_hand_have_two_layers_and_three() -> None:
    assert all(layer_count(case(name).model, f"{stack}.mlp_out") == 2 for name, stack in SHALLOW.items())
    assert all(layer_count(case(name).model, f"{stack}.mlp_out") == 3 for name, stack in DEEP.items())


@pytest.mark.parametrize("name", CASES)
def test_severing_changes_the_trace_except_from_the_last_layer(name: str) -> None:
    c, stack, last = case(name), DECIDING[name], last_of(name)
    site = f"{stack}.resid_post"
    top = layer_count(c.model, site) - 1
    noises = (c.noise, -c.noise)
    for cut in (*(f"{kind}_out" for kind in attention(name)), "mlp_out"):
        for end in (site, f"{stack}.resid_pre"):
            plain = patched(c.model, c.base, c.source, end, top, [last], None, *noises)
            assert torch.equal(severed(c.model, c.base, c.source, end, top, [last], cut, *noises), plain)
            assert far(plain, patched(c.model, c.base, c.source, end, top, [last], None, c.noise))
        plain = patched(c.model, c.base, c.source, site, 0, [last])
        assert far(severed(c.model, c.base, c.source, site, 0, [last], cut), plain)
        assert torch.equal(severed(c.model, c.base, c.base, site, 0, [last], cut), logits(name, "base"))


@pytest.mark.parametrize("name", SHALLOW)
def test_severing_in_the_last_layer_matters_at_the_read_out_alone(name: str) -> None:
    c, site = case(name), f"{SHALLOW[name]}.resid_post"
    plain = patched(c.model, c.base, c.source, site, 0, [1])
    assert far(plain, logits(name, "base"))
    assert torch.equal(severed(c.model, c.base, c.source, site, 0, [1], "mlp_out"), plain)


@pytest.mark.parametrize(
    ("name", "cut"),
    [("blip-b", "mlp_out"), ("blip-b", "cross_attn_out"), ("llava-b", "mlp_out"), ("llava-b", "attn_out")],
)
@pytest.mark.parametrize("noised", [False, True])
def test_severed_trace_of_two_layers_by_hand(name: str, cut: str, noised: bool) -> None:
    c, stack, last = case(name), SHALLOW[name], last_of(name)
    site, noise = f"{stack}.resid_post", c.noise if noised else None
    add: list[Edit] = [("add", "image_embeds", None, None, None, c.noise)] if noised else []
    state = value_of(name, site, 0, "source")
    keys = [(f"{stack}.{part}", 1) for part in (*parts_of(name, stack, 1), "mlp_out")]
    _, base = run(c.model, c.base, add, keys)
    _, plain = run(c.model, c.base, [*add, ("replace", site, 0, None, [last], state)], keys)
    parts = {key[0].split(".")[1]: plain[key] for key in keys[:-1]}
    parts[cut] = base[f"{stack}.{cut}", 1]
    expected = by_hand(c.model, stack, 1, state[0, last], {part: value[0, last] for part, value in parts.items()})
    got = severed(c.model, c.base, c.source, site, 0, [last], cut, base_noise=noise)
    torch.testing.assert_close(got, read_out(name, expected), atol=1e-5, rtol=1e-4)
    assert far(got, patched(c.model, c.base, c.source, site, 0, [last], base_noise=noise))


@pytest.mark.parametrize(("name", "site"), SITES)
def test_nothing_frozen_and_the_logits_as_receiver_is_the_plain_patch(name: str, site: str) -> None:
    c = case(name)
    layers, positions, head = cell(name, site)
    layer = 0 if site.startswith("vision") else layers[-1]
    sender: End = (site, layer, head, positions)
    noises = {"base_noise": c.noise, "source_noise": -c.noise}
    expected = patched(c.model, c.base, c.source, site, layer, positions, head, **noises)
    assert torch.equal(path_patched(c.model, c.base, c.source, sender, None, [], **noises), expected)
    assert torch.equal(path_patched(c.model, c.base, c.source, sender, sender, [], **noises), expected)
    assert (expected - run(c.model, c.base, [("add", "image_embeds", None, None, None, c.noise)])[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_everything_passes_through_the_last_layer_at_the_read_out(name: str) -> None:
    c, stack, last = case(name), DECIDING[name], last_of(name)
    sender: End = (f"{stack}.attn_head", 1, 1, [last])
    receiver: End = (f"{stack}.resid_post", layer_count(c.model, f"{stack}.resid_post") - 1, None, [last])
    expected = patched(c.model, c.base, c.source, f"{stack}.attn_head", 1, [last], 1)
    assert far(expected, logits(name, "base"))
    assert torch.equal(path_patched(c.model, c.base, c.source, sender, receiver, []), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_receiver_that_the_sender_cannot_reach_gets_the_base(name: str) -> None:
    c, stack, last = case(name), DECIDING[name], last_of(name)
    sender: End = (f"{stack}.attn_head", 1, 0, [last])
    for receiver in (
        (f"{stack}.attn_head", 0, 0, [last]),
        (f"{stack}.attn_head", 1, 1, [last]),
        (f"{stack}.resid_pre", 1, None, [last]),
        ("image_embeds", None, None, [0, 1]),
    ):
        for frozen in ([], [f"{stack}.attn_context"]):
            assert torch.equal(path_patched(c.model, c.base, c.source, sender, receiver, frozen), logits(name, "base"))
    reached: End = (f"{stack}.mlp_out", 1, None, [last])
    assert far(path_patched(c.model, c.base, c.source, sender, reached, []), logits(name, "base"))


@pytest.mark.parametrize(("name", "stack"), [*SHALLOW.items(), *DEEP.items()])
def test_heads_frozen_are_the_context_frozen_and_differ_from_the_plain_patch(name: str, stack: str) -> None:
    c, site = case(name), f"{stack}.attn_head"
    top = layer_count(c.model, site) - 1
    where = range(value_of(name, site, 0).shape[1])
    sender: End = (site, 0, 1, where)
    heads = [f"{stack}.{kind}_head" for kind in attention(name)]
    plain = patched(c.model, c.base, c.source, site, 0, where, 1)
    for receiver in (None, (site, top, 0, where), (f"{stack}.attn_context", top, None, where)):
        got = path_patched(c.model, c.base, c.source, sender, receiver, contexts(name, stack))
        assert torch.equal(path_patched(c.model, c.base, c.source, sender, receiver, heads), got)
        assert (got - logits(name, "base")).abs().max() > 1e-3
        assert (got - plain).abs().max() > 1e-3
    stopped = path_patched(c.model, c.base, c.source, sender, None, [f"{stack}.resid_post"])
    assert torch.equal(stopped, logits(name, "base"))
    noised = run(c.model, c.base, [("add", "image_embeds", None, None, None, c.noise)])[0]
    assert far(noised, logits(name, "base"))
    frozen = contexts(name, stack)
    assert torch.equal(path_patched(c.model, c.base, c.base, sender, None, frozen, c.noise, c.noise), noised)


@pytest.mark.parametrize("name", SHALLOW)
@pytest.mark.parametrize("mlp", ["free", "frozen"])
def test_direct_path_of_a_head_through_two_layers_by_hand(name: str, mlp: str) -> None:
    c, stack, last = case(name), SHALLOW[name], last_of(name)
    state = value_of(name, f"{stack}.resid_pre", 0)
    for layer in (0, 1):
        parts = parts_of(name, stack, layer)
        if layer == 0:
            parts["attn_out"] = sent(name, stack, 1, last)
        if mlp == "frozen":
            parts["mlp_out"] = value_of(name, f"{stack}.mlp_out", layer)
        state = by_hand(c.model, stack, layer, state, parts)
    frozen = contexts(name, stack) + ([f"{stack}.mlp_out"] if mlp == "frozen" else [])
    sender: End = (f"{stack}.attn_head", 0, 1, [last])
    got = path_patched(c.model, c.base, c.source, sender, None, frozen)
    torch.testing.assert_close(got, read_out(name, state[0, last]), atol=1e-5, rtol=1e-4)
    assert far(got, logits(name, "base"))
    assert far(got, patched(c.model, c.base, c.source, f"{stack}.attn_head", 0, [last], 1))


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("position", [-3, -1])
def test_path_between_heads_two_layers_apart_by_hand(name: str, position: int) -> None:
    c, stack = case(name), DEEP[name]
    site = f"{stack}.attn_head"
    state = value_of(name, f"{stack}.resid_pre", 0)
    for layer in (0, 1):
        parts = parts_of(name, stack, layer)
        if layer == 0:
            parts["attn_out"] = sent(name, stack, 1, position)
        state = by_hand(c.model, stack, layer, state, parts)
    where = range(state.shape[1])
    _, step = run(c.model, c.base, [("replace", f"{stack}.resid_pre", 2, None, where, state)], [(site, 2)])
    expected = run(c.model, c.base, [("replace", site, 2, 3, where, step[site, 2])])[0]
    sender: End = (site, 0, 1, [position])
    receiver: End = (site, 2, 3, where)
    got = path_patched(c.model, c.base, c.source, sender, receiver, contexts(name, stack))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert (got - logits(name, "base")).abs().max() > 1e-3
    assert (got - path_patched(c.model, c.base, c.source, sender, receiver, [])).abs().max() > 1e-3
