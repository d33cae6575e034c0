"""Pairs of prompts: what they are, what corrupts them, and where they come from."""

from __future__ import annotations

from typing import Any

from vlm_patching.errors import SpecError, nearest, unknown
from vlm_patching.pairs.corruptions import CORRUPTED_INPUT, INPUTS, check_corrupted, prompt_for
from vlm_patching.pairs.datasets import DATASETS
from vlm_patching.pairs.image_corruptions import IMAGE_CORRUPTIONS, corrupt_images
from vlm_patching.pairs.pair import SUBJECT_ROLES, Pair, Prompt, pairs_digest
from vlm_patching.pairs.text_corruptions import replace_constraint, replace_options

__all__ = [
    "CORRUPTED_INPUT",
    "DATASETS",
    "IMAGE_CORRUPTIONS",
    "INPUTS",
    "SUBJECT_ROLES",
    "Pair",
    "Prompt",
    "check_corrupted",
    "corrupt_images",
    "load_pairs",
    "pairs_digest",
    "prompt_for",
    "replace_constraint",
    "replace_options",
]


def load_pairs(dataset: str, n: int | None = None, seed: int = 0, **options: Any) -> list[Pair]:
    """Pairs from a dataset, by its name.

    Parameters
    ----------
    dataset
        `shapes` or `folder`; `vlm-patching datasets` lists them.
    n
        How many pairs; what the dataset gives by itself where not given.
    seed
        Same seed, same pairs.
    **options
        The dataset's own: `questions`, `aligned`, `constraints` and `answers` for shapes, `path` for folder.

    Returns
    -------
    list of Pair

    Examples
    --------
    >>> pairs = load_pairs("shapes", n=2, seed=0)
    >>> pairs[0].clean.text == pairs[0].corrupted.text
    False
    """
    if dataset not in DATASETS:
        raise unknown("dataset", dataset, DATASETS)
    known = DATASETS[dataset].options
    for option in options:
        if option not in known:
            raise SpecError(
                f"Dataset {dataset!r} has no option {option!r}.{nearest(option, known)} It has: {', '.join(known)}."
            )
    if n is not None and n < 1:
        raise SpecError(f"pairs.n must be at least 1, not {n}.")
    return DATASETS[dataset].load(n=n, seed=seed, **options)
