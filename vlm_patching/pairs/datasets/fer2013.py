"""FER2013 (Goodfellow et al. 2013): small grey pictures of faces, each of one of seven emotions.

Files, of Kaggle's "Challenges in Representation Learning: Facial Expression Recognition Challenge", either

- a table (`fer2013.csv`, or `icml_face_data.csv` or `train.csv`) with the columns emotion (0 angry, 1 disgust, 2 fear,
  3 happy, 4 sad, 5 surprise, 6 neutral), pixels (48 × 48 grey values, row by row, spaces between) and, mostly, Usage
  (Training, PublicTest, PrivateTest); or
- folders of the emotions' names, `train/angry/*.jpg`, `test/angry/*.jpg` (or validation, or without such folders).

Pair rule (Golovanevsky et al. 2024, NOTICE): every picture is a clean image once. The corrupted one is of another
emotion, both drawn by the seed; "Is this person feeling angry or happy?". A picture that is there twice is taken once.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from vlm_patching.errors import SpecError, nearest
from vlm_patching.pairs.candidates import Choice, Dropped, Found
from vlm_patching.pairs.datasets.base import FilesSpec
from vlm_patching.pairs.pictures import Picture, StoredPicture
from vlm_patching.pairs.reading.csv_files import read_csv, read_csv_at
from vlm_patching.pairs.reading.folders import folders_in, image_names
from vlm_patching.pairs.reading.rows import BadRow, Row
from vlm_patching.validation import repeated

ABOUT = "small grey pictures of faces, of seven emotions"
FILES = "fer2013.csv (emotion, pixels, Usage), or folders train/angry/*.jpg, ... (Kaggle, FER2013)"
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""As folders are called; a table has their numbers."""
SIDE = 48
_TABLES = ("fer2013.csv", "icml_face_data.csv", "train.csv")
_COLUMNS = ("emotion", "pixels")


class Fer2013(FilesSpec):
    """FER2013: faces of two emotions.

    Attributes
    ----------
    path
        The folder with the table, or with the emotions' folders.
    split
        Only pictures of it: a value of Usage, or a folder (train, test, validation); all where not given.
    words
        What the emotions are called in questions and answers, in the order angry, disgust, fear, happy, sad, surprise,
        neutral.
    """

    dataset: Literal["fer2013"]
    split: str | None = None
    words: tuple[str, ...] = Field(
        default=("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral"), min_length=7, max_length=7
    )

    @field_validator("words")
    @classmethod
    def _words_differ(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if repeated(words) or not all(word.strip() for word in words):
            raise ValueError("is one word for each of the seven emotions, all of them different.")
        return words


@dataclass(frozen=True, slots=True)
class TablePicture(StoredPicture):
    """The picture of a row of the table, which begins at a byte of it."""

    table: Path
    offset: int

    def read(self) -> Image.Image:
        values = read_csv_at(self.table, _COLUMNS, self.offset).text("pixels").split()
        if len(values) != SIDE**2 or not all(value.isdigit() and int(value) < 256 for value in values):
            raise ValueError(f"pixels are not {SIDE} × {SIDE} whole numbers from 0 to 255")
        return Image.fromarray(np.array(values, dtype=np.uint8).reshape(SIDE, SIDE))

    @property
    def name(self) -> str:
        return f"{self.table}, row at byte {self.offset}"


@dataclass(frozen=True, slots=True)
class _Face:
    """A picture, where it is, the number of its emotion, and a name that no other picture has."""

    where: str
    name: str
    emotion: int
    picture: Picture


def candidates(spec: Fer2013) -> Iterator[Found]:
    """A question of every picture."""
    table = next((spec.folder / name for name in _TABLES if (spec.folder / name).is_file()), None)
    faces: list[_Face] = []
    for found in _in_folders(spec) if table is None else _in_table(spec, table):
        if isinstance(found, Found):
            yield found
        else:
            faces.append(found)
    by_emotion = [sorted((face for face in faces if face.emotion == n), key=lambda face: face.name) for n in range(7)]
    for face in faces:
        yield Found(face.where, _question(spec, face, by_emotion))


def _question(spec: Fer2013, face: _Face, by_emotion: Sequence[Sequence[_Face]]) -> Choice | Dropped:
    others = [number for number, there in enumerate(by_emotion) if there and number != face.emotion]
    if not others:
        return Dropped("there is no other emotion")
    rng = random.Random(f"{spec.seed}/foil/{face.name}")
    foil = rng.choice(others)
    return Choice(
        id=face.name,
        question="Is this {subject} feeling {first} or {second}?",
        answer=spec.words[face.emotion],
        foil=spec.words[foil],
        clean=face.picture,
        corrupted=rng.choice(by_emotion[foil]).picture,
        words={"subject": "person"},
        role="emotion",
    )


def _in_table(spec: Fer2013, table: Path) -> Iterator[_Face | Found]:
    columns = _COLUMNS if spec.split is None else (*_COLUMNS, "Usage")
    seen: set[str] = set()
    usages: set[str] = set()
    wanted = None if spec.split is None else spec.split.casefold()
    for row in read_csv(table, columns):
        if isinstance(row, BadRow):
            yield Found(row.where, row)
            continue
        if wanted is not None:
            usages.add(str(row.value("Usage")).strip())
            if str(row.value("Usage")).strip().casefold() != wanted:
                yield Found(row.where, Dropped("of another split"))
                continue
        yield _face(row, table, seen)
    if wanted is not None and wanted not in map(str.casefold, usages):
        raise _no_split(spec, usages)


def _face(row: Row, table: Path, seen: set[str]) -> _Face | Found:
    try:
        emotion, pixels = row.whole("emotion"), row.text("pixels")
        if not 0 <= emotion < len(EMOTIONS):
            raise row.bad("'emotion' is no number from 0 to 6", f" but {emotion}")
    except BadRow as error:
        return Found(row.where, error)
    name = f"{EMOTIONS[emotion]}-{hashlib.blake2b(pixels.encode(), digest_size=8).hexdigest()}"
    if name in seen:
        return Found(row.where, Dropped("the same picture of the same emotion is there before"))
    seen.add(name)
    return _Face(row.where, name, emotion, TablePicture(table, row.offset))


def _in_folders(spec: Fer2013) -> Iterator[_Face | Found]:
    root = next((each for each in (spec.folder, spec.folder / "images") if _splits(each)), None)
    if root is None:
        raise SpecError(
            f"{spec.folder} (in {Path.cwd()}) has neither {_TABLES[0]} nor folders of emotions, by themselves or in "
            f"train and test: {', '.join(EMOTIONS)}."
        )
    splits = _splits(root)
    if spec.split is not None and spec.split not in splits:
        raise _no_split(spec, (name for name in splits if name))
    for split, folder in splits.items():
        if spec.split in (None, split):
            for number, emotion in enumerate(EMOTIONS):
                names = image_names(folder / emotion) if (folder / emotion).is_dir() else ()
                for name in names:
                    path = folder / emotion / name
                    yield _Face(str(path), "/".join(path.relative_to(root).parts), number, path)


def _splits(root: Path) -> Mapping[str, Path]:
    """The folders that hold those of the emotions: "" for the root itself."""
    if not root.is_dir():
        return {}
    inside = {"": root, **{folder.name: folder for folder in folders_in(root)}}
    return {name: folder for name, folder in inside.items() if any((folder / e).is_dir() for e in EMOTIONS)}


def _no_split(spec: Fer2013, known: Iterable[str]) -> SpecError:
    there = sorted(known)
    return SpecError(
        f"pairs.split: {spec.folder} has no split {spec.split!r}.{nearest(spec.split, there)} "
        f"It has {', '.join(there) or 'none'}."
    )
