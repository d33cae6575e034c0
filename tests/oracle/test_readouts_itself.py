"""The read-out oracle's own sanity, on random models of two shapes of each family."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
from torch import Tensor

from .patching import Edit, all_sites, layer_count, patched, run
from .readouts import answer_log_probability, answer_rank, extended, lens
from .test_attention_itself import BLIP, CASES, LLAVA, inputs_of, logits, model_of

LENS = {name: "answer_decoder.resid_post" if name in BLIP else "language.resid_post" for name in CASES}
TOKENS = {name: "decoder_input_ids" if name in BLIP else "input_ids" for name in CASES}
SITES = [(name, site) for name in CASES for site in all_sites(model_of(name)) if not site.endswith("_head")]


def next_log_probabilities(name: str, inputs: dict[str, Tensor], edits: Sequence[Edit] = ()) -> Tensor:
    """Return log-probabilities of the next token, ``[vocab]``."""
    return run(model_of(name), inputs, edits)[0].double().log_softmax(dim=-1)


def one_edit(name: str, site: str, head: int | None = None) -> Edit:
    """Return the edit that takes the last position at layer 0, or all of ``image_embeds``, from another prompt."""
    layer = None if site == "image_embeds" else 0
    value = run(model_of(name), inputs_of(name, seed=11), read=[(site, layer)])[1][site, layer]
    return ("replace", site, layer, head, range(value.shape[1]) if layer is None else [value.shape[1] - 1], value)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_lens_at_the_last_layer_and_position_is_exactly_the_logits(name: str, padded: bool) -> None:
    last = layer_count(model_of(name), LENS[name]) - 1
    inputs = inputs_of(name, padded)
    got = lens(model_of(name), inputs, LENS[name], last, inputs[TOKENS[name]].shape[1] - 1)
    assert torch.equal(got, logits(name, padded))
    assert got.dtype == torch.float32


@pytest.mark.parametrize("name", CASES)
def test_lens_at_a_layer_equals_the_model_cut_after_it(name: str) -> None:
    model, inputs, site = model_of(name), inputs_of(name), LENS[name]
    found = []
    for layer in range(layer_count(model, site)):
        cut = copy.deepcopy(model)
        if name in BLIP:
            del cut.text_decoder.bert.encoder.layer[layer + 1 :]
        else:
            cut.model.language_model.config.num_hidden_layers = layer + 1
        found.append(run(cut, inputs)[0])
        got = lens(model, inputs, site, layer, inputs[TOKENS[name]].shape[1] - 1)
        torch.testing.assert_close(got, found[-1])
    assert all((one - other).abs().max() > 1e-2 for one, other in permutations(found, 2))


@pytest.mark.parametrize("name", CASES)
def test_lens_at_an_earlier_position_equals_the_prompt_cut_after_it(name: str) -> None:
    model, inputs, site = model_of(name), inputs_of(name), LENS[name]
    last, position = layer_count(model, site) - 1, inputs[TOKENS[name]].shape[1] - 3
    cut = {**inputs, TOKENS[name]: inputs[TOKENS[name]][:, : position + 1]}
    if name in LLAVA:
        cut["attention_mask"] = inputs["attention_mask"][:, : position + 1]
    torch.testing.assert_close(lens(model, inputs, site, last, position), run(model, cut)[0])
    assert (lens(model, inputs, site, last, position) - logits(name)).abs().max() > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_lens_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no logit lens"):
        lens(model_of(name), inputs_of(name), "vision.resid_post", 0, 0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_one_token_is_scored_by_the_log_softmax(name: str, padded: bool) -> None:
    expected = logits(name, padded).double().log_softmax(dim=-1)
    for token in (3, 7, 20):
        got = answer_log_probability(model_of(name), inputs_of(name, padded), [token])
        assert got == pytest.approx(expected[token].item(), abs=1e-9)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_three_tokens_are_scored_by_the_chain_rule(name: str, padded: bool) -> None:
    inputs, tokens = inputs_of(name, padded), [7, 4, 11]
    single, expected = [], 0.0
    for i, token in enumerate(tokens):
        longer = dict(inputs)
        mask = TOKENS[name].replace("input_ids", "attention_mask")
        for earlier in tokens[:i]:
            longer[TOKENS[name]] = torch.cat([longer[TOKENS[name]], torch.tensor([[earlier]])], dim=1)
            if mask in longer:
                longer[mask] = torch.cat([longer[mask], torch.tensor([[1]])], dim=1)
        expected += next_log_probabilities(name, longer)[token].item()
        single.append(next_log_probabilities(name, inputs)[token].item())
    assert answer_log_probability(model_of(name), inputs, tokens) == pytest.approx(expected, abs=1e-5)
    assert abs(expected - sum(single)) > 1e-2
    assert abs(expected - answer_log_probability(model_of(name), inputs, [4, 7, 11])) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_two_token_answers_with_one_first_token_share_out_its_probability(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    vocabulary = range(model.config.text_config.vocab_size)
    pairs = [answer_log_probability(model, inputs, [5, second]) for second in vocabulary]
    expected = answer_log_probability(model, inputs, [5])
    assert torch.tensor(pairs).logsumexp(0).item() == pytest.approx(expected, abs=1e-5)
    assert max(pairs) < expected


@pytest.mark.parametrize(("name", "site"), SITES)
def test_an_edit_of_the_prompt_holds_under_teacher_forcing(name: str, site: str) -> None:
    model, tokens, expected = model_of(name), [7, 4], 0.0
    edit = one_edit(name, site)
    for i, token in enumerate(tokens):
        base, source = (extended(model, inputs_of(name, seed=seed), tokens[:i]) for seed in (10, 11))
        output = patched(model, base, source, site, edit[2], list(edit[4] or ()))
        expected += output.double().log_softmax(dim=-1)[token].item()
    base = inputs_of(name)
    got = answer_log_probability(model, base, tokens, [edit])
    assert got == pytest.approx(expected, abs=1e-5)
    assert abs(got - answer_log_probability(model, base, tokens)) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_position_minus_one_is_the_prompt_s_last_and_no_answer_token_s(name: str) -> None:
    kind, site, layer, head, positions, value = one_edit(name, LENS[name])
    model, inputs = model_of(name), inputs_of(name)
    scores = [
        answer_log_probability(model, inputs, [7, 4, 5], [(kind, site, layer, head, where, value)])
        for where in (positions, [-1], [-2])
    ]
    assert positions == [inputs[TOKENS[name]].shape[1] - 1]
    assert scores[0] == scores[1]
    assert abs(scores[0] - scores[2]) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_an_edit_of_the_last_prompt_position_alone_settles_the_first_token(name: str) -> None:
    model, base, source = model_of(name), inputs_of(name), inputs_of(name, seed=11)
    site, last = LENS[name], layer_count(model_of(name), LENS[name]) - 1
    value = run(model, source, read=[(site, last)])[1][site, last]
    edit = ("replace", site, last, None, [-1], value)
    first = next_log_probabilities(name, source)[7].item()
    second = next_log_probabilities(name, extended(model, base, [7]))[4].item()
    got = answer_log_probability(model, base, [7, 4], [edit])
    assert got == pytest.approx(first + second, abs=1e-5)
    assert abs(got - answer_log_probability(model, base, [7, 4])) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_edits_of_heads_and_noise_combine(name: str) -> None:
    model, inputs, tokens = model_of(name), inputs_of(name), [7, 4]
    stack = LENS[name].split(".")[0]
    images = run(model, inputs, read=[("image_embeds", None)])[1]["image_embeds", None]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noised: Edit = ("add", "image_embeds", None, None, None, noise)
    heads = [one_edit(name, f"{stack}.attn_head", head) for head in (0, 1)]
    scores = [
        answer_log_probability(model, inputs, tokens, edits)
        for edits in ([], [noised], heads[:1], heads[1:], heads, [noised, *heads])
    ]
    assert all(abs(one - other) > 1e-4 for one, other in permutations(scores, 2))


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_scored_is_refused(name: str) -> None:
    kind, site, layer, head, positions, value = one_edit(name, LENS[name])
    model, inputs = model_of(name), inputs_of(name)
    with pytest.raises(ValueError, match="at least one token"):
        answer_log_probability(model, inputs, [])
    for wrong in (value[:, 1:], torch.cat([value, value[:, :1]], dim=1), value[:, :, 1:]):
        with pytest.raises(ValueError, match="shape"):
            answer_log_probability(model, inputs, [7, 4], [(kind, site, layer, head, positions, wrong)])
    with pytest.raises(ValueError, match="which positions"):
        answer_log_probability(model, inputs, [7, 4], [(kind, site, layer, head, None, value)])
    with pytest.raises(IndexError):
        answer_log_probability(model, inputs, [7, 4], [(kind, site, layer, head, [value.shape[1]], value)])
    assert torch.equal(run(model, inputs)[0], logits(name))


@pytest.mark.parametrize("name", CASES)
def test_one_token_answers_rank_as_their_logits_do(name: str) -> None:
    vocabulary = [[token] for token in range(model_of(name).config.text_config.vocab_size)]
    order = logits(name).argsort(descending=True).tolist()
    for rank in (1, 4, len(order)):
        assert answer_rank(model_of(name), inputs_of(name), [order[rank - 1]], vocabulary) == rank


@pytest.mark.parametrize("name", CASES)
def test_rank_counts_what_is_strictly_more_probable(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    answers = [[7], [4, 5], [9, 3, 8], [6, 6]]
    ordered = sorted(answers, key=lambda tokens: -answer_log_probability(model, inputs, tokens))
    for rank, answer in enumerate(ordered, start=1):
        others = [tokens for tokens in answers if tokens != answer]
        assert answer_rank(model, inputs, answer, others) == rank
        assert answer_rank(model, inputs, answer, [*others, answer, answer]) == rank
    assert answer_rank(model, inputs, ordered[-1], []) == 1


@pytest.mark.parametrize("name", CASES)
def test_an_edit_moves_the_rank_to_that_of_the_edited_run(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    vocabulary = [[token] for token in range(model.config.text_config.vocab_size)]
    edit = one_edit(name, LENS[name])
    before, after = logits(name), run(model, inputs, [edit])[0]
    ranks = [[int((vector > vector[token]).sum()) + 1 for vector in (before, after)] for token in (3, 4, 5, 6)]
    assert any(old != new for old, new in ranks)
    for token, (old, new) in zip((3, 4, 5, 6), ranks, strict=True):
        assert answer_rank(model, inputs, [token], vocabulary) == old
        assert answer_rank(model, inputs, [token], vocabulary, iter([edit])) == new
