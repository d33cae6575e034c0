"""What every dataset has: its section of a spec, which holds its options, and its row in the table of datasets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from vlm_patching.pairs.candidates import Found
from vlm_patching.validation import Section


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


FileName = Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
"""A file or folder; a relative one begins at the working directory."""
Side = Annotated[int, Field(ge=1, le=10_000)]


class DatasetSpec(Section):
    """Which pairs: what the section `pairs` of a spec has, whatever the dataset.

    Attributes
    ----------
    dataset
        A name out of `DATASETS`.
    n
        How many pairs; where not given, all, or what the dataset gives by itself.
    seed
        Same seed, same pairs.
    keep
        `clean_correct`: sweep only pairs whose clean run answers right. `clean_correct_corrupted_wrong`: and whose
        corrupted run does not. `all`: every pair.
    ids
        A file with a JSON list of ids, as `vlm-patching evaluate --kept` writes it: of the pairs that n and seed
        choose, only these.
    """

    dataset: str
    n: int | None = Field(default=None, ge=1)
    seed: int = 0
    keep: Literal["clean_correct", "all", "clean_correct_corrupted_wrong"] = "clean_correct"
    ids: FileName | None = None

    @property
    def skips(self) -> bool:
        """Whether a row that cannot be used is left out and counted; otherwise it is an error."""
        return False


class FilesSpec(DatasetSpec):
    """Which pairs, of a dataset that is read from files.

    Attributes
    ----------
    path
        The dataset's folder.
    on_error
        `skip`: a row that cannot be used (an image that is missing or broken, a wrong value), or a pair that the model
        cannot take (an answer outside of its vocabulary), is left out, and counted by its reason. Where not given, it
        is an error that names file and line, or the pair.
    size
        Width and height that every picture is brought to, and the regions with it: models that take pictures as they
        are cannot exchange those of different sizes. As they are where not given.
    capitalized
        Answer and foil begin with a capital letter, as many models say them: the first token of "Red" is another than
        that of "red". Texts stay.
    """

    path: FileName
    on_error: Literal["skip"] | None = None
    size: tuple[Side, Side] | None = None
    capitalized: bool = False

    @property
    def skips(self) -> bool:
        return self.on_error == "skip"

    @property
    def folder(self) -> Path:
        return Path(self.path)


class YesNoSpec(FilesSpec):
    """Which pairs, of a dataset whose questions are answered by yes or no.

    Attributes
    ----------
    yes_no
        What yes and no are called, as the model says them: ["Yes", "No"].
    """

    yes_no: tuple[str, str] = ("yes", "no")

    @field_validator("yes_no")
    @classmethod
    def _words_differ(cls, words: tuple[str, str]) -> tuple[str, str]:
        if not all(word.strip() for word in words) or words[0].casefold() == words[1].casefold():
            raise ValueError("must be two words that differ: what yes and what no is called")
        return words


class QuestionsSpec(FilesSpec):
    """Which pairs, of a dataset whose questions are asked as they are written, about pictures that lie elsewhere.

    Attributes
    ----------
    images
        The folder with the pictures; `images` in the dataset's own where not given.
    suffix
        What stands behind every question, as it is written: " Answer in a few words.". Pairs then have the span
        `asked`, of the question alone.
    """

    images: FileName | None = None
    suffix: str = ""

    @property
    def pictures(self) -> Path:
        return Path(self.images) if self.images else self.folder / "images"


@dataclass(frozen=True)
class Dataset:
    """A source of pairs.

    Attributes
    ----------
    spec
        Its section of a spec: a subclass of `DatasetSpec` with a literal `dataset`.
    candidates
        Reads its files, or draws: section → what every row gives, one after the other, without opening a picture.
    about, files
        One line about it; which files it needs, and where they come from.
    sampled
        Whether the seed chooses n pairs among all. Otherwise they are the first n, in the order in which they come.
    excluded
        Name of the list of words that are too near to be held against each other, where it has one.
    repeats
        Whether its files are known to hold some rows twice: a row whose id was there before is dropped and counted.
        Otherwise it is an error.
    """

    spec: type[DatasetSpec]
    candidates: Callable[[Any], Iterator[Found]]
    about: str
    files: str
    sampled: bool = True
    excluded: str | None = None
    repeats: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Its own options, without those that every dataset has."""
        return tuple(name for name in self.spec.model_fields if name not in DatasetSpec.model_fields)
