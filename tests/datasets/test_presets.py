"""Every dataset in files runs through presets on the bundled models, from its files to labelled numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from tests.datasets.kit import fer_table, many, mit_states, svo_probes
from tests.refusals import refusal, says
from vlm_patching.pairs import DATASETS

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan")
"""Words that the bundled models know."""


def svo(folder: Path) -> dict[str, Any]:
    return {"dataset": "svo_probes", "path": str(svo_probes(folder, many(12))), "roles": ["object"]}


def mit(folder: Path) -> dict[str, Any]:
    return {"dataset": "mit_states", "path": str(mit_states(folder, {f"{word} circle": 2 for word in COLORS}))}


def fer(folder: Path) -> dict[str, Any]:
    fer_table(folder / "fer2013.csv", [0, 3, 4, 6, 1, 2, 5])
    return {"dataset": "fer2013", "path": str(folder), "words": list(COLORS)}


HERE = Path(__file__).parent
FILES = {"svo_probes": svo, "mit_states": mit, "fer2013": fer}
AUTOMATIC = {"kind": "symmetric_token_replacement", "automatic": True}


def test_every_dataset_in_files_is_run_here_or_beside_its_own_tests() -> None:
    own = {
        file.stem.removeprefix("test_")
        for file in HERE.glob("test_*.py")
        if "def test_a_preset_runs_on_its_files" in file.read_text(encoding="utf-8") and file != Path(__file__)
    }
    assert set(FILES) | own == set(DATASETS) - {"shapes", "folder"}


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("notice2024_blip_heads", {}),
        ("notice2024_llava_heads", {"corruption": AUTOMATIC}),
        ("zhang2024_flow_llava", {"knockout.edges": ["image -> last", "answer_option -> last"]}),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_a_preset_runs_on_the_dataset_s_files(tmp_path: Path, name: str, preset: str, changes: dict[str, Any]) -> None:
    pairs = {**FILES[name](tmp_path), "n": 4, "seed": 1, "keep": "all"}
    experiment = vp.Experiment.from_spec(preset, {"pairs": pairs, **changes})
    ds = vp.run(experiment, progress=False)
    assert ds.sizes["example"] == 4
    assert ds.attrs["pairs_considered"] == (7 if name == "fer2013" else 12 if name == "svo_probes" else 14)
    for metric in experiment.metrics:
        assert np.isfinite(ds[metric].values).all()
        assert np.isfinite(ds[f"{metric}_clean"].values).all()
    drawn = vp.load_pairs(**{key: value for key, value in pairs.items() if key != "keep"})
    assert ds["text"].values.tolist() == [pair.clean.text for pair in drawn]
    if "position" in ds.dims:
        tokens = [str(token).strip("▁Ġ") for token in ds["token"].sel(position="answer_option").values]
        assert tokens == ds["answer"].values.tolist()


@pytest.mark.parametrize("model", ["shapes-blip", "shapes-llava"])
def test_an_answer_outside_of_the_vocabulary_is_refused_by_its_pair_and_word(tmp_path: Path, model: str) -> None:
    pairs = {**fer(tmp_path), "words": [*COLORS[:6], "neutral"], "keep": "all"}
    experiment = (
        vp.Experiment.from_spec("palit2023", {"model.name": model, "pairs": pairs})
        if "blip" in model
        else (vp.Experiment.from_spec("notice2024_llava_heads", {"pairs": pairs}))
    )
    says(refusal(lambda: vp.run(experiment, progress=False)), "Pair '", "'neutral'", model, "vocabulary lacks it")
