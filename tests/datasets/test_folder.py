"""Your own pairs as a table: pairs.csv says what pairs.jsonl says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vlm_patching as vp
from tests.datasets.kit import table
from tests.refusals import RECORD, folder_of, refusal, says, second
from vlm_patching.pairs import pairs_digest
from vlm_patching.pairs.exporting import write_folder

COLUMNS = [
    *("id", "clean.image", "clean.text", "corrupted.image", "corrupted.text", "answer", "foil"),
    *("spans.answer_option", "regions.object", "task"),
]
ROW = ["0", "red.png", "is the ring red or blue?", "blue.png", "is the ring green or yellow?", "red", "blue"]
MORE = ["12 15", "1 1 30 30", "color"]


def tabled(path: Path, *rows: list[str], columns: list[str] = COLUMNS) -> Path:
    folder = folder_of(path)
    (folder / "pairs.jsonl").unlink()
    table(folder / "pairs.csv", columns, rows)
    return folder


def test_a_table_gives_the_pairs_that_the_same_lines_of_json_give(tmp_path: Path) -> None:
    lines = folder_of(tmp_path / "lines", RECORD | {"task": "color"}, second({"spans": {}, "regions": {}}))
    other = ["1", *ROW[1:], "", " ", ""]
    pairs = vp.load_pairs("folder", path=tabled(tmp_path / "table", [*ROW, *MORE], other))
    expected = vp.load_pairs("folder", path=lines)
    assert pairs_digest(pairs) == pairs_digest(expected)
    assert [pair.task for pair in pairs] == [pair.task for pair in expected] == ["color", ""]
    assert dict(pairs[0].spans) == {"answer_option": (12, 15)} and not pairs[1].spans


def test_an_empty_image_cell_is_a_prompt_without_an_image(tmp_path: Path) -> None:
    row = ["0", "", "a b", "", "a c", "b", "c"]
    (pair,) = vp.load_pairs("folder", path=tabled(tmp_path / "t", row, columns=COLUMNS[:7]))
    assert pair.clean.images == () == pair.corrupted.images


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({7: "12-15"}, ("line 3", "spans.answer_option", "2 whole numbers", "'12-15'")),
        ({7: "12 15 17"}, ("line 3", "spans.answer_option", "[12, 15, 17]")),
        ({8: "1 1 30 300"}, ("line 3", "'object'", "300", "96")),
        ({1: "none.png"}, ("line 3", "none.png", "does not exist")),
        ({1: "data:image/png;base64," + "A" * 4000}, ("line 3", "data:image/png", "does not exist")),
        ({0: "0"}, ("line 3", "'0'", "line 2")),
        ({5: ""}, ("line 3", "answer", "empty")),
    ],
)
def test_a_bad_row_of_a_table_is_refused_with_file_and_line(
    tmp_path: Path, changes: dict[int, str], parts: tuple[str, ...]
) -> None:
    bad = ["1", *ROW[1:], *MORE]
    for place, cell in changes.items():
        bad[place] = cell
    folder = tabled(tmp_path / "t", [*ROW, *MORE], bad)
    says(refusal(lambda: vp.load_pairs("folder", path=folder)), str(folder / "pairs.csv"), *parts)
    pairs = vp.load_pairs("folder", path=folder, on_error="skip")
    assert len(pairs) == 1 and sum(pairs.dropped.values()) == 1


def test_a_column_that_is_not_known_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = tabled(tmp_path / "t", [*ROW, "x"], columns=[*COLUMNS[:7], "tsk"])
    says(refusal(lambda: vp.load_pairs("folder", path=folder)), "line 1", "'tsk'", "Did you mean 'task'?", "spans.NAME")
    folder = tabled(tmp_path / "u", ROW, columns=["id", "clean_image", *COLUMNS[2:7]])
    says(refusal(lambda: vp.load_pairs("folder", path=folder)), "'clean.image'", "Did you mean 'clean_image'?")


def test_a_folder_with_both_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "both", RECORD)
    table(folder / "pairs.csv", COLUMNS, [[*ROW, *MORE]])
    says(refusal(lambda: vp.load_pairs("folder", path=folder)), str(folder), "pairs.jsonl", "pairs.csv")


def test_the_first_n_lines_are_read_and_no_more(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mypairs", RECORD)
    with (folder / "pairs.jsonl").open("a") as file:
        file.write("\n{oops")
    assert len(vp.load_pairs("folder", path=folder, n=1)) == 1
    says(refusal(lambda: vp.load_pairs("folder", path=folder, n=2)), "line 2", "JSON")
    says(
        refusal(lambda: vp.load_pairs("folder", path=folder, n=2, on_error="skip")),
        "pairs.n is 2",
        "1 pairs",
        "no JSON",
    )


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_accepted(tmp_path: Path, bom: bytes) -> None:
    folder = folder_of(tmp_path / "mypairs")
    (folder / "pairs.jsonl").write_bytes(bom + json.dumps(RECORD).encode())
    assert [pair.id for pair in vp.load_pairs("folder", path=folder)] == ["0"]


@pytest.mark.parametrize(
    ("dataset", "options"), [("shapes", {"n": 3, "questions": ["place", "color"]}), ("folder", {})]
)
def test_pairs_that_were_written_are_read_back_as_they_were(
    tmp_path: Path, dataset: str, options: dict[str, Any]
) -> None:
    if dataset == "folder":
        several = second({"clean.image": ["red.png", "blue.png"], "corrupted.image": ["blue.png", "red.png"]})
        none = second({"id": "2", "clean.image": None, "corrupted.image": None, "regions": {}})
        options = {"path": folder_of(tmp_path / "mypairs", RECORD, several, none | {"id": "2"})}
    pairs = vp.load_pairs(dataset, **options)
    write_folder(pairs, tmp_path / "out")
    again = vp.load_pairs("folder", path=tmp_path / "out")
    assert pairs_digest(again) == pairs_digest(pairs)
    assert [pair.task for pair in again] == [pair.task for pair in pairs]
