"""Logit lens and the probability of answers of several tokens, one forward pass each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import BlipForQuestionAnswering

from .patching import Edit, Model, run

# The stack that teacher forcing lengthens.
EXTENDED = ("language", "answer_decoder")


def lens(model: Model, inputs: dict[str, Tensor], site: str, layer: int, position: int) -> Tensor:
    """Return the logits, float32 ``[vocab]``, that the model's own head reads off the residual stream.

    ``language.resid_post`` goes through the final norm and ``lm_head``, ``answer_decoder.resid_post`` through ``cls``.
    """
    state = run(model, inputs, read=[(site, layer)])[1][site, layer]
    with torch.no_grad():
        if site == "language.resid_post":
            logits = model.lm_head(model.model.language_model.norm(state))
        elif site == "answer_decoder.resid_post":
            logits = model.text_decoder.cls(state)
        else:
            raise ValueError(f"no logit lens at {site}")
    return logits[0, position].float()


def extended(model: Model, inputs: dict[str, Tensor], tokens: Sequence[int]) -> dict[str, Tensor]:
    """Return the inputs with tokens appended to the sequence whose last position is read out."""
    prefix = "decoder_" if isinstance(model, BlipForQuestionAnswering) else ""
    ids, mask = prefix + "input_ids", prefix + "attention_mask"
    new = torch.tensor([list(tokens)], dtype=torch.long, device=inputs[ids].device)
    longer = {**inputs, ids: torch.cat([inputs[ids], new], dim=1)}
    if inputs.get(mask) is not None:
        longer[mask] = torch.cat([inputs[mask], torch.ones_like(new)], dim=1)
    return longer


def extended_edit(model: Model, longer: dict[str, Tensor], added: int, edit: Edit) -> Edit:
    """Return an edit of the prompt as an edit of the prompt with ``added`` tokens after it.

    The listed positions keep their values, and -1 is still the prompt's last position. Everywhere else the value is
    the run's own; it is not written, but an activation is replaced by one of its own length.
    """
    kind, site, layer, head, positions, new = edit
    if kind != "replace" or site.split(".")[0] not in EXTENDED:
        return edit
    if positions is None:
        raise ValueError(f"{site}: which positions are replaced?")
    value = run(model, longer, read=[(site, layer)])[1][site, layer]
    prompt = value[:, : value.shape[1] - added]
    if new.shape != prompt.shape:
        raise ValueError(f"{site}: the edit has shape {tuple(new.shape)}, the activation {tuple(prompt.shape)}")
    prompt.copy_(new)
    return kind, site, layer, head, [range(prompt.shape[1])[position] for position in positions], value


def answer_log_probability(
    model: Model, inputs: dict[str, Tensor], tokens: Sequence[int], edits: Iterable[Edit] = ()
) -> float:
    """Return the summed log-probability of an answer's tokens under teacher forcing; no end token is scored.

    Parameters
    ----------
    model : Model
        In eval mode.
    inputs : dict
        The prompt: what the model's forward takes, batch 1.
    tokens : sequence of int
        The answer. All but the last are appended to the prompt (LLaVA) or to the decoder's tokens (BLIP).
    edits : iterable of Edit
        As in `run`, with positions and values of the prompt alone. Answer tokens are never edited, save through what
        they attend to.
    """
    if not tokens:
        raise ValueError("an answer needs at least one token")
    longer = extended(model, inputs, tokens[:-1])
    all_edits = [extended_edit(model, longer, len(tokens) - 1, edit) for edit in edits]
    output: list[Tensor] = []
    head: nn.Module = model.text_decoder.cls if isinstance(model, BlipForQuestionAnswering) else model.lm_head
    handle = head.register_forward_hook(lambda _, __, logits: output.append(logits))
    try:
        run(model, longer, all_edits)
    finally:
        handle.remove()
    log_probabilities = output[0][0, -len(tokens) :].float().double().log_softmax(dim=-1)
    return sum(row[token].item() for row, token in zip(log_probabilities, tokens, strict=True))


def answer_rank(
    model: Model,
    inputs: dict[str, Tensor],
    answer_tokens: Sequence[int],
    candidates: Iterable[Sequence[int]],
    edits: Iterable[Edit] = (),
) -> int:
    """Return 1 + the number of candidates whose summed log-probability is strictly larger than the answer's."""
    edits = list(edits)
    answer = answer_log_probability(model, inputs, answer_tokens, edits)
    return 1 + sum(answer_log_probability(model, inputs, tokens, edits) > answer for tokens in candidates)
