"""What one cell changes in one row of a swept run: the graph's edits, resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_patching.backends.cells import Cell, chosen_positions, partners
from vlm_patching.errors import SpecError
from vlm_patching.graph import Edit, InterventionGraph, Place, Run, parts, row_of
from vlm_patching.inputs import EncodedPair
from vlm_patching.models import PATTERN_COMPONENTS, Architecture, Stack, Tap
from vlm_patching.positions import Chosen


@dataclass(frozen=True)
class Change:
    """One edit of one row, at one layer.

    Attributes
    ----------
    kind
        `replace`, `add`, `multiply` or `block`.
    tap, layer, stack
        Where.
    positions
        In the sequence of the run that is edited; of blocked attention the queries.
    head
        None for the whole width.
    source, source_row, source_positions
        Key of the value that is taken, its row, and its positions, paired with `positions`; of blocked attention the
        positions are those of the keys.
    heads_blocked, causal, length, context
        Of blocked attention: which heads (None for all), whether a query sees only keys up to itself, how many keys
        there are (0: as many as queries), and where the context vectors are, which are 0 where no key is left.
    """

    kind: str
    tap: Tap
    layer: int
    stack: Stack
    positions: tuple[int, ...]
    head: int | None = None
    source: str | None = None
    source_row: int = 0
    source_positions: tuple[int, ...] = ()
    factor: float | int = 1.0
    heads_blocked: tuple[int, ...] | None = None
    causal: bool = False
    length: int = 0
    context: Tap | None = None

    @property
    def group(self) -> tuple[Any, ...]:
        """Changes of one group are one operation."""
        return (self.kind, self.tap, self.layer, self.head is None, self.source)


def key_of(run: str, tap: Tap, layer: int) -> str:
    """The name under which a run's value is kept."""
    return f"{run}.{tap.path.format(layer=layer)}.{tap.end}"


def vector_key(source: str, selector: Any, tap: Tap, layer: int) -> str:
    """The name of a vector over all pairs: a mean of what was read, a difference of means, or one out of a file."""
    return f"vector:{source} @ {selector}: {tap.path.format(layer=layer)}.{tap.end}"


def changes_of(
    graph: InterventionGraph, architecture: Architecture, pair: EncodedPair, run: Run, cell: Cell
) -> list[Change]:
    """Everything that a cell changes in its row of a swept run, but for noise and what is held whole."""
    changes: list[Change] = []
    for edit in run.edits:
        if edit.kind == "hold" and edit.at.layer == "above":
            stack = architecture.locate(edit.at.site)[0]
            layers = range(max(cell.layers) + 1, stack.layers) if cell.layers else ()
            changes += _taken(graph, architecture, pair, edit, edit.at.site, cell, layers, graph.base)
        elif edit.kind == "block":
            changes += _blocked(architecture, pair, edit, cell)
        elif edit.kind == "replace" and str(edit.source).startswith("sender."):
            changes.append(_received(graph, architecture, pair, edit))
        elif edit.kind == "replace":
            source = cell.instead or str(edit.source).split(".")[0]
            for site in parts(cell.site):
                changes += _taken(graph, architecture, pair, edit, site, cell, cell.layers, source)
        elif edit.kind in ("zero", "multiply", "mean", "add"):
            changes += _own(graph, architecture, pair, run, edit, cell)
    return changes


def _taken(
    graph: InterventionGraph,
    architecture: Architecture,
    pair: EncodedPair,
    edit: Edit,
    site: str,
    cell: Cell,
    layers: Sequence[int],
    source: str,
) -> list[Change]:
    """Values of another run, put in layer by layer."""
    (stack, component), tap = architecture.locate(site), architecture.tap(site)
    if source == "other":
        here = pair.on(graph.swept.on, stack.name, cell.position.indices)
        there = _in_other(graph, architecture, pair, cell).indices
        pairs = [(a, b) for a, b in zip(here, there, strict=True) if a is not None]
    else:
        pairs = partners(graph, stack, pair, cell.position, source if edit.kind != "hold" else graph.origin)
        if edit.kind == "hold":  # what is patched is held above, at the same positions of the run itself
            pairs = [(here, here) for here, _ in pairs]
    row = row_of(graph.run(source), cell.draw)
    head = cell.head if edit.kind == "replace" else None
    positions, sources = tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
    return [
        Change("replace", tap, layer, stack, positions, head, key_of(source, tap, layer), row, sources)
        for layer in layers
        if stack.has(component, layer)
    ]


def _in_other(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair, cell: Cell) -> Chosen:
    mine = chosen_positions(graph, architecture, cell.site, pair)
    theirs = chosen_positions(graph, architecture, cell.site, pair, other=True)
    return dict(zip([chosen.label for chosen in mine], theirs, strict=True))[cell.position.label]


def _received(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair, edit: Edit) -> Change:
    """The receiver of a path takes what reached it in the sender's run: its row and positions are the cell's there."""
    place = edit.at
    stack, tap, layer = architecture.locate(place.site)[0], architecture.tap(place.site), int(str(place.layer))
    positions = received_at(graph, architecture, pair, place)
    head = None if place.head is None else int(str(place.head))
    return Change("replace", tap, layer, stack, positions, head, key_of("sender", tap, layer), 0, positions)


def received_at(
    graph: InterventionGraph, architecture: Architecture, pair: EncodedPair, place: Place
) -> tuple[int, ...]:
    """Positions of the receiver in the swept run's sequence; `SpecError` where this example has none."""
    stack = architecture.locate(place.site)[0]
    assert place.position is not None
    indices = tuple(i for chosen in pair.positions[stack.name].choose(place.position) for i in chosen.indices)
    found = tuple(i for i in pair.on(graph.swept.on, stack.name, indices) if i is not None)
    if not found:
        raise SpecError(f"the receiver's position {place.position!r} is not in the prompt that is patched")
    return found


def _own(
    graph: InterventionGraph, architecture: Architecture, pair: EncodedPair, run: Run, edit: Edit, cell: Cell
) -> list[Change]:
    """Values made of their own, or of what all pairs give."""
    changes = []
    kind = {"zero": "multiply", "mean": "replace"}.get(edit.kind, edit.kind)
    factor: float | int = {"zero": 0.0, "mean": 1.0}.get(edit.kind, 0.0)
    if edit.factor is not None:
        factor = cell.strength if edit.factor == "strength" else float(edit.factor)
    for site in parts(cell.site):
        (stack, component), tap = architecture.locate(site), architecture.tap(site)
        here = pair.on(run.on, stack.name, cell.position.indices)
        positions = tuple(i for i in here if i is not None)
        for layer in [layer for layer in cell.layers if stack.has(component, layer)]:
            source = None
            if edit.source is not None:
                source = vector_key(edit.source, cell.position.selector, tap, layer)
            zeros = (0,) * len(positions)
            changes.append(Change(kind, tap, layer, stack, positions, cell.head, source, 0, zeros, factor))
    return changes


def _blocked(architecture: Architecture, pair: EncodedPair, edit: Edit, cell: Cell) -> list[Change]:
    """Edges that are blocked; queries left without any key get no attention output."""
    stack, attention = architecture.attention(cell.site)
    assert cell.keys is not None and attention.mask is not None
    heads = edit.at.head if isinstance(edit.at.head, tuple) else None
    mask = Tap(attention.path, "input", attention.mask)
    pattern = cell.site.split(".")[1]
    return [
        Change(
            "block",
            mask,
            layer,
            stack,
            cell.position.indices,
            source_positions=cell.keys.indices,
            heads_blocked=heads,
            causal=attention.causal,
            length=0 if attention.keys == stack.name else len(pair.positions[attention.keys].positions),
            context=stack.taps[PATTERN_COMPONENTS[pattern]],
        )
        for layer in cell.layers
        if stack.has(pattern, layer)
    ]
