"""FineCops-Ref: an expression and its photograph, against hard negatives of either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vlm_patching as vp
from tests.datasets.kit import picture
from tests.refusals import MISSING, changed, refusal, says
from vlm_patching.pairs import loading
from vlm_patching.pairs.datasets.finecops_ref import _Asked
from vlm_patching.pairs.pictures import opened

FILE = "test_expression_all_coco_format.json"
BOY = "The boy on the brown horse."
POSITIVE: dict[str, Any] = {
    **{"level": 2, "tuple_type": "1_hop", "tuple": [["boy", "on", "horse"]], "objects_id": ["1", "2"]},
    **{"bbox": [4.0, 5.5, 10.0, 40.0], "iscrowd": 0, "category_id": 1, "spatial": "", "attribute": [[], ["brown"]]},
}


def positive(number: int, expression: str, image: str = "2.jpg", **changes: Any) -> dict[str, Any]:
    """An expression of an image, as it stands among annotations (and, without what begins with image_, images)."""
    return {"id": number, "image_file": image, "expression": expression, "caption": expression, **POSITIVE, **changes}


def negative(number: int, of: int, cate: str, kind: str, expression: str, image: str = "2.jpg", **changes: Any) -> Any:
    told = {"positive_id": of, "negative_cate": cate, "negative_type": kind, "negative_level": 1, "ori_type": "1_hop"}
    return positive(number, expression, image, **told, **changes)


def annotations(rows: list[dict[str, Any]]) -> dict[str, Any]:
    images = [
        {"id": row["id"], "file_name": row["image_file"], "width": 32, "height": 32, "caption": row["caption"]}
        for row in rows
    ]
    kept = [{key: value for key, value in row.items() if key != "image_file"} for row in rows]
    return {
        "images": images,
        "annotations": [{**row, "image_id": row["id"]} for row in kept],
        "categories": [{"id": 1}],
    }


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps(annotations(rows)))
    for row in rows:
        name = row["image_file"]
        inside = "final_neg_images" if name.startswith("neg_") else "images"
        picture(folder / inside / name, int(name.split(".")[0].removeprefix("neg_")))
    return folder


def some() -> list[dict[str, Any]]:
    return [
        positive(0, BOY),
        negative(1, 0, "text", "attribute", "The boy on the white horse."),
        negative(2, 0, "image", "object", BOY, "neg_9.jpg"),
        positive(3, "The large dog that is to the left of the dog", "5.jpg", tuple=[["dog", "left of", "dog"]]),
        negative(4, 3, "text", "relation", "The large dog that is standing on top of the dog", "5.jpg"),
        negative(5, 3, "text", "swap_attr", "The dog that is to the left of the large dog", "5.jpg"),
        negative(6, 3, "image", "flip", "The large dog that is to the left of the dog", "neg_7.jpg"),
    ]


def load(folder: Path, **options: Any) -> vp.Pairs:
    return vp.load_pairs("finecops_ref", path=folder, **options)


def test_a_negative_image_is_the_corrupted_one_of_the_same_question(tmp_path: Path) -> None:
    pairs = load(written(tmp_path, some()))
    assert len(pairs) == 2 and pairs.considered == 5
    assert pairs.dropped == {"its negative is of another kind: text": 3}
    assert {pair.id for pair in pairs} == {"0-2", "3-6"}
    for pair in pairs:
        first, second = (("yes", "no"), ("no", "yes"))[pair.spans["answer_option"] > pair.spans["foil_option"]]
        phrase = {
            "0-2": "the boy on the brown horse",
            "3-6": "the large dog that is to the left of the dog",
        }[pair.id]
        assert pair.clean.text == f"Does this picture show {phrase}, {first} or {second}?" == pair.corrupted.text
        assert (pair.answer, pair.foil) == ("yes", "no") and pair.spans_corrupted == {}
        image, other, kind = {"0-2": ("2.jpg", "neg_9.jpg", "object"), "3-6": ("5.jpg", "neg_7.jpg", "flip")}[pair.id]
        assert pair.clean.image == tmp_path / "images" / image and pair.task == kind
        assert pair.corrupted.image.picture == tmp_path / "final_neg_images" / other
        assert pair.regions == {"object": (4, 6, 14, 32)}
        words = {name: pair.clean.text[slice(*span)] for name, span in pair.spans.items()}
        assert words.get("subject") == ("boy" if pair.id == "0-2" else None)  # the dog's name is said twice
        assert "constraint" not in words


def test_a_negative_expression_is_the_corrupted_text_and_what_differs_is_a_span_of_both(tmp_path: Path) -> None:
    pairs = {pair.id: pair for pair in load(written(tmp_path, some()), negatives="text")}
    assert set(pairs) == {"0-1", "3-4", "3-5"}
    said = {
        name: (
            pair.clean.text[slice(*pair.spans["constraint"])],
            pair.corrupted.text[slice(*pair.spans_corrupted["constraint"])],
        )
        for name, pair in pairs.items()
    }
    assert said == {
        "0-1": ("brown", "white"),
        "3-4": ("to the left", "standing on top"),
        "3-5": ("large dog that is to the left of the", "dog that is to the left of the large"),
    }
    assert pairs["0-1"].corrupted.text.startswith("Does this picture show the boy on the white horse, ")
    assert [name for name, pair in pairs.items() if "subject" in pair.spans] == ["0-1"]  # the others say dog twice
    for pair in pairs.values():
        assert pair.clean.image == pair.corrupted.image
        for name, span in pair.spans.items():
            if name != "constraint":
                assert pair.corrupted.text[slice(*pair.spans_corrupted[name])] == pair.clean.text[slice(*span)]


words = st.lists(st.sampled_from(["the", "a", "dog", "cat", "on", "{x}"]), min_size=1, max_size=6)


@given(words, words)
def test_what_differs_between_two_expressions_is_never_empty_and_puts_both_together(
    own: list[str], other: list[str]
) -> None:
    asked = _Asked.differing(own, other)
    if own == other:
        assert asked.own == asked.other == ""
    else:
        assert asked.own and asked.other and asked.own != asked.other
        assert f"{asked.before}{asked.own}{asked.behind}" == " ".join(own)
        assert f"{asked.before}{asked.other}{asked.behind}" == " ".join(other)


def test_only_the_types_that_are_asked_for_are_taken(tmp_path: Path) -> None:
    pairs = load(written(tmp_path, some()), negatives="text", types=["relation", "order"])
    assert [pair.id for pair in pairs] == ["3-4"] and pairs.dropped["its type is not asked for"] == 2
    says(refusal(lambda: load(tmp_path, types=["relations"])), "pairs.types", "'relations'", "'relation'")


def test_the_two_answers_are_called_as_the_model_says_them(tmp_path: Path) -> None:
    pair = load(written(tmp_path, some()), yes_no=["Yes", "No"])[0]
    assert (pair.answer, pair.foil) == ("Yes", "No") and "Yes or No?" in pair.clean.text
    says(refusal(lambda: load(tmp_path, yes_no=["Yes", "yes"])), "pairs.yes_no", "differ")


def test_the_negative_image_is_brought_to_the_size_of_the_other(tmp_path: Path) -> None:
    folder = written(tmp_path, some())
    Image.new("RGB", (64, 16), "red").save(folder / "final_neg_images" / "neg_9.jpg")
    assert {opened(pair.corrupted.image).size for pair in load(folder)} == {(32, 32)}


@pytest.mark.parametrize(
    ("number", "changes", "parts"),
    [
        (2, {"positive_id": 77}, ("annotations[2]", "'positive_id' is the id of no positive", "77")),
        (2, {"positive_id": MISSING}, ("annotations[2]", "'positive_id' is missing")),
        (2, {"negative_cate": "images"}, ("annotations[2]", "'negative_cate'", "'images'")),
        (0, {"bbox": [40, 40, 5, 5]}, ("annotations[0]", "'bbox' is an empty box")),
        (0, {"tuple": []}, ("annotations[0]", "'tuple'", "[]")),
        (0, {"expression": " . "}, ("annotations[0]", "expression is empty")),
        (0, {"bbox": "4 5 10 12"}, ("annotations[0]", "'bbox'", "'4 5 10 12'")),
    ],
)
def test_an_annotation_that_is_not_as_it_was_is_named_or_skipped(
    tmp_path: Path, number: int, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    rows = some()
    rows[number] = changed(rows[number], changes)
    folder = written(tmp_path, rows)
    says(refusal(lambda: load(folder)), FILE, *parts, "on_error")
    pairs = load(folder, on_error="skip")
    assert [pair.id for pair in pairs] == ["3-6"] and any(said.startswith("error: ") for said in pairs.dropped)


def test_images_that_are_not_listed_missing_or_broken_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path, some())
    data = annotations(some())
    data["images"][2]["file_name"] = None
    (folder / FILE).write_text(json.dumps(data))
    says(refusal(lambda: load(folder)), "images[2]", "'file_name'", "None")
    assert load(folder, on_error="skip").dropped["error: 'image_id' is the id of no image"] == 1
    written(folder, some())
    gone = folder / "final_neg_images" / "neg_9.jpg"
    gone.unlink()
    says(refusal(lambda: load(folder)), "neg_9.jpg", "does not exist", "annotations[2]")
    picture(folder / "images" / "neg_9.jpg", 3)
    assert len(load(folder)) == 2
    (folder / "images" / "5.jpg").write_bytes(b"")
    says(refusal(lambda: load(folder)), "5.jpg", "cannot be read as a picture")
    assert load(folder, on_error="skip").dropped[f"error: {loading.BROKEN}"] == 1


def test_another_file_or_split_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, some())
    says(refusal(lambda: load(folder, split="val")), "expression_all_val_set_coco_format.json", "does not exist")
    says(refusal(lambda: load(folder, split="testA")), "pairs.split", "'testA'", "'test'")
    (folder / FILE).write_text(json.dumps({str(row["id"]): row for row in some()}))
    says(refusal(lambda: load(folder)), FILE, "nothing at 'images'")
    (folder / FILE).write_text(json.dumps(annotations(some()), indent=1)[:-90])
    says(refusal(lambda: load(folder)), FILE, "line ", "cut off")


@pytest.mark.parametrize("negatives", ["image", "text"])
def test_a_preset_runs_on_its_files(tmp_path: Path, negatives: str) -> None:
    pairs = {"dataset": "finecops_ref", "path": str(written(tmp_path, some())), "negatives": negatives}
    pairs |= {"yes_no": ["red", "blue"], "n": 2, "keep": "all"}
    kind = {"image": "semantic_image_pair", "text": "symmetric_token_replacement"}[negatives]
    changes = {"pairs": pairs, "corruption.kind": kind, "patch.positions": ["answer_option", "last"]}
    ds = vp.run(vp.Experiment.from_spec("notice2024_blip_heads", changes), progress=False)
    assert ds.sizes["example"] == 2 and ds.attrs["pairs_considered"] == 5
    assert np.isfinite(ds["logit_difference"]).all()
