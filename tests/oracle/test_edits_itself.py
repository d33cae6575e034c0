"""The edit oracle's own sanity, on random models of two shapes of each family."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from .edits import ablated, patched_jointly, replaced_embeds, site_mean, steered
from .patching import Edit, head_count, layer_count, locate, patched, random_inputs, run
from .test_oracle_itself import BLIP, CASES, LLAVA, READ_OUT, SITES, Case, logits
from .test_oracle_itself import case as with_one_answer

FAR = 1e-2
HEADS = [(name, site) for name, site in SITES if site.endswith("_head")]
# The stack whose last position gives the logits.
DECIDING = {name: READ_OUT[name.split("-")[0]].split(".")[0] for name in CASES}


@cache
def case(name: str) -> Case:
    """Return a case in which the decoder's tokens after BOS differ too."""
    c = with_one_answer(name)
    if name in LLAVA:
        return c
    return replace(
        c, source=random_inputs(c.model, 11, *(c.base[key].shape[1] for key in ("input_ids", "decoder_input_ids")))
    )


def far(one: Tensor, other: Tensor) -> bool:
    """Return whether two results differ by far more than any tolerance here."""
    return bool((one - other).abs().max() > FAR)


def value_of(name: str, site: str, layer: int | None, which: str = "base") -> Tensor:
    """Return an activation of a run without edits."""
    return run(case(name).model, getattr(case(name), which), read=[(site, layer)])[1][site, layer]


def cell(name: str, site: str) -> tuple[list[int | None], list[int], int | None]:
    """Return two layers, two positions and the last head of a site, or what it has of them."""
    layers: list[int | None] = [None] if site == "image_embeds" else [0, 1]
    last = value_of(name, site, layers[0]).shape[1] - 1
    return layers, sorted({last // 2, last}), head_count(case(name).model, site) - 1 if site.endswith("_head") else None


def last_of(name: str) -> int:
    """Return the read-out position."""
    return value_of(name, READ_OUT[name.split("-")[0]], 0).shape[1] - 1


def read_out(name: str, state: Tensor) -> Tensor:
    """Return the logits that belong to the last layer's output at the last position."""
    model = case(name).model
    with torch.no_grad():
        return model.text_decoder.cls(state) if name in BLIP else model.lm_head(model.model.language_model.norm(state))


@pytest.mark.parametrize(("name", "site"), SITES)
def test_neutral_edits_change_nothing_and_zero_is_scale_by_zero(name: str, site: str) -> None:
    c = case(name)
    layers, positions, head = cell(name, site)
    cell_ = (c.model, c.base, site, layers, positions)
    width = value_of(name, site, layers[0]).shape[-1]
    places = [(site, layer, head) for layer in layers]
    for got in (
        ablated(*cell_, "scale", head, factor=1.0),
        ablated(*cell_, "resample", head, other=c.base),
        steered(*cell_, torch.ones(width), 0.0, head),
        patched_jointly(c.model, c.base, c.base, places, positions, positions),
    ):
        assert torch.equal(got, logits(name, "base"))
    zero = ablated(*cell_, "zero", head)
    assert far(zero, logits(name, "base"))
    assert torch.equal(zero, ablated(*cell_, "scale", head, factor=0.0))
    assert torch.equal(zero, ablated(*cell_, "mean", head, mean=dict.fromkeys(layers, torch.zeros(width))))


@pytest.mark.parametrize(("name", "site"), SITES)
def test_resample_and_joint_patch_agree_with_the_plain_patch(name: str, site: str) -> None:
    c = case(name)
    layers, positions, head = cell(name, site)
    window = None if site == "image_embeds" else [0, 1]
    expected = patched(c.model, c.base, c.source, site, window, positions, head)
    assert far(expected, logits(name, "base"))
    assert torch.equal(ablated(c.model, c.base, site, layers, positions, "resample", head, other=c.source), expected)
    places = [(site, layer, head) for layer in layers]
    assert torch.equal(patched_jointly(c.model, c.base, c.source, places, positions, positions), expected)


@pytest.mark.parametrize(("name", "site"), HEADS)
def test_a_head_set_to_zero_takes_its_columns_out_of_the_output_projection(name: str, site: str) -> None:
    c, head = case(name), head_count(case(name).model, site) - 1
    weight, z = locate(c.model, site, 0)[0].get_parameter("weight").detach(), value_of(name, site, 0)
    out, position = site.replace("_head", "_out"), z.shape[1] - 1
    size = z.shape[-1] // head_count(c.model, site)
    new = value_of(name, out, 0)
    new[0, position] -= weight[:, head * size : (head + 1) * size] @ z[0, position, -size:]
    expected = run(c.model, c.base, [("replace", out, 0, None, [position], new)])[0]
    got = ablated(c.model, c.base, site, [0], [position], "zero", head)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert far(got, ablated(c.model, c.base, site, [0], [position], "zero", 0))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["scale", "steer"])
def test_a_layer_is_edited_after_the_layers_below_it(name: str, kind: str) -> None:
    c, last = case(name), last_of(name)
    site = f"{DECIDING[name]}.mlp_out"
    vector = torch.linspace(-1.0, 1.0, value_of(name, site, 0).shape[-1])

    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value[0, last] = value[0, last] * 3.0 if kind == "scale" else value[0, last] + 2.0 * vector
        return value

    handles = [
        locate(c.model, site, layer)[0].register_forward_hook(lambda _, args, output: change(output))
        for layer in (0, 1)
    ]
    expected = run(c.model, c.base)[0]
    for handle in handles:
        handle.remove()
    for layers in ([0, 1], [1, 0]):
        if kind == "scale":
            got = ablated(c.model, c.base, site, layers, [last], "scale", factor=3.0)
        else:
            got = steered(c.model, c.base, site, layers, [last], vector, 2.0)
        assert torch.equal(got, expected)
    unaware: list[Edit] = [("replace", site, x, None, [last], change(value_of(name, site, x))) for x in (0, 1)]
    assert far(run(c.model, c.base, unaware)[0], expected)


@pytest.mark.parametrize("name", CASES)
def test_steering_the_last_layer_is_an_addition_before_the_read_out(name: str) -> None:
    c, site, last = case(name), f"{DECIDING[name]}.resid_post", last_of(name)
    top = layer_count(c.model, site) - 1
    state = value_of(name, site, top)[0, last]
    vector = torch.linspace(-1.0, 1.0, len(state))
    got = steered(c.model, c.base, site, [top], [last], vector, -1.5)
    torch.testing.assert_close(got, read_out(name, state - 1.5 * vector), atol=1e-5, rtol=1e-4)
    assert far(got, logits(name, "base"))


@pytest.mark.parametrize("name", CASES)
def test_steering_a_head_adds_its_slice_of_the_vector_alone(name: str) -> None:
    c, site, last = case(name), f"{DECIDING[name]}.attn_head", last_of(name)
    z = value_of(name, site, 1)
    size = z.shape[-1] // head_count(c.model, site)
    vector = torch.arange(1.0, 1.0 + z.shape[-1])
    alone = torch.zeros_like(vector)
    alone[size : 2 * size] = vector[size : 2 * size]
    expected = steered(c.model, c.base, site.replace("_head", "_context"), [1], [last], alone, 0.5)
    assert torch.equal(steered(c.model, c.base, site, [1], [last], vector, 0.5, head=1), expected)
    assert far(expected, steered(c.model, c.base, site, [1], [last], vector, 0.5, head=0))


@pytest.mark.parametrize(("name", "site"), SITES)
def test_site_mean_counts_every_position_once(name: str, site: str) -> None:
    c, layer = case(name), None if site == "image_embeds" else 0
    one, other = (value_of(name, site, layer, which)[0].double() for which in ("base", "source"))
    last = len(one) - 1
    places = [[last], list(range(last + 1))]
    got = site_mean(c.model, [c.base, c.source], site, layer, places)
    torch.testing.assert_close(got, (one[last] + other.sum(dim=0)) / (last + 2), atol=1e-12, rtol=0)
    assert last == 0 or far(got, (one[last] + other.mean(dim=0)) / 2)
    layers, _, head = cell(name, site)
    for inputs in (c.base, c.source):
        mean = {layer: site_mean(c.model, [inputs], site, layer, [[last]]) for layer in layers}
        got = ablated(c.model, c.base, site, layers, [last], "mean", head, mean=mean)
        window = None if site == "image_embeds" else [0, 1]
        assert torch.equal(got, patched(c.model, c.base, inputs, site, window, [last], head))
        assert (inputs is c.base) == torch.equal(got, logits(name, "base"))


@pytest.mark.parametrize("name", CASES)
def test_positions_are_paired_in_order(name: str) -> None:
    c, site = case(name), "question_encoder.mlp_out" if name in BLIP else "language.mlp_out"
    here, there = (range(2, 4), range(3, 5)) if name in BLIP else (range(-2, 0), range(-3, -1))
    new = value_of(name, site, 0)
    new[0, list(here)] = value_of(name, site, 0, "source")[0, list(there)]
    expected = run(c.model, c.base, [("replace", site, 0, None, here, new)])[0]
    assert torch.equal(
        ablated(c.model, c.base, site, [0], here, "resample", other=c.source, other_positions=there), expected
    )
    assert torch.equal(patched_jointly(c.model, c.base, c.source, [(site, 0, None)], here, there), expected)
    crossed = patched_jointly(c.model, c.base, c.source, [(site, 0, None)], here, list(there)[::-1])
    assert far(crossed, expected)
    with pytest.raises(ValueError, match="positions"):
        patched_jointly(c.model, c.base, c.source, [(site, 0, None)], here, [3])


@pytest.mark.parametrize("name", LLAVA)
def test_a_longer_prompt_gives_its_logits_to_a_shorter_one(name: str) -> None:
    c, long = case(name), random_inputs(case(name).model, 20, 9)
    site, last, end = "language.resid_post", last_of(name), long["input_ids"].shape[1] - 1
    top = layer_count(c.model, site) - 1
    assert end != last
    got = patched_jointly(c.model, c.base, long, [(site, top, None)], [last], [end])
    torch.testing.assert_close(got, run(c.model, long)[0], atol=1e-5, rtol=1e-4)
    assert far(got, patched_jointly(c.model, c.base, long, [(site, top, None)], [last], [last]))


@pytest.mark.parametrize("name", CASES)
def test_places_are_patched_together_with_noise_on_either_side(name: str) -> None:
    c, stack = case(name), "question_encoder" if name in BLIP else "language"
    places = [(f"{stack}.attn_head", 0, 1), (f"{stack}.mlp_out", 0, None), ("vision.attn_out", 0, None)]
    add: Edit = ("add", "image_embeds", None, None, None, c.noise)
    values = run(c.model, c.source, read=[(site, layer) for site, layer, _ in places])[1]
    edits: list[Edit] = [("replace", site, layer, head, [2], values[site, layer]) for site, layer, head in places]
    expected = run(c.model, c.base, [add, *edits])[0]
    assert torch.equal(patched_jointly(c.model, c.base, c.source, places, [2], [2], base_noise=c.noise), expected)
    for i in range(3):
        assert (run(c.model, c.base, [add, *edits[:i], *edits[i + 1 :]])[0] - expected).abs().max() > 1e-3
    where = range(c.noise.shape[1])
    got = patched_jointly(c.model, c.base, c.base, [("image_embeds", None, None)], where, where, source_noise=c.noise)
    assert torch.equal(got, run(c.model, c.base, [add])[0])


@pytest.mark.parametrize("name", CASES)
def test_token_embeds_replaced_are_tokens_replaced(name: str) -> None:
    c, last = case(name), case(name).base["input_ids"].shape[1] - 1
    ids = c.base["input_ids"].clone()
    ids[0, [last - 1, last]] = c.source["input_ids"][0, [last, last - 2]]
    expected = run(c.model, {**c.base, "input_ids": ids})[0]
    assert far(expected, logits(name, "base"))
    got = replaced_embeds(c.model, c.base, c.source, "token_embeds", [last - 1, last], [last, last - 2])
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", LLAVA)
def test_token_embeds_under_the_image_have_exactly_no_effect(name: str) -> None:
    c, last = case(name), last_of(name)
    patches = c.noise.shape[1]
    got = replaced_embeds(c.model, c.base, c.source, "token_embeds", range(1, 1 + patches), [last] * patches)
    assert torch.equal(got, logits(name, "base"))


@pytest.mark.parametrize("name", CASES)
def test_image_embeds_replaced_are_the_image_replaced(name: str) -> None:
    c, where = case(name), range(case(name).noise.shape[1])
    expected = run(c.model, {**c.base, "pixel_values": c.source["pixel_values"]})[0]
    assert far(expected, logits(name, "base"))
    for which in ("image_embeds",) if name in BLIP else ("image_embeds", "projector"):
        assert torch.equal(replaced_embeds(c.model, c.base, c.source, which, where, where), expected)
        one = replaced_embeds(c.model, c.base, c.base, which, [1], [2])
        assert (one - replaced_embeds(c.model, c.base, c.base, which, [2], [1])).abs().max() > 1e-3
    with pytest.raises(ValueError, match="embeddings"):
        replaced_embeds(c.model, c.base, c.source, "projector" if name in BLIP else "pixels", [0], [0])
