"""A graph as text that fits a screen, and as a Mermaid flow chart."""

from __future__ import annotations

import textwrap
from dataclasses import replace

from vlm_patching.graph.ir import Dimension, Edit, InterventionGraph, Place
from vlm_patching.graph.structure import FILE

WIDTH = 118
_HARD_SPACE = "\u00a0"


def text(graph: InterventionGraph) -> str:
    """The graph on one screen."""
    lines = [f'InterventionGraph {graph.id[:8]} "{graph.name}"']
    for run in graph.runs:
        dimensions = [d for d in graph.dimensions if d.name in run.over and not is_written_out(d)]
        swept = "   for " + ", ".join(_unbroken(d) for d in dimensions) if dimensions else ""
        lines += _wrapped(f"  run {run.name:<10} on {run.on}{swept}")
        lines += [f"    {edit_text(edit)}" for edit in run.edits]
        lines += [f"    read    {read.name} = {place_text(read.at)}" for read in run.reads]
    lines.append(f"  measure {measured(graph)}")
    if graph.estimate != "exact":
        steps = f", {graph.steps} steps" if graph.steps else ""
        verified = f", the {graph.verify} strongest cells of each pair verified" if graph.verify else ""
        lines.append(f"  estimate {graph.estimate}{steps}{verified}")
    lines.append(f"  keep    {graph.keep}   seed {graph.seed}")
    return "\n".join(lines)


def _wrapped(line: str) -> list[str]:
    wrapped = textwrap.wrap(line, WIDTH, subsequent_indent=" " * 8, break_long_words=False)
    return [part.replace(_HARD_SPACE, " ") for part in wrapped]


def _unbroken(dimension: Dimension) -> str:
    """A dimension and its values, to be broken between values only."""
    shown = f"{dimension.name} in {values_text(dimension)}"
    return shown if "," in shown else shown.replace(" ", _HARD_SPACE)


def mermaid(graph: InterventionGraph) -> str:
    """The graph as a Mermaid flow chart: runs as boxes, values as arrows."""
    lines = ["flowchart LR"]
    for run in graph.runs:
        dimensions = [d for d in graph.dimensions if d.name in run.over and not is_written_out(d)]
        parts = [f"<b>{run.name}</b> on {run.on}", *(f"{d.name} in {values_text(d)}" for d in dimensions)]
        parts += [edit_text(edit) for edit in run.edits if not taken_from(edit)]
        parts += [f"read {place_text(read.at)}" for read in run.reads] if run is graph.swept else []
        lines.append(f'  {run.name}["{"<br/>".join(parts)}"]')
    for run in graph.runs:
        for edit in run.edits:
            for source in taken_from(edit):
                what = place_text(edit.at) if edit.kind == "replace" else f"{edit.kind} {place_text(edit.at)}"
                lines.append(f'  {source} -- "{what}" --> {run.name}')
    lines.append(f'  measure(["{measured(graph)}"])')
    lines += [f"  {run.name} --> measure" for run in graph.runs if run.name not in ("other", "sender")]
    return "\n".join(lines)


def measured(graph: InterventionGraph) -> str:
    """What is measured, and of which runs."""
    runs = [run.name for run in graph.runs if run.name not in ("other", "sender")]
    return f"{', '.join(graph.metrics)}  of {', '.join(runs)}" if graph.method != "attention" else "attention"


def taken_from(edit: Edit) -> list[str]:
    """The runs that an edit takes values from."""
    if edit.source is None or edit.source.startswith(FILE):
        return []
    return [source.split(".")[0] for source in edit.source.split(" - ")]


def is_written_out(dimension: Dimension) -> bool:
    """Whether the one value a dimension has stands in the place itself."""
    return (
        dimension.name in ("site", "position") and len(dimension.values) == 1 and isinstance(dimension.values[0], str)
    )


def values_text(dimension: Dimension) -> str:
    """A dimension's values, as short as they can be said."""
    values = dimension.values
    numbers = [v for v in values if isinstance(v, int)]
    if len(numbers) == len(values) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{values[0]}..{values[-1]}"
    return "{" + ", ".join(map(str, values)) + "}" if len(values) > 1 else str(values[0])


def place_text(place: Place) -> str:
    """``site[layer, head] @ position``."""
    inside = "" if place.layer is None else str(place.layer)
    if place.window != 1:
        inside = f"window({inside}, {place.window})"
    if place.head is not None:
        heads = place.head
        inside += f", {{{', '.join(map(str, heads))}}}" if isinstance(heads, tuple) else f", {heads}"
    where = f"[{inside}]" if inside else ""
    return f"{place.site}{where}" + (f" @ {place.position}" if place.position is not None else "")


def edit_text(edit: Edit) -> str:
    """An edit as a line: what is done, where, with what."""
    if edit.kind in ("replace", "hold", "mean"):
        source = f"mean({edit.source})" if edit.kind == "mean" else edit.source
        return f"{edit.kind:<7} {place_text(edit.at)}  {'at' if edit.kind == 'hold' else 'with'} {source}"
    if edit.kind == "block":
        across = edit.at.keys == "edges"
        edges = "edges" if across else f"{edit.at.keys} -> {edit.at.position}"
        return f"block   {place_text(replace(edit.at, position=None))}  along {edges}"
    if edit.kind in ("zero", "multiply"):
        return f"{edit.kind:<7} {place_text(edit.at)}" + ("" if edit.factor is None else f"  by {edit.factor}")
    if edit.kind == "add":
        source = " - ".join(f"mean({part})" for part in str(edit.source).split(" - "))
        shown = edit.source if str(edit.source).startswith(FILE) else source
        return f"add     {place_text(edit.at)}  {edit.factor} times {shown}"
    spread = "" if edit.std is None else f", std {edit.std:g}{'σ' if edit.relative else ''}"
    return f"{edit.kind} {place_text(edit.at)}" + ("" if edit.mean is None else f", mean {edit.mean:g}") + spread
