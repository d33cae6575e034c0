"""Tables and JSON files are read row by row, and whatever is wrong in them is said with file and line."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.refusals import refusal, says
from vlm_patching.pairs.reading.csv_files import read_csv, read_csv_at
from vlm_patching.pairs.reading.folders import inside
from vlm_patching.pairs.reading.json_files import (
    read_json,
    read_json_by_key,
    read_json_lines,
    read_json_tuples,
    read_object,
)
from vlm_patching.pairs.reading.lines import read_side_by_side
from vlm_patching.pairs.reading.rows import BadRow, Row

cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\x00"), max_size=8)


def rows_of(found: Any) -> list[Row]:
    rows = list(found)
    assert all(isinstance(row, Row) for row in rows), rows
    return rows


# Tables


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(cells, min_size=2, max_size=2), max_size=6), st.booleans())
def test_every_cell_comes_back_with_the_byte_its_row_begins_at(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], mark: bool
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
        csv.writer(file).writerows([["a", " b"], *rows])
    found = rows_of(read_csv(path, ("a", "b")))
    assert [[row.values["a"], row.values["b"]] for row in found] == rows
    for row in found:
        assert read_csv_at(path, ("a", "b"), row.offset).values == row.values


def test_a_row_is_named_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,"x\ny"\n\n2,z\n')
    assert [row.where for row in rows_of(read_csv(path, ("a",)))] == [f"{path}, line 2", f"{path}, line 5"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("line 1", "empty", "sentence, answer")),
        (b"sentense,answer\nx,y\n", ("line 1", "'sentence'", "Did you mean 'sentense'?", "answer")),
        (b"sentence,answer,answer\nx,y,z\n", ("line 1", "'answer'", "twice")),
        (b'sentence,answer\n"a\nb",c\n"d,e\nf', ("line 4", "inside a quoted field")),
        (b'sentence,answer\n"a"b,c\n', ("line 2", "CSV")),
        (b"sentence,answer\nx,y\ncaf\xe9,y\n", ("line 3", "byte 4", "0xe9", "UTF-8", "latin-1")),
        (b"sentence,answer\nx," + b"y" * 200_000 + b"\n", ("line 2", "field")),
    ],
    ids=["empty", "other-column", "column-twice", "cut-off", "stray-quote", "latin-1", "huge-field"],
)
def test_a_table_that_is_not_what_it_was_is_refused_with_its_line(
    tmp_path: Path, content: bytes, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    says(refusal(lambda: list(read_csv(path, ("sentence", "answer")))), str(path), *parts)


def test_a_row_of_too_few_fields_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n3\n4,5,6\n7,8\n")
    found = list(read_csv(path, ("a", "b")))
    assert [type(row) for row in found] == [Row, BadRow, BadRow, Row]
    says(str(found[1]), f"{path}, line 3", "1 fields", "2")


@pytest.mark.parametrize(
    "read", [lambda path: read_csv(path, ("a",)), read_json_lines, lambda path: read_json(path, "")]
)
def test_a_file_that_does_not_exist_is_refused_with_the_nearest_beside_it(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    (tmp_path / "questions.json").touch()
    says(refusal(lambda: list(read(tmp_path / "question.json"))), "question.json", "Did you mean 'questions.json'?")
    says(refusal(lambda: list(read(tmp_path / "none" / "a.json"))), str(tmp_path / "none"), "no folder")
    says(refusal(lambda: list(read(tmp_path))), str(tmp_path), "cannot be read")


@pytest.mark.parametrize(
    ("values", "ask", "parts"),
    [
        ({"n": "x3"}, lambda row: row.whole("n"), ("'n'", "whole number", "'x3'")),
        ({"n": 2.0}, lambda row: row.whole("n"), ("'n'", "whole number", "2.0")),
        ({"n": True}, lambda row: row.whole("n"), ("'n'", "whole number", "True")),
        ({"f": "yes"}, lambda row: row.flag("f"), ("'f'", "True", "False", "'yes'")),
        ({"f": 1}, lambda row: row.flag("f"), ("'f'", "1")),
        ({"t": 3}, lambda row: row.text("t"), ("'t'", "text", "3")),
        ({"t": "  "}, lambda row: row.text("t"), ("'t'", "empty")),
        ({"answer": ""}, lambda row: row.text("anser"), ("'anser'", "missing", "Did you mean 'answer'?")),
        ({"l": "a"}, lambda row: row.texts("l"), ("'l'", "list of texts", "'a'")),
        ({"l": []}, lambda row: row.texts("l"), ("'l'", "list of texts", "[]")),
        ({"l": ["a", 3]}, lambda row: row.texts("l"), ("'l[1]'", "text", "3")),
        ({"b": [1, 2, 3]}, lambda row: row.box("b"), ("'b'", "box", "[1, 2, 3]")),
        ({"b": [1, 2, 3, "4"]}, lambda row: row.box("b"), ("'b'", "box", "'4'")),
        ({"b": [1, 2, 3, float("inf")]}, lambda row: row.box("b"), ("'b'", "box", "inf")),
        ({"b": [1, 2, 0.2, 9]}, lambda row: row.box("b"), ("'b'", "empty box")),
        ({"b": [40, 2, 5, 5]}, lambda row: row.box("b", (32, 32)), ("'b'", "empty box")),
    ],
)
def test_a_wrong_value_is_an_error_of_its_row(
    values: dict[str, Any], ask: Callable[[Row], object], parts: tuple[str, ...]
) -> None:
    message = refusal(lambda: ask(Row("a.csv, line 7", values)))
    says(message, "a.csv, line 7: ", *parts)


def test_an_error_that_ends_in_a_question_has_no_other_ending() -> None:
    assert str(BadRow("a, line 1", "it is not there", "it is not there. Did you mean 'b'?")).endswith("'b'?")


def test_values_are_read_as_what_they_are() -> None:
    row = Row("", {"a": " -12 ", "b": "TRUE", "c": False, "d": " x ", "e": 7})
    assert (row.whole("a"), row.flag("b"), row.flag("c"), row.text("d"), row.whole("e")) == (-12, True, False, "x", 7)


def test_a_box_of_width_and_height_has_its_ends_in_whole_pixels_inside_of_its_image() -> None:
    row = Row("", {"a": [10.4, 5, 20.4, 6.7], "b": [-3.0, 20, 50, 30]})
    assert row.box("a") == (10, 5, 31, 12)
    assert row.box("b", (40, 32)) == (0, 20, 40, 32)
    says(refusal(lambda: row.box("b")), "'b' begins outside its image", "-3.0")
    says(refusal(lambda: Row("", {"c": [1e308, 0, 1e308, 20]}).box("c")), "'c' is no box", "1e+308")
    assert Row("", {"l": [" a", "b "]}).texts("l") == ("a", "b")


# JSON


def test_objects_of_a_list_inside_a_file_come_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    entries = [{"id": i, "words": ["ä", None, 1.5]} for i in range(3)]
    for indent in (None, 2):
        for bom in (b"", b"\xef\xbb\xbf"):
            path.write_bytes(bom + json.dumps({"info": {}, "questions": entries, "z": 1}, indent=indent).encode())
            found = rows_of(read_json(path, "questions"))
            assert [row.values for row in found] == entries
            assert found[1].where == f"{path}, questions[1]"
    path.write_text(json.dumps(entries))
    assert [row.values for row in rows_of(read_json(path, ""))] == entries


def test_an_object_of_objects_comes_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"7": {"a": 1}, "8": {"a": 2}, "9": 3}))
    found = list(read_json_by_key(path))
    assert [key for key, _ in found] == ["7", "8", "9"]
    assert isinstance(found[0][1], Row) and found[0][1].values == {"a": 1}
    assert isinstance(found[2][1], BadRow)
    says(str(found[2][1]), "entry['9']", "object", "3")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"questions": [\n{"a": 1},\n{"a": 2', ("line 3", "cut off")),
        (b"", ("line 1", "cut off")),
        (b'{"questions": [\n{"a": 1},\n{"a" 2},\n{"a": 3}]}', ("line 3", "not JSON", "colon")),
        (b'{"questions": [{"a": 1}]}\n{"b": 1}', ("line 2", "not JSON")),
        (b'{"questions": [\n{"a": "caf\xe9"}]}', ("line 2", "byte 11", "0xe9", "UTF-8")),
        (b'{"question": [{"a": 1}]}', ("'questions'", "Did you mean 'question'?")),
        (b'{"questions": []}', ("nothing at 'questions'",)),
    ],
    ids=["cut-off", "empty", "no-colon", "more-behind", "latin-1", "other-key", "empty-list"],
)
def test_a_file_that_is_no_whole_json_is_refused_with_its_line(
    tmp_path: Path, content: bytes, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    says(refusal(lambda: list(read_json(path, "questions"))), str(path), *parts)


def test_entries_before_a_fault_are_given(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"questions": [{"a": 1}, {"a": 2}, {')
    found = read_json(path, "questions")
    assert isinstance(next(found), Row) and isinstance(next(found), Row)
    says(refusal(lambda: next(found)), "line 1", "cut off")


def test_a_large_file_does_not_come_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = "x" * 500
    with path.open("w") as file:
        file.write('{"questions": [')
        file.write(",\n".join(json.dumps({"id": i, "text": text}) for i in range(20_000)))
        file.write("]}")
    tracemalloc.start()
    assert sum(1 for _ in read_json(path, "questions")) == 20_000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 10_000_000 and most < 1_000_000


def test_a_small_file_is_one_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": ["\xc3\xa4"]}\n')
    assert read_object(path).values == {"a": ["ä"]} and read_object(path).where == str(path)
    for content, parts in ((b"[1]", ("object", "[1]")), (b'{"a": 1', ("not JSON",)), (b'{"a": "\xe4"}', ("UTF-8",))):
        path.write_bytes(content)
        says(refusal(lambda: read_object(path)), str(path), *parts)


# JSON, an object a line


def test_a_line_that_holds_no_object_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{oops\n[2]\n{"a": "x\xe2\x80\xa8y"}')
    found = list(read_json_lines(path))
    assert [type(row) for row in found] == [Row, BadRow, BadRow, Row]
    says(str(found[1]), f"{path}, line 3 is not JSON", "column 2")
    says(str(found[2]), f"{path}, line 4", "object", "[2]")
    assert isinstance(found[3], Row) and found[3].values == {"a": "x\u2028y"} and found[3].where.endswith("line 5")


# Short lists, and files side by side


def test_short_lists_are_rows_of_names(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[[1, 2], [3], {}, [4, 5]]")
    found = list(read_json_tuples(path, ("one", "other")))
    assert [row.values for row in found if isinstance(row, Row)] == [{"one": 1, "other": 2}, {"one": 4, "other": 5}]
    says(str(found[1]), f"{path}, entry[1]", "a list of 2", "[3]")
    says(str(found[2]), f"{path}, entry[2]", "a list of 2")


@pytest.mark.parametrize(
    ("content", "under", "parts"),
    [
        ("[1]", "questions", ("is a list", "an object with the key 'questions' is expected")),
        ("null", "questions", ("is null", "an object with the key 'questions' is expected")),
        ('{"a": 1}', "", ("has an object in it", "a list is expected")),
        ('{"questions": {"a": 1}}', "questions", ("has an object at 'questions'", "a list is expected")),
        ('{"questions": 5}', "questions", ("has 5 at 'questions'", "a list is expected")),
        ('{"questions": []}', "questions", ("nothing at 'questions'", "a list without entries")),
        ('{"question": []}', "questions", ("nothing at 'questions'", "Did you mean 'question'?")),
        ("{}", "questions", ("nothing at 'questions'", "no keys")),
        ("[]", "", ("nothing in it", "a list without entries")),
    ],
)
def test_a_file_without_entries_where_they_belong_says_what_it_has(
    tmp_path: Path, content: str, under: str, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    says(refusal(lambda: list(read_json(path, under))), str(path), *parts)


@pytest.mark.parametrize(("content", "what"), [("[1]", "has a list in it, where an object"), ("{}", "without entries")])
def test_a_file_that_is_no_object_of_entries_says_so(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "a.json").write_text(content)
    says(refusal(lambda: list(read_json_by_key(tmp_path / "a.json"))), "a.json", what)


@pytest.mark.parametrize("text", ["--5", "+-5", "5" * 5000, "", "5.0"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    says(refusal(lambda: Row("a, line 1", {"x": text}).whole("x")), "a, line 1", "'x' is no whole number")
    assert Row("a, line 1", {"x": " +05 "}).whole("x") == 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(cells.filter(lambda c: "\n" not in c), cells.filter(lambda c: "\n" not in c)), max_size=6))
def test_lines_of_one_number_belong_together(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    for place, name in enumerate(("a", "b")):
        (folder / name).write_text("".join(f"{row[place]}\n" for row in rows), encoding="utf-8")
    found = list(read_side_by_side({"x": folder / "a", "y": folder / "b"}))
    assert [(row.values["x"], row.values["y"]) for row in found] == rows
    assert [row.where for row in found] == [f"{folder}, line {number} of a, b" for number in range(1, len(rows) + 1)]
    with (folder / "b").open("a") as file:
        file.write("more\n")
    says(
        refusal(lambda: list(read_side_by_side({"x": folder / "a", "y": folder / "b"}))),
        *(f"{folder / 'a'} ends at line {len(rows)}", str(folder / "b")),
    )


def test_a_file_is_found_in_a_folder_or_in_one_inside_it(tmp_path: Path) -> None:
    assert inside(tmp_path, "a.json") == tmp_path / "a.json"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").touch()
    assert inside(tmp_path, "a.json") == tmp_path / "in" / "a.json"
    (tmp_path / "a.json").touch()
    assert inside(tmp_path, "a.json") == tmp_path / "a.json"
