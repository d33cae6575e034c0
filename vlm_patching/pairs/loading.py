"""From a dataset's rows to pairs: which are chosen, in which order their options stand, and what is counted."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from vlm_patching.errors import SpecError
from vlm_patching.pairs.candidates import Choice, Dropped, Found
from vlm_patching.pairs.collection import Pairs, told
from vlm_patching.pairs.datasets import DATASETS, PairsSpec, pairs_keys
from vlm_patching.pairs.datasets.base import Dataset, DatasetSpec, FilesSpec
from vlm_patching.pairs.pair import Pair, Prompt
from vlm_patching.pairs.pictures import Picture, StoredPicture, files_of, opened
from vlm_patching.pairs.reading import BadRow
from vlm_patching.pairs.vocabulary import Exclusions, Vocabulary, exclusions
from vlm_patching.validation import Section, explain

ALIKE = "answer and foil mean nearly the same"
NO_FILE = "an image does not exist"
BROKEN = "an image cannot be read"
OUTSIDE = "a region is outside its image"
TWICE = "an id is there twice"


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
    return _chosen(spec, _Pictures())


def load_unopened(spec: DatasetSpec) -> Pairs:
    """The same, without having opened a picture."""
    return _chosen(spec, None)


def _chosen(spec: DatasetSpec, pictures: _Pictures | None) -> Pairs:
    """The pairs of n candidates, of those that can be used.

    Files are read once; and once more where a chosen picture turns out to be broken and others take its place.
    """
    dataset = DATASETS[spec.dataset]
    broken: dict[bytes, str] = {}
    while True:
        survey = _Survey(spec, dataset)
        drawn = survey.sample(len(broken)) if dataset.sampled else survey.first()
        taken: list[tuple[Pair, Found]] = []
        known = len(broken)
        for key, found in drawn:
            if key in broken:
                continue
            pair = _pair(found, len(taken))
            fault = pictures and pictures.fault(found.where, pair)
            if not fault:
                taken.append((pair, found))
            elif spec.skips:
                broken[key] = fault.reason
            else:
                raise _with_a_way_on(fault, spec)
            if len(taken) == spec.n:
                break
        if not dataset.sampled or len(broken) == known or len(taken) == spec.n or survey.exhausted:
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
    return Pairs(tuple(pair for pair, _ in taken), survey.considered, dict(survey.dropped), spec.skips, vocabulary)


def _pair(found: Found, rank: int) -> Pair:
    """The pair of a candidate: at even ranks the answer is the option that comes first."""
    if isinstance(found.what, Choice):
        return found.what.pair(answer_first=rank % 2 == 0)
    assert isinstance(found.what, Pair)
    return found.what


@dataclass
class _Survey:
    """One way through a dataset: what can be used, and what is counted.

    Attributes
    ----------
    considered, dropped
        How many rows were looked at, and why those that cannot be used cannot.
    words
        Role → the words of it, each with its lemma.
    exhausted
        Whether the sample that was taken is all there is.
    """

    spec: DatasetSpec
    dataset: Dataset
    considered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    exhausted: bool = False

    @property
    def exclusions(self) -> Exclusions:
        return exclusions(self.dataset.excluded) if self.dataset.excluded else Exclusions()

    def first(self) -> Iterator[tuple[bytes, Found]]:
        """Candidates in their own order, as many as are asked for."""
        return self._usable()

    def sample(self, more: int) -> Iterable[tuple[bytes, Found]]:
        """The n (and some more) candidates of the smallest keys: a sample that no order of rows changes."""
        if self.spec.n is None:
            self.exhausted = True
            return sorted(self._usable(), key=_key)
        count = self.spec.n + more
        drawn = heapq.nsmallest(count, self._usable(), key=_key)
        self.exhausted = len(drawn) < count
        return drawn

    def _usable(self) -> Iterator[tuple[bytes, Found]]:
        seen: set[bytes] = set()
        near = self.exclusions.near
        for found in self.dataset.candidates(self.spec):
            self.considered += 1
            what, key = found.what, b""
            if isinstance(what, Dropped):
                self.dropped[what.reason] += 1
                continue
            if not isinstance(what, BadRow):
                key = hashlib.blake2b(f"{self.spec.seed}/{what.id}".encode(), digest_size=16).digest()
                what = self._fault(found.where, what, key in seen) or what
            if isinstance(what, BadRow):
                if not self.spec.skips:
                    raise _with_a_way_on(what, self.spec)
                self.dropped[f"error: {what.reason}"] += 1
                continue
            seen.add(key)
            if isinstance(what, Choice):
                (_, one), (_, other) = what.meanings
                if near(one, other):
                    self.dropped[ALIKE] += 1
                    continue
                self.words.setdefault(what.role, {}).update(what.meanings)
            yield key, found

    def _fault(self, where: str, what: Pair | Choice, again: bool) -> BadRow | None:
        """What is wrong with a candidate, as far as it can be seen without opening a picture."""
        for path in (path for picture in _pictures(what) for path in files_of(picture)):
            if not path.exists():
                return BadRow(where, NO_FILE, f"image {path} does not exist")
        if not again:
            return None
        others = self.dataset.candidates(self.spec) if not self.spec.skips else iter(())
        first = next((o.where for o in others if isinstance(o.what, Pair | Choice) and o.what.id == what.id), "")
        return BadRow(where, TWICE, f"id {what.id!r} is already used in {first}; ids must be unique")


def _with_a_way_on(error: BadRow, spec: DatasetSpec) -> SpecError:
    """The error, and what goes on in spite of it."""
    if not isinstance(spec, FilesSpec):
        return error
    return SpecError(f"{error} (pairs.on_error: skip leaves such rows out, and counts them.)")


def _key(drawn: tuple[bytes, Found]) -> bytes:
    return drawn[0]


def _pictures(what: Pair | Choice) -> tuple[Picture, ...]:
    sides = (side if isinstance(side, Prompt) else Prompt(side, "") for side in (what.clean, what.corrupted))
    return tuple(picture for prompt in sides for picture in prompt.images)


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
