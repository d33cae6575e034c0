"""Text files, line by line: UTF-8, with or without a byte order mark, and where every line stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from vlm_patching.errors import SpecError, nearest
from vlm_patching.pairs.reading.rows import Row

BOM = b"\xef\xbb\xbf"


class Lines:
    """A file's lines as text, and where they stand.

    Attributes
    ----------
    number
        Of the line that was given out last, from 1.
    first, start
        Where the present record began, as `begin` found it: number of its first line, and its first byte.
    """

    def __init__(self, path: Path) -> None:
        self.number, self.first, self.start = 0, 1, 0
        self._path, self._lines, self._read = path, self._raw(), 0

    def begin(self) -> None:
        """The next line begins a record."""
        self.first, self.start = self.number + 1, self._read

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = next(self._lines)
        self.number += 1
        self._read += len(raw)
        try:
            return (raw.removeprefix(BOM) if self.number == 1 else raw).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(self._path, self.number, error) from error

    def _raw(self) -> Iterator[bytes]:
        with open_file(self._path) as file:
            yield from file


def read_side_by_side(files: Mapping[str, Path]) -> Iterator[Row]:
    """Text files of a folder, of which the lines of one number belong together: name → line of that file.

    Raises
    ------
    SpecError
        No file, bytes that are not UTF-8, or one that ends before the others.
    """
    lines = {name: Lines(path) for name, path in files.items()}
    folder, names = next(iter(files.values())).parent, ", ".join(path.name for path in files.values())
    while True:
        row = {name: next(each, None) for name, each in lines.items()}
        if all(line is None for line in row.values()):
            return
        number = max(each.number for each in lines.values())
        for name, line in row.items():
            if line is None:
                longer = next(path for other, path in files.items() if row[other] is not None)
                raise SpecError(
                    f"{files[name]} ends at line {number - 1}, before {longer}: the lines of one number belong "
                    "together, so one of the files is cut off."
                )
        yield Row(f"{folder}, line {number} of {names}", {n: str(line).rstrip("\r\n") for n, line in row.items()})


def open_file(path: Path) -> BinaryIO:
    """A file's bytes; `SpecError` where there is none of its name, or it cannot be read."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        there = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        missing = "" if path.parent.is_dir() else f": there is no folder {path.parent}"
        raise SpecError(
            f"{path} does not exist (in {Path.cwd()}){missing}.{nearest(path.name, there, 0.85)}"
        ) from error
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.") from error


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> SpecError:
    return SpecError(
        f"{path}, line {line}: byte {error.start + 1} of the line is {error.object[error.start]:#04x}, which is not "
        "UTF-8 text. Save the file as UTF-8 (it may be latin-1 now)."
    )


def first_not_utf8(path: Path) -> SpecError | None:
    """The error of the first line that is not UTF-8; None where all are."""
    lines = Lines(path)
    try:
        for _ in lines:
            pass
    except SpecError as error:
        return error
    return None
