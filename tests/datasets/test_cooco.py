"""COOCO: a scene's own object, and another in its place."""

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
from vlm_patching.pairs import loading
from vlm_patching.pairs.pictures import opened

Entries = dict[str, dict[str, Any]]


def scene(number: int, name: str, target: str, swapped: dict[str, str]) -> Entries:
    """The entries of a scene as COOCO_data_new.json has them: object that was put in → how well it fits."""
    begin = f"{number:012d}_{name.replace('/', '_')}_{target.replace(' ', '_')}"
    shared = {"scene": name, "target": target.replace(" ", "_"), "rel_score": 0.1, "excluded": False}
    own = {"fixations": [{"condition": "present", "X": [1.5]}], "captions_train2017_annotations": [{"caption": "a"}]}
    kept = {"swapped_object": None, "rel_level": None, "target_bbox": [4.0, 6.0, 10.5, 8.0]}
    entries = {f"{begin}_{kind}.jpg": {**own, **shared, **kept} for kind in ("original", "clean")}
    for other, level in {target: "same_target", **swapped}.items():
        file = f"{begin}_{other.replace(' ', '_')}_relscore_{level}.jpg"
        words = {"swapped_object": other.replace(" ", "_"), "rel_level": level, "target_bbox": [2.0, 3.0, 5.0, 4.0]}
        entries[file] = {**shared, **words}
    return entries


def written(folder: Path, entries: Entries) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "COOCO_data_new.json").write_text(json.dumps(entries))
    for number, name in enumerate(entries):
        picture(folder / "COOCO_images" / name, number)
    return folder


def office() -> Entries:
    return scene(64659, "cubicle/office", "laptop", {"ham": "low", "stapler": "high", "orange (fruit)": "middle"})


def load(folder: Path, **options: Any) -> vp.Pairs:
    return vp.load_pairs("cooco", path=folder, **options)


def test_the_scene_s_own_object_is_asked_against_the_one_in_its_place(tmp_path: Path) -> None:
    pairs = load(written(tmp_path, office()))
    assert len(pairs) == 3 == pairs.considered and not pairs.dropped
    levels = {"ham": "low", "stapler": "high", "orange": "middle"}
    for pair in pairs:
        assert (pair.answer, pair.task) == ("laptop", levels[pair.foil])
        own, other = "a laptop", {"ham": "ham", "stapler": "a stapler", "orange": "an orange"}[pair.foil]
        assert pair.clean.text in (
            f"Is there {own} or {other} in this picture?",
            f"Is there {other} or {own} in this picture?",
        )
        words = {name: pair.clean.text[slice(*span)] for name, span in pair.spans.items()}
        assert words == {"answer_option": "laptop", "foil_option": pair.foil, "object": "laptop"}
        assert pair.clean.image == tmp_path / "COOCO_images" / "000000064659_cubicle_office_laptop_original.jpg"
        assert pair.corrupted.image.name.endswith(f"_relscore_{pair.task}.jpg")
        assert pair.regions == {"object": (4, 6, 14, 14)}
        assert pair.id == Path(pair.corrupted.image.name).stem


def test_the_other_picture_is_as_large_as_the_scene_s(tmp_path: Path) -> None:
    folder = written(tmp_path, office())
    for path in (folder / "COOCO_images").glob("*_relscore_*.jpg"):
        Image.new("RGB", (64, 48), "green").save(path)
    for pair in load(folder):
        assert opened(pair.corrupted.image).size == (32, 32) == opened(pair.clean.image).size


def test_both_pictures_may_be_painted_ones(tmp_path: Path) -> None:
    pairs = load(written(tmp_path, office()), clean="same_target")
    assert {pair.clean.image.name for pair in pairs} == {
        "000000064659_cubicle_office_laptop_laptop_relscore_same_target.jpg"
    }
    assert len(pairs) == 3 and all(pair.regions == {"object": (2, 3, 7, 7)} for pair in pairs)


def test_only_the_levels_that_are_asked_for_are_taken(tmp_path: Path) -> None:
    entries = {**office(), **scene(7, "kitchen", "cup", {"shoe": "medium"})}
    pairs = load(written(tmp_path, entries), levels=["middle"])
    assert {pair.foil for pair in pairs} == {"orange", "shoe"} and pairs.dropped == {"its level is not asked for": 2}
    says(refusal(lambda: load(tmp_path, levels=["medium"])), "pairs.levels", "'medium'", "'middle'")


def test_objects_that_a_picture_cannot_tell_apart_are_left_out_and_counted(tmp_path: Path) -> None:
    swapped = {"mug": "high", "tea cup": "high", "shoe": "low", "hat": "low", "bell": "low"}
    entries = scene(7, "kitchen", "cup", swapped)
    entries[next(name for name in entries if "hat" in name)]["excluded"] = True
    lost = next(name for name in entries if "bell" in name)
    entries[lost.replace("000000000007", "000000000008")] = entries.pop(lost)
    pairs = load(written(tmp_path, entries))
    assert [pair.foil for pair in pairs] == ["shoe"]
    assert pairs.dropped == {
        loading.ALIKE: 1,
        "one object's name holds the other's": 1,
        "a model did not find the object in its picture": 1,
        "there is no clean image of its scene and object": 1,
    }


def test_a_clean_picture_that_says_nothing_clear_of_being_excluded_is_named_or_skipped(tmp_path: Path) -> None:
    entries = {**office(), **scene(7, "kitchen", "cup", {"shoe": "low"})}
    name = next(name for name in entries if "_cup_original" in name)
    entries[name]["excluded"] = "no"
    folder = written(tmp_path, entries)
    says(refusal(lambda: load(folder)), f"entry[{name!r}]", "'excluded' is neither True nor False", "'no'")
    dropped = load(folder, on_error="skip").dropped
    assert dropped["there is no clean image of its scene and object"] == 1
    assert dropped["error: 'excluded' is neither True nor False"] == 1


@pytest.mark.parametrize("excluded", [True, "True"])
def test_a_picture_that_is_excluded_is_no_clean_one(tmp_path: Path, excluded: object) -> None:
    entries = {**office(), **scene(7, "kitchen", "cup", {"shoe": "low"})}
    name = next(name for name in entries if "_cup_original" in name)
    entries[name]["excluded"] = excluded
    pairs = load(written(tmp_path, entries))
    assert pairs.dropped == {"there is no clean image of its scene and object": 1}
    assert all("kitchen" not in str(pair.clean.image) for pair in pairs)


@pytest.mark.parametrize(
    ("kind", "changes", "parts"),
    [
        ("ham", {"rel_level": "lowest"}, ("'rel_level'", "low, middle, high", "'lowest'")),
        ("ham", {"excluded": "no"}, ("'excluded'", "'no'")),
        ("ham", {"swapped_object": None}, ("'swapped_object'", "None")),
        ("original", {"target_bbox": [1, 2, 3]}, ("'target_bbox'", "[1, 2, 3]")),
        ("original", {"target_bbox": None}, ("'target_bbox'", "None")),
    ],
)
def test_an_entry_that_is_not_as_it_was_is_named_or_skipped(
    tmp_path: Path, kind: str, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    entries = {**office(), **scene(7, "kitchen", "cup", {"shoe": "low"})}
    name = next(name for name in entries if f"_laptop_{kind}" in name)
    entries[name].update(changes)
    folder = written(tmp_path, entries)
    says(refusal(lambda: load(folder)), "COOCO_data_new.json", f"entry[{name!r}]", *parts)
    pairs = load(folder, on_error="skip")
    assert len(pairs) + sum(pairs.dropped.values()) == 4 and all(said.startswith("error: ") for said in pairs.dropped)


def test_pictures_that_are_missing_broken_or_smaller_than_their_box_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path, office())
    images = folder / "COOCO_images"
    painted = next(images.glob("*ham*"))
    painted.unlink()
    says(refusal(lambda: load(folder)), str(painted), "does not exist", "entry[")
    painted.write_bytes(b"no picture")
    says(refusal(lambda: load(folder)), str(painted), "cannot be read as a picture")
    assert load(folder, on_error="skip").dropped == {f"error: {loading.BROKEN}": 1}
    original = images / "000000064659_cubicle_office_laptop_original.jpg"
    Image.new("RGB", (12, 12)).save(original)
    says(refusal(lambda: load(folder, levels=["high"])), "region 'object'", "12 × 12")
    original.unlink()
    says(refusal(lambda: load(folder, levels=["high"])), str(original), "does not exist")


def test_another_file_is_refused(tmp_path: Path) -> None:
    says(refusal(lambda: load(tmp_path)), "COOCO_data_new.json", "does not exist")
    written(tmp_path, {name: entry for name, entry in office().items() if "original" not in name})
    says(refusal(lambda: load(tmp_path)), "no entry of a clean image, 'original'")
    (tmp_path / "COOCO_data_new.json").write_text(json.dumps(office())[:-200])
    says(refusal(lambda: load(tmp_path)), "COOCO_data_new.json, line 1", "cut off")


def test_a_preset_runs_on_its_files(tmp_path: Path) -> None:
    entries = {
        **scene(1, "kitchen", "circle", {"star": "low", "ring": "high"}),
        **scene(2, "kitchen", "heart", {"cross": "low"}),
    }
    pairs = {"dataset": "cooco", "path": str(written(tmp_path, entries)), "n": 2, "keep": "all"}
    for preset, corruption in (
        ("notice2024_blip_heads", {"kind": "semantic_image_pair"}),
        ("notice2024_llava_heads", {"kind": "symmetric_token_replacement", "automatic": True}),
    ):
        ds = vp.run(vp.Experiment.from_spec(preset, {"pairs": pairs, "corruption": corruption}), progress=False)
        assert ds.sizes["example"] == 2 and ds.attrs["pairs_considered"] == 3
        assert np.isfinite(ds["logit_difference"]).all()
