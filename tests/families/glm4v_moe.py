"""GLM-4.5V: GLM-4.1V's encoder, and a text that has experts in place of the MLPs after its first layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

from tests.families import glm4v, kit, qwen3_vl_moe
from tests.families.kit import Tower

EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
}


def build(folder: Path) -> None:
    words = glm4v.tokenizer()
    text: dict[str, Any] = {**glm4v.text_sizes(words), **EXPERTS, "head_dim": 16}
    config = Glm4vMoeConfig(text_config=text, vision_config=glm4v.VISION, **glm4v.mark_ids(words))
    module = Glm4vMoeForConditionalGeneration(config)
    kit.randomise(module)
    glm4v.save(folder, module, words)


KNOWN = replace(
    glm4v.KNOWN,
    name="glm4v_moe",
    build=build,
    towers={"vision": glm4v.VISION_TOWER, "language": Tower(3, 4, qwen3_vl_moe.places())},
)
