"""The cache of a sliding window keeps one position less than it is long: cells go on from it only where that is all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vlm_patching as vp
from tests.families import kit, qwen2_vl
from vlm_patching.inputs import encode_pair
from vlm_patching.models import describe_model, load_model
from vlm_patching.pairs import Pair, Prompt

QUESTION = "is the large red circle left or right ?"


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_windows_about_as_long_as_the_prompt(tmp_path: Path, more: int) -> None:
    qwen2_vl.build(tmp_path)
    pair = Pair("0", Prompt(kit.picture(0), QUESTION), Prompt(kit.picture(1), QUESTION), "left", "right")
    length = encode_pair(pair, describe_model(str(tmp_path)), ()).length("clean")
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": length + more, "max_window_layers": 1}
    del config["text_config"]["layer_types"]
    file.write_text(json.dumps(config))
    model = load_model(describe_model(str(tmp_path)))
    assert model.envoy._module.config.text_config.layer_types == ["full_attention", *["sliding_attention"] * 2]
    spec = {
        "name": "windows",
        "model": {"name": str(tmp_path)},
        "pairs": {"dataset": "folder", "path": ".", "keep": "all"},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": ["language.mlp_out"], "positions": ["question", "last"]},
        "metrics": ["logit_difference"],
    }
    experiment = vp.Experiment.from_dict(spec)
    fast, naive = (
        vp.run(experiment, model=model, inputs=[pair], progress=False, engine=engine)["logit_difference"]
        for engine in ("fast", "naive")
    )
    assert float(abs(fast - naive).max()) < 1e-5
