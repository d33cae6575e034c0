"""`Pairs`: what was loaded, and what was not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

from vlm_patching.pairs.pair import Pair
from vlm_patching.pairs.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Sequence[Pair]):
    """Pairs in their order; indexed, sliced and compared as a list of them is.

    Attributes
    ----------
    pairs
        The pairs.
    considered
        How many candidates their dataset has been looked through for; None where they come from nowhere.
    dropped
        Why candidates (and pairs later on) were left out → how many. What was not chosen among more is not among them.
    skips
        Whether a pair that turns out to be unusable is dropped and counted; otherwise it is an error.
    vocabulary
        The words that may stand in the place of their answer options.
    """

    pairs: tuple[Pair, ...]
    considered: int | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    skips: bool = False
    vocabulary: Vocabulary = field(default_factory=Vocabulary)

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> Pairs:
        """Pairs as they are, or made of a list."""
        return pairs if isinstance(pairs, Pairs) else cls(tuple(pairs))

    def holding(self, pairs: Iterable[Pair], dropped: Mapping[str, int] | None = None) -> Pairs:
        """Others of the same source, and what else was dropped."""
        counts = dict(self.dropped)
        for reason, count in (dropped or {}).items():
            counts[reason] = counts.get(reason, 0) + count
        return replace(self, pairs=tuple(pairs), dropped=counts)

    def counted(self) -> str:
        """How many there are, out of how many, and why others were left out: one sentence."""
        if self.considered is None:
            return f"{len(self)} pairs"
        return f"{len(self)} pairs of {self.considered:,} candidates{told(self.dropped)}"

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> Pair | Pairs:
        return self.holding(self.pairs[index]) if isinstance(index, slice) else self.pairs[index]

    def __len__(self) -> int:
        return len(self.pairs)

    def __add__(self, other: Sequence[Pair]) -> Pairs:
        return Pairs((*self.pairs, *other))

    def __eq__(self, other: object) -> bool:
        return tuple(other) == self.pairs if isinstance(other, Pairs | list | tuple) else NotImplemented

    def __repr__(self) -> str:
        return f"<Pairs: {self.counted()}>"


def told(dropped: Mapping[str, int]) -> str:
    """ "; dropped: a reason (3), another (1)", the most frequent first; nothing where nothing was."""
    reasons = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return "; dropped: " + ", ".join(f"{reason} ({count:,})" for reason, count in reasons) if reasons else ""
