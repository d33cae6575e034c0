"""Pairs of prompts: what they are, what corrupts them, and where they come from."""

from __future__ import annotations

from vlm_patching.pairs.collection import Pairs
from vlm_patching.pairs.corruptions import CORRUPTED_INPUT, INPUTS, check_corrupted, prompt_for
from vlm_patching.pairs.datasets import DATASETS, PairsSpec, pairs_keys
from vlm_patching.pairs.image_corruptions import IMAGE_CORRUPTIONS, corrupt_images
from vlm_patching.pairs.loading import load, load_pairs
from vlm_patching.pairs.pair import SUBJECT_ROLES, Pair, Prompt, pairs_digest
from vlm_patching.pairs.text_corruptions import replace_constraint, replace_options

__all__ = [
    "CORRUPTED_INPUT",
    "DATASETS",
    "IMAGE_CORRUPTIONS",
    "INPUTS",
    "SUBJECT_ROLES",
    "Pair",
    "Pairs",
    "PairsSpec",
    "Prompt",
    "check_corrupted",
    "corrupt_images",
    "load",
    "load_pairs",
    "pairs_digest",
    "pairs_keys",
    "prompt_for",
    "replace_constraint",
    "replace_options",
]
