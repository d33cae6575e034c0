"""Experiment + architecture → graph. Names are checked here; positions are resolved per example when the graph runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vlm_patching.errors import SpecError
from vlm_patching.experiment import Experiment
from vlm_patching.graph.check import check_graph
from vlm_patching.graph.ir import Dimension, Edit, InterventionGraph, Place, Read, Run, parts
from vlm_patching.graph.structure import FILE, METHODS
from vlm_patching.models.architecture import HEAD_COMPONENTS, IMAGE_STACKS, Architecture, Stack
from vlm_patching.pairs import CORRUPTED_INPUT
from vlm_patching.sections import CorruptionSpec
from vlm_patching.sweeps import (
    AblateSpec,
    AttentionSpec,
    KnockoutSpec,
    LensSpec,
    PatchSpec,
    PathSpec,
    SteerSpec,
)

DEFAULT_NOISE_K, DEFAULT_NOISE_DRAWS, DEFAULT_STEPS = 3.0, 10, 16


def lower(experiment: Experiment, architecture: Architecture) -> InterventionGraph:
    """The graph of an experiment on a model.

    Raises
    ------
    SpecError
        A site that the model lacks, layers, heads or a window out of range, sites with and without heads in one sweep,
        and whatever else `check_graph` and `check_structure` refuse.
    """
    section = getattr(experiment, experiment.method)
    try:
        graph = _LOWER[experiment.method](experiment, section, architecture)
    except _SectionError as error:
        raise SpecError(f"{experiment.method}.{error}") from error
    check_graph(graph, architecture, section=experiment.method)
    return graph


def evaluation(graph: InterventionGraph) -> InterventionGraph:
    """A graph's clean run and, where it has one, its corrupted run, with nothing read and nothing swept."""
    runs = [replace(run, reads=()) for run in graph.runs if run.name in METHODS["evaluate"].names]
    draws = [dimension for dimension in graph.dimensions if dimension.name == "draw"]
    keep = "clean_correct" if graph.keep == "all" else graph.keep
    return InterventionGraph(
        name=graph.name,
        runs=tuple(runs),
        dimensions=tuple(draws),
        metrics=graph.metrics,
        direction="noise",
        keep=keep,
        seed=graph.seed,
        method="evaluate",
    )


class _SectionError(Exception):
    """Something in the section that says what is done: the field's name, a colon, and what is wrong."""


def _graph(
    experiment: Experiment, runs: Sequence[Run], dimensions: Sequence[Dimension], denoise: bool, **more: Any
) -> InterventionGraph:
    return InterventionGraph(
        name=experiment.name,
        runs=tuple(runs),
        dimensions=tuple(dimensions),
        metrics=experiment.metrics,
        direction="denoise" if denoise else "noise",
        keep=experiment.pairs.keep,
        seed=experiment.seed,
        method=experiment.method,
        **more,
    )


def _sweep(section: Any, architecture: Architecture) -> tuple[list[Dimension], Place]:
    """The dimensions of a section with sites, layers, heads, positions and windows, and the place they go over."""
    try:
        located = [architecture.locate(part) for site in section.sites for part in parts(site)]
    except SpecError as error:
        raise _SectionError(f"sites: {error}") from error
    stacks = [stack for stack, _ in located]
    by_head = any(component in HEAD_COMPONENTS for _, component in located)
    if section.heads != "all" and not by_head:
        shown = section.heads if isinstance(section.heads, str) else list(section.heads)
        raise _SectionError(f"heads is {shown!r}, but {', '.join(section.sites)} has no heads.")
    dimensions = [Dimension("site", section.sites), Dimension("layer", _numbers("layers", section.layers, stacks))]
    if len(section.window) > 1:
        dimensions.append(Dimension("window", section.window))
    if by_head:
        dimensions.append(Dimension("head", _numbers("heads", section.heads, stacks)))
    dimensions.append(Dimension("position", section.positions))
    place = Place(
        site=_symbol("site", section.sites),
        layer="layer",
        head="head" if by_head else None,
        position=_symbol("position", section.positions),
        window="window" if len(section.window) > 1 else section.window[0],
    )
    return dimensions, place


def _corrupted(experiment: Experiment, dimensions: list[Dimension]) -> Run:
    """The corrupted run, without reads; its draws become a dimension."""
    corruption = experiment.corruption
    assert corruption is not None
    noise: tuple[Edit, ...] = ()
    draw: tuple[str, ...] = ()
    if corruption.kind == "gaussian_noise":
        noise = (_noise(corruption),)
        if corruption.scale is None:
            draw = ("draw",)
            dimensions.append(Dimension("draw", tuple(range(corruption.draws or DEFAULT_NOISE_DRAWS))))
    return Run("corrupted", CORRUPTED_INPUT[corruption.kind], draw, noise)


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


def _two_runs(corrupted: Run, denoise: bool, origin: Sequence[Read], base: Sequence[Read]) -> tuple[Run, Run]:
    """The clean and the corrupted run, with what is read in the run values come from, and in the one they go into."""
    clean_reads, corrupted_reads = (origin, base) if denoise else (base, origin)
    clean = Run("clean", "clean", reads=tuple(clean_reads))
    return clean, Run("corrupted", corrupted.on, corrupted.over, corrupted.edits, tuple(corrupted_reads))


def _patch(experiment: Experiment, section: PatchSpec, architecture: Architecture) -> InterventionGraph:
    dimensions, place = _sweep(section, architecture)
    corrupted, denoise = _corrupted(experiment, dimensions), section.direction == "denoise"
    base, origin = ("corrupted", "clean") if denoise else ("clean", "corrupted")
    z, held, kept = Read("z", place), [], []
    if section.sever is not None:
        stacks = list(dict.fromkeys(architecture.locate(part)[0].name for s in section.sites for part in parts(s)))
        if len(stacks) > 1:
            raise _SectionError(f"sever: it cuts {section.sever} of one stack; the sites are of {', '.join(stacks)}.")
        try:
            architecture.locate(f"{stacks[0]}.{section.sever}")
        except SpecError as error:
            raise _SectionError(f"sever: {error}") from error
        cut = Place(f"{stacks[0]}.{section.sever}", "above", None, place.position)
        held, kept = [Read("cut", cut)], [Edit("hold", cut, source=f"{base}.cut")]
    estimated = section.method != "exact"
    clean, corrupted = _two_runs(corrupted, denoise, [z], [*held, *([z] if estimated else [])])
    over = tuple(dimension.name for dimension in dimensions)
    start = corrupted.edits if denoise else ()
    on = corrupted.on if denoise else "clean"

    def swept(name: str, source: str) -> Run:
        return Run(name, on, over, (*start, *kept, Edit("replace", place, source=f"{source}.z")))

    runs = [clean, corrupted]
    if section.placebo:
        runs += [Run("other", "other", reads=(z,)), swept("placebo", "other")]
    runs.append(swept("patched", origin))
    steps = section.steps or (DEFAULT_STEPS if section.method == "integrated_gradients" else None)
    return _graph(experiment, runs, dimensions, denoise, estimate=section.method, steps=steps, verify=section.verify)


def _path(experiment: Experiment, section: PathSpec, architecture: Architecture) -> InterventionGraph:
    dimensions, place = _sweep(section, architecture)
    corrupted, denoise = _corrupted(experiment, dimensions), section.direction == "denoise"
    base, origin = ("corrupted", "clean") if denoise else ("clean", "corrupted")
    frozen = section.freeze if section.freeze is not None else _heads_of_senders(section, architecture)
    for field, sites in (("freeze", frozen), ("receiver.site", [section.receiver.site] if section.receiver else [])):
        try:
            for site in sites:
                architecture.locate(site)
        except SpecError as error:
            raise _SectionError(f"{field}: {error}") from error
    held = [Read(site, Place(site, "all", None, "all")) for site in frozen]
    clean, corrupted = _two_runs(corrupted, denoise, [Read("z", place)], held)
    over = tuple(dimension.name for dimension in dimensions)
    start = corrupted.edits if denoise else ()
    on = corrupted.on if denoise else "clean"
    edits = (
        *start,
        *(Edit("hold", read.at, source=f"{base}.{read.name}") for read in held),
        Edit("replace", place, source=f"{origin}.z"),
    )
    if section.receiver is None:
        return _graph(experiment, [clean, corrupted, Run("patched", on, over, edits)], dimensions, denoise)
    receiver = Place(section.receiver.site, section.receiver.layer, section.receiver.head, section.receiver.position)
    sender = Run("sender", on, over, edits, (Read("r", receiver),))
    patched = Run("patched", on, over, (*start, Edit("replace", receiver, source="sender.r")))
    return _graph(experiment, [clean, corrupted, sender, patched], dimensions, denoise)


def _heads_of_senders(section: PathSpec, architecture: Architecture) -> list[str]:
    """All heads from the senders' stacks on, but for the cross-attention by which later stacks read earlier ones."""
    senders = {architecture.locate(part)[0].name for site in section.sites for part in parts(site)}
    begin = min(architecture.ordinal(name) for name in senders)
    return [
        f"{stack.name}.{context}"
        for stack in architecture.stacks
        if architecture.ordinal(stack.name) >= begin
        for context in HEAD_COMPONENTS.values()
        if context in stack.taps and (context == "attn_context" or stack.name in senders)
    ]


def _knockout(experiment: Experiment, section: KnockoutSpec, architecture: Architecture) -> InterventionGraph:
    sites = section.sites or tuple(
        site
        for site in architecture.pattern_sites()
        if architecture.attention(site)[1].mask and architecture.attention(site)[0].name not in IMAGE_STACKS
    )
    stacks = _pattern_stacks("sites", sites, architecture)
    dimensions = [
        Dimension("site", sites),
        Dimension(
            "edges",
            tuple(re.sub(r"\s*(->)\s*", r" \1 ", re.sub(r"\s*\+\s*", "+", edge)).strip() for edge in section.edges),
        ),
        Dimension("layer", _numbers("layers", section.layers, stacks)),
    ]
    if len(section.window) > 1:
        dimensions.append(Dimension("window", section.window))
    place = Place(
        site=_symbol("site", sites),
        layer="layer",
        head=None if section.heads == "all" else _numbers("heads", section.heads, stacks),
        position="edges",
        window="window" if len(section.window) > 1 else section.window[0],
        keys="edges",
    )
    over = tuple(dimension.name for dimension in dimensions)
    runs = [Run("clean", "clean"), Run("blocked", "clean", over, (Edit("block", place),))]
    return _graph(experiment, runs, dimensions, denoise=False)


def _ablate(experiment: Experiment, section: AblateSpec, architecture: Architecture) -> InterventionGraph:
    dimensions, place = _sweep(section, architecture)
    over, z = tuple(dimension.name for dimension in dimensions), (Read("z", place),)
    edit = {
        "zero": Edit("zero", place),
        "mean": Edit("mean", place, source="clean.z"),
        "resample": Edit("replace", place, source="other.z"),
        "scale": Edit("multiply", place, factor=section.factor),
    }[section.kind]
    clean = Run("clean", "clean", reads=z if section.kind == "mean" else ())
    other = [Run("other", "other", reads=z)] if section.kind == "resample" else []
    return _graph(experiment, [clean, *other, Run("ablated", "clean", over, (edit,))], dimensions, denoise=False)


def _steer(experiment: Experiment, section: SteerSpec, architecture: Architecture) -> InterventionGraph:
    dimensions, place = _sweep(section, architecture)
    dimensions.append(Dimension("strength", section.strengths))
    runs: list[Run] = []
    reads: tuple[Read, ...] = ()
    on_corrupted = section.on == "corrupted"
    if section.vector == "difference":
        source, reads = "clean.z - corrupted.z", (Read("z", place),)
    else:
        source = f"{FILE}{section.vector}"
    runs.append(Run("clean", "clean", reads=reads))
    if experiment.corruption is not None:
        made = _corrupted(experiment, dimensions)
        runs.append(Run("corrupted", made.on, made.over, made.edits, reads))
    over = tuple(dimension.name for dimension in dimensions)
    base = runs[-1] if on_corrupted else runs[0]
    edit = Edit("add", place, source=source, factor="strength")
    runs.append(Run("steered", base.on, over, (*base.edits, edit)))
    return _graph(experiment, runs, dimensions, denoise=on_corrupted)


def _lens(experiment: Experiment, section: LensSpec, architecture: Architecture) -> InterventionGraph:
    sites = section.sites or tuple(f"{stack.name}.resid_post" for stack in architecture.stacks if stack.unembed)
    try:
        stacks = [architecture.locate(site)[0] for site in sites]
    except SpecError as error:
        raise _SectionError(f"sites: {error}") from error
    return _reading(experiment, section, sites, stacks, None)


def _attention(experiment: Experiment, section: AttentionSpec, architecture: Architecture) -> InterventionGraph:
    stacks = _pattern_stacks("sites", section.sites, architecture)
    heads = Dimension("head", _numbers("heads", section.heads, stacks))
    return _reading(experiment, section, section.sites, stacks, heads)


def _reading(
    experiment: Experiment, section: Any, sites: tuple[str, ...], stacks: Sequence[Stack], heads: Dimension | None
) -> InterventionGraph:
    """A sweep that only reads the clean run."""
    layers = Dimension("layer", _numbers("layers", section.layers, stacks))
    positions = Dimension("position", section.positions)
    dimensions = [Dimension("site", sites), layers, *([heads] if heads else []), positions]
    place = Place(
        site=_symbol("site", sites),
        layer="layer",
        head="head" if heads else None,
        position=_symbol("position", section.positions),
        keys=section.keys if heads else None,
    )
    over = tuple(dimension.name for dimension in dimensions)
    name = experiment.method
    read = Read("pattern" if heads else "z", place)
    return _graph(experiment, [Run("clean", "clean"), Run(name, "clean", over, (), (read,))], dimensions, denoise=False)


def _pattern_stacks(what: str, sites: Sequence[str], architecture: Architecture) -> list[Stack]:
    try:
        return [architecture.attention(site)[0] for site in sites]
    except SpecError as error:
        raise _SectionError(f"{what}: {error}") from error


def _symbol(name: str, values: tuple[Any, ...]) -> str:
    """A dimension's name, or its value where it has only one that is text."""
    return values[0] if len(values) == 1 and isinstance(values[0], str) else name


def _numbers(what: str, wanted: str | tuple[int, ...], stacks: Sequence[Stack]) -> tuple[int, ...]:
    """Layers or heads out of `all`, a list or "start:stop"; an error where the model does not have them."""
    available = {stack.name: getattr(stack, what) for stack in stacks}
    most, least = max(available.values()), min(available.values())
    if wanted == "all":
        return tuple(range(most))
    if isinstance(wanted, str):
        start, stop = map(int, wanted.split(":"))
        wanted = tuple(range(start, min(stop, start + least + 1)))  # one too many is enough to be refused
    for number in wanted:
        if not 0 <= number < least:
            name = min(available, key=lambda stack: available[stack])
            raise _SectionError(f"{what} has {number}, but {name} has {what} 0 to {available[name] - 1}.")
    if len(set(wanted)) != len(wanted):
        raise _SectionError(f"{what} names a number twice: {list(wanted)}.")
    return tuple(wanted)


_LOWER: dict[str, Callable[[Experiment, Any, Architecture], InterventionGraph]] = {
    "patch": _patch,
    "path": _path,
    "knockout": _knockout,
    "ablate": _ablate,
    "steer": _steer,
    "lens": _lens,
    "attention": _attention,
}
