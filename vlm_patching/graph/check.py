"""A graph against a model's architecture: what it asks for must be there."""

from __future__ import annotations

import warnings
from typing import Any

from vlm_patching.errors import SpecError, unknown
from vlm_patching.graph.ir import InterventionGraph, Place, noise_of, parts, sites_of, swept_place, values_of
from vlm_patching.graph.structure import SWEPT, main_edits
from vlm_patching.models.architecture import ENTRIES, HEAD_COMPONENTS, Architecture, Stack


def check_graph(graph: InterventionGraph, architecture: Architecture, section: str = "") -> None:
    """Refuse a graph that asks for something the model does not have.

    Parameters
    ----------
    section
        The section of the spec that it was made of, to name its fields by; empty for a graph written by hand.

    Raises
    ------
    SpecError
        Naming the site, layer, head, window or edges, and what there is.
    """
    if graph.method == "evaluate":
        return
    field = f"{section}." if section else ""
    sites, place = sites_of(graph), swept_place(graph)
    if graph.method in ("knockout", "attention"):
        located = [architecture.attention(site)[0] for site in sites]
        _check_blockable(graph, architecture)
    else:
        located = _check_sites(graph, architecture, place, f"{field}sites")
    _check_numbers(graph, place, located, f"{field}window")
    names = list(dict.fromkeys(stack.name for stack in located))
    selectors = () if graph.method == "knockout" else values_of(graph, "position", place.position)
    indices = [value for value in selectors if isinstance(value, int)]
    if indices and len(names) > 1:
        raise SpecError(
            f"Position {indices[0]} is another token in each of {', '.join(names)}; name groups, or sweep one stack."
        )
    _check_other_places(graph, architecture)
    if graph.method == "lens":
        _check_lens(architecture, sites)
    if graph.method in ("patch", "path"):
        _warn_of_no_effect(graph, names)


def _check_sites(graph: InterventionGraph, architecture: Architecture, place: Place, called: str) -> list[Stack]:
    stacks, by_head, sites = [], set(), sites_of(graph)
    for site in sites:
        located = [architecture.locate(part) for part in parts(site)]
        if len({stack.name for stack, _ in located}) > 1:
            raise SpecError(f"{called}: {site} joins sites of several stacks; what is edited together is of one stack.")
        if len(set(parts(site))) < len(located):
            raise SpecError(f"{called}: {site} joins a site with itself.")
        stacks.append(located[0][0])
        by_head |= {component in HEAD_COMPONENTS for _, component in located}
    if len(by_head) > 1:
        raise SpecError(f"{called} {', '.join(sites)} mix heads with whole modules; a sweep is over one kind.")
    if by_head.pop() != (place.head is not None):
        which = "name no head" if place.head is None else "have no heads"
        raise SpecError(f"{called} {', '.join(sites)} {which}, but the place that is swept has head {place.head!r}.")
    return stacks


def _check_numbers(graph: InterventionGraph, place: Place, stacks: list[Stack], window_called: str) -> None:
    sites = ", ".join(sites_of(graph))
    for what, literal, attribute in (("layer", place.layer, "layers"), ("head", place.head, "heads")):
        most = max(getattr(stack, attribute) for stack in stacks)
        given = literal if isinstance(literal, tuple) else values_of(graph, what, literal)
        for value in given:
            if value is not None and not 0 <= int(value) < most:
                raise SpecError(f"{what} {value} does not exist: {sites} have {attribute} 0 to {most - 1}.")
    for width in values_of(graph, "window", place.window):
        for stack in stacks:
            if width > stack.layers and stack.name not in ENTRIES:
                raise SpecError(f"{window_called} is {width}, longer than the {stack.layers} layers of {stack.name}.")


def _check_blockable(graph: InterventionGraph, architecture: Architecture) -> None:
    if graph.method == "knockout":
        for site in sites_of(graph):
            if architecture.attention(site)[1].mask is None:
                raise SpecError(
                    f"{site} takes no attention mask in this {architecture.family} model, so it cannot be blocked."
                )


def _check_other_places(graph: InterventionGraph, architecture: Architecture) -> None:
    """Places that are held, or that receive: fixed ones."""
    for run in graph.runs:
        if run.name not in SWEPT:
            continue
        held = [edit.at for edit in run.edits if edit.kind == "hold"]
        received = [edit.at for edit in main_edits(run) if str(edit.source).startswith("sender.")]
        for place in (*held, *received):
            stack, component = architecture.locate(place.site)
            by_head = component in HEAD_COMPONENTS
            if place in received:
                _check_receiver(stack, place, by_head)
                senders = [architecture.locate(part)[0].name for site in sites_of(graph) for part in parts(site)]
                if architecture.ordinal(stack.name) < min(map(architecture.ordinal, senders)):
                    raise SpecError(
                        f"Nothing passes from {senders[0]} to the receiver's {stack.name}, which comes before it."
                    )
            elif place.layer == "above" and stack.name != architecture.locate(parts(sites_of(graph)[0])[0])[0].name:
                raise SpecError(f"{place.site} is held above a cell of another stack; it must be of the cell's own.")
            elif by_head:
                raise SpecError(f"{place.site} is one head; hold {HEAD_COMPONENTS[component]}, all heads together.")


def _check_receiver(stack: Stack, place: Place, by_head: bool) -> None:
    if place.window != 1:
        raise SpecError(f"A receiver is one layer; its window is {place.window!r}.")
    if by_head != (place.head is not None):
        raise SpecError(f"The receiver {place.site} {'needs a' if by_head else 'has no'} head; it has {place.head!r}.")
    numbers: tuple[tuple[str, Any, int], ...] = (
        ("layer", place.layer, stack.layers),
        ("head", place.head, stack.heads),
    )
    for what, value, count in numbers:
        if value is not None and not (type(value) is int and 0 <= value < count):
            raise SpecError(f"The receiver's {what} {value} does not exist: {stack.name} has {what}s 0 to {count - 1}.")


def _check_lens(architecture: Architecture, sites: tuple[str, ...]) -> None:
    for site in sites:
        stack, component = architecture.locate(site)
        if not stack.unembed:
            ends = [s.name for s in architecture.stacks if s.unembed]
            raise SpecError(
                f"{site} cannot be read through a lens: {stack.name} does not end in the unembedding; of this "
                f"{architecture.family} model {', '.join(ends)} does."
            )
        if component not in ("resid_pre", "resid_post"):
            raise unknown(f"site of {stack.name} that a lens reads", component, ("resid_pre", "resid_post"))


def _warn_of_no_effect(graph: InterventionGraph, stacks: list[str]) -> None:
    noise = noise_of(graph)
    text_only = graph.run("corrupted").on == "corrupted_text"
    if "vision" in stacks and (text_only or (noise and noise.at.site != "pixels")):
        warnings.warn(
            "What corrupts does not pass through the vision stack: every effect at its sites is 0.", stacklevel=3
        )
