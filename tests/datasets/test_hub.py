"""Tables of the hub's form: columns are named in the spec, pictures stay in their cells until they are needed."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlm_patching as vp
from tests.datasets.kit import picture
from tests.datasets.test_pictures import png_that_says
from tests.refusals import refusal, says
from vlm_patching.pairs import loading
from vlm_patching.pairs.pictures import opened

COLORS = ["red", "green", "blue", "yellow"]
COLUMNS: dict[str, Any] = {"text": "q", "answer": "a", "foil": "b", "image": "image"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of files is kept with the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(color: str, side: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return file.getvalue()


def row(number: int, **changes: Any) -> dict[str, Any]:
    own, other = COLORS[number % 4], COLORS[(number + 1) % 4]
    begin = len("is the cat ")
    return {
        **{"id": f"r{number}", "q": f"is the cat {own} or {other}?", "a": own, "b": other, "animal": "cat"},
        **{"image": {"bytes": png(own), "path": None}, "raw": png(other), "kind": number % 2},
        **{"both": [{"bytes": png(own)}, {"bytes": png(other)}], "at": [begin, begin + len(own)]},
        **{"objects": {"bbox": [[1.0, 2.0, 9.0, 8.0]], "name": ["cat"]}},
        **changes,
    }


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def load(path: Path | str, columns: dict[str, Any] | None = None, **options: Any) -> vp.Pairs:
    return vp.load_pairs("hub", path=path, columns={**COLUMNS, **(columns or {})}, **options)


def colors(prompt: vp.Prompt) -> list[tuple[int, ...]]:
    return [picture.getpixel((0, 0)) for picture in prompt.pictures()]


RGB = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


def test_every_row_is_a_pair_of_what_its_columns_say(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [row(i) for i in range(6)])
    columns = {
        **{"id": "id", "task": "kind", "corrupted_image": "raw", "regions": {"object": "objects.bbox.0"}},
        "spans": {"subject": "animal", "answer_option": "at", "foil_option": "b"},
    }
    pairs = {pair.id: pair for pair in load(path, columns)}
    assert set(pairs) == {f"r{i}" for i in range(6)}
    for number in range(6):
        pair, made = pairs[f"r{number}"], row(number)
        assert (pair.clean.text, pair.answer, pair.foil) == (made["q"], made["a"], made["b"])
        assert pair.corrupted.text == made["q"] and pair.task == str(number % 2)
        said = {name: pair.clean.text[slice(*span)] for name, span in pair.spans.items()}
        assert said == {"subject": "cat", "answer_option": made["a"], "foil_option": made["b"]}
        assert pair.regions == {"object": (1, 2, 9, 8)}
        assert colors(pair.clean) == [RGB[pair.answer]] and colors(pair.corrupted) == [RGB[pair.foil]]


def test_a_template_makes_questions_whose_options_are_balanced_and_whose_columns_are_spans(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [row(i) for i in range(8)])
    pairs = load(path, {"text": None}, question="is the {animal} {first} or {second}?")
    assert len(pairs) == 8
    for pair in pairs:
        words = {name: pair.clean.text[slice(*span)] for name, span in pair.spans.items()}
        assert words == {"animal": "cat", "answer_option": pair.answer, "foil_option": pair.foil}
    assert sum(pair.clean.text == f"is the cat {pair.answer} or {pair.foil}?" for pair in pairs) == 4
    assert set(pairs.vocabulary.words["option"]) == set(COLORS)
    assert all(pair.clean.image == pair.corrupted.image for pair in pairs)


def test_a_prompt_may_have_several_pictures_or_none(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [row(0)])
    (pair,) = load(path, {"image": ["both.0", "both.1"], "corrupted_image": ["both.1", "both.0"]})
    assert colors(pair.clean) == [RGB["red"], RGB["green"]] == colors(pair.corrupted)[::-1]
    (pair,) = load(path, {"image": None})
    assert pair.clean.images == () == pair.corrupted.images


def test_a_corrupted_text_has_spans_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [row(0, other="is the dog red or green?", dog="dog")])
    columns = {"corrupted_text": "other", "spans": {"subject": "animal"}, "spans_corrupted": {"subject": "dog"}}
    (pair,) = load(path, columns)
    assert pair.corrupted.text == "is the dog red or green?"
    assert pair.corrupted.text[slice(*pair.spans_corrupted["subject"])] == "dog"


def test_images_and_labels_of_the_hub_s_own_kinds_are_read_as_they_are_stored(tmp_path: Path) -> None:
    kinds = datasets.Features(
        {
            "image": datasets.Image(),
            "q": datasets.Value("string"),
            "a": datasets.ClassLabel(names=COLORS),
            "b": datasets.ClassLabel(names=COLORS),
        }
    )
    cells = [{"bytes": png(color), "path": "x.png"} for color in ("red", "blue")]
    made = {"image": cells, "q": ["red?", "blue?"], "a": [0, 2], "b": [1, 3]}
    datasets.Dataset.from_dict(made, features=kinds).to_parquet(str(tmp_path / "a.parquet"))
    pairs = {pair.id: pair for pair in load(tmp_path / "a.parquet")}
    said = {name: (pair.answer, pair.foil) for name, pair in pairs.items()}
    assert said == {"0": ("red", "green"), "1": ("blue", "yellow")}
    assert [colors(pairs[name].clean) for name in "01"] == [[RGB["red"]], [RGB["blue"]]]


def test_a_cell_may_name_a_file_beside_its_table(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "b.png", 5)
    path = written(tmp_path / "a.parquet", [row(0, image={"bytes": None, "path": "images/b.png"}, raw="images/b.png")])
    for column in ("image", "image.path", "raw"):
        (pair,) = load(path, {"image": column})
        assert pair.clean.picture().tobytes() == opened(tmp_path / "images" / "b.png").tobytes()


def test_boxes_may_be_of_width_and_height(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [row(0)])
    (pair,) = load(path, {"regions": {"object": "objects.bbox.0"}}, boxes="xywh")
    assert pair.regions == {"object": (1, 2, 10, 10)}


def test_a_folder_and_a_pattern_are_read_by_split(tmp_path: Path) -> None:
    written(tmp_path / "data" / "test-00000-of-00001.parquet", [row(0)])
    written(tmp_path / "data" / "train-00000-of-00002.parquet", [row(1)])
    written(tmp_path / "data" / "train-00001-of-00002.parquet", [row(2)])
    written(tmp_path / "val" / "0.parquet", [row(3)])
    own = {"id": "id"}
    assert {pair.id for pair in load(tmp_path, own)} == {"r0", "r1", "r2", "r3"}
    assert {pair.id for pair in load(tmp_path, own, split="train")} == {"r1", "r2"}
    assert {pair.id for pair in load(tmp_path, own, split="val")} == {"r3"}
    assert {pair.id for pair in load(f"{tmp_path}/data/t*-00000-*", own)} == {"r0", "r1"}
    says(refusal(lambda: load(tmp_path, split="dev")), "'dev'", "test-00000-of-00001.parquet")


def test_pictures_are_left_in_their_cells_until_they_are_needed(tmp_path: Path) -> None:
    rows = [row(i, image={"bytes": b"no picture" if i % 2 else png("red"), "path": None}) for i in range(6)]
    path = written(tmp_path / "a.parquet", rows)
    kind = loading.DATASETS["hub"].spec
    spec = kind.model_validate({"dataset": "hub", "path": str(path), "columns": {**COLUMNS, "id": "id"}})
    assert len(loading.load_unopened(spec)) == 6
    says(refusal(lambda: load(path)), f"{path}, row ", "column 'image'", "cannot be read as a picture", "on_error")
    pairs = load(path, {"id": "id"}, on_error="skip")
    assert {pair.id for pair in pairs} == {"r0", "r2", "r4"} and pairs.dropped == {f"error: {loading.BROKEN}": 3}


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ({"bytes": png_that_says(8_000, 8_000), "path": None}, ("8000 × 8000", "row 0")),
        ({"bytes": None, "path": None}, ("neither bytes nor a path", "row 0")),
        ({"bytes": None, "path": "gone.png"}, ("row 0", "does not exist")),
    ],
)
def test_a_cell_without_a_picture_that_can_be_decoded_is_refused(
    tmp_path: Path, image: Any, parts: tuple[str, ...]
) -> None:
    path = written(tmp_path / "a.parquet", [row(0, image=image)])
    says(refusal(lambda: load(path)), str(path), *parts)


@pytest.mark.parametrize(
    ("changes", "columns", "parts"),
    [
        ({"a": None}, {}, ("'a'", "None")),
        ({"q": " "}, {}, ("'q' is empty",)),
        ({"b": "green"}, {}, ("answer and foil are both 'green'",)),
        ({"id": "r0"}, {"id": "id"}, ("'r0'", "row 0", "unique")),
        ({"animal": "dog"}, {"spans": {"subject": "animal"}}, ("'animal'", "once", "'dog'")),
        ({"at": [3, 99]}, {"spans": {"subject": "at"}}, ("span 'subject'", "[3, 99]")),
        ({"at": [3]}, {"spans": {"subject": "at"}}, ("'at'", "[3]")),
        ({"objects": {"bbox": [], "name": ["cat"]}}, {"regions": {"x": "objects.bbox.0"}}, ("'objects.bbox.0'", "'0'")),
        ({"objects": {"bbox": [[1.0, 2.0]]}}, {"regions": {"x": "objects.bbox.0"}}, ("'objects.bbox.0'", "[1.0, 2.0]")),
        ({"objects": {"bbox": [[1.0, 2.0, 99.0, 9.0]]}}, {"regions": {"x": "objects.bbox.0"}}, ("'x'", "16 × 16")),
    ],
)
def test_a_row_that_cannot_be_used_is_named_or_skipped(
    tmp_path: Path, changes: dict[str, Any], columns: dict[str, Any], parts: tuple[str, ...]
) -> None:
    path = written(tmp_path / "a.parquet", [row(0), row(1, **changes), row(2)])
    says(refusal(lambda: load(path, columns)), f"{path}, row 1", *parts)
    pairs = load(path, columns, on_error="skip")
    assert len(pairs) == 2 and sum(pairs.dropped.values()) == 1


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"columns": {"foil": "c"}}, ("pairs.columns.foil", "no column 'c'", "animal")),
        ({"columns": {"image": "imgae"}}, ("pairs.columns.image", "'imgae'", "Did you mean 'image'?")),
        ({"columns": {"spans": {"subject": "anmial"}}}, ("pairs.columns.spans.subject", "Did you mean 'animal'?")),
        ({"columns": {"anser": "a"}}, ("pairs.columns.anser", "Did you mean 'answer'?", "corrupted_text")),
        ({"columns": {"answer": 3}}, ("pairs.columns.answer", "text", "3")),
        ({"question": "is it {first} or {second}?"}, ("columns.text and question", "exactly one")),
        ({"columns": {"text": None}}, ("columns.text and question", "exactly one")),
        ({"columns": {"text": None}, "question": "is it {first}?"}, ("{first} and {second}",)),
        ({"columns": {"text": None}, "question": "is it {first} or {second?"}, ("question is no template",)),
        ({"columns": {"text": None}, "question": "{first} or {second} {anmal}"}, ("{anmal}", "Did you mean 'animal'?")),
        ({"colums": {}}, ("pairs.colums", "Did you mean 'columns'?")),
        ({"boxes": "xyhw"}, ("pairs.boxes", "'xyhw'", "Did you mean 'xywh'?")),
    ],
)
def test_columns_that_are_not_there_or_do_not_go_together_are_refused(
    tmp_path: Path, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    path = written(tmp_path / "a.parquet", [row(0)])
    says(refusal(lambda: load(path, **options)), *parts)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [row(0)])
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:800])
    says(refusal(lambda: load(tmp_path / "cut.parquet")), "cut.parquet", "cannot be read")
    says(refusal(lambda: load(tmp_path / "none" / "*.parquet")), "does not exist", "no name on the hub")
    (tmp_path / "empty").mkdir()
    says(refusal(lambda: load(tmp_path / "empty")), "no parquet file")
    says(refusal(lambda: load("nobody/nothing", split="train")), "nobody/nothing", "nor a dataset of the hub")


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [row(0)])
    assert load(path)[0].answer == "red"
    written(path, [row(1)])
    assert load(path)[0].answer == "green" and colors(load(path)[0].clean) == [RGB["green"]]


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    path = written(tmp_path / "a.parquet", [row(0)])
    says(refusal(lambda: load(path)), "package datasets", "pip install 'vlm-patching[hub]'")


def test_a_preset_runs_on_its_files(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [row(i) for i in range(5)])
    columns = {"answer": "a", "foil": "b", "image": "image", "corrupted_image": "raw", "id": "id"}
    pairs = {"dataset": "hub", "path": str(path), "columns": columns, "n": 2, "keep": "all"}
    pairs["question"] = "is the circle {first} or {second}?"
    for preset, corruption in (
        ("notice2024_blip_heads", {"kind": "semantic_image_pair"}),
        ("notice2024_llava_heads", {"kind": "symmetric_token_replacement", "automatic": True}),
    ):
        ds = vp.run(vp.Experiment.from_spec(preset, {"pairs": pairs, "corruption": corruption}), progress=False)
        assert ds.sizes["example"] == 2 and ds.attrs["pairs_considered"] == 5
        assert np.isfinite(ds["logit_difference"]).all()
