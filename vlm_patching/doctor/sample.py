"""A pair of prompts that any model can be tried on, made by the package itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlm_patching.errors import SpecError
from vlm_patching.inputs import EncodedPair, encode_pair
from vlm_patching.models import ModelDescription
from vlm_patching.pairs import Pair, Prompt, load_pairs
from vlm_patching.positions import Position

WORDS = (("yes", "no"), ("left", "right"), ("one", "two"), ("a", "b"))
"""Answers and foils for tokenizers that do not know the pair's own."""
_SHOWN = 2
"""Image positions of one tile that are shown at each end of their run."""


def sample_pair(description: ModelDescription) -> Pair:
    """Two pictures and two questions that differ in the order of two words, or the questions alone.

    Raises
    ------
    SpecError
        The model's processor and the family's map do not agree about a prompt.
    """
    made = load_pairs("shapes", n=1, seed=0)[0]
    foil, answer = (made.spans[name] for name in ("foil_option", "answer_option"))
    text = made.clean.text
    swapped = (
        text[: foil[0]] + text[slice(*answer)] + text[foil[1] : answer[0]] + text[slice(*foil)] + text[answer[1] :]
    )
    made = replace(made, id="sample", corrupted=Prompt(made.corrupted.image, swapped), spans_corrupted={})
    architecture = description.architecture
    if architecture.image is None:
        clean, corrupted = (Prompt(None, prompt.text) for prompt in (made.clean, made.corrupted))
        made = replace(made, clean=clean, corrupted=corrupted, regions={})
    classes = list(architecture.prompting.classes)[:2]
    wrong: list[SpecError] = []
    for known, other in [tuple(classes)] if classes else [(made.answer, made.foil), *WORDS]:
        try:
            pair = replace(made, answer=known, foil=other)
            encode_pair(pair, description, ())
        except SpecError as error:
            wrong.append(error)
        else:
            return pair
    raise wrong[0]


def position_rows(encoded: EncodedPair) -> list[dict[str, Any]]:
    """What every position is, stack by stack; of a long run of one tile's image positions the first and the last."""
    rows: list[dict[str, Any]] = []
    for name, stack in encoded.positions.items():
        if name == "token_embeds":  # as those of the text stack
            continue
        start = 0
        while start < len(stack.positions):
            stop = _end_of_run(stack.positions, start)
            numbers = list(range(start, stop))
            if len(numbers) > 2 * _SHOWN + 1:
                numbers = [*numbers[:_SHOWN], -1, *numbers[-_SHOWN:]]
            for number in numbers:
                if number == -1:
                    rows.append(_row(name, "…", Position(f"{stop - start} in all", "", "", "")))
                else:
                    rows.append(_row(name, number, stack.positions[number]))
            start = stop
    return rows


def _end_of_run(positions: Sequence[Position], start: int) -> int:
    """Where the positions end that are of the same picture and tile as one; behind it, where it is text."""
    first, stop = positions[start], start + 1
    alike = (first.modality, first.image, first.tile)
    while first.modality == "image" and stop < len(positions):
        there = positions[stop]
        if (there.modality, there.image, there.tile) != alike:
            break
        stop += 1
    return stop


def _row(stack: str, index: int | str, position: Position) -> dict[str, Any]:
    image = position.modality == "image"
    return {
        "stack": stack,
        "index": index,
        "label": position.label,
        "token": position.token,
        "modality": position.modality,
        "role": position.role,
        "image": position.image if image else "",
        "tile": position.tile if image else "",
        "row": position.row if image and position.row >= 0 else "",
        "col": position.col if image and position.col >= 0 else "",
        "box": list(position.box) if position.box else "",
    }
