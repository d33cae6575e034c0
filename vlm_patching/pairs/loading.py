"""From a dataset's rows to pairs: which are chosen, in which order their options stand, and what is counted."""

from __future__ import annotations

import hashlib
import heapq
import os
import warnings
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, floor
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from vlm_patching.errors import SpecError, shown
from vlm_patching.pairs.candidates import Choice, Dropped, Found, attempt
from vlm_patching.pairs.collection import Pairs, told
from vlm_patching.pairs.datasets import DATASETS, PairsSpec, pairs_keys
from vlm_patching.pairs.datasets.base import Dataset, DatasetSpec, FilesSpec
from vlm_patching.pairs.pair import Pair, Prompt
from vlm_patching.pairs.pictures import Picture, Resized, StoredPicture, files_of, opened
from vlm_patching.pairs.reading.rows import BadRow
from vlm_patching.pairs.vocabulary import Exclusions, Vocabulary, exclusions
from vlm_patching.validation import Section, explain, parse_json, read_text

ALIKE = "answer and foil mean nearly the same"
NO_FILE = "an image does not exist"
_LONGEST_NAME = 300
BROKEN = "an image cannot be read"
OUTSIDE = "a region is outside its image"
TWICE = "an id is there twice"
UNLISTED = "it is not in pairs.ids"
REPEATED = "the same row is there before"


class _Asked(Section):
    """A spec's section of pairs, by itself."""

    pairs: PairsSpec


def load_pairs(dataset: str, n: int | None = None, seed: int = 0, **options: Any) -> Pairs:
    """Pairs from a dataset, by its name.

    Parameters
    ----------
    dataset
        A name out of `DATASETS`; `vlm-patching datasets` lists them, and what files each needs.
    n
        How many pairs; all, or what the dataset gives by itself, where not given.
    seed
        Same seed, same pairs; the first m of n pairs are those that n = m gives. Of a dataset in files, n are drawn
        without replacement, each row as likely as any other, whatever the order of the rows is.
    **options
        The dataset's own, as a spec has them: `path`, `on_error`, and so on.

    Returns
    -------
    Pairs
        A sequence of `Pair` that knows how many candidates there were, and why others were dropped.

    Raises
    ------
    SpecError
        An unknown dataset or option, a value that is not allowed, fewer pairs than n; of files, whatever is wrong in
        them, by file and line.

    Examples
    --------
    >>> pairs = load_pairs("shapes", n=2, seed=0)
    >>> pairs[0].clean.text == pairs[0].corrupted.text
    False
    """
    try:
        asked = _Asked.model_validate({"pairs": {"dataset": dataset, "n": n, "seed": seed, **options}})
    except ValidationError as error:
        raise SpecError(explain(error, pairs_keys, DATASETS)) from error
    return load(asked.pairs)


def load(spec: DatasetSpec) -> Pairs:
    """Pairs as the section of a spec says. Every picture of them has been opened once, and is not kept."""
    return _listed(spec, _Pictures())


def load_unopened(spec: DatasetSpec) -> Pairs:
    """The same, without having opened a picture."""
    return _listed(spec, None)


def _readable(spec: DatasetSpec, pictures: _Pictures | None) -> Pairs:
    """The pairs that are drawn, of files that may be read."""
    try:
        return _chosen(spec, pictures)
    except OSError as error:  # of folders: datasets' files and pictures are opened where what is wrong is told
        raise SpecError(f"pairs: {error.filename} cannot be read: {error.strerror}.") from error


def _listed(spec: DatasetSpec, pictures: _Pictures | None) -> Pairs:
    """Those of the pairs whose ids are in the file that the section names; all where it names none."""
    if spec.ids is None:
        return _readable(spec, pictures)
    wanted = _ids(Path(spec.ids))
    chosen = _readable(spec, pictures)
    there = [pair for pair in chosen if pair.id in wanted]
    if not there:
        raise SpecError(
            f"pairs.ids: {spec.ids} lists {len(wanted)} ids, such as {next(iter(wanted))!r}, and none of the "
            f"{len(chosen)} pairs has one of them; theirs are such as {chosen[0].id!r}. They are those of the dataset, "
            "n and seed that were evaluated."
        )
    absent = list(wanted.keys() - {pair.id for pair in there})
    if absent:
        warnings.warn(
            f"pairs.ids: {spec.ids} lists {len(wanted)} ids, and {len(absent)} of them are of none of the "
            f"{len(chosen)} pairs, such as {min(absent)!r}: were they of another n, seed or version?",
            stacklevel=2,
        )
    return chosen.holding(there, {UNLISTED: len(chosen) - len(there)} if len(there) < len(chosen) else None)


def _ids(file: Path) -> dict[str, None]:
    if not file.is_file():
        raise SpecError(f"pairs.ids: {file} does not exist (in {Path.cwd()}).")
    found = parse_json(read_text(file), str(file))
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise SpecError(f"pairs.ids: {file} must hold a JSON list of ids, which are text, and at least one.")
    return dict.fromkeys(found)


def _chosen(spec: DatasetSpec, pictures: _Pictures | None) -> Pairs:
    """The pairs of n candidates, of those that can be used.

    Files are read once; and once more where rows have the same id, or where a chosen picture turns out to be broken and
    others take its place.
    """
    dataset = DATASETS[spec.dataset]
    repeated: frozenset[int] = frozenset()
    broken: dict[int, str] = {}
    while True:
        survey = _Survey(spec, dataset, repeated)
        drawn = survey.sample(len(broken)) if dataset.sampled else survey.first()
        taken: list[tuple[Pair, Found]] = []
        known = len(broken)
        for key, found in drawn:
            if key in broken:
                continue
            pair = attempt(partial(_pair, found, len(taken)), found.where)
            fault = pair if isinstance(pair, BadRow) else pictures and pictures.fault(found.where, pair)
            if not fault:
                assert isinstance(pair, Pair)
                taken.append((pair, found))
            elif spec.skips:
                broken[key] = fault.reason
            else:
                raise _with_a_way_on(fault, spec)
            if len(taken) == spec.n:
                break
        if not repeated and survey.repeats():
            repeated = survey.repeats()
        elif not dataset.sampled or len(broken) == known or len(taken) == spec.n or survey.exhausted:
            break
    survey.dropped.update(f"error: {reason}" for reason in broken.values())
    return _counted(spec, survey, taken)


def _counted(spec: DatasetSpec, survey: _Survey, taken: list[tuple[Pair, Found]]) -> Pairs:
    counts = f"{survey.considered:,} candidates{told(survey.dropped)}"
    where = f" ({spec.path})" if isinstance(spec, FilesSpec) else ""
    if not taken:
        raise SpecError(f"Dataset {spec.dataset!r}{where} has no pair left: {counts}.")
    if spec.n is not None and len(taken) < spec.n:
        raise SpecError(f"pairs.n is {spec.n}, but dataset {spec.dataset!r}{where} has {len(taken)} pairs: {counts}.")
    roles = {pair.id: found.what.role for pair, found in taken if isinstance(found.what, Choice)}
    words = {role: dict(sorted(words.items())) for role, words in survey.words.items()}
    vocabulary = Vocabulary(words, roles, survey.exclusions)
    made = [pair for pair, _ in taken]
    if isinstance(spec, FilesSpec) and spec.size is not None:
        made = [_resized(pair, spec.size) for pair in made]
    if isinstance(spec, FilesSpec) and spec.capitalized:
        made = [replace(pair, answer=_capitalized(pair.answer), foil=_capitalized(pair.foil)) for pair in made]
    return Pairs(tuple(made), survey.considered, dict(survey.dropped), spec.skips, vocabulary)


def _pair(found: Found, rank: int) -> Pair:
    """The pair of a candidate: at even ranks the answer is the option that comes first."""
    if isinstance(found.what, Choice):
        return found.what.pair(answer_first=rank % 2 == 0)
    assert isinstance(found.what, Pair)
    return found.what


def _capitalized(word: str) -> str:
    return word[:1].upper() + word[1:]


def _resized(pair: Pair, size: tuple[int, int]) -> Pair:
    """A pair whose pictures, and the regions of the first, are brought to a size."""
    clean, corrupted = (
        Prompt(tuple(Resized(picture, size) for picture in prompt.images) or None, prompt.text)
        for prompt in (pair.clean, pair.corrupted)
    )
    if not pair.regions:
        return replace(pair, clean=clean, corrupted=corrupted)
    width, height = pair.clean.picture().size
    across, down = size[0] / width, size[1] / height
    regions = {
        name: (floor(x0 * across), floor(y0 * down), ceil(x1 * across), ceil(y1 * down))
        for name, (x0, y0, x1, y1) in pair.regions.items()
    }
    return replace(pair, clean=clean, corrupted=corrupted, regions=regions)


@dataclass
class _Survey:
    """One way through a dataset: what can be used, and what is counted.

    Attributes
    ----------
    repeated
        The keys that more than one row has, as an earlier way through has found.
    considered, dropped
        How many rows were looked at, and why those that cannot be used cannot.
    words
        Role → the words of it, each with its lemma.
    exhausted
        Whether the sample that was taken is all there is.
    keys
        Of every candidate: all that is kept of those that are not chosen.
    """

    spec: DatasetSpec
    dataset: Dataset
    repeated: frozenset[int]
    considered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    exhausted: bool = False
    keys: array[int] = field(default_factory=lambda: array("Q"))
    _firsts: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def exclusions(self) -> Exclusions:
        return exclusions(self.dataset.excluded) if self.dataset.excluded else Exclusions()

    def first(self) -> Iterator[tuple[int, Found]]:
        """Candidates in their own order."""
        return self._usable()

    def sample(self, more: int) -> Iterable[tuple[int, Found]]:
        """The n (and some more) candidates of the smallest keys: a sample that no order of rows changes."""
        if self.spec.n is None:
            self.exhausted = True
            return sorted(self._usable(), key=itemgetter(0))
        count = self.spec.n + more
        drawn = heapq.nsmallest(count, self._usable(), key=itemgetter(0))
        self.exhausted = len(drawn) < count
        return drawn

    def repeats(self) -> frozenset[int]:
        """The keys that more than one row had."""
        keys, counts = np.unique(np.frombuffer(self.keys, dtype=np.uint64), return_counts=True)
        return frozenset(keys[counts > 1].tolist())

    def _usable(self) -> Iterator[tuple[int, Found]]:
        near = self.exclusions.near
        for found in self.dataset.candidates(self.spec):
            self.considered += 1
            what, key = found.what, 0
            if isinstance(what, Pair | Choice):
                key = _key(self.spec.seed, what.id)
                self.keys.append(key)
                what = _no_file(found.where, what) or self._again(found.where, what, key) or what
            if isinstance(what, BadRow):
                if not self.spec.skips:
                    raise _with_a_way_on(what, self.spec)
                self.dropped[f"error: {what.reason}"] += 1
                continue
            if isinstance(what, Dropped):
                self.dropped[what.reason] += 1
                continue
            if (isinstance(what, Choice) or self.dataset.excluded) and near(*_meanings(what)):
                self.dropped[ALIKE] += 1
                continue
            if isinstance(what, Choice):
                self.words.setdefault(what.role, {}).update(what.meanings)
            yield key, found

    def _again(self, where: str, what: Pair | Choice, key: int) -> BadRow | Dropped | None:
        """What is said of a row whose id another had before."""
        if key not in self.repeated:
            return None
        if key not in self._firsts:
            self._firsts[key] = what.id, where
            return None
        name, first = self._firsts[key]
        if name != what.id:  # two ids of one key: once in so many rows as no dataset has
            return None
        if self.dataset.repeats:
            return Dropped(REPEATED)
        return BadRow(where, TWICE, f"id {what.id!r} is already used in {first}; ids must be unique")


def _key(seed: int, name: str) -> int:
    """What candidates are drawn by: a number that their id and the seed alone decide."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big")


def _no_file(where: str, what: Pair | Choice) -> BadRow | None:
    """That a picture's file is missing, which can be seen without opening it."""
    for path in (path for picture in _pictures(what) for path in files_of(picture)):
        if not os.path.exists(path):  # which takes names that no file can have, too
            name = str(path)
            return BadRow(where, NO_FILE, f"image {name if len(name) <= _LONGEST_NAME else shown(name)} does not exist")
    return None


def _with_a_way_on(error: BadRow, spec: DatasetSpec) -> SpecError:
    """The error, and what goes on in spite of it."""
    if not isinstance(spec, FilesSpec):
        return error
    return SpecError(f"{error} `pairs.on_error: skip` leaves such rows out, and counts them.")


def _pictures(what: Pair | Choice) -> tuple[Picture, ...]:
    sides = (side if isinstance(side, Prompt) else Prompt(side, "") for side in (what.clean, what.corrupted))
    return tuple(picture for prompt in sides for picture in prompt.images)


def _meanings(what: Pair | Choice) -> tuple[str, str]:
    """What exclusion lists know answer and foil by."""
    if isinstance(what, Choice):
        (_, one), (_, other) = what.meanings
        return one, other
    return what.answer, what.foil


class _Pictures:
    """Opens pictures, each once; keeps their sizes."""

    def __init__(self) -> None:
        self._sizes: dict[Path | StoredPicture, tuple[int, int]] = {}

    def fault(self, where: str, pair: Pair) -> BadRow | None:
        """What is wrong with a pair's pictures, or with the regions of the clean one."""
        try:
            clean, _ = ([self._size(picture) for picture in prompt.images] for prompt in (pair.clean, pair.corrupted))
        except SpecError as error:
            return BadRow(where, BROKEN, error)
        if pair.regions and not clean:
            return BadRow(where, OUTSIDE, "there are regions, but no image")
        for name, (_, _, x1, y1) in pair.regions.items():
            if x1 > clean[0][0] or y1 > clean[0][1]:
                size = " × ".join(map(str, clean[0]))
                return BadRow(
                    where, OUTSIDE, f"region {name!r} ends at ({x1}, {y1}), outside its image of {size} pixels"
                )
        return None

    def _size(self, picture: Picture) -> tuple[int, int]:
        if isinstance(picture, Image.Image):
            return picture.size
        if picture not in self._sizes:
            self._sizes[picture] = opened(picture).size
        return self._sizes[picture]
