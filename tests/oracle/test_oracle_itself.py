"""The oracle's own sanity, on random models of two shapes of each family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor

from .patching import (
    Model,
    all_sites,
    build_blip,
    build_llava,
    head_count,
    layer_count,
    likely_tokens,
    metrics,
    patched,
    random_inputs,
    run,
)

torch.set_num_threads(1)

CASES = ("blip-a", "blip-b", "llava-a", "llava-b")
BLIP = CASES[:2]
LLAVA = CASES[2:]
READ_OUT = {"blip": "answer_decoder.resid_post", "llava": "language.resid_post"}


@dataclass(frozen=True)
class Case:
    """A model, two prompts of one length, and image noise."""

    model: Model
    base: dict[str, Tensor]
    source: dict[str, Tensor]
    noise: Tensor


@cache
def case(name: str) -> Case:
    """Return a case, built once."""
    model = {
        "blip-a": lambda: build_blip(0),
        "blip-b": lambda: build_blip(1, layers=2, heads=2, width=48, vision_layers=3, image_size=16, vocab=31),
        "llava-a": lambda: build_llava(2, num_key_value_heads=2),
        "llava-b": lambda: build_llava(3, layers=2, heads=6, width=36, head_dim=8, vision_layers=2, image_size=32),
    }[name]()
    lengths = (5, 1) if name.endswith("a") else (7, 3)
    base, source = (random_inputs(model, seed, *lengths) for seed in (10, 11))
    if "decoder_input_ids" in base:
        source["decoder_input_ids"] = base["decoder_input_ids"]
    images = run(model, base, read=[("image_embeds", None)])[1]["image_embeds", None]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(12))
    return Case(model, base, source, noise)


def logits(name: str, which: str) -> Tensor:
    """Return the read-out logits of a run without edits."""
    return run(case(name).model, getattr(case(name), which))[0]


def cells_of(model: Model, site: str) -> list[tuple[int | None, int | None]]:
    """Return every (layer, head) of a site; head None where it has none."""
    if site == "image_embeds":
        return [(None, None)]
    heads = range(head_count(model, site)) if site.endswith("_head") else [None]
    return list(product(range(layer_count(model, site)), heads))


def add(noise: Tensor) -> tuple:
    """Return the edit that adds noise to the image embeddings."""
    return ("add", "image_embeds", None, None, None, noise)


SITES = [(name, site) for name in CASES for site in all_sites(case(name).model)]


@pytest.mark.parametrize("name", BLIP)
def test_blip_run_equals_its_three_parts_called_by_hand(name: str) -> None:
    c = case(name)
    with torch.no_grad():
        images = c.model.vision_model(c.base["pixel_values"]).last_hidden_state
        for noise in (torch.zeros_like(images), c.noise):
            question = c.model.text_encoder(
                c.base["input_ids"], attention_mask=c.base["attention_mask"], encoder_hidden_states=images + noise
            )[0]
            expected = c.model.text_decoder(c.base["decoder_input_ids"], encoder_hidden_states=question).logits[0, -1]
            torch.testing.assert_close(run(c.model, c.base, [add(noise)])[0], expected)


@pytest.mark.parametrize("name", LLAVA)
def test_llava_run_equals_embeddings_merged_by_hand(name: str) -> None:
    c = case(name)
    is_image = c.base["input_ids"] == c.model.config.image_token_id
    with torch.no_grad():
        images = c.model.get_image_features(c.base["pixel_values"]).pooler_output[0]
        for noise in (torch.zeros_like(c.noise), c.noise):
            embeds = c.model.get_input_embeddings()(c.base["input_ids"])
            embeds[is_image] = images + noise[0]
            expected = c.model(inputs_embeds=embeds, attention_mask=c.base["attention_mask"]).logits[0, -1]
            torch.testing.assert_close(run(c.model, c.base, [add(noise)])[0], expected)


@pytest.mark.parametrize("name", CASES)
def test_last_resid_post_at_read_out_gives_exactly_the_source_logits(name: str) -> None:
    c, site = case(name), READ_OUT[name.split("-")[0]]
    last = c.base["decoder_input_ids" if name in BLIP else "input_ids"].shape[1] - 1
    got = patched(c.model, c.base, c.source, site, layer_count(c.model, site) - 1, [last])
    assert torch.equal(got, logits(name, "source"))
    assert not torch.equal(got, logits(name, "base"))


@pytest.mark.parametrize("name", BLIP)
def test_whole_last_question_encoder_layer_gives_exactly_the_source_logits(name: str) -> None:
    c, site = case(name), "question_encoder.resid_post"
    positions = range(c.base["input_ids"].shape[1])
    got = patched(c.model, c.base, c.source, site, layer_count(c.model, site) - 1, positions)
    assert torch.equal(got, logits(name, "source"))


@pytest.mark.parametrize("name", CASES)
def test_all_image_embeds_undo_the_noise_and_swap_the_image(name: str) -> None:
    c, positions = case(name), range(case(name).noise.shape[1])
    noised = run(c.model, c.base, [add(c.noise)])[0]
    assert (noised - logits(name, "base")).abs().max() > 1e-2
    restored = patched(c.model, c.base, c.base, "image_embeds", None, positions, base_noise=c.noise)
    assert torch.equal(restored, logits(name, "base"))
    broken = patched(c.model, c.base, c.base, "image_embeds", None, positions, source_noise=c.noise)
    assert torch.equal(broken, noised)
    other = {**c.base, "pixel_values": c.source["pixel_values"]}
    swapped = patched(c.model, c.base, other, "image_embeds", None, positions)
    assert torch.equal(swapped, run(c.model, other)[0])


@pytest.mark.parametrize(("name", "site"), SITES)
def test_own_value_changes_nothing(name: str, site: str) -> None:
    c = case(name)
    expected = run(c.model, c.base)[0]
    for layer, head in cells_of(c.model, site):
        value = run(c.model, c.base, read=[(site, layer)])[1][site, layer]
        edit = ("replace", site, layer, head, range(value.shape[1]), value)
        assert torch.equal(run(c.model, c.base, [edit])[0], expected)


@pytest.mark.parametrize(("name", "site"), SITES)
def test_effects_of_cells_differ_by_more_than_a_thousandth(name: str, site: str) -> None:
    c = case(name)
    answer, foil = likely_tokens(logits(name, "base"), logits(name, "source"))
    cells = cells_of(c.model, site)
    values = run(c.model, c.source, read=[(site, layer) for layer, _ in cells])[1]
    found = []
    for layer, head in cells:
        value = values[site, layer]
        for position in sorted({0, value.shape[1] // 2, value.shape[1] - 1}):
            edit = ("replace", site, layer, head, [position], value)
            found.append(metrics(run(c.model, c.base, [edit])[0], answer, foil)["probability"])
    assert max(found) - min(found) > 1e-3


@pytest.mark.parametrize(("name", "site"), [(name, site) for name, site in SITES if site.endswith("_head")])
def test_all_heads_together_equal_the_context_and_no_single_head_does(name: str, site: str) -> None:
    c = case(name)
    context = site.replace("_head", "_context")
    layer = 0 if site.startswith("vision") else layer_count(c.model, site) - 1
    value = run(c.model, c.source, read=[(site, layer)])[1][site, layer]
    positions = [value.shape[1] - 1]
    edits = [("replace", site, layer, head, positions, value) for head in range(head_count(c.model, site))]
    whole = patched(c.model, c.base, c.source, context, layer, positions)
    assert torch.equal(run(c.model, c.base, edits)[0], whole)
    assert all(not torch.equal(run(c.model, c.base, [edit])[0], whole) for edit in edits)


QUERIES = {
    "blip": {
        "vision": "vision_model.encoder.layers.0.self_attn.qkv",
        "question_encoder": "text_encoder.encoder.layer.0.{}.self.query",
        "answer_decoder": "text_decoder.bert.encoder.layer.0.{}.self.query",
    },
    "llava": {
        "vision": "model.vision_tower.encoder.layers.0.self_attn.q_proj",
        "language": "model.language_model.layers.0.self_attn.q_proj",
    },
}


@pytest.mark.parametrize(("name", "site"), [(name, site) for name, site in SITES if site.endswith("_head")])
def test_a_change_of_one_head_query_moves_that_head_slice_alone(name: str, site: str) -> None:
    c = case(name)
    stack, component = site.split(".")
    path = QUERIES[name.split("-")[0]][stack].format("crossattention" if "cross" in component else "attention")
    weight = c.model.get_submodule(path).weight
    inputs = random_inputs(c.model, 13, 6, 4)
    before = run(c.model, inputs, read=[(site, 0)])[1][site, 0]
    width = before.shape[-1] // head_count(c.model, site)
    for head in range(head_count(c.model, site)):
        rows = weight.data[head * width : (head + 1) * width]
        kept = rows.clone()
        rows.mul_(1.5)
        after = run(c.model, inputs, read=[(site, 0)])[1][site, 0]
        rows.copy_(kept)
        moved = (after != before)[0].any(dim=0).nonzero().flatten().tolist()
        assert moved == list(range(head * width, (head + 1) * width))


EQUIVALENT = [
    ("attn_context", "attn_out"),
    ("cross_attn_context", "cross_attn_out"),
    ("mlp_neuron", "mlp_out"),
    ("mlp_block_out", "resid_post"),
]


@pytest.mark.parametrize("name", CASES)
def test_a_linear_map_may_be_patched_at_either_end(name: str) -> None:
    c = case(name)
    compared = 0
    for one, other in EQUIVALENT:
        for site in all_sites(c.model):
            stack, _, component = site.partition(".")
            if component != one:
                continue
            got, expected = (patched(c.model, c.base, c.source, f"{stack}.{x}", 0, [0]) for x in (one, other))
            torch.testing.assert_close(got, expected)
            compared += 1
    assert compared == (9 if name in BLIP else 3)


@pytest.mark.parametrize("name", CASES)
def test_mlp_neurons_are_the_intermediate_layer(name: str) -> None:
    c = case(name)
    text = c.model.config.text_config
    sites = [site for site in all_sites(c.model) if site.endswith("mlp_neuron")]
    values = run(c.model, c.base, read=[(site, 0) for site in sites])[1]
    assert len(sites) == (2 if name in BLIP else 1)
    assert text.intermediate_size != text.hidden_size
    assert all(value.shape[-1] == text.intermediate_size for value in values.values())


@pytest.mark.parametrize("name", CASES)
def test_contributions_read_add_up_to_the_residual_stream(name: str) -> None:
    c = case(name)
    values = run(c.model, c.base, read=[(s, 0) for s in all_sites(c.model) if "." in s] + [("vision.resid_pre", 1)])[1]
    for stack in ("vision",) if name in BLIP else ("vision", "language"):
        pre, attn, mlp, post = (values[f"{stack}.{x}", 0] for x in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        torch.testing.assert_close(pre + attn + mlp, post)
    assert torch.equal(values["vision.resid_post", 0], values["vision.resid_pre", 1])
    for stack, root in (("question_encoder", "text_encoder"), ("answer_decoder", "text_decoder.bert")):
        if name not in BLIP:
            break
        layer = c.model.get_submodule(f"{root}.encoder.layer.0")
        state = values[f"{stack}.resid_pre", 0]
        for part, module in (("attn", layer.attention), ("cross_attn", layer.crossattention), ("mlp", layer)):
            with torch.no_grad():
                state = module.output.LayerNorm(state + values[f"{stack}.{part}_out", 0])
            torch.testing.assert_close(state, values[f"{stack}.{part}_block_out", 0])
        assert torch.equal(values[f"{stack}.mlp_block_out", 0], values[f"{stack}.resid_post", 0])


@pytest.mark.parametrize("name", LLAVA)
def test_a_vision_layer_after_the_one_read_has_exactly_no_effect(name: str) -> None:
    c = case(name)
    last = layer_count(c.model, "vision.resid_post") - 1
    assert c.model.config.vision_feature_layer == -2
    positions = range(c.noise.shape[1] + 1)
    for site in (site for site in all_sites(c.model) if site.startswith("vision.")):
        for head in range(head_count(c.model, site)) if site.endswith("_head") else [None]:
            got = patched(c.model, c.base, c.source, site, last, positions, head)
            assert torch.equal(got, logits(name, "base"))


@pytest.mark.parametrize("name", LLAVA)
def test_the_vision_layer_read_carries_the_whole_image_without_its_class_token(name: str) -> None:
    c = case(name)
    site, layer = "vision.resid_post", layer_count(c.model, "vision.resid_post") - 2
    other = {**c.base, "pixel_values": c.source["pixel_values"]}
    got = patched(c.model, c.base, other, site, layer, range(1, c.noise.shape[1] + 1))
    assert torch.equal(got, run(c.model, other)[0])
    assert torch.equal(patched(c.model, c.base, other, site, layer, [0]), logits(name, "base"))


def test_the_last_vision_layer_matters_where_the_model_reads_it() -> None:
    model = build_llava(4, vision_feature_layer=-1)
    base, source = random_inputs(model, 0), random_inputs(model, 1)
    got = patched(model, base, source, "vision.mlp_out", 2, [1, 2])
    assert (got - run(model, base)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_a_window_replaces_each_layer_by_its_own_source_value(name: str) -> None:
    c = case(name)
    site = "question_encoder.mlp_out" if name in BLIP else "language.mlp_out"
    positions = range(c.base["input_ids"].shape[1])
    values = run(c.model, c.source, read=[(site, 0), (site, 1)])[1]
    edits = [("replace", site, layer, None, positions, values[site, layer]) for layer in (0, 1)]
    got = patched(c.model, c.base, c.source, site, [0, 1], positions)
    assert torch.equal(got, run(c.model, c.base, edits)[0])
    assert all(not torch.equal(got, patched(c.model, c.base, c.source, site, x, positions)) for x in (0, 1))


@pytest.mark.parametrize("name", CASES)
def test_a_run_leaves_no_edit_behind_and_the_inputs_as_they_were(name: str) -> None:
    c = case(name)
    kept = {key: value.clone() for key, value in c.base.items()}
    before = logits(name, "base")
    site = "question_encoder.resid_post" if name in BLIP else "vision.resid_post"
    assert not torch.equal(patched(c.model, c.base, c.source, site, 0, [1], base_noise=c.noise), before)
    assert torch.equal(logits(name, "base"), before)
    assert all(torch.equal(value, c.base[key]) for key, value in kept.items())


def test_models_and_inputs_come_from_the_seed_alone() -> None:
    torch.manual_seed(0)
    one = build_blip(7)
    torch.manual_seed(1)
    two, other = build_blip(7), build_blip(8)
    inputs = random_inputs(one, 0)
    assert torch.equal(run(one, inputs)[0], run(two, inputs)[0])
    assert not torch.equal(run(one, inputs)[0], run(other, inputs)[0])


def test_metrics_agree_with_a_softmax() -> None:
    vector = torch.tensor([1.0, -2.0, 0.5, 3.0])
    got = metrics(vector, 3, 1)
    assert got["probability"] == pytest.approx(vector.softmax(0)[3].item(), rel=1e-6)
    assert got["log_probability"] == pytest.approx(vector.log_softmax(0)[3].item(), rel=1e-6)
    assert got["logit_difference"] == 5.0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("replace", "vision.resid_post", 0, None, [0], torch.zeros(1, 1, 32)), "shape"),
        (("replace", "vision.attn_head", 0, None, [0], torch.zeros(1, 10, 32)), "head is None"),
        (("replace", "vision.attn_out", 0, 1, [0], torch.zeros(1, 10, 32)), "head is 1"),
        (("add", "vision.attn_out", 0, None, None, torch.zeros(1, 10, 32)), "noise"),
        (("scale", "image_embeds", None, None, None, torch.zeros(1, 10, 32)), "unknown edit"),
        (("replace", "image_embeds", 0, None, [0], torch.zeros(1, 10, 32)), "no layers"),
    ],
)
def test_an_edit_that_cannot_be_meant_is_refused(edit: tuple, message: str) -> None:
    c = case("blip-a")
    with pytest.raises(ValueError, match=message):
        run(c.model, c.base, [edit])
    assert torch.equal(run(c.model, c.base)[0], logits("blip-a", "base"))
