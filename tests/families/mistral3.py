"""Mistral 3: Pixtral's tower, whose patches are merged 2 × 2 by a learned layer, and Mistral or Ministral 3, whose
queries grow with their position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Ministral3Config, Mistral3Config, Mistral3ForConditionalGeneration, PreTrainedConfig

from tests.families import kit, pixtral

PATCH, MERGE, STEP = 8, 2, 16
"""STEP: after how many positions Ministral's queries grow."""


def _save(folder: Path, processor: Any, text: PreTrainedConfig) -> None:
    config = Mistral3Config(
        vision_config=pixtral.vision_config(PATCH),
        text_config=text,
        image_token_index=processor.image_token_id,
        spatial_merge_size=MERGE,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    model = Mistral3ForConditionalGeneration(config)
    kit.randomise(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _build(folder: Path) -> None:
    processor = pixtral.processor(PATCH, MERGE)
    _save(folder, processor, pixtral.text_config(processor.tokenizer))


def _build_ministral(folder: Path) -> None:
    processor = pixtral.processor(PATCH, MERGE)
    known = pixtral.text_config(processor.tokenizer).to_diff_dict()
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": STEP,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    known = {name: value for name, value in known.items() if name not in ("model_type", "rope_parameters")}
    _save(folder, processor, Ministral3Config(**known, rope_parameters=rope))


KNOWN = (pixtral.known("mistral3", _build), pixtral.known("mistral3_ministral", _build_ministral))
