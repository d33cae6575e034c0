"""Pairs made ready for a graph: corrupted as the spec says, encoded, aligned, and refused where they cannot be run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vlm_patching.backends.cells import cells_of, check_edges, chosen_positions, keys_of
from vlm_patching.backends.changes import received_at
from vlm_patching.backends.plan import noise_positions
from vlm_patching.errors import SpecError
from vlm_patching.graph import InterventionGraph, main_edits, sites_of
from vlm_patching.inputs import EncodedPair, encode_pair
from vlm_patching.metrics import METRICS
from vlm_patching.models import Architecture, ModelDescription
from vlm_patching.pairs import (
    IMAGE_CORRUPTIONS,
    Pair,
    Pairs,
    check_corrupted,
    corrupt_images,
    replace_constraint,
    replace_options,
)
from vlm_patching.pairs.collection import told
from vlm_patching.sections import CorruptionSpec


@dataclass(frozen=True)
class Prepared:
    """Pairs that a graph can be run on.

    Attributes
    ----------
    encoded
        Each pair with its positions, without its tensors, to save memory.
    others
        For each pair the number of the one whose values resampling puts in; None where nothing resamples.
    """

    graph: InterventionGraph
    description: ModelDescription
    pairs: Pairs
    encoded: Sequence[EncodedPair]
    others: Sequence[int | None]

    def encode(self, number: int) -> EncodedPair:
        """One pair, tensors and all."""
        other = self.others[number]
        return encode_pair(
            self.pairs[number],
            self.description,
            _inputs_of(self.graph),
            None if other is None else self.pairs[other],
            _first_token_matters(self.graph),
        )

    def encode_all(self) -> Iterator[EncodedPair]:
        """Every pair, tensors and all, one after the other."""
        return (self.encode(number) for number in range(len(self.pairs)))

    def candidates(self) -> tuple[tuple[int, ...], ...]:
        """The answers and foils of all pairs, as tokens."""
        return tuple(dict.fromkeys(tokens for pair in self.encoded for tokens in (pair.answer, pair.foil)))


def corrupted_pairs(pairs: Pairs, corruption: CorruptionSpec | None, description: ModelDescription, seed: int) -> Pairs:
    """Pairs whose corrupted prompts are what the spec's corruption makes of them."""
    if corruption is None:
        return pairs
    settings = corruption.settings()
    if corruption.kind in IMAGE_CORRUPTIONS:
        return pairs.holding(corrupt_images(pairs, corruption.kind, seed, **settings))
    if corruption.kind == "constraint_replacement":
        return pairs.holding(replace_constraint(pairs, seed=seed, **settings))
    if corruption.automatic:
        tokenizer = description.tokenizer
        return replace_options(pairs, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), seed)
    return pairs


def prepare(graph: InterventionGraph, description: ModelDescription, pairs: Sequence[Pair]) -> Prepared:
    """Refuse pairs that cannot be run; give them back with their positions.

    Raises
    ------
    SpecError
        Naming the pair, and what is wrong with it. Pairs that skip errors are dropped and counted instead; if none is
        left, the first error is told.
    """
    pairs = Pairs.of(pairs)
    if not pairs:
        raise SpecError("There are no pairs to run.")
    ids = [pair.id for pair in pairs]
    repeated = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if repeated:
        raise SpecError(f"Pair ids must be unique; {repeated[0]!r} is used more than once.")
    encoded: list[EncodedPair] = []
    wrong: list[SpecError] = []
    for pair in pairs:
        try:
            encoded.append(_ready(graph, description, pair))
        except SpecError as error:
            if not pairs.skips:
                raise
            wrong.append(error)
    dropped = Counter(map(_dropped_for, wrong))
    pairs = pairs.holding([ready.pair for ready in encoded], dropped)
    if not pairs:
        most = next(error for error in wrong if dropped[_dropped_for(error)] == max(dropped.values()))
        raise SpecError(f"No pair is left that {description.name!r} can be run on{told(pairs.dropped)}. {most}")
    others: list[int | None] = [None] * len(pairs)
    if any(run.on == "other" for run in graph.runs):
        others = list(_others(graph, description.architecture, encoded))
        encoded = [
            replace(pair, other=encoded[other].positions)
            for pair, other in zip(encoded, others, strict=True)
            if other is not None
        ]
    return Prepared(graph, description, pairs, encoded, others)


def _dropped_for(error: SpecError) -> str:
    return f"error: {error.reason or 'the model cannot take it'}"


def _ready(graph: InterventionGraph, description: ModelDescription, pair: Pair) -> EncodedPair:
    """A pair with its positions, without its tensors; `SpecError` where it cannot be run."""
    for run in graph.runs:
        if run.name == "corrupted":
            check_corrupted([pair], run.on)
    kinds = tuple(kind for kind in _inputs_of(graph) if kind != "other")
    ready = encode_pair(pair, description, kinds, first_token=_first_token_matters(graph))
    _check_positions(graph, description.architecture, ready)
    return replace(ready, inputs={})


def _others(graph: InterventionGraph, architecture: Architecture, encoded: Sequence[EncodedPair]) -> list[int]:
    """For each pair the next one (after the last the first) whose selectors choose as many positions as its own."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for number, pair in enumerate(encoded):
        layout = tuple(
            (site, tuple(len(chosen.indices) for chosen in chosen_positions(graph, architecture, site, pair)))
            for site in sites_of(graph)
        )
        alike.setdefault(layout, []).append(number)
    next_one: dict[int, int] = {}
    for members in alike.values():
        if len(members) == 1:
            raise SpecError(
                f"Pair {encoded[members[0]].pair.id!r}: resampling takes the values of another pair whose positions "
                "are as many, and there is none. Take more pairs, groups of one position, or pairs.aligned."
            )
        next_one |= dict(zip(members, [*members[1:], members[0]], strict=True))
    return [next_one[number] for number in range(len(encoded))]


def _check_positions(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> None:
    where = ""
    try:
        noise_positions(graph, architecture, pair)
        for edit in main_edits(graph.swept):
            if str(edit.source).startswith("sender."):
                received_at(graph, architecture, pair, edit.at)
        if graph.method == "knockout":
            check_edges(graph, architecture, pair)
        for site in sites_of(graph) if graph.method != "knockout" else ():
            where = f", site {site}"
            chosen = chosen_positions(graph, architecture, site, pair)
            several = [c.label for c in chosen if len(c.indices) > 1]
            if graph.method == "lens" and several:
                raise SpecError(f"a lens reads one position at a time; write each:{several[0]}")
            if graph.method == "attention":
                keys_of(graph, architecture, site, pair)
        where = ""
        if graph.method != "evaluate" and not cells_of(graph, architecture, pair):
            alone = "" if pair.pair.clean.images else ", or none of the layers runs without an image"
            raise SpecError(f"none of the positions is in both the clean and the corrupted prompt{alone}")
    except SpecError as error:
        raise SpecError(f"Pair {pair.pair.id!r}{where}: {error}.", error.reason) from error


def _inputs_of(graph: InterventionGraph) -> tuple[str, ...]:
    return tuple(dict.fromkeys(run.on for run in graph.runs))


def _first_token_matters(graph: InterventionGraph) -> bool:
    return graph.method == "attention" or any("scores" not in METRICS[metric] for metric in graph.metrics)
