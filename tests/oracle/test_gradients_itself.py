"""The gradient oracle's own sanity, on random models of two shapes of each family."""

from __future__ import annotations

import copy
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .gradients import Change, attribution, forward, integrated
from .patching import Edit, head_count, layer_count, patched, run, stacks
from .test_edits_itself import DECIDING, HEADS, case, cell, far, last_of, value_of
from .test_oracle_itself import BLIP, CASES, LLAVA, SITES, logits

Inputs = dict[str, Tensor]
# Exact where layers are linear, but for rounding; effects are far above it.
ROUNDING = 2e-5


def difference(vector: Tensor) -> Tensor:
    """Return a logit difference, linear in the logits."""
    return vector[3] - 0.7 * vector[5]


def log_probability(vector: Tensor) -> Tensor:
    """Return a token's log-probability."""
    return vector.log_softmax(dim=-1)[4]


@cache
def linear(name: str) -> PreTrainedModel:
    """Return the model with neither norms nor an MLP between its last attention and its logits."""
    model = copy.deepcopy(case(name).model)
    layer = model.get_submodule(f"{stacks(model)[DECIDING[name]][0]}")[-1]
    if name in BLIP:
        model.text_decoder.cls.predictions.transform = nn.Identity()
        layer.output.LayerNorm = layer.crossattention.output.LayerNorm = nn.Identity()
        mlp = layer.output.dense
    else:
        model.model.language_model.norm = nn.Identity()
        mlp = layer.mlp.down_proj
    nn.init.zeros_(mlp.weight)
    return model


@cache
def double(name: str) -> tuple[PreTrainedModel, Inputs, Inputs, Tensor]:
    """Return a case in float64 throughout: LLaMA's norm rounds to float32, so another takes its place."""
    c = case(name)
    model = copy.deepcopy(c.model).double()
    for path, module in list(model.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight.data.copy_(module.weight)
            model.set_submodule(path, norm)
    base, source = ({**inputs, "pixel_values": inputs["pixel_values"].double()} for inputs in (c.base, c.source))
    torch.testing.assert_close(run(model, base)[0], logits(name, "base"), atol=1e-5, rtol=1e-4)
    return model, base, source, c.noise.double()


def way(name: str, site: str) -> list[tuple[str, int | None, Tensor, Tensor, Tensor]]:
    """Return (site, layer, noised base, source - base, the same in the cell alone) of each layer of a float64 cell."""
    model, base_inputs, source_inputs, noise = double(name)
    layers, positions, head = cell(name, site)
    found = []
    for layer in layers:
        key = (site, layer)
        base = run(model, base_inputs, [("add", "image_embeds", None, None, None, noise)], [key])[1][key]
        whole = run(model, source_inputs, [("add", "image_embeds", None, None, None, -noise)], [key])[1][key] - base
        size = whole.shape[-1] if head is None else whole.shape[-1] // head_count(model, site)
        part = torch.zeros_like(whole)
        part[0, positions, -size:] = whole[0, positions, -size:]
        found.append((*key, base, whole, part))
    return found


@pytest.mark.parametrize(("name", "site"), SITES)
def test_forward_changes_what_run_changes(name: str, site: str) -> None:
    c, layer = case(name), None if site == "image_embeds" else 0
    assert torch.equal(forward(c.model, c.base), logits(name, "base"))
    value = value_of(name, site, layer, "source")
    changes: list[Change] = [("add", "image_embeds", None, c.noise), ("put", site, layer, value)]
    context = site.replace("_head", "_context")
    edits: list[Edit] = [("add", "image_embeds", None, None, None, c.noise)]
    edits.append(("replace", context, layer, None, range(value.shape[1]), value))
    got, expected = forward(c.model, c.base, changes), run(c.model, c.base, edits)[0]
    assert torch.equal(got, expected)
    shifted: list[Change] = [("put", site, layer, value - 1), ("add", site, layer, torch.ones_like(value))]
    torch.testing.assert_close(forward(c.model, c.base, [changes[0], *shifted]), got, atol=1e-4, rtol=1e-3)
    assert site.startswith("answer_decoder") or far(got, run(c.model, c.base, edits[:1])[0])


@pytest.mark.parametrize("name", CASES)
def test_attribution_is_exact_where_the_metric_is_linear_in_the_value(name: str) -> None:
    c, model, stack, last = case(name), linear(name), DECIDING[name], last_of(name)
    kind = "cross_attn" if name in BLIP else "attn"
    top = layer_count(model, f"{stack}.mlp_out") - 1
    heads = head_count(model, f"{stack}.{kind}_head")
    cells: list[tuple[str, int | None]] = [(f"{stack}.{part}", None) for part in ("resid_post", f"{kind}_out")]
    cells += [(f"{stack}.{kind}_head", head) for head in range(heads)]
    base = difference(run(model, c.base)[0]).item()
    effects = {}
    for site, head in cells:
        expected = difference(patched(model, c.base, c.source, site, top, [last], head)).item()
        got = attribution(model, c.base, c.source, site, [top], [last], difference, head)
        assert got == pytest.approx(expected, abs=ROUNDING)
        assert integrated(model, c.base, c.source, site, [top], [last], difference, head, steps=2) == pytest.approx(
            expected, abs=ROUNDING
        )
        effects[site, head] = got - base
        assert abs(effects[site, head]) > 1e-3
    together = sum(effects[one] for one in cells[2:])
    assert together == pytest.approx(effects[f"{stack}.{kind}_out", None], abs=ROUNDING)


@pytest.mark.parametrize(("name", "site"), SITES)
def test_attribution_is_the_central_difference_along_the_cell(name: str, site: str) -> None:
    model, base, source, noise = double(name)
    layers, positions, head = cell(name, site)
    step = 1e-4
    add: Change = ("add", "image_embeds", None, noise)
    ahead, behind = (
        log_probability(forward(model, base, [add, *(("add", s, x, e * part) for s, x, _, _, part in way(name, site))]))
        for e in (step, -step)
    )
    slope = (ahead - behind).item() / (2 * step)
    at_base = log_probability(forward(model, base, [add])).item()
    got = attribution(model, base, source, site, layers, positions, log_probability, head, noise, -noise)
    assert got - at_base == pytest.approx(slope, rel=1e-5, abs=1e-7)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize(("name", "site"), SITES)
def test_one_step_is_the_central_difference_half_way(name: str, site: str) -> None:
    model, base, source, noise = double(name)
    layers, positions, head = cell(name, site)
    step = 1e-4
    add: Change = ("add", "image_embeds", None, noise)
    ahead, behind = (
        log_probability(
            forward(
                model,
                base,
                [add, *(("put", s, x, b + 0.5 * whole + e * part) for s, x, b, whole, part in way(name, site))],
            )
        )
        for e in (step, -step)
    )
    slope = (ahead - behind).item() / (2 * step)
    at_base = log_probability(forward(model, base, [add])).item()
    got = integrated(model, base, source, site, layers, positions, log_probability, head, noise, -noise, steps=1)
    assert got - at_base == pytest.approx(slope, rel=1e-5, abs=1e-7)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize(("name", "site"), [pair for pair in SITES if pair not in HEADS])
def test_integrated_over_all_positions_tends_to_the_layers_patched_jointly(name: str, site: str) -> None:
    c = case(name)
    layers, _, _ = cell(name, site)
    where = range(value_of(name, site, layers[0]).shape[1])
    window = None if site == "image_embeds" else [0, 1]
    expected = log_probability(patched(c.model, c.base, c.source, site, window, where, None, c.noise, -c.noise)).item()
    cell_ = (c.model, c.base, c.source, site, layers, where, log_probability, None, c.noise, -c.noise)
    assert integrated(*cell_, steps=64) == pytest.approx(expected, abs=5e-3)
    assert abs(attribution(*cell_) - expected) > 5e-2
    noised = log_probability(forward(c.model, c.base, [("add", "image_embeds", None, c.noise)])).item()
    assert abs(noised - expected) > 0.1


@pytest.mark.parametrize("name", CASES)
def test_integrated_over_one_layer_misses_its_limit_by_the_square_of_the_step(name: str) -> None:
    c, site = case(name), "question_encoder.resid_post" if name in BLIP else "language.resid_post"
    where = range(value_of(name, site, 0).shape[1])
    cell_ = (c.model, c.base, c.source, site, [0], where, log_probability)
    expected = log_probability(patched(c.model, c.base, c.source, site, 0, where)).item()
    coarse, fine = (abs(integrated(*cell_, steps=steps) - expected) for steps in (4, 64))
    assert coarse > 1e-3
    assert fine < coarse / 30


@pytest.mark.parametrize(("name", "site"), HEADS)
def test_heads_share_out_the_context(name: str, site: str) -> None:
    c = case(name)
    layers, positions, _ = cell(name, site)
    base = log_probability(logits(name, "base")).item()
    context = site.replace("_head", "_context")
    for estimate in (attribution, partial(integrated, steps=3)):
        whole = estimate(c.model, c.base, c.source, context, layers, positions, log_probability) - base
        shares = [
            estimate(c.model, c.base, c.source, site, layers, positions, log_probability, head) - base
            for head in range(head_count(c.model, site))
        ]
        assert sum(shares) == pytest.approx(whole, abs=ROUNDING)
        assert max(shares) - min(shares) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_a_cell_without_a_difference_or_without_effect_gives_the_base(name: str) -> None:
    c, last = case(name), last_of(name)
    base = log_probability(logits(name, "base")).item()
    site = f"{DECIDING[name]}.mlp_out"
    assert attribution(c.model, c.base, c.base, site, [0, 1], [last], log_probability) == base
    assert integrated(c.model, c.base, c.base, site, [0, 1], [last], log_probability, steps=2) == base
    if name not in LLAVA:
        return
    model = copy.deepcopy(c.model).requires_grad_(False)
    unread = layer_count(model, "vision.mlp_out") - 1
    for one in (c.model, model):
        assert attribution(one, c.base, c.source, "vision.mlp_out", [unread], [1], log_probability) == base
        assert integrated(one, c.base, c.source, "vision.mlp_out", [unread], [1], log_probability, steps=2) == base
    moves = attribution(model, c.base, c.source, "vision.mlp_out", [unread - 1], [1], log_probability)
    assert moves == attribution(c.model, c.base, c.source, "vision.mlp_out", [unread - 1], [1], log_probability)
    assert abs(moves - base) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_no_hook_and_no_gradient_stays_behind(name: str) -> None:
    c = case(name)
    attribution(c.model, c.base, c.source, f"{DECIDING[name]}.mlp_out", [0], [0], difference)
    assert torch.equal(run(c.model, c.base)[0], logits(name, "base"))
    assert all(weight.grad is None for weight in c.model.parameters())
    with pytest.raises(ValueError, match="shape"):
        forward(c.model, c.base, [("put", f"{DECIDING[name]}.mlp_out", 0, torch.zeros(1, 1, 1))])
    assert torch.equal(run(c.model, c.base)[0], logits(name, "base"))
