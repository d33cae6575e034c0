"""Experiment + architecture → graph. Names are checked here; positions are resolved per example when the graph runs."""

from __future__ import annotations

import warnings

from vlm_patching.errors import SpecError
from vlm_patching.experiment import CorruptionSpec, Experiment
from vlm_patching.graph.ir import (
    Dimension,
    Edit,
    InterventionGraph,
    Place,
    Read,
    Run,
    Selector,
    noise_of,
    patch_place,
    sites_of,
    values_of,
)
from vlm_patching.models.architecture import HEAD_COMPONENTS, Architecture
from vlm_patching.pairs import CORRUPTED_INPUT

DEFAULT_NOISE_K, DEFAULT_NOISE_DRAWS = 3.0, 10


def lower(experiment: Experiment, architecture: Architecture) -> InterventionGraph:
    """The graph of an experiment on a model.

    Raises
    ------
    SpecError
        A site that the model lacks, layers, heads or a window out of range, or sites with and without heads in one
        sweep.
    """
    patch, corruption = experiment.patch, experiment.corruption
    try:
        located = [architecture.locate(site) for site in patch.sites]
    except SpecError as error:
        raise SpecError(f"patch.sites: {error}") from error
    stacks = [stack for stack, _ in located]
    by_head = any(component in HEAD_COMPONENTS for _, component in located)
    if patch.heads != "all" and not by_head:
        shown = patch.heads if isinstance(patch.heads, str) else list(patch.heads)
        raise SpecError(f"patch.heads is {shown!r}, but {', '.join(patch.sites)} has no heads.")
    layers = _numbers("layers", patch.layers, {stack.name: stack.layers for stack in stacks})
    dimensions = [Dimension("site", tuple(patch.sites)), Dimension("layer", layers)]
    if by_head:
        heads = _numbers("heads", patch.heads, {stack.name: stack.heads for stack in stacks})
        dimensions.append(Dimension("head", heads))
    dimensions.append(Dimension("position", patch.positions))
    noise: tuple[Edit, ...] = ()
    if corruption.kind == "gaussian_noise":
        noise = (_noise(corruption),)
        if corruption.scale is None:
            dimensions.append(Dimension("draw", tuple(range(corruption.draws or DEFAULT_NOISE_DRAWS))))
    place = Place(
        site=_symbol("site", patch.sites),
        layer="layer",
        head="head" if by_head else None,
        position=_symbol("position", patch.positions),
        window=patch.window,
    )
    draw = ("draw",) if noise and corruption.scale is None else ()
    denoise = patch.direction == "denoise"
    read = (Read("z", place),)
    clean = Run("clean", "clean", reads=read if denoise else ())
    corrupted = Run("corrupted", CORRUPTED_INPUT[corruption.kind], draw, noise, () if denoise else read)
    replace = Edit("replace", place, source="clean.z" if denoise else "corrupted.z")
    swept = tuple(d.name for d in dimensions)
    patched = Run(
        "patched",
        corrupted.on if denoise else "clean",
        swept,
        (*noise, replace) if denoise else (replace,),
    )
    graph = InterventionGraph(
        name=experiment.name,
        runs=(clean, corrupted, patched),
        dimensions=tuple(dimensions),
        metrics=experiment.metrics,
        direction=patch.direction,
        keep=experiment.pairs.keep,
        seed=experiment.seed,
    )
    check_graph(graph, architecture, sites_called="patch.sites", window_called="patch.window")
    return graph


def _noise(corruption: CorruptionSpec) -> Edit:
    """The edit that the noise settings of a spec stand for."""
    site = corruption.site or "image_embeds"
    place = Place(site, position=(corruption.span or "subject") if site == "token_embeds" else None)
    if corruption.scale is not None:
        return Edit("scale", place, mean=corruption.scale)
    if corruption.multiplicative is not None:
        return Edit("multiply_noise", place, mean=corruption.multiplicative.mean, std=corruption.multiplicative.std)
    if corruption.std is not None:
        return Edit("add_noise", place, std=corruption.std)
    return Edit("add_noise", place, std=corruption.k or DEFAULT_NOISE_K, relative=True)


def check_graph(
    graph: InterventionGraph,
    architecture: Architecture,
    sites_called: str = "sites",
    window_called: str = "window",
) -> None:
    """Refuse a graph that asks for something the model does not have.

    Parameters
    ----------
    sites_called, window_called
        What they are called where the user wrote them.

    Raises
    ------
    SpecError
        Naming the site, layer, head or window, and what there is.
    """
    place, sites = patch_place(graph), sites_of(graph)
    located = [architecture.locate(site) for site in sites]
    with_heads = [component in HEAD_COMPONENTS for _, component in located]
    if any(with_heads) and not all(with_heads):
        raise SpecError(f"{sites_called} {', '.join(sites)} mix heads with whole modules; a sweep is over one kind.")
    if any(with_heads) != (place.head is not None):
        which = "name no head" if any(with_heads) else "have no heads"
        raise SpecError(f"{sites_called} {', '.join(sites)} {which}, but the place replaced has head {place.head!r}.")
    for what, literal, attribute in (("layer", place.layer, "layers"), ("head", place.head, "heads")):
        most = max(getattr(stack, attribute) for stack, _ in located)
        for value in values_of(graph, what, literal):
            if value is not None and not 0 <= int(value) < most:
                raise SpecError(f"{what} {value} does not exist: {', '.join(sites)} have {attribute} 0 to {most - 1}.")
    stacks = list(dict.fromkeys(stack.name for stack, _ in located))
    indices = [value for value in values_of(graph, "position", place.position) if isinstance(value, int)]
    if indices and len(stacks) > 1:
        raise SpecError(
            f"Position {indices[0]} is another token in each of {', '.join(stacks)}; name groups, or sweep one stack."
        )
    noise = noise_of(graph)
    if "vision" in stacks and (graph.run("corrupted").on == "corrupted_text" or (noise and noise.at.site != "pixels")):
        warnings.warn(
            "What corrupts does not pass through the vision stack: every effect at its sites is 0.", stacklevel=2
        )
    for stack, _ in located:
        if place.window > stack.layers:
            raise SpecError(
                f"{window_called} is {place.window}, longer than the {stack.layers} layers of {stack.name}."
            )


def _symbol(name: str, values: tuple[Selector, ...]) -> str:
    """A dimension's name, or its value where it has only one that is text."""
    return values[0] if len(values) == 1 and isinstance(values[0], str) else name


def _numbers(what: str, wanted: str | tuple[int, ...], available: dict[str, int]) -> tuple[int, ...]:
    """Layers or heads out of `all`, a list or "start:stop"; `SpecError` where the model does not have them."""
    most, least = max(available.values()), min(available.values())
    if wanted == "all":
        return tuple(range(most))
    if isinstance(wanted, str):
        start, stop = map(int, wanted.split(":"))
        wanted = tuple(range(start, stop))
    for number in wanted:
        if not 0 <= number < least:
            name = min(available, key=lambda stack: available[stack])
            raise SpecError(f"patch.{what} has {number}, but {name} has {what} 0 to {available[name] - 1}.")
    if len(set(wanted)) != len(wanted):
        raise SpecError(f"patch.{what} names a number twice: {list(wanted)}.")
    return tuple(wanted)
