"""Qwen3-VL with experts in place of the text's MLPs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from tests.families import kit, qwen2_vl, qwen3_vl
from tests.families.kit import Place, Tower

LAYER = "model.language_model.layers.{layer}"


def build(folder: Path) -> None:
    words = qwen2_vl.tokenizer()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    text = {**qwen3_vl.text_sizes(words), **experts}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=qwen3_vl.VISION, **qwen2_vl.mark_ids(words))
    module = Qwen3VLMoeForConditionalGeneration(config)
    kit.randomise(module)
    qwen3_vl.save(folder, module, words)


def places() -> dict[str, Place]:
    """Experts' neurons are those of other experts at every position: there are none to name."""
    dense = kit.places(LAYER, "self_attn.o_proj", "mlp")
    return {component: place for component, place in dense.items() if component != "mlp_neuron"}


KNOWN = replace(
    qwen3_vl.KNOWN,
    name="qwen3_vl_moe",
    build=build,
    towers={"vision": qwen3_vl.VISION_TOWER, "language": Tower(3, 4, places())},
)
