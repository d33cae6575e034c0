"""MIT-States (Isola et al. 2015): photographs of things in a state, in folders named "adjective noun".

Files: `images/ADJECTIVE NOUN/*.jpg` ("old car", or "old_car", as some copies have it), out of release_dataset.zip at
web.mit.edu/phillipi/Public/states_and_transformations; folders "adj NOUN", which hold a noun in any state, are left
out. For `foils: antonyms` also `adj_ants.csv` of that archive: an adjective a line, and its antonyms behind it.

Pair rule (Golovanevsky et al. 2024, NOTICE): every photograph is a clean image once. The corrupted one is another of
the same noun in another state, both drawn by the seed; the question is "Is this car old or new?", or "Are these shoes
dirty or clean?". States that a picture cannot tell apart (`words/mit_states.yaml`) are not held against each other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from vlm_patching.errors import SpecError, nearest
from vlm_patching.pairs.candidates import Candidate, Choice, Dropped, Found
from vlm_patching.pairs.datasets.base import FilesSpec
from vlm_patching.pairs.english import is_plural
from vlm_patching.pairs.reading.csv_files import read_lists
from vlm_patching.pairs.reading.folders import folders_in, image_names
from vlm_patching.pairs.vocabulary import exclusions

ABOUT = "photographs of things in a state; the same noun in another state"
FILES = "images/ADJECTIVE NOUN/*.jpg (web.mit.edu/phillipi/Public/states_and_transformations)"
EXCLUDED = "mit_states"
_ANY_STATE = "adj"
States = Mapping[str, Mapping[str, Path]]
"""Noun → adjective → its folder."""


class MitStates(FilesSpec):
    """MIT-States: photographs of a noun in two states.

    Attributes
    ----------
    path
        The folder with images/ (and adj_ants.csv).
    adjectives
        Only these states; all where not given.
    foils
        `any`: the other state is any other of the noun's, of which both may be true of a picture. `antonyms`: one that
        adj_ants.csv holds against it.
    """

    dataset: Literal["mit_states"]
    adjectives: tuple[str, ...] | None = Field(default=None, min_length=2)
    foils: Literal["any", "antonyms"] = "any"


def candidates(spec: MitStates) -> Iterator[Found]:
    """A question of every photograph."""
    states = _states(spec)
    opposites = read_lists(spec.folder / "adj_ants.csv") if spec.foils == "antonyms" else None
    near = exclusions(EXCLUDED).near
    for noun, folders in states.items():
        for adjective, folder in folders.items():
            known = folders if opposites is None else opposites.get(adjective, ())
            others = [word for word in folders if word in known and not near(adjective, word)]
            for name in image_names(folder):
                yield Found(str(folder / name), _question(spec, noun, adjective, name, folders, others))


def _states(spec: MitStates) -> States:
    states: dict[str, dict[str, Path]] = {}
    for folder in folders_in(spec.folder / "images"):
        adjective, _, noun = re.sub("_", " ", folder.name).partition(" ")
        if noun and adjective != _ANY_STATE and image_names(folder):
            states.setdefault(noun, {})[adjective] = folder
    known = {adjective for folders in states.values() for adjective in folders}
    if not known:
        raise SpecError(f"{spec.folder / 'images'} has no folder 'ADJECTIVE NOUN' with images in it.")
    for word in spec.adjectives or ():
        if word not in known:
            raise SpecError(f"pairs.adjectives: no folder is of {word!r}.{nearest(word, known)}")
    wanted = spec.adjectives or known
    return {noun: {word: folders[word] for word in folders if word in wanted} for noun, folders in states.items()}


def _question(
    spec: MitStates, noun: str, adjective: str, name: str, folders: Mapping[str, Path], others: list[str]
) -> Candidate:
    if not others:
        return Dropped("its noun has no other state that can be told from its own")
    pair_id = f"{adjective} {noun}/{name}"
    rng = random.Random(f"{spec.seed}/foil/{pair_id}")
    foil = rng.choice(others)
    return Choice(
        id=pair_id,
        question=("Are these" if is_plural(noun) else "Is this") + " {subject} {first} or {second}?",
        answer=adjective,
        foil=foil,
        clean=folders[adjective] / name,
        corrupted=folders[foil] / rng.choice(image_names(folders[foil])),
        words={"subject": noun},
        role="adjective",
    )
