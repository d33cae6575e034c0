"""A dataset of the Hugging Face hub, or parquet files of that form: its columns are named in the spec.

Files: a name on the hub ("owner/name"), which the package `datasets` (pip install 'vlm-patching[hub]') downloads and
keeps in its cache, as HF_HOME and HF_HUB_OFFLINE say; or parquet files here: one, a folder, or a pattern
("data/val-*"). No code out of a dataset is run. A column may be a part of one: "objects.bbox.0" is the first of the
list bbox of the struct objects. Images are binary, or structs of bytes and path, as the hub has them; they are decoded
when they are needed.

Pair rule: as written, with `columns.text`; or, with a template, "Is the {animal} {first} or {second}?", a question
between a row's answer and its foil, whose order is balanced, and in which other names are columns.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from vlm_patching.errors import SpecError, nearest, shown
from vlm_patching.pairs.candidates import Candidate, Choice, Found, attempt
from vlm_patching.pairs.datasets.base import FilesSpec
from vlm_patching.pairs.pair import Box, Pair, Prompt, Span
from vlm_patching.pairs.pictures import Picture
from vlm_patching.pairs.reading.rows import Row
from vlm_patching.pairs.tables import CellPicture, Source, part_of, top_of
from vlm_patching.validation import Section

ABOUT = "a dataset of the Hugging Face hub, or parquet files, whose columns the spec names"
FILES = "none for a name on the hub; or *.parquet (needs the package datasets: pip install 'vlm-patching[hub]')"
_BATCH = 256
Columns = str | tuple[str, ...]


class HubColumns(Section):
    """Which column is what.

    Attributes
    ----------
    answer, foil
        The words.
    text, corrupted_text
        The question (where pairs.question is not given), and another one in its place.
    image, corrupted_image
        The picture, and another one in its place; lists of columns, for prompts of several.
    id, task
        What a row is called (its number, where not given), and what kind of question it is.
    spans, spans_corrupted
        Name → column of [start, end], or of words that the text holds once; of the text, of the corrupted text.
    regions
        Name → column of a box in the first image.
    """

    answer: str
    foil: str
    text: str | None = None
    corrupted_text: str | None = None
    image: Columns | None = None
    corrupted_image: Columns | None = None
    id: str | None = None
    task: str | None = None
    spans: dict[str, str] = Field(default_factory=dict)
    spans_corrupted: dict[str, str] = Field(default_factory=dict)
    regions: dict[str, str] = Field(default_factory=dict)


class Hub(FilesSpec):
    """Pairs out of the columns of a dataset of the hub, or of parquet files.

    Attributes
    ----------
    path
        The dataset's name on the hub; or a parquet file, a folder of them, or a pattern.
    columns
        Which column is what.
    question
        A template of the question, with {first} and {second} for answer and foil, and names of columns, which become
        spans: "Is the {animal} {first} or {second}?".
    config, split, revision
        Of a dataset on the hub; of a folder, `split` is what its files' names begin with, or their folder's name.
    boxes
        What the four numbers of a region are: x0, y0, x1, y1, or x, y, width, height.
    """

    dataset: Literal["hub"]
    columns: HubColumns
    question: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    boxes: Literal["xyxy", "xywh"] = "xyxy"

    @model_validator(mode="after")
    def _one_text(self) -> Hub:
        if (self.question is None) == (self.columns.text is None):
            raise ValueError("columns.text and question: exactly one of them says what the text is.")
        if self.question is not None:
            named = _named(self.question)
            if sorted(name for name in named if name in ("first", "second")) != ["first", "second"]:
                raise ValueError("question needs {first} and {second}, each once: where answer and foil stand.")
            if self.columns.corrupted_text or self.columns.spans or self.columns.spans_corrupted:
                raise ValueError("question says what the spans are; spans and corrupted_text go with columns.text.")
        return self


def candidates(spec: Hub) -> Iterator[Found]:
    """A pair, or a question, of every row."""
    source = Source(spec.path, spec.config, spec.split, spec.revision)
    table = source.open()
    wanted = _wanted(spec, table.column_names)
    labels = {name: table.features[name] for name in wanted if hasattr(table.features[name], "int2str")}
    number = 0
    for batch in table.select_columns(wanted).iter(_BATCH):
        for values in batch.to_pylist():
            values |= {name: kind.int2str(values[name]) for name, kind in labels.items() if values[name] is not None}
            row = Row(f"{spec.path}, row {number}", values)
            yield Found(row.where, attempt(partial(_candidate, spec, source, row, number), row.where))
            number += 1


def _named(template: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"question is no template: {error}.") from error


def _wanted(spec: Hub, known: list[str]) -> list[str]:
    """The columns to read of every row: all but those of images."""
    given = {f"columns.{key}": value for key, value in spec.columns if isinstance(value, str | tuple)}
    named = {
        f"columns.{key}.{name}": c
        for key, there in spec.columns
        if isinstance(there, dict)
        for name, c in there.items()
    }
    asked = {f"question, {{{name}}}": name for name in _named(spec.question or "") if name not in ("first", "second")}
    read: dict[str, None] = {}
    for where, value in {**given, **named, **asked}.items():
        for column in (value,) if isinstance(value, str) else value:
            top = top_of(column, known)
            if top not in known:
                told = f"{spec.path} has no column {column!r}.{nearest(top, known)} It has {', '.join(known)}."
                raise SpecError(f"pairs.{where}: {told}")
            if where not in ("columns.image", "columns.corrupted_image"):
                read[top] = None
    return list(read)


def _candidate(spec: Hub, source: Source, row: Row, number: int) -> Candidate:
    columns = spec.columns
    name = str(number) if columns.id is None else _text(row, columns.id)
    answer, foil = _text(row, columns.answer), _text(row, columns.foil)
    clean = _pictures(source, number, columns.image)
    corrupted = clean if columns.corrupted_image is None else _pictures(source, number, columns.corrupted_image)
    regions = {region: _box(spec, row, column) for region, column in columns.regions.items()}
    task = "" if columns.task is None else _text(row, columns.task)
    if spec.question is not None:
        words = {word: _text(row, word) for word in _named(spec.question) if word not in ("first", "second")}
        return Choice(name, spec.question, answer, foil, clean, corrupted, words, regions=regions, task=task)
    assert columns.text is not None
    text = _text(row, columns.text)
    other = text if columns.corrupted_text is None else _text(row, columns.corrupted_text)
    spans = {span: _span(row, column, text) for span, column in columns.spans.items()}
    moved = {span: _span(row, column, other) for span, column in columns.spans_corrupted.items()}
    return Pair(name, Prompt(clean, text), Prompt(corrupted, other), answer, foil, spans, moved, regions, task)


def _text(row: Row, column: str) -> str:
    """A text; a number as it is written."""
    value = part_of(row, column)
    return Row(row.where, {column: str(value) if type(value) in (int, float) else value}).text(column)


def _span(row: Row, column: str, text: str) -> Span:
    """Where a span of a text is: as the column says, or where the words stand that are in it."""
    value = part_of(row, column)
    if isinstance(value, str) and value:
        if text.count(value) != 1:
            raise row.bad(f"{column!r} does not stand in the text once", f": {value!r} in {text!r}")
        return text.index(value), text.index(value) + len(value)
    if not isinstance(value, list) or len(value) != 2 or any(type(end) is not int for end in value):
        raise row.bad(f"{column!r} is neither words nor [start, end]", f" but {shown(value)}")
    return value[0], value[1]


def _box(spec: Hub, row: Row, column: str) -> Box:
    value = part_of(row, column)
    if spec.boxes == "xyxy" and isinstance(value, list) and len(value) == 4:
        value = [*value[:2], *(end - begin for begin, end in zip(value[:2], value[2:], strict=True))]
    return Row(row.where, {column: value}).box(column)


def _pictures(source: Source, row: int, columns: Columns | None) -> Picture | tuple[Picture, ...]:
    names = (columns,) if isinstance(columns, str) else columns or ()
    pictures = tuple(CellPicture(source, row, name) for name in names)
    return pictures[0] if len(pictures) == 1 else pictures
