"""Qwen3.5: a text of which most layers have a recurrent memory (a gated delta rule) in place of attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from tests.families import kit, qwen2_vl, qwen3_vl

MEMORY = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def build(folder: Path) -> None:
    words = qwen2_vl.tokenizer()
    turning = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5, "mrope_section": [2, 2, 1]}
    text = {**qwen3_vl.text_sizes(words), **MEMORY, "rope_parameters": turning}
    vision = {name: size for name, size in qwen3_vl.VISION.items() if name != "deepstack_visual_indexes"}
    config = Qwen3_5Config(text_config=text, vision_config=vision, **qwen2_vl.mark_ids(words))
    module = Qwen3_5ForConditionalGeneration(config)
    kit.randomise(module)
    qwen3_vl.save(folder, module, words)


# Only a layer of full attention has attn_out and attn_context; the latter is gated: context vectors times a sigmoid.
KNOWN = replace(qwen3_vl.KNOWN, name="qwen3_5", build=build)
