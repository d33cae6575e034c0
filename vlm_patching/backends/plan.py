"""Graph + architecture + one encoded pair → a program: batches whose rows are cells, as plain data.

A program is a dict: `inputs` (kind → tensors), `answer`, `foil`, `metrics`, `keep`, `constants`, `readout`, and two
lists of traces, `bases` and `sweeps`. A trace has `run`, `on`, `rows`, `reuses_image` (whether the image encoder is
skipped), `pixels` (noise on the pixels, or None) and `operations` in the order of execution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlm_patching.errors import SpecError
from vlm_patching.graph import InterventionGraph, draws_of, noise_of, patch_place, sites_of, values_of
from vlm_patching.inputs import EncodedPair
from vlm_patching.models import HEAD_COMPONENTS, Architecture, Stack, Tap
from vlm_patching.positions import Chosen

MOST_ROWS = 512
BATCH_BYTES = 192 * 2**20


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep, resolved for one example.

    Attributes
    ----------
    layers
        The layers that are replaced together: the window around `layer`, cut off at the stack's ends.
    draw
        Which noise draw, 0 where the graph has none.
    source
        Whose values are put in: `clean` or `corrupted`.
    """

    site: str
    layer: int
    layers: tuple[int, ...]
    head: int | None
    position: Chosen
    draw: int
    source: str


@dataclass(frozen=True)
class Settings:
    """How a program is cut into batches: rows a forward pass (None: from size), and whether images are encoded once."""

    rows: int | None = None
    reuse_image: bool = True


NAIVE = Settings(rows=1, reuse_image=False)
"""One forward pass per cell and nothing reused: what every other way must agree with."""


def window(layer: int, width: int, layers: int) -> tuple[int, ...]:
    """Layers [l - w//2, l - (-w//2)), cut off at the edges: odd widths are symmetric, w = 10 is [l - 5, l + 4]."""
    return tuple(range(max(0, layer - width // 2), min(layers, layer - (-width // 2))))


def chosen_positions(
    graph: InterventionGraph, architecture: Architecture, site: str, pair: EncodedPair
) -> list[Chosen]:
    """What the graph's position selectors mean at a site in one example.

    A selector that only stacks of other sites have is left out, so that one sweep can follow the answer through a
    model.

    Raises
    ------
    SpecError
        A selector that no site's stack has in this example, or a site that none of the selectors fits.
    """
    selectors = [s for s in values_of(graph, "position", patch_place(graph).position) if s is not None]
    here = pair.positions[architecture.locate(site)[0].name]
    others = [pair.positions[architecture.locate(s)[0].name] for s in sites_of(graph)]
    found: dict[str, Chosen] = {}
    for selector in selectors:
        if here.has(selector) or not any(other.has(selector) for other in others):
            for chosen in here.choose(selector):
                found.setdefault(chosen.label, chosen)
    if not found:
        raise SpecError(
            f"none of the positions {', '.join(map(str, selectors))} is in the {here.stack}; "
            f"it has: {', '.join([*here.groups, 'all'])}"
        )
    return list(found.values())


def cells_of(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> list[Cell]:
    """Every cell of the sweep that exists in this example, in the order of the dimensions."""
    place, cells = patch_place(graph), []
    for site in sites_of(graph):
        stack, component = architecture.locate(site)
        layers = [int(value) for value in values_of(graph, "layer", place.layer) if value is not None]
        heads: list[int | None] = [None]
        if component in HEAD_COMPONENTS:
            heads = [int(value) for value in values_of(graph, "head", place.head) if value is not None]
        cells += [
            Cell(site, layer, window(layer, place.window, stack.layers), head, position, draw, graph.origin)
            for layer in layers
            if layer < stack.layers
            for head in heads
            if head is None or head < stack.heads
            for position in chosen_positions(graph, architecture, site, pair)
            for draw in range(draws_of(graph))
        ]
    return cells


def program(
    graph: InterventionGraph,
    architecture: Architecture,
    pair: EncodedPair,
    cells: Sequence[Cell],
    noise_std: float,
    settings: Settings,
) -> dict[str, Any]:
    """What `kernels.run_program` interprets: the base runs, then the cells' batches.

    Parameters
    ----------
    noise_std
        Standard deviation of the graph's noise in absolute units; not used where it has none.
    """
    sources: dict[str, set[tuple[str, int]]] = {name: set() for name in ("clean", "corrupted")}
    for cell in cells:
        sources[cell.source] |= {(cell.site, layer) for layer in cell.layers}
    rows = settings.rows or rows_per_pass(architecture, pair)
    batches = [list(cells[i : i + rows]) for i in range(0, len(cells), rows)]
    return {
        "inputs": pair.inputs,
        "answer": pair.answer,
        "foil": pair.foil,
        "metrics": list(dict.fromkeys([*graph.metrics, "probability"])),  # trust checks need one without steps
        "keep": graph.keep,
        "constants": dict(architecture.constants),
        "readout": {"path": architecture.readout.path, "part": architecture.readout.part},
        "bases": [_base(graph, architecture, pair, name, sources[name], noise_std) for name in ("clean", "corrupted")],
        "sweeps": [_sweep(graph, architecture, pair, batch, noise_std, settings) for batch in batches],
    }


def rows_per_pass(architecture: Architecture, pair: EncodedPair) -> int:
    """Rows a forward pass, so that its widest activations stay within a budget of memory."""
    length = max(len(stack.positions) for stack in pair.positions.values())
    heads = max(stack.heads for stack in architecture.stacks)
    return max(1, min(MOST_ROWS, BATCH_BYTES // (4 * length * max(length * heads, 4096))))


def _base(
    graph: InterventionGraph,
    architecture: Architecture,
    pair: EncodedPair,
    name: str,
    read: set[tuple[str, int]],
    noise_std: float,
) -> dict[str, Any]:
    run = graph.run(name)
    rows = draws_of(graph) if "draw" in run.over else 1
    operations = [
        {"do": "keep_whole", "name": f"{name}.{path}", **_at(Tap(path, "output"))} for path in architecture.image.bypass
    ]
    operations.append({"do": "keep_whole", "name": f"{name}.image", **_at(architecture.image.embeds)})
    reads = {(architecture.tap(site), layer): _key(name, architecture.tap(site), layer) for site, layer in read}
    operations += [{"do": "read", "name": key, **_at(tap, layer)} for (tap, layer), key in reads.items()]
    noise = _noise(graph, architecture, pair, name, list(range(rows)), noise_std)
    return _trace(architecture, name, run.on, rows, operations, noise, reuses_image=False)


def _trace(
    architecture: Architecture,
    run: str,
    on: str,
    rows: int,
    operations: list[dict[str, Any]],
    noise: dict[str, Any] | None,
    reuses_image: bool,
) -> dict[str, Any]:
    at_pixels = noise is not None and noise["site"] == "pixels"
    if noise is not None and not at_pixels and not (reuses_image and noise["site"] == "image_embeds"):
        operations = [*operations, noise]
    return {
        "run": run,
        "on": on,
        "rows": rows,
        "reuses_image": reuses_image,
        "pixels": noise if at_pixels and not reuses_image else None,
        "operations": sorted(operations, key=_order(architecture)),
    }


def _sweep(
    graph: InterventionGraph,
    architecture: Architecture,
    pair: EncodedPair,
    cells: Sequence[Cell],
    noise_std: float,
    settings: Settings,
) -> dict[str, Any]:
    grouped: dict[tuple[Tap, int, bool, str], list[tuple[int, Cell]]] = {}
    for row, cell in enumerate(cells):
        stack, component = architecture.locate(cell.site)
        for layer in cell.layers:
            key = (architecture.tap(cell.site), layer, component in HEAD_COMPONENTS, cell.source)
            grouped.setdefault(key, []).append((row, cell))
    operations = []
    for (tap, layer, by_head, source), members in grouped.items():
        stack = architecture.locate(members[0][1].site)[0]
        operations.append(_replace(graph, stack, tap, layer, by_head, source, members))
    reuses_image = settings.reuse_image and not any(cell.site.startswith("vision.") for cell in cells)
    if reuses_image:
        base, image = graph.run(graph.base), architecture.image
        index = torch.tensor([cell.draw if "draw" in base.over else 0 for cell in cells])
        operations += [
            {"do": "skip", "name": f"{base.name}.{path}", "index": None, **_at(Tap(path, "output"))}
            for path in image.bypass
        ]
        operations.append({"do": "skip", "name": f"{base.name}.image", "index": index, **_at(image.embeds)})
    noise = _noise(graph, architecture, pair, graph.base, [cell.draw for cell in cells], noise_std)
    return _trace(architecture, "patched", graph.run("patched").on, len(cells), operations, noise, reuses_image)


def _replace(
    graph: InterventionGraph,
    stack: Stack,
    tap: Tap,
    layer: int,
    by_head: bool,
    source: str,
    members: Sequence[tuple[int, Cell]],
) -> dict[str, Any]:
    entries = [(row, cell, index) for row, cell in members for index in cell.position.indices]
    has_draws = "draw" in graph.run(source).over
    return {
        "do": "replace",
        "source": _key(source, tap, layer),
        "at_rows": torch.tensor([row for row, _, _ in entries]),
        "at_positions": torch.tensor([index for _, _, index in entries]),
        "at_heads": torch.tensor([cell.head for _, cell, _ in entries]) if by_head else None,
        "source_rows": torch.tensor([cell.draw if has_draws else 0 for _, cell, _ in entries]),
        "heads": stack.heads,
        **_at(tap, layer),
    }


def _noise(
    graph: InterventionGraph, architecture: Architecture, pair: EncodedPair, run: str, draws: list[int], std: float
) -> dict[str, Any] | None:
    """What perturbs a run, row by draw; None where nothing does."""
    edit = noise_of(graph)
    if edit is None or edit not in graph.run(run).edits:
        return None
    site = edit.at.site
    return {
        "do": "perturb",
        "kind": edit.kind,
        "site": site,
        "seeds": [derived_seed(graph.seed, f"{site} noise", pair.pair.id, draw) for draw in range(draws_of(graph))],
        "index": torch.tensor(draws),
        "std": std,
        "mean": edit.mean,
        "positions": noise_positions(graph, architecture, pair),
        **(_at(noise_tap(architecture, site)) if site != "pixels" else {}),
    }


def noise_tap(architecture: Architecture, site: str) -> Tap:
    """Where `image_embeds` or `token_embeds` are."""
    return architecture.image.embeds if site == "image_embeds" else architecture.token_embeds


def noise_positions(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> list[int] | None:
    """Which token embeddings are perturbed in this example; None for all of what is perturbed.

    Raises
    ------
    SpecError
        The pair has no such span.
    """
    edit = noise_of(graph)
    if edit is None or edit.at.position is None:
        return None
    return list(pair.positions[architecture.text_stack].choose(edit.at.position)[0].indices)


def reference(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> dict[str, Any]:
    """A program whose clean run reads the values that the noise is relative to, as "reference"."""
    edit = noise_of(graph)
    assert edit is not None
    made = program(graph, architecture, pair, [], 0.0, Settings())
    read = {"do": "read", "name": "reference", **_at(noise_tap(architecture, edit.at.site))}
    base = _trace(architecture, "clean", "clean", 1, [read], None, reuses_image=False)
    return made | {"bases": [base], "positions": noise_positions(graph, architecture, pair)}


def derived_seed(seed: int, purpose: str, example: str, draw: int) -> int:
    """A seed for one purpose, example and draw, the same whatever else is run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{example}/{draw}".encode()).digest()[:7])


def _key(run: str, tap: Tap, layer: int) -> str:
    return f"{run}.{tap.path.format(layer=layer)}.{tap.end}"


def _at(tap: Tap, layer: int = 0) -> dict[str, Any]:
    return {"path": tap.path.format(layer=layer), "end": tap.end, "part": tap.part}


def _order(architecture: Architecture) -> Any:
    """Sort key of operations: the order in which the model computes their places."""
    tokens = (architecture.token_embeds.path, architecture.token_embeds.end)
    places: list[tuple[str, str]] = [tokens] if architecture.image.inline else []
    for stack in architecture.stacks:
        for layer in range(stack.layers):
            places += [(tap.path.format(layer=layer), tap.end) for tap in stack.taps.values()]
        if stack.name == "vision":
            places += [(path, "output") for path in architecture.image.bypass]
            places.append((architecture.image.embeds.path, architecture.image.embeds.end))
            places += [] if architecture.image.inline else [tokens]
    rank = {place: i for i, place in enumerate(places)}
    step = {"skip": 0, "perturb": 0, "replace": 1, "keep_whole": 2, "read": 2}
    return lambda operation: (rank[operation["path"], operation["end"]], step[operation["do"]])


def check_cells(
    graph: InterventionGraph, architecture: Architecture, pair: EncodedPair, cells: Sequence[Cell]
) -> dict[str, Cell]:
    """Cells whose outcome is known beforehand: replaced by nothing, by the run's own value, and everywhere.

    Returns
    -------
    dict
        `nothing` and `itself` must give the base run's metric; each ``everything in STACK`` the other run's.
    """
    first = cells[0]
    known = {
        "nothing": replace(first, layers=()),
        "itself": replace(cells[len(cells) // 2], source=graph.base),
    }
    edit = noise_of(graph)
    from_image = graph.run("corrupted").on == "corrupted_image" or (edit is not None and edit.at.site == "pixels")
    for site in sites_of(graph):
        stack = architecture.locate(site)[0]
        if stack.name == "vision" and not from_image:
            continue  # the runs differ in more than what the vision stack says
        everywhere = Chosen("all", tuple(range(len(pair.positions[stack.name].positions))))
        layer = stack.last_layer
        known[f"everything in {stack.name}"] = Cell(
            f"{stack.name}.resid_post", layer, (layer,), None, everywhere, 0, graph.origin
        )
    return known
