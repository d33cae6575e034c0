"""A graph as a drawing (SVG): runs as boxes, what one run takes from another as arrows. Pure text, no library."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from vlm_patching.graph.draw import edit_text, is_written_out, measured, place_text, taken_from, values_text
from vlm_patching.graph.ir import InterventionGraph, Run
from vlm_patching.graph.structure import FILE, SWEPT

_CHARACTERS, _NARROW = 46, 38
"""Of a line; a character of a 12-pixel monospaced font is at most `_ADVANCE` wide."""
_ADVANCE = 7.3
_LINE = 17.0
_PAD = 12.0
_ACROSS, _DOWN = 72.0, 26.0
_GUTTER = 14.0
"""Room for each arrow that passes beside boxes."""
_STYLE = """
.graph text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.graph text { fill: currentColor }
.graph .head { font-weight: 700 }
.graph .faint { opacity: 0.75 }
.graph rect { fill: currentColor; fill-opacity: 0.04; stroke: currentColor; stroke-opacity: 0.45 }
.graph .swept rect { fill: #d6604d; fill-opacity: 0.1; stroke: #d6604d; stroke-opacity: 1 }
.graph .arrow { fill: none; stroke: #d6604d; stroke-width: 1.6 }
"""


@dataclass(frozen=True)
class _Line:
    """A line of a box: its text, its class, and what it gives ("clean.z") or takes."""

    text: str
    kind: str = ""
    gives: str = ""
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Box:
    run: Run
    lines: Sequence[_Line]
    column: int
    width: float

    @property
    def height(self) -> float:
        return len(self.lines) * _LINE + _PAD


def svg(graph: InterventionGraph, *, narrow: bool = False) -> str:
    """The graph as an inline SVG, in the colour of the text around it.

    Parameters
    ----------
    narrow
        One box under the other, for a phone; else runs that take something stand to the right of those that give it.
    """
    boxes = _boxes(graph, _NARROW if narrow else _CHARACTERS)
    places, width, height = _placed(boxes, narrow)
    arrows = _arrows(boxes, places, narrow)
    if narrow:
        width += _GUTTER * len(arrows)
    characters = int((width - 2 * _PAD) / _ADVANCE)
    bar = _wrapped(" ".join(f"measure {measured(graph)}".split()), characters, "head")
    bar += _wrapped(f"keep {graph.keep}, seed {graph.seed}", characters, "faint")
    drawn = [_drawn(box, *places[box.run.name]) for box in boxes]
    drawn.append(f'<g class="measure">{_frame(bar, 1, height, width - 2)}</g>')
    whole = height + len(bar) * _LINE + _PAD + 1
    said = escape(f"Intervention graph {graph.name}: " + "; ".join(_said(run) for run in graph.runs))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" role="img" aria-label="{said}" '
        f'viewBox="0 0 {width:g} {whole:g}" width="{width:g}" height="{whole:g}">'
        f"<style>{_STYLE}</style>{''.join(arrows)}{''.join(drawn)}</svg>"
    )


def _said(run: Run) -> str:
    """A run in words, for those who do not see the drawing."""
    edits = ", ".join(" ".join(edit_text(edit).split()) for edit in run.edits)
    return f"{run.name} on {run.on}" + (f" with {edits}" if edits else "")


def _boxes(graph: InterventionGraph, characters: int) -> list[_Box]:
    boxes: list[_Box] = []
    for run in graph.runs:
        sources = [name for edit in run.edits for name in taken_from(edit)]
        before = [box.column + 1 for box in boxes if box.run.name in sources]
        column = max([*before, int(run.name in SWEPT)])
        boxes.append(_Box(run, _lines(graph, run, characters), column, characters * _ADVANCE + 2 * _PAD))
    return boxes


def _lines(graph: InterventionGraph, run: Run, characters: int) -> list[_Line]:
    lines = _wrapped(f"{run.name} run, on {run.on}", characters, "head")
    dimensions = [d for d in graph.dimensions if d.name in run.over and not is_written_out(d)]
    if dimensions:
        lines += _wrapped("for " + ", ".join(f"{d.name} in {values_text(d)}" for d in dimensions), characters, "faint")
    for edit in run.edits:
        named = edit.source is not None and not edit.source.startswith(FILE)
        takes = tuple(str(edit.source).split(" - ")) if named else ()
        lines += _wrapped(" ".join(edit_text(edit).split()), characters, takes=takes)
    for read in run.reads:
        lines += _wrapped(f"read {read.name} = {place_text(read.at)}", characters, gives=f"{run.name}.{read.name}")
    return lines


def _wrapped(text: str, characters: int, kind: str = "", gives: str = "", takes: tuple[str, ...] = ()) -> list[_Line]:
    """Lines that fit a box; arrows begin and end at the first of them."""
    parts = textwrap.wrap(text, characters, subsequent_indent="  ")
    return [_Line(part, kind, *((gives, takes) if i == 0 else ())) for i, part in enumerate(parts)]


def _placed(boxes: Sequence[_Box], narrow: bool) -> tuple[dict[str, tuple[float, float]], float, float]:
    """Left top corner of every box, the width of them together, and where the measure's bar begins."""
    places, bottoms = {}, dict.fromkeys((0 if narrow else box.column for box in boxes), 1.0)
    for box in boxes:
        column = 0 if narrow else box.column
        places[box.run.name] = (1 + column * (box.width + _ACROSS), bottoms[column])
        bottoms[column] += box.height + _DOWN
    width = 2 + (max(bottoms) + 1) * (boxes[0].width + _ACROSS) - _ACROSS
    return places, width, max(bottoms.values())


def _arrows(boxes: Sequence[_Box], places: Mapping[str, tuple[float, float]], narrow: bool) -> list[str]:
    starts = {line.gives: _edge(box, i, places, True) for box in boxes for i, line in enumerate(box.lines)}
    arrows: list[str] = []
    for box in boxes:
        for i, line in enumerate(box.lines):
            for source in line.takes:
                (x0, y0), (x1, y1) = starts[source], _edge(box, i, places, narrow)
                if narrow:
                    side = x0 + _GUTTER * (len(arrows) + 1) - 2
                    path = f"M{x0:g} {y0:g}H{side - 6:g}Q{side:g} {y0:g} {side:g} {y0 + 6:g}"
                    path += f"V{y1 - 6:g}Q{side:g} {y1:g} {side - 6:g} {y1:g}H{x1 + 2:g}m6 -4l-6 4l6 4"
                else:
                    bend = (x1 - x0) / 2
                    path = f"M{x0:g} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1 - 2:g} {y1:g}m-6 -4l6 4l-6 4"
                arrows.append(f'<path class="arrow" d="{path}"/>')
    return arrows


def _edge(box: _Box, line: int, places: Mapping[str, tuple[float, float]], right: bool) -> tuple[float, float]:
    x, y = places[box.run.name]
    return x + right * box.width, y + _PAD / 2 + (line + 0.5) * _LINE


def _drawn(box: _Box, x: float, y: float) -> str:
    kind = "swept" if box.run.name in SWEPT else "base"
    return f'<g class="{kind}">{_frame(box.lines, x, y, box.width)}</g>'


def _frame(lines: Sequence[_Line], x: float, y: float, width: float) -> str:
    texts = "".join(
        f'<text class="{line.kind or "line"}" xml:space="preserve" x="{x + _PAD:g}" '
        f'y="{y + _PAD / 2 + i * _LINE + 12.5:g}">{escape(line.text)}</text>'
        for i, line in enumerate(lines)
    )
    height = len(lines) * _LINE + _PAD
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>{texts}'
