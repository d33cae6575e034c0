"""The attention oracle's own sanity, on random models of two shapes of each family."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from .attention import attention_module, blocked, clean_attention, context_point, head_functions, pattern
from .patching import Model, build_blip, build_llava, head_count, layer_count, random_inputs, run

torch.set_num_threads(1)

BLIP = ("blip-a", "blip-b")
LLAVA = ("llava-a", "llava-b")
CASES = BLIP + LLAVA
TEXT = [f"{stack}.{kind}attn_pattern" for stack in ("question_encoder", "answer_decoder") for kind in ("", "cross_")]
BLOCKED = [(name, site) for name in CASES for site in (TEXT if name in BLIP else ["language.attn_pattern"])]
READ = [*BLOCKED, *((name, "vision.attn_pattern") for name in CASES)]
SELF = [(name, site) for name, site in BLOCKED if "cross" not in site]
PADDED = {
    "language": "attention_mask",
    "question_encoder": "attention_mask",
    "answer_decoder": "decoder_attention_mask",
}


@cache
def model_of(name: str) -> Model:
    """Return a model, built once."""
    if name == "blip-a":
        return build_blip(0)
    if name == "blip-b":
        return build_blip(1, layers=2, heads=2, width=48, vision_layers=3, image_size=16, vocab=31)
    if name == "llava-a":
        return build_llava(2, num_key_value_heads=2)
    return build_llava(3, layers=2, heads=6, num_key_value_heads=2, width=36, head_dim=8, vision_layers=2)


@cache
def eager(name: str) -> Model:
    """Return a copy of a model that attends eagerly; BLIP always does."""
    model = copy.deepcopy(model_of(name))
    if name in LLAVA:
        model.set_attn_implementation("eager")
    return model


def inputs_of(name: str, padded: bool = False, seed: int = 10) -> dict[str, Tensor]:
    """Return a prompt; padded, the first two tokens and the second token of the BLIP decoder are masked."""
    inputs = random_inputs(model_of(name), seed, 6, 4)
    if padded:
        inputs["attention_mask"][0, :2] = 0
        if name in BLIP:
            inputs["decoder_attention_mask"] = torch.tensor([[1, 0, 1, 1]])
    return inputs


@cache
def logits(name: str, padded: bool = False) -> Tensor:
    """Return the read-out logits of a run in which nothing is blocked."""
    return run(model_of(name), inputs_of(name, padded))[0]


def layers_of(name: str, site: str) -> range:
    """Return the layers of a site."""
    return range(layer_count(model_of(name), site))


def eager_run(
    name: str,
    inputs: dict[str, Tensor],
    site: str,
    layers: Sequence[int],
    edges: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return the logits and patterns of transformers itself; edges ``[head, query, key]`` get −inf in its mask."""
    model, found = eager(name), []
    argument = "encoder_attention_mask" if "cross" in site else "attention_mask"
    extra = None if edges is None else torch.zeros(1, *edges.shape).masked_fill(edges, -torch.inf)

    def mask(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = kwargs.get(argument)
        return args, kwargs | {argument: extra if given is None else given + extra}

    handles = []
    try:
        for layer in layers:
            module = attention_module(model, site, layer)
            handles.append(module.register_forward_hook(lambda _, args, output: found.append(output[1][0])))
            if extra is not None:
                handles.append(module.register_forward_pre_hook(mask, with_kwargs=True))
        return run(model, inputs)[0], found
    finally:
        for handle in handles:
            handle.remove()


def edge_grid(name: str, site: str, heads: Sequence[int], queries: Sequence[int], keys: Sequence[int]) -> Tensor:
    """Return edges as bool ``[head, query, key]``."""
    edges = torch.zeros(pattern(model_of(name), inputs_of(name), site, 0).shape, dtype=torch.bool)
    for head in heads:
        for query in queries:
            edges[head, query, list(keys)] = True
    return edges


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "site"), READ)
def test_blocking_nothing_gives_the_model_s_logits(name: str, site: str, padded: bool) -> None:
    got = blocked(model_of(name), inputs_of(name, padded), site, layers_of(name, site), [], [])
    assert_close(got, logits(name, padded))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "site"), READ)
def test_z_and_pattern_are_those_of_the_model(name: str, site: str, padded: bool) -> None:
    model, inputs = model_of(name), inputs_of(name, padded)
    context = site.replace("_pattern", "_context")
    _, patterns = eager_run(name, inputs, site, layers_of(name, site))
    compared = 0
    for layer, expected in zip(layers_of(name, site), patterns, strict=True):
        probabilities, z = clean_attention(model, inputs, site, layer)
        own = run(model, inputs, read=[(context, layer)])[1][context, layer]
        # Padding before all else sees no key: SDPA gives z = 0 there, eager attention the mean over all keys.
        sees = probabilities.sum(dim=-1)[0] > 0.5
        compared += int(sees.sum())
        assert_close(z[:, sees], own[:, sees])
        assert_close(probabilities[:, sees], expected[:, sees])
        assert torch.equal(pattern(model, inputs, site, layer), probabilities)
        assert not z[:, ~sees].any() and not probabilities[:, ~sees].any()
        assert (probabilities - probabilities.mean(dim=(0, 1))).abs().max() > 0.05
    blind = 2 if padded and site == "language.attn_pattern" else 0
    assert compared == len(patterns) * (len(sees) - blind)


@pytest.mark.parametrize("name", LLAVA)
def test_llava_pattern_equals_output_attentions(name: str) -> None:
    with torch.no_grad():
        attentions = eager(name)(**inputs_of(name), output_attentions=True).attentions
    for layer in layers_of(name, "language.attn_pattern"):
        got = pattern(model_of(name), inputs_of(name), "language.attn_pattern", layer)
        assert_close(got, attentions[layer][0])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "site"), READ)
def test_pattern_rows_sum_to_one_over_what_is_visible(name: str, site: str, padded: bool) -> None:
    got = pattern(model_of(name), inputs_of(name, padded), site, 0)
    sums = got.sum(dim=-1)
    assert_close(sums[sums > 0], torch.ones_like(sums[sums > 0]))
    causal = site in ("language.attn_pattern", "answer_decoder.attn_pattern")
    assert bool(got.triu(1).any()) != causal
    mask = inputs_of(name, padded).get(PADDED.get(site.split(".")[0], "")) if "cross" not in site else None
    if mask is not None and padded:
        assert not got[:, :, mask[0] == 0].any()
        assert got[:, -1, mask[0] == 1].all()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "site"), BLOCKED)
def test_blocking_equals_minus_infinity_in_the_eager_model_s_mask(name: str, site: str, padded: bool) -> None:
    model, inputs = model_of(name), inputs_of(name, padded)
    heads = range(head_count(model, site))
    _, queries, keys = pattern(model, inputs, site, 0).shape
    q, k = [queries - 2, queries - 1], [0, keys - 3]
    for layers in ([0], [len(layers_of(name, site)) - 1], [0, 1]):
        for which in (None, [heads[-1]], [0, 1]):
            edges = edge_grid(name, site, heads if which is None else which, q, k)
            expected, _ = eager_run(name, inputs, site, layers, edges)
            got = blocked(model, inputs, site, layers, q, k, which)
            assert_close(got, expected, rtol=1e-4, atol=1e-5)
            assert (got - logits(name, padded)).abs().max() > 1e-3


@pytest.mark.parametrize("name", LLAVA)
def test_blocking_everywhere_equals_a_4d_mask_given_to_llava(name: str) -> None:
    model, inputs, site = model_of(name), inputs_of(name), "language.attn_pattern"
    length = inputs["input_ids"].shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[-3:, 1:7] = False
    mask = torch.zeros(1, 1, length, length).masked_fill(~seen, -torch.inf)
    expected = run(eager(name), {**inputs, "attention_mask": mask})[0]
    got = blocked(model, inputs, site, layers_of(name, site), range(length - 3, length), range(1, 7))
    assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert (got - logits(name)).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "site"), BLOCKED)
def test_every_layer_head_and_window_has_its_own_effect(name: str, site: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    _, queries, keys = pattern(model, inputs, site, 0).shape
    edges = ([queries - 1], range(keys - 1))
    found = [logits(name), blocked(model, inputs, site, layers_of(name, site), *edges)]
    for layer in layers_of(name, site):
        found.append(blocked(model, inputs, site, [layer], *edges))
        for head in range(head_count(model, site)):
            found.append(blocked(model, inputs, site, [layer], *edges, [head]))
    for i, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-3 for other in found[:i])


@pytest.mark.parametrize(("name", "site"), BLOCKED)
def test_queries_times_keys_is_every_single_edge(name: str, site: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    _, queries, keys = pattern(model, inputs, site, 0).shape
    last = layers_of(name, site)[-1]
    both = blocked(model, inputs, site, [last], [queries - 1], [0, keys - 3])
    singles = [blocked(model, inputs, site, [last], [queries - 1], [key]) for key in (0, keys - 3)]
    assert all((single - both).abs().max() > 1e-3 for single in singles)


@pytest.mark.parametrize(("name", "site"), [(name, site) for name, site in SELF if "encoder" not in site])
def test_an_edge_that_causality_forbids_changes_nothing(name: str, site: str) -> None:
    model, inputs, layers = model_of(name), inputs_of(name), layers_of(name, site)
    length = pattern(model, inputs, site, 0).shape[1]
    nothing = blocked(model, inputs, site, layers, [], [])
    for query in range(length - 1):
        assert torch.equal(blocked(model, inputs, site, layers, [query], range(query + 1, length)), nothing)
    assert not torch.equal(blocked(model, inputs, site, layers, [length - 1], [length - 2]), nothing)


@pytest.mark.parametrize(("name", "site"), SELF)
def test_an_edge_from_padding_changes_nothing(name: str, site: str) -> None:
    model, inputs, layers = model_of(name), inputs_of(name, True), layers_of(name, site)
    mask = inputs[PADDED[site.split(".")[0]]][0]
    nothing = blocked(model, inputs, site, layers, [], [])
    queries, keys = (mask == 1).nonzero().flatten().tolist(), (mask == 0).nonzero().flatten().tolist()
    assert keys and torch.equal(blocked(model, inputs, site, layers, queries, keys), nothing)
    unpadded = blocked(model, inputs_of(name), site, layers, queries, keys)
    assert (unpadded - logits(name)).abs().max() > 1e-3


@pytest.mark.parametrize("name", BLIP)
def test_blip_cross_attention_attends_to_masked_question_tokens(name: str) -> None:
    model, inputs, site = model_of(name), inputs_of(name, True), "answer_decoder.cross_attn_pattern"
    assert inputs["attention_mask"][0].tolist() == [0, 0, 1, 1, 1, 1]
    assert pattern(model, inputs, site, 0)[:, :, :2].min() > 0
    got = blocked(model, inputs, site, layers_of(name, site), range(4), [0, 1])
    assert (got - logits(name, True)).abs().max() > 1e-3


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "site"), BLOCKED)
def test_a_query_with_no_key_left_has_z_zero(name: str, site: str, padded: bool) -> None:
    model, inputs = model_of(name), inputs_of(name, padded)
    context = site.replace("_pattern", "_context")
    _, queries, keys = pattern(model, inputs, site, 0).shape
    last = layers_of(name, site)[-1]
    zero = torch.zeros_like(run(model, inputs, read=[(context, last)])[1][context, last])
    for head in (None, 1):
        target = context if head is None else site.replace("_pattern", "_head")
        expected = run(model, inputs, [("replace", target, last, head, [queries - 1], zero)])[0]
        got = blocked(model, inputs, site, [last], [queries - 1], range(keys), None if head is None else [head])
        assert got.isfinite().all()
        assert_close(got, expected)
        assert (got - logits(name, padded)).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "site"), BLOCKED)
def test_a_query_with_one_key_left_takes_that_key_s_value(name: str, site: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    _, queries, keys = pattern(model, inputs, site, 0).shape
    value_projection = attention_module(model, site, 0).get_submodule("v_proj" if name in LLAVA else "value")
    output_projection, _ = context_point(model, site, 0)
    found: list[Tensor] = []
    handles = [
        value_projection.register_forward_hook(lambda _, __, output: found.append(output[0, keys - 1])),
        output_projection.register_forward_hook(lambda _, args, __: found.append(args[0][0, queries - 1])),
    ]
    blocked(model, inputs, site, [0], [queries - 1], range(keys - 1))
    for handle in handles:
        handle.remove()
    heads = head_count(model, site)
    value = found[0].unflatten(0, (-1, len(found[-1]) // heads))
    assert_close(found[-1], value.repeat_interleave(heads // len(value), dim=0).flatten())


@pytest.mark.parametrize(("name", "site"), BLOCKED)
def test_no_hook_stays_behind_even_after_an_error(name: str, site: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    blocked(model, inputs, site, [0], [0], [0])
    pattern(model, inputs, site, 0)
    with pytest.raises(IndexError):
        blocked(model, inputs, site, [0], [99], [0])
    with pytest.raises(AttributeError):
        blocked(model, inputs, site, [0, 99], [0], [0])
    for module in (attention_module(model, site, 0), context_point(model, site, 0)[0]):
        assert not module._forward_pre_hooks
    assert torch.equal(run(model, inputs)[0], logits(name))


@pytest.mark.parametrize(("name", "site"), [("llava-a", "language.cross_attn_pattern"), ("blip-a", "vision.attn_out")])
def test_a_site_that_is_no_pattern_is_refused(name: str, site: str) -> None:
    with pytest.raises(ValueError, match="no attention pattern"):
        pattern(model_of(name), inputs_of(name), site, 0)


def test_head_functions_of_a_row_worked_out_by_hand() -> None:
    row = torch.tensor([[0.1, 0.2, 0.1, 0.0], [0.0, 0.0, 0.5, 0.0]])
    got = head_functions(row, torch.tensor([True, True, True, False]), 2)
    half = torch.tensor([[0.05, 0.1, -0.2, 0.0], [-0.05, -0.1, 0.2, 0.0]], dtype=torch.float64)
    assert got["mass"].tolist() == pytest.approx([0.4, 0.5])
    assert got["pointing_ratio"].tolist() == pytest.approx([4 / 3, 4 / 3])
    assert got["top_k_share"].tolist() == pytest.approx([0.75, 1.0])
    assert got["entropy"].tolist() == pytest.approx([1.5 * math.log(2), 0.0])
    assert_close(got["above_mean"], half)
    assert head_functions(row, torch.tensor([False, True, False, False]), 2)["pointing_ratio"].tolist() == [
        pytest.approx(2.0),
        0.0,
    ]
    assert head_functions(row, torch.zeros(4, dtype=torch.bool), 2)["pointing_ratio"].isnan().all()


@pytest.mark.parametrize("count", [3, 16])
def test_head_functions_of_even_attention(count: int) -> None:
    row = torch.full((2, count), 0.5 / count)
    got = head_functions(row, torch.arange(count) < 2, 2)
    assert got["mass"].tolist() == pytest.approx([0.5, 0.5])
    assert got["pointing_ratio"].tolist() == pytest.approx([1.0, 1.0])
    assert got["top_k_share"].tolist() == pytest.approx([2 / count] * 2)
    assert got["entropy"].tolist() == pytest.approx([math.log(count)] * 2)
    assert not got["above_mean"].any()


@pytest.mark.parametrize("name", LLAVA)
def test_head_functions_do_not_depend_on_attention_to_text_but_for_mass(name: str) -> None:
    inputs = inputs_of(name)
    image = inputs["input_ids"][0] == model_of(name).config.image_token_id
    row = pattern(model_of(name), inputs, "language.attn_pattern", 0)[:, -1, image]
    inside = torch.arange(row.shape[1]) % 3 == 0
    got, scaled = head_functions(row, inside, 3), head_functions(row / 2, inside, 3)
    assert (got["mass"] < 1).all() and got["mass"].std() > 1e-2
    assert_close(scaled["mass"], got["mass"] / 2)
    for measure in ("pointing_ratio", "top_k_share", "entropy"):
        assert_close(scaled[measure], got[measure])
        assert got[measure].std() > 1e-2
