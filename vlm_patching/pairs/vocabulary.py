"""The words of a dataset by their role, and which of them mean too nearly the same to be told apart by a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import combinations

from vlm_patching.validation import parse_yaml


@dataclass(frozen=True)
class Exclusions:
    """Pairs of words that are not held against each other: synonyms, near-duplicates, a word and what it includes.

    Case does not count. A word is never held against itself.
    """

    pairs: frozenset[frozenset[str]] = frozenset()

    def near(self, one: str, other: str) -> bool:
        """Whether two words mean too nearly the same."""
        one, other = one.casefold(), other.casefold()
        return one == other or frozenset((one, other)) in self.pairs


@cache
def exclusions(name: str) -> Exclusions:
    """The package's list of a name: a YAML file in `pairs/words`.

    Its `groups` are lists of words, any two of which are near; under `includes` every word is near each of its list
    (a person may be a woman), but those need not be near each other.
    """
    file = resources.files("vlm_patching.pairs") / "words" / f"{name}.yaml"
    data = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    near = [pair for group in data.get("groups", ()) for pair in combinations(group, 2)]
    near += [(word, other) for word, others in data.get("includes", {}).items() for other in others]
    return Exclusions(frozenset(frozenset(map(str.casefold, pair)) for pair in near))


@dataclass(frozen=True)
class Vocabulary:
    """What may stand in the place of a pair's answer options.

    Attributes
    ----------
    words
        Role → every word of it that the dataset has, in alphabetical order, each with its lemma.
    roles
        Id of a pair → the role of its options.
    exclusions
        Of the dataset.
    """

    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    exclusions: Exclusions = Exclusions()

    def of(self, pair_id: str) -> Sequence[str] | None:
        """The words of a pair's role; None where the dataset tells no roles."""
        return None if pair_id not in self.roles else tuple(self.words[self.roles[pair_id]])

    def near(self, pair_id: str, word: str, others: Iterable[str]) -> bool:
        """Whether a word of a pair's role means too nearly the same as one of others."""
        lemmas = self.words[self.roles[pair_id]]
        return any(self.exclusions.near(lemmas.get(word, word), lemmas.get(other, other)) for other in others)
