"""ShapeWorld: the colour or the shape of a thing, as its world's model has it, and another world of another answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import vlm_patching as vp
from tests.refusals import MISSING, changed, refusal, says
from vlm_patching.pairs import loading

Things = list[tuple[str, str]]
SIZE = 40
WORLDS: list[Things] = [
    [("red", "circle"), ("blue", "square")],
    [("green", "circle"), ("red", "cross"), ("red", "square")],
    [("cyan", "ellipse"), ("blue", "cross")],
]


def model(things: Things) -> dict[str, Any]:
    """A world as world_model.json has it: every thing has a quarter of the picture."""
    entities = []
    for i, (color, shape) in enumerate(things):
        x, y = 0.5 * (i % 2), 0.5 * (i // 2)
        corners = {"topleft": {"x": x + 0.1, "y": y - 0.01}, "bottomright": {"x": x + 0.4, "y": y + 0.4}}
        shade = {"rgb": [0.0, 0.0, 1.0], "shade": -0.25}
        entities.append(
            {
                "id": i,
                "bounding_box": corners,
                "color": {"name": color, **shade},
                "shape": {"name": shape},
                "rotation": 0.5,
            }
        )
    return {"color": {"name": "black"}, "entities": entities, "meta": {}, "size": SIZE}


def written(folder: Path, worlds: list[Things], models: list[Any] | None = None, ending: str = "png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made = [model(things) for things in worlds]
    (folder / "world_model.json").write_text(json.dumps(models or made, indent=2))
    for number, (things, world) in enumerate(zip(worlds, made, strict=True)):
        picture = Image.new("RGB", (SIZE, SIZE))
        for (color, _), entity in zip(things, world["entities"], strict=True):
            corners = [SIZE * entity["bounding_box"][end][side] for end in ("topleft", "bottomright") for side in "xy"]
            ImageDraw.Draw(picture).rectangle(corners, fill=color)
        picture.save(folder / f"world-{number}.{ending}")
    return folder


def load(folder: Path, **options: Any) -> vp.Pairs:
    return vp.load_pairs("shapeworld", path=folder, **options)


def test_a_thing_that_can_be_named_is_asked_about_in_two_worlds(tmp_path: Path) -> None:
    asked = {pair.id: pair for pair in load(written(tmp_path, WORLDS))}
    said = {name: (pair.answer, pair.foil, pair.corrupted.image.stem) for name, pair in asked.items()}
    assert said == {
        "0/color-circle": ("red", "green", "world-1"),
        "1/color-circle": ("green", "red", "world-0"),
        "0/color-square": ("blue", "red", "world-1"),
        "1/color-square": ("red", "blue", "world-0"),
        "1/color-cross": ("red", "blue", "world-2"),
        "2/color-cross": ("blue", "red", "world-1"),
        "0/shape-blue": ("square", "cross", "world-2"),
        "2/shape-blue": ("cross", "square", "world-0"),
    }
    for name, pair in asked.items():
        named = name.split("-")[1]
        first, second = (pair.answer, pair.foil)[
            :: 1 if pair.spans["answer_option"] < pair.spans["foil_option"] else -1
        ]
        text = f"Is the {named} {first} or {second}?"
        assert pair.clean.text == (text if pair.task == "color" else f"Is the {named} shape a {first} or a {second}?")
        assert pair.clean.text[slice(*pair.spans["subject"])] == named


def test_the_region_is_where_the_thing_is_drawn(tmp_path: Path) -> None:
    for pair in load(written(tmp_path, WORLDS), attributes=["color"]):
        x0, y0, x1, y1 = pair.regions["object"]
        names = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
        assert pair.clean.picture().getpixel(((x0 + x1) // 2, (y0 + y1) // 2)) == names[pair.answer]
        assert (x0, y0) in {(4, 0), (24, 0), (4, 20)} and (x1 - x0, y1) in {(12, 16), (12, 36)}


def test_a_square_is_not_held_against_a_rectangle_nor_a_circle_against_an_ellipse(tmp_path: Path) -> None:
    things: list[Things] = [[("red", shape)] for shape in ("circle", "ellipse", "square", "rectangle")]
    written(tmp_path, things)
    drawn = {(pair.answer, pair.foil) for seed in range(20) for pair in load(tmp_path, attributes=["shape"], seed=seed)}
    assert drawn == {
        *(("circle", "square"), ("circle", "rectangle"), ("ellipse", "square"), ("ellipse", "rectangle")),
        *(("square", "circle"), ("rectangle", "circle"), ("square", "ellipse"), ("rectangle", "ellipse")),
    }


def test_shards_are_read_together_and_bitmaps_as_well(tmp_path: Path) -> None:
    written(tmp_path / "train" / "shard0", [[("red", "circle")]], ending="bmp")
    written(tmp_path / "train" / "shard1", [[("blue", "circle")], [("red", "star")]])
    pairs = {pair.id: pair for pair in load(tmp_path)}
    assert pairs["train/shard0/0/color-circle"].clean.image == tmp_path / "train" / "shard0" / "world-0.bmp"
    assert pairs["train/shard1/0/color-circle"].corrupted.image == tmp_path / "train" / "shard0" / "world-0.bmp"
    assert set(pairs) == {f"train/shard{i}/0/color-circle" for i in (0, 1)} | {
        "train/shard0/0/shape-red",
        "train/shard1/1/shape-red",
    }
    assert load(tmp_path).dropped == {"no other world has another answer to its question": 2}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"size": 40.5}, ("'size'", "40.5")),
        ({"entities": {}}, ("'entities' is no list",)),
        ({"entities.0.color": "red"}, ("entities[0]", "color, shape and bounding_box")),
        ({"entities.0.shape": MISSING}, ("entities[0]", "color, shape and bounding_box")),
        ({"entities.0.shape.name": 3}, ("entities[0]", "'name'", "3")),
        ({"entities.0.bounding_box.topleft.x": "left"}, ("entities[0]", "bounding_box")),
        ({"entities.0.bounding_box.bottomright.x": 0.0}, ("entities[0]", "bounding_box is empty")),
    ],
)
def test_a_world_that_is_not_as_it_was_is_named_or_skipped(
    tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    models = [changed(model(WORLDS[0]), changes), *map(model, WORLDS[1:])]
    written(tmp_path, WORLDS, models)
    says(refusal(lambda: load(tmp_path)), "world_model.json, entry[0]", *parts, "on_error")
    pairs = load(tmp_path, on_error="skip")
    assert len(pairs) == 2 and any(said.startswith("error: ") for said in pairs.dropped)


def test_worlds_in_other_forms_are_refused(tmp_path: Path) -> None:
    says(refusal(lambda: load(tmp_path)), "world_model.json", str(tmp_path))
    written(tmp_path, WORLDS, [[model(things)] for things in WORLDS])
    says(refusal(lambda: load(tmp_path)), "entry[0]", "object is expected")
    written(tmp_path, WORLDS)
    (tmp_path / "world-2.png").unlink()
    says(refusal(lambda: load(tmp_path)), "world-2.png", "does not exist")
    assert load(tmp_path, on_error="skip").dropped[f"error: {loading.NO_FILE}"] >= 2


def test_a_preset_runs_on_its_files(tmp_path: Path) -> None:
    pairs = {"dataset": "shapeworld", "path": str(written(tmp_path, WORLDS)), "n": 2, "keep": "all"}
    for preset, corruption in (
        ("notice2024_blip_heads", {"kind": "semantic_image_pair"}),
        ("notice2024_llava_heads", {"kind": "blank_image"}),
    ):
        ds = vp.run(vp.Experiment.from_spec(preset, {"pairs": pairs, "corruption": corruption}), progress=False)
        assert ds.sizes["example"] == 2 and np.isfinite(ds["logit_difference"]).all()
