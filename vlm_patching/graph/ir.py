"""The deferred intervention graph: a short list of runs, as pure data. Nothing here computes.

A *run* has an input, edits and reads; an edit may use what an earlier run read; sweep dimensions are names, not copies, and
become the dimensions of the dataset. The text and Mermaid drawings are in `vlm_patching.graph.draw`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vlm_patching.errors import SpecError, nearest, unknown
from vlm_patching.pairs import INPUTS

Selector = str | int


@dataclass(frozen=True)
class Place:
    """Where something is read or edited. A field that equals a dimension's name stands for that dimension's value.

    Attributes
    ----------
    site
        ``stack.component``, `image_embeds`, or "site".
    layer, head
        A number or "layer" / "head"; None where the site has none.
    position
        A selector, "position", or None for all positions.
    window
        How many layers around `layer` are meant together.
    """

    site: str
    layer: int | str | None = None
    head: int | str | None = None
    position: Selector | None = None
    window: int = 1


@dataclass(frozen=True)
class Read:
    """Keep the value at a place, for later runs to use as ``run.name``."""

    name: str
    at: Place


@dataclass(frozen=True)
class Edit:
    """A change of the value at a place.

    Attributes
    ----------
    kind
        `replace` by what a run has read (`source`, as "run.read"), or `add_noise`.
    std, relative
        Noise: standard deviation; relative to that of the clean values over all pairs, or absolute.
    """

    kind: Literal["replace", "add_noise"]
    at: Place
    source: str | None = None
    std: float | None = None
    relative: bool = False


@dataclass(frozen=True)
class Run:
    """One forward pass, or one for each cell of the dimensions that it is swept over.

    Attributes
    ----------
    on
        `clean`, `corrupted`, `corrupted_image` or `corrupted_text`.
    over
        Names of the dimensions it is swept over.
    """

    name: str
    on: str
    over: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    reads: tuple[Read, ...] = ()


@dataclass(frozen=True)
class Dimension:
    """A sweep dimension: its values (for `position`: selectors, resolved per example when it runs)."""

    name: str
    values: tuple[Selector, ...]


@dataclass(frozen=True)
class InterventionGraph:
    """Runs, sweep dimensions, and what is measured.

    Attributes
    ----------
    runs
        `clean` and `corrupted`, then the swept run `patched`.
    direction
        `denoise` where the swept run starts from the corrupted run, `noise` where from the clean one.
    keep
        Which examples the swept run is made for.
    seed
        Noise draws are derived from it.
    """

    name: str
    runs: tuple[Run, ...]
    dimensions: tuple[Dimension, ...]
    metrics: tuple[str, ...]
    direction: Literal["denoise", "noise"] = "denoise"
    keep: str = "clean_correct"
    seed: int = 0

    def __post_init__(self) -> None:
        _validate(self)

    def run(self, name: str) -> Run:
        """A run by name."""
        return next(run for run in self.runs if run.name == name)

    def dimension(self, name: str) -> Dimension | None:
        """A dimension by name, None where the graph has no such one."""
        return next((d for d in self.dimensions if d.name == name), None)

    @property
    def base(self) -> str:
        """The run that the swept run starts from."""
        return "corrupted" if self.direction == "denoise" else "clean"

    @property
    def origin(self) -> str:
        """The run whose values are put in."""
        return "clean" if self.direction == "denoise" else "corrupted"

    @property
    def id(self) -> str:
        """Content hash: 16 hexadecimal digits, whatever the graph's name."""
        content = {key: value for key, value in self.to_dict().items() if key != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> InterventionGraph:
        """The inverse of `to_json`; `SpecError` where the text is not such a graph."""
        try:
            return _build(cls, json.loads(text), "graph")
        except json.JSONDecodeError as error:
            raise SpecError(f"The graph is not JSON: {error.msg} at line {error.lineno}.") from error

    def to_mermaid(self) -> str:
        """A Mermaid flow chart."""
        from vlm_patching.graph.draw import mermaid

        return mermaid(self)

    def __str__(self) -> str:
        from vlm_patching.graph.draw import text

        return text(self)


_ITEMS: dict[tuple[type, str], type] = {
    (InterventionGraph, "runs"): Run,
    (InterventionGraph, "dimensions"): Dimension,
    (Run, "edits"): Edit,
    (Run, "reads"): Read,
}


def _build(kind: type, data: Any, where: str) -> Any:
    known = [f.name for f in fields(kind)]
    if not isinstance(data, Mapping):
        raise SpecError(f"{where}: an object with the keys {', '.join(known)} is expected, not {data!r}.")
    for key in data:
        if key not in known:
            raise SpecError(f"{where}: unknown key {key!r}.{nearest(key, known)} Known: {', '.join(known)}.")
    values: dict[str, Any] = {}
    for key, value in data.items():
        inside = f"{where}.{key}"
        if key == "at":
            value = _build(Place, value, inside)
        elif (kind, key) in _ITEMS:
            value = tuple(_build(_ITEMS[kind, key], item, f"{inside}[{i}]") for i, item in enumerate(value))
        elif isinstance(value, list):
            value = tuple(value)
        values[key] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise SpecError(f"{where}: {str(error).replace('__init__() ', '')}.") from error


def _validate(graph: InterventionGraph) -> None:
    names = [run.name for run in graph.runs]
    if names != ["clean", "corrupted", "patched"]:
        raise SpecError(
            f"A graph has the runs clean, corrupted and patched, in this order; this one has {', '.join(names)}."
        )
    if graph.direction not in ("denoise", "noise"):
        raise unknown("direction", graph.direction, ("denoise", "noise"))
    dimensions = {d.name for d in graph.dimensions}
    read: set[str] = set()
    for run in graph.runs:
        where = f"Run {run.name!r}"
        if run.on not in INPUTS:
            raise unknown(f"input of run {run.name!r}", run.on, INPUTS)
        for name in run.over:
            if name not in dimensions:
                raise unknown(f"dimension of run {run.name!r}", name, dimensions)
        for edit in run.edits:
            if edit.kind == "replace" and edit.source not in read:
                raise SpecError(
                    f"{where}: it replaces {edit.at.site} with {edit.source!r}, which no earlier run has read. "
                    f"Read so far: {', '.join(sorted(read)) or 'nothing'}."
                )
            if edit.kind == "add_noise" and edit.at.site != "image_embeds":
                raise SpecError(f"{where}: noise can be added at image_embeds, not at {edit.at.site!r}.")
            if edit.kind == "add_noise" and not edit.std:
                raise SpecError(f"{where}: add_noise needs a std above 0.")
            if edit.kind not in ("replace", "add_noise"):
                raise unknown(f"edit in run {run.name!r}", edit.kind, ("replace", "add_noise"))
        read |= {f"{run.name}.{item.name}" for item in run.reads}
    patched = graph.run("patched")
    if len([e for e in patched.edits if e.kind == "replace"]) != 1:
        raise SpecError("Run 'patched': exactly one replace edit is what can be swept.")
    if any(run.on != "clean" for run in graph.runs if run.name == "clean"):
        raise SpecError("Run 'clean' must be on clean.")
    if patched.on != graph.run(graph.base).on:
        raise SpecError(
            f"Run 'patched': direction {graph.direction} starts from the {graph.base} run, which is on "
            f"{graph.run(graph.base).on!r}, but it is on {patched.on!r}."
        )
    source = next(e.source for e in patched.edits if e.kind == "replace")
    if not str(source).startswith(f"{graph.origin}."):
        raise SpecError(
            f"Run 'patched': direction {graph.direction} takes values from {graph.origin}, not from {source!r}."
        )
