"""Tables of the Hugging Face hub, and parquet files of that form, with the pictures in them.

The package `datasets` is imported when one is opened.
"""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_patching.errors import SpecError, shown
from vlm_patching.pairs.pictures import StoredPicture, check_size
from vlm_patching.pairs.reading.rows import Row

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a table is: a name on the hub, or a parquet file, a folder of them, or a pattern."""

    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def open(self) -> Any:
        """The table, its rows as they are stored: nothing of them is decoded.

        Raises
        ------
        SpecError
            The package `datasets` is missing, there is no such file or name, or it cannot be read.
        """
        files = _files(self)
        return _opened(self, tuple((file, Path(file).stat().st_mtime_ns) for file in files))


@dataclass(frozen=True, slots=True)
class CellPicture(StoredPicture):
    """The picture in a column of a row: binary, a file's name, or a struct of bytes and path."""

    source: Source
    row: int
    column: str

    def read(self) -> Image.Image:
        table = self.source.open()
        top = top_of(self.column, table.column_names)
        cell = table.select_columns([top])[self.row].column(0)[0].as_py()
        value = part_of(Row(self.name, {top: cell}), self.column)
        found = value if isinstance(value, Mapping) else {"path" if isinstance(value, str) else "bytes": value}
        if isinstance(found.get("bytes"), bytes):
            image = Image.open(io.BytesIO(found["bytes"]))
        elif isinstance(found.get("path"), str):
            place = Path(self.source.path)
            image = Image.open((place if place.is_dir() else place.parent) / found["path"])
        else:
            raise SpecError(f"Image {self.name} is neither bytes nor a path, but {shown(value)}.")
        check_size(image.size, self.name)
        image.load()
        return image

    @property
    def name(self) -> str:
        return f"of {self.source.path}, row {self.row}, column {self.column!r}"


def top_of(column: str, known: list[str]) -> str:
    """The column that a column, or a part of one ("objects.bbox.0"), belongs to."""
    return column if column in known else column.split(".")[0]


def part_of(row: Row, column: str) -> Any:
    """What stands in a column, or in a part of one."""
    if column in row.values:
        return row.values[column]
    value: Any = row.values
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise row.bad(f"{column!r} is missing", f": there is no {part!r} in {shown(value)}")
    return value


@lru_cache(maxsize=4)
def _opened(source: Source, files: tuple[tuple[str, int], ...]) -> Any:
    """The table of files as they were at a time, or of the hub."""
    try:
        import datasets
    except ImportError as error:
        raise SpecError(
            "Dataset 'hub' needs the package datasets, which is not installed: pip install 'vlm-patching[hub]'."
        ) from error
    try:
        if files:
            table = datasets.load_dataset("parquet", data_files={"train": [file for file, _ in files]}, split="train")
        else:
            split = source.split or _only_split(datasets, source)
            table = datasets.load_dataset(source.path, source.config, split=split, revision=source.revision)
    except SpecError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        place = (
            "cannot be read" if files else f"is neither here (in {Path.cwd()}) nor a dataset of the hub that can be had"
        )
        raise SpecError(f"pairs.path: {source.path} {place}: {' '.join(str(cause).split())}") from error
    return table.with_format("arrow")


def _files(source: Source) -> list[str]:
    """The parquet files here that are meant; none where a name on the hub is."""
    path = Path(source.path)
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        there = sorted(path.rglob("*.parquet"))
        named = [file for file in there if source.split is None or _is_of(file, source.split)]
        if not named:
            of = "" if source.split is None else f" of a split {source.split!r}"
            names = ", ".join(str(file.relative_to(path)) for file in there[:10]) or "none"
            raise SpecError(f"{path} (in {Path.cwd()}) has no parquet file{of}. It has {names}.")
        return [str(file) for file in named]
    found = sorted(glob.glob(source.path, recursive=True))
    if not found and not _NAME.fullmatch(source.path):
        raise SpecError(f"{source.path} does not exist (in {Path.cwd()}), and is no name on the hub.")
    return found


def _is_of(file: Path, split: str) -> bool:
    return file.parent.name == split or re.split(r"[-.]", file.name)[0] == split


def _only_split(datasets: Any, source: Source) -> str:
    splits = datasets.get_dataset_split_names(source.path, source.config, revision=source.revision)
    if len(splits) != 1:
        raise SpecError(f"pairs.split: {source.path} has the splits {', '.join(splits)}; one of them is needed.")
    return str(splits[0])
