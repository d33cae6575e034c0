"""Visual Jenga style inpaintings: a picture, and the same without one of its objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlm_patching as vp
from tests.datasets.kit import picture
from tests.refusals import refusal, says
from vlm_patching.pairs.pictures import opened


def step(folder: Path, name: str, labels: list[str], removed: int | None) -> Path:
    """What a run leaves behind of a step: its pictures, labels, scores and masks."""
    path = folder / name
    picture(path / "original.png", len(labels))
    (path / "detect.json").write_text(json.dumps([{"label": each, "x_frac": 0.5, "y_frac": 0.25} for each in labels]))
    scores = [
        {"obj_idx": i, "label": each, "score": 1.5 if i == removed else -2.0 * i} for i, each in enumerate(labels)
    ]
    (path / "scores.json").write_text(json.dumps(scores, indent=2))
    for i, label in enumerate(labels):
        mask = Image.new("L", (32, 32))
        mask.paste(255, (3, 4 + i, 20, 9 + i))
        mask.save(path / f"mask_{i:02d}_{label.replace(' ', '_').replace('.', '_')}.png")
    picture(path / "pre_removal.png", 90)
    if removed is not None:
        picture(path / f"removed_{labels[removed].replace(' ', '_').replace('.', '_')}.png", 50 + len(labels))
    return path


def run(folder: Path) -> Path:
    picture(folder / "coco" / "000" / "step_00_original.png", 3)
    step(folder, "coco/000/step_01", ["table", "cup", "cup", "The wine glass."], 3)
    step(folder, "coco/000/step_02", ["table", "cup", "cup"], 1)
    step(folder, "coco/000/step_03", ["table", "scissors"], 1)
    step(folder, "coco/001/step_01", ["distinct object.", "table"], 0)
    step(folder, "coco/001/step_02", ["table"], None)
    return folder


def listed(folder: Path, *rows: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(("a.jpg", "a_cup.png", "a_cat.png")):
        picture(folder / "images" / name, number)
    (folder / "removals.json").write_text(json.dumps(rows))
    return folder


def removal(name: str, **changes: Any) -> dict[str, Any]:
    return {"original": "images/a.jpg", "removed": f"images/a_{name}.png", "object": name, **changes}


def load(folder: Path, **options: Any) -> vp.Pairs:
    return vp.load_pairs("visual_jenga", path=folder, **options)


def test_of_every_step_of_a_run_the_object_that_was_removed_is_asked_for(tmp_path: Path) -> None:
    pairs = load(run(tmp_path))
    assert pairs.considered == 5 and pairs.dropped == {
        "another object of its name is in the picture": 1,
        "its object has no name of its own": 1,
        "nothing was removed in its step": 1,
    }
    asked = {pair.id: pair for pair in pairs}
    assert set(asked) == {"coco/000/step_01", "coco/000/step_03"}
    begins = {"coco/000/step_01": "Is there a wine glass in ", "coco/000/step_03": "Are there scissors in "}
    boxes = {"coco/000/step_01": (3, 7, 20, 12), "coco/000/step_03": (3, 5, 20, 10)}
    for name, pair in asked.items():
        options = ("yes or no", "no or yes")[pair.spans["answer_option"] > pair.spans["foil_option"]]
        assert pair.clean.text == f"{begins[name]}this picture, {options}?" == pair.corrupted.text
        assert pair.clean.text[slice(*pair.spans["subject"])] == begins[name].split(" ", 2)[2].removeprefix("a ")[:-4]
        assert (pair.answer, pair.foil, pair.regions) == ("yes", "no", {"object": boxes[name]})
        assert pair.clean.image == tmp_path / name / "original.png"
        assert pair.corrupted.image.picture.parent == tmp_path / name
        assert pair.corrupted.image.picture.name.startswith("removed_")


def test_a_list_of_removals_is_read_as_it_stands(tmp_path: Path) -> None:
    folder = listed(tmp_path, removal("cup", box=[2, 3, 10.4, 5]), removal("cat"))
    Image.new("RGB", (50, 40), "blue").save(folder / "images" / "a_cup.png")
    pairs = {pair.clean.text[slice(*pair.spans["subject"])]: pair for pair in load(folder)}
    assert pairs["cup"].regions == {"object": (2, 3, 12, 8)} and pairs["cat"].regions == {}
    assert opened(pairs["cup"].corrupted.image).size == (32, 32)
    assert pairs["cat"].id == "images/a.jpg/images/a_cat.png" and len(pairs) == 2


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([removal("cup"), removal("cat", removed=None)], ("entry[1]", "'removed'", "None")),
        ([removal("cup"), removal("cat", object="")], ("entry[1]", "'object' is empty")),
        ([removal("cup"), removal("cat", box=[1, 2])], ("entry[1]", "'box'", "[1, 2]")),
        ([removal("cup"), removal("cat", box=[1, 2, 60, 4])], ("entry[1]", "region 'object'", "32 × 32")),
        ([removal("cup"), removal("dog")], ("entry[1]", "a_dog.png", "does not exist")),
        ([removal("cup"), removal("cup")], ("entry[1]", "entry[0]", "unique")),
        ([removal("cup"), "cat"], ("entry[1]", "object is expected", "'cat'")),
    ],
)
def test_a_removal_that_cannot_be_used_is_named_or_skipped(
    tmp_path: Path, rows: list[Any], parts: tuple[str, ...]
) -> None:
    folder = listed(tmp_path, *rows)
    says(refusal(lambda: load(folder)), "removals.json", *parts)
    pairs = load(folder, on_error="skip")
    assert len(pairs) == 1 and list(pairs.dropped.values()) == [1]


def test_a_step_whose_files_do_not_fit_is_named_or_skipped(tmp_path: Path) -> None:
    path = run(tmp_path) / "coco" / "000" / "step_03"
    scores = json.loads((path / "scores.json").read_text())
    for content, parts in (
        ([{**row, "score": -row["score"]} for row in scores], ("not of the same object", "'table'")),
        ([{**row, "score": "high"} for row in scores], ("'score'", "'high'")),
        ([{**row, "label": 3} for row in scores], ("'label'", "3")),
        ([3], ("object is expected", "3")),
        ([], ("scores.json", "nothing in it")),
    ):
        (path / "scores.json").write_text(json.dumps(content))
        says(refusal(lambda: load(tmp_path)), str(path), *parts, "on_error")
        assert len(load(tmp_path, on_error="skip")) == 1
    (path / "scores.json").unlink()
    says(refusal(lambda: load(tmp_path)), str(path / "scores.json"), "does not exist")
    (path / "scores.json").write_text(json.dumps(scores))
    (path / "mask_01_scissors.png").write_bytes(b"no mask")
    says(refusal(lambda: load(tmp_path)), "mask_01_scissors.png", "cannot be read as a picture")
    (path / "mask_01_scissors.png").unlink()
    assert len(load(tmp_path)) == 2
    (path / "original.png").unlink()
    says(refusal(lambda: load(tmp_path)), str(path / "original.png"), "does not exist")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    says(refusal(lambda: load(tmp_path)), str(tmp_path), "removals.json", "step_01")
    (tmp_path / "step_01").mkdir()
    says(refusal(lambda: load(tmp_path)), "no pair left", "nothing was removed in its step (1)")


def test_a_preset_runs_on_its_files(tmp_path: Path) -> None:
    folder = listed(tmp_path, removal("cup"), removal("cat"))
    pairs = {"dataset": "visual_jenga", "path": str(folder), "yes_no": ["red", "blue"], "n": 2, "keep": "all"}
    for preset in ("notice2024_blip_heads", "notice2024_llava_heads"):
        ds = vp.run(vp.Experiment.from_spec(preset, {"pairs": pairs}), progress=False)
        assert ds.sizes["example"] == 2 and ds.attrs["pairs_considered"] == 2
        assert np.isfinite(ds["logit_difference"]).all()
