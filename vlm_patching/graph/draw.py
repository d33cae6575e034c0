"""A graph as text that fits a screen, and as a Mermaid flow chart."""

from __future__ import annotations

import textwrap

from vlm_patching.graph.ir import Dimension, Edit, InterventionGraph, Place

WIDTH = 118
_HARD_SPACE = "\u00a0"


def text(graph: InterventionGraph) -> str:
    """The graph on one screen."""
    lines = [f'InterventionGraph {graph.id[:8]} "{graph.name}"']
    for run in graph.runs:
        dimensions = [d for d in graph.dimensions if d.name in run.over and not _is_written_out(d)]
        swept = "   for " + ", ".join(_unbroken(d) for d in dimensions) if dimensions else ""
        lines += _wrapped(f"  run {run.name:<10} on {run.on}{swept}")
        lines += [f"    {_edit(edit)}" for edit in run.edits]
        lines += [f"    read    {read.name} = {_place(read.at)}" for read in run.reads]
    lines.append(f"  measure {', '.join(graph.metrics)}  of clean, corrupted, patched")
    lines.append(f"  keep    {graph.keep}   seed {graph.seed}")
    return "\n".join(lines)


def _wrapped(line: str) -> list[str]:
    wrapped = textwrap.wrap(line, WIDTH, subsequent_indent=" " * 8, break_long_words=False)
    return [part.replace(_HARD_SPACE, " ") for part in wrapped]


def _unbroken(dimension: Dimension) -> str:
    """A dimension and its values, to be broken between values only."""
    shown = f"{dimension.name} in {_values(dimension)}"
    return shown if "," in shown else shown.replace(" ", _HARD_SPACE)


def mermaid(graph: InterventionGraph) -> str:
    """The graph as a Mermaid flow chart: runs as boxes, values as arrows."""
    lines = ["flowchart LR"]
    for run in graph.runs:
        dimensions = [d for d in graph.dimensions if d.name in run.over and not _is_written_out(d)]
        parts = [f"<b>{run.name}</b> on {run.on}", *(f"{d.name} in {_values(d)}" for d in dimensions)]
        parts += [_edit(edit) for edit in run.edits if edit.kind != "replace"]
        lines.append(f'  {run.name}["{"<br/>".join(parts)}"]')
    for run in graph.runs:
        for edit in run.edits:
            if edit.kind == "replace" and edit.source:
                lines.append(f'  {edit.source.split(".")[0]} -- "{_place(edit.at)}" --> {run.name}')
    metrics = ", ".join(graph.metrics)
    lines.append(f'  measure(["{metrics}"])')
    lines += [f"  {run.name} --> measure" for run in graph.runs]
    return "\n".join(lines)


def _is_written_out(dimension: Dimension) -> bool:
    """Whether the one value a dimension has stands in the place itself."""
    return (
        dimension.name in ("site", "position") and len(dimension.values) == 1 and isinstance(dimension.values[0], str)
    )


def _values(dimension: Dimension) -> str:
    values = dimension.values
    numbers = [v for v in values if isinstance(v, int)]
    if len(numbers) == len(values) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{values[0]}..{values[-1]}"
    return "{" + ", ".join(map(str, values)) + "}" if len(values) > 1 else str(values[0])


def _place(place: Place) -> str:
    inside = "" if place.layer is None else str(place.layer)
    if place.window > 1:
        inside = f"window({inside}, {place.window})"
    if place.head is not None:
        inside += f", {place.head}"
    where = f"[{inside}]" if inside else ""
    return f"{place.site}{where}" + (f" @ {place.position}" if place.position is not None else "")


def _edit(edit: Edit) -> str:
    if edit.kind == "replace":
        return f"replace {_place(edit.at)}  with {edit.source}"
    spread = "" if edit.std is None else f", std {edit.std:g}{'σ' if edit.relative else ''}"
    return f"{edit.kind} {_place(edit.at)}" + ("" if edit.mean is None else f", mean {edit.mean:g}") + spread
