"""Cells: the sweep of a graph, resolved for one example."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vlm_patching.errors import SpecError
from vlm_patching.graph import (
    InterventionGraph,
    draws_of,
    edges_of,
    main_edits,
    noise_of,
    parts,
    sites_of,
    swept_place,
    values_of,
)
from vlm_patching.inputs import EncodedPair
from vlm_patching.metrics import METRICS
from vlm_patching.models import HEAD_COMPONENTS, IMAGE_STACKS, Architecture, Stack
from vlm_patching.positions import Chosen, StackPositions


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep, resolved for one example.

    Attributes
    ----------
    layers
        The layers that are edited together: the window around `layer`, cut off at the stack's ends.
    position
        Where it is edited or read; of blocked edges the queries.
    keys
        Of attention: the keys.
    edges, strength
        Their values on the dimensions of that name, where the graph has them.
    draw
        Which noise draw, 0 where the graph has none.
    instead
        For checks: the run whose values are put in, in the place of the graph's own choice.
    """

    site: str
    layer: int
    window: int
    layers: tuple[int, ...]
    head: int | None
    position: Chosen
    keys: Chosen | None = None
    edges: str = ""
    strength: float | int = 1.0
    draw: int = 0
    instead: str | None = None

    def labels(self) -> dict[str, Any]:
        """Its value on every dimension that a graph may have."""
        return {
            "site": self.site,
            "edges": self.edges,
            "layer": self.layer,
            "window": self.window,
            "head": self.head,
            "position": self.position.label,
            "strength": self.strength,
            "draw": self.draw,
        }


def window(layer: int, width: int, layers: int) -> tuple[int, ...]:
    """Layers [l - w//2, l - (-w//2)), cut off at the edges: odd widths are symmetric, w = 10 is [l - 5, l + 4]."""
    return tuple(range(max(0, layer - width // 2), min(layers, layer - (-width // 2))))


def stack_of(graph: InterventionGraph, architecture: Architecture, site: str) -> Stack:
    """The stack of a site of the sweep, of whatever kind the method's sites are."""
    if graph.method in ("knockout", "attention"):
        return architecture.attention(site)[0]
    return architecture.locate(parts(site)[0])[0]


def chosen_positions(
    graph: InterventionGraph, architecture: Architecture, site: str, pair: EncodedPair, other: bool = False
) -> list[Chosen]:
    """What the graph's position selectors mean at a site in one example, or in the other pair of one example.

    A selector that only stacks of other sites have is left out, so that one sweep can follow the answer through a
    model.

    Raises
    ------
    SpecError
        A selector that no site's stack has in this example, or a site that none of the selectors fits.
    """
    selectors = [s for s in values_of(graph, "position", swept_place(graph).position) if s is not None]
    positions = pair.other if other else pair.positions
    here = positions[stack_of(graph, architecture, site).name]
    others = [positions[stack_of(graph, architecture, s).name] for s in sites_of(graph)]
    found: dict[str, Chosen] = {}
    for selector in selectors:
        if here.has(selector) or not any(stack.has(selector) for stack in others):
            for chosen in here.choose(selector):
                found.setdefault(chosen.label, chosen)
    if not found:
        raise SpecError(
            f"none of the positions {', '.join(map(str, selectors))} is in the {here.stack}; "
            f"it has: {', '.join([*here.groups, 'all'])}"
        )
    return list(found.values())


def chosen_edges(
    graph: InterventionGraph, architecture: Architecture, site: str, pair: EncodedPair
) -> list[tuple[str, Chosen, Chosen]]:
    """The edge sets that a site has in one example: label, keys, queries. Those of other sites are left out."""
    labels = [str(label) for label in values_of(graph, "edges", "")]
    stack, attention = architecture.attention(site)
    keys, queries = pair.positions[attention.keys], pair.positions[stack.name]
    found = []
    for label in labels:
        source, target = edges_of(label)
        if all(keys.has(part) for part in source.split("+")) and all(queries.has(part) for part in target.split("+")):
            found.append((label, _together(keys, source), _together(queries, target)))
    return found


def check_edges(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> None:
    """Refuse an edge set that no site has in this example.

    Raises
    ------
    SpecError
        Naming the set, and which groups each site has for keys and for queries.
    """
    found = {label for site in sites_of(graph) for label, _, _ in chosen_edges(graph, architecture, site, pair)}
    for label in map(str, values_of(graph, "edges", "")):
        if label not in found:
            known = []
            for site in sites_of(graph):
                stack, attention = architecture.attention(site)
                keys, queries = (", ".join(pair.positions[n].groups) for n in (attention.keys, stack.name))
                known.append(f"{site} goes from {keys} to {queries}")
            raise SpecError(f"no attention here has the edges {label!r}: {'; '.join(known)}")


def _together(stack: StackPositions, selector: str) -> Chosen:
    """All positions of a selector, or of several that are joined by "+"."""
    chosen = [chosen for part in selector.split("+") for chosen in stack.choose(part)]
    indices = tuple(dict.fromkeys(i for each in chosen for i in each.indices))
    return Chosen(selector, indices, selector, tuple(stack.positions[i].label for i in indices))


def keys_of(graph: InterventionGraph, architecture: Architecture, site: str, pair: EncodedPair) -> Chosen:
    """The keys that a graph of attention patterns keeps, at a site in one example."""
    return _together(pair.positions[architecture.attention(site)[1].keys], str(swept_place(graph).keys))


def cells_of(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> list[Cell]:
    """Every cell of the sweep that exists in this example, in the order of the dimensions."""
    if graph.method == "evaluate":
        return []
    place, cells, architecture = swept_place(graph), [], architecture.on(len(pair.pair.clean.images))
    layers, widths = values_of(graph, "layer", place.layer), values_of(graph, "window", place.window)
    for site in sites_of(graph):
        stack = stack_of(graph, architecture, site)
        outer, inner = _where(graph, architecture, site, pair)
        cells += [
            Cell(site, layer, width, window(layer, width, stack.layers), head, position, keys, edges, strength, draw)
            for edges in outer
            for layer in layers
            if all(_has(architecture, part, layer) for part in parts(site))
            for width in widths
            for head in _heads(graph, architecture, site)
            if head is None or head < stack.heads
            for position, keys in inner[edges]
            for strength in values_of(graph, "strength", 1.0)
            for draw in range(draws_of(graph))
        ]
    return cells


def _has(architecture: Architecture, site: str, layer: int) -> bool:
    return architecture.stack(site.split(".")[0]).has(site.split(".")[-1], layer)


def _where(
    graph: InterventionGraph, architecture: Architecture, site: str, pair: EncodedPair
) -> tuple[list[str], dict[str, list[tuple[Chosen, Chosen | None]]]]:
    """The edge sets at a site ("" where the method has none), and for each the positions (queries) and keys."""
    if graph.method == "knockout":
        found = chosen_edges(graph, architecture, site, pair)
        return [label for label, _, _ in found], {label: [(queries, keys)] for label, keys, queries in found}
    keys = keys_of(graph, architecture, site, pair) if graph.method == "attention" else None
    stack = stack_of(graph, architecture, site)
    chosen = [c for c in chosen_positions(graph, architecture, site, pair) if has_partner(graph, stack, pair, c)]
    return [""], {"": [(c, keys) for c in chosen]}


def _heads(graph: InterventionGraph, architecture: Architecture, site: str) -> tuple[int | None, ...]:
    if graph.method == "attention" or (
        graph.method != "knockout" and architecture.locate(parts(site)[0])[1] in HEAD_COMPONENTS
    ):
        return values_of(graph, "head", swept_place(graph).head)
    return (None,)


def has_partner(graph: InterventionGraph, stack: Stack, pair: EncodedPair, chosen: Chosen) -> bool:
    """Whether any of the positions is in both runs that a cell is about: the edited one, and that values come from."""
    source = graph.origin if graph.method in ("patch", "path") else graph.base
    return bool(partners(graph, stack, pair, chosen, source))


def partners(
    graph: InterventionGraph, stack: Stack, pair: EncodedPair, chosen: Chosen, source: str
) -> list[tuple[int, int]]:
    """Index in the swept run's sequence and in the source run's, for each of the positions that has both."""
    here = pair.on(graph.swept.on, stack.name, chosen.indices)
    there = pair.on(graph.run(source).on, stack.name, chosen.indices)
    return [(a, b) for a, b in zip(here, there, strict=True) if a is not None and b is not None]


def check_cells(
    graph: InterventionGraph, architecture: Architecture, pair: EncodedPair, cells: list[Cell]
) -> dict[str, tuple[Cell, str]]:
    """Cells whose outcome is known beforehand, with the run whose metrics they must have.

    Editing no layer gives the base run. Of a patch, moreover: the run's own values put in give the base run, and the
    other run's put in everywhere give the other run.
    """
    if not main_edits(graph.swept):
        return {}
    known = {"nothing": (replace(cells[0], layers=()), graph.base)}
    if graph.method != "patch" or graph.estimate != "exact" or any(e.kind == "hold" for e in graph.swept.edits):
        return known
    answers = (pair.answer, pair.foil) if any("scores" in METRICS[metric] for metric in graph.metrics) else ((0,),)
    known["itself"] = (replace(cells[len(cells) // 2], instead=graph.base), graph.base)
    edit = noise_of(graph)
    from_image = graph.run("corrupted").on == "corrupted_image" or (edit is not None and edit.at.site == "pixels")
    for site in sites_of(graph):
        stack = architecture.locate(parts(site)[0])[0]
        if stack.name == "token_embeds" or (stack.name in (*IMAGE_STACKS, "image_embeds") and not from_image):
            continue  # the runs differ in more than what passes here
        if not stack.complete:
            continue  # others read more of it than its last layer
        if stack.name == architecture.text_stack and not pair.is_aligned(graph.run("corrupted").on):
            continue  # tokens without a partner keep their own values
        component = "resid_post" if "resid_post" in stack.taps else stack.name
        layer = stack.last_layer
        if max(map(len, answers)) > 1:  # tokens of the answer attend to what is below, and to what is around
            if stack.name == "answer_decoder":
                continue
            if stack.name == architecture.text_stack and architecture.continues:
                if architecture.image and (architecture.image.carried or not architecture.image.inline):
                    continue  # the image enters again above
                component, layer = "resid_pre", 0
        everywhere = Chosen("all", tuple(range(len(pair.positions[stack.name].positions))))
        name = component if component == stack.name else f"{stack.name}.{component}"
        known[f"everything in {stack.name}"] = (Cell(name, layer, 1, (layer,), None, everywhere), graph.origin)
    return known
