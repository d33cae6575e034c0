"""The deferred intervention graph: a short list of runs, as pure data. Nothing here computes.

A *run* has an input, edits and reads; an edit may use what an earlier run read; sweep dimensions are names, not
copies, and become the dimensions of the dataset. The text and Mermaid drawings are in `vlm_patching.graph.draw`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vlm_patching.errors import SpecError
from vlm_patching.graph.structure import NOISE_KINDS, check_structure
from vlm_patching.validation import explain, parse_json

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

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
        A selector, "position", or None where it is the whole of the value (`image_embeds`).
    window
        How many layers around `layer` are meant together.
    """

    __pydantic_config__ = _STRICT

    site: str
    layer: int | str | None = None
    head: int | str | None = None
    position: Selector | None = None
    window: int = 1


@dataclass(frozen=True)
class Read:
    """Keep the value at a place, for later runs to use as ``run.name``."""

    __pydantic_config__ = _STRICT

    name: str
    at: Place


@dataclass(frozen=True)
class Edit:
    """A change of the value at a place.

    Attributes
    ----------
    kind
        `replace` by what a run has read (`source`, as "run.read"); `add_noise`, `multiply_noise` (by N(mean, std²)) or
        `scale` (by mean) at `pixels`, `image_embeds` or the `token_embeds` of a span.
    std, relative
        Noise: standard deviation; relative to that of the clean values over all pairs, or absolute.
    mean
        What the factor is on average.
    """

    __pydantic_config__ = _STRICT

    kind: Literal["replace", "add_noise", "multiply_noise", "scale"]
    at: Place
    source: str | None = None
    std: float | None = None
    relative: bool = False
    mean: float | None = None


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

    __pydantic_config__ = _STRICT

    name: str
    on: str
    over: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    reads: tuple[Read, ...] = ()


@dataclass(frozen=True)
class Dimension:
    """A sweep dimension: its values (for `position`: selectors, resolved per example when it runs)."""

    __pydantic_config__ = _STRICT

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

    __pydantic_config__ = _STRICT

    name: str
    runs: tuple[Run, ...]
    dimensions: tuple[Dimension, ...]
    metrics: tuple[str, ...]
    direction: Literal["denoise", "noise"] = "denoise"
    keep: str = "clean_correct"
    seed: int = 0

    def __post_init__(self) -> None:
        check_structure(self)

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
        return json.loads(json.dumps(asdict(self)))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> InterventionGraph:
        """The inverse of `to_json`; `SpecError` where the text is not such a graph."""
        parse_json(text, "The graph")
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise SpecError(f"graph: {explain(error, _keys_at)}") from error

    def to_mermaid(self) -> str:
        """A Mermaid flow chart."""
        from vlm_patching.graph.draw import mermaid

        return mermaid(self)

    def __str__(self) -> str:
        from vlm_patching.graph.draw import text

        return text(self)


def patch_place(graph: InterventionGraph) -> Place:
    """The place that the swept run replaces."""
    return next(edit.at for edit in graph.run("patched").edits if edit.kind == "replace")


def values_of(graph: InterventionGraph, name: str, literal: Selector | None) -> tuple[Selector | None, ...]:
    """A dimension's values, or the one that is written into the place where the graph has no such dimension."""
    dimension = graph.dimension(name)
    return dimension.values if dimension else (literal,)


def sites_of(graph: InterventionGraph) -> tuple[str, ...]:
    """The sites a graph sweeps."""
    return tuple(map(str, values_of(graph, "site", patch_place(graph).site)))


def noise_of(graph: InterventionGraph) -> Edit | None:
    """The edit that corrupts the corrupted run, None where its input does."""
    return next((edit for edit in graph.run("corrupted").edits if edit.kind in NOISE_KINDS), None)


def draws_of(graph: InterventionGraph) -> int:
    """Number of noise draws; 1 where the graph has none."""
    return len(values_of(graph, "draw", 0))


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """The keys of the record at a location of a graph's JSON."""
    record: type = InterventionGraph
    for part in location:
        record = {"runs": Run, "dimensions": Dimension, "edits": Edit, "reads": Read, "at": Place}.get(part, record)
    return [f.name for f in fields(record)]


_ADAPTER = TypeAdapter(InterventionGraph)
