"""The deferred intervention graph: a short list of runs, as pure data. Nothing here computes.

A *run* has an input, edits and reads; an edit may use what an earlier run read; sweep dimensions are names, not
copies, and become the dimensions of the dataset. The text and Mermaid drawings are in
`vlm_patching.graph.draw`, the SVG in `vlm_patching.graph.picture`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vlm_patching.errors import SpecError
from vlm_patching.graph.structure import FILE, NOISE_KINDS, SWEPT, check_structure, main_edits
from vlm_patching.validation import explain, parse_json

VERSION: Literal[1] = 1
"""Of a graph's JSON. It is in every graph's JSON, and no other is read."""
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

Selector = str | int


@dataclass(frozen=True)
class Place:
    """Where something is read or edited. A field that equals a dimension's name stands for that dimension's value.

    Attributes
    ----------
    site
        ``stack.component``, several of one stack joined by "+" (edited together), `image_embeds`, `token_embeds`,
        `pixels`, or "site".
    layer
        A number, "layer", "above" (every layer above those of the swept place), "all", or None where the site has none.
    head
        A number, "head", several numbers (together), or None for all, or where the site has none.
    position
        A selector, "position", "edges" (the targets of edges), or None where it is the whole of the value.
    window
        How many layers around `layer` are meant together: a number, or "window".
    keys
        Attention patterns: the selector of the keys, or "edges" (the sources of edges).
    """

    __pydantic_config__ = _STRICT

    site: str
    layer: int | str | None = None
    head: int | str | tuple[int, ...] | None = None
    position: Selector | None = None
    window: int | str = 1
    keys: Selector | None = None


@dataclass(frozen=True)
class Read:
    """Keep the value at a place, for later runs to use as ``run.name``.

    Attributes
    ----------
    name
        What it is called within its run.
    at
        The place.
    """

    __pydantic_config__ = _STRICT

    name: str
    at: Place


@dataclass(frozen=True)
class Edit:
    """A change of the value at a place.

    Attributes
    ----------
    at
        The place.
    kind
        `replace` by what a run has read (`source`, as "run.read"); `hold`: the same, to keep a place from answering to
        another edit; `zero`; `mean` (`source` read in that run, mean over the positions of the selector in all pairs);
        `multiply` by `factor`; `add` `factor` times a vector (`source`: "a.z - b.z" for a difference of means over all
        pairs, or "file:" and a path); `block` the attention from queries at `position` to `keys`.
        `add_noise`, `multiply_noise` (by N(mean, std²)) or `scale` (by mean) at `pixels`, `image_embeds` or the
        `token_embeds` of a span corrupt a run.
    source
        What is put in, or added: what a run has read, as "run.read"; of vectors in a file, "file:" and its path.
    std, relative
        Noise: standard deviation; relative to that of the clean values over all pairs, or absolute.
    mean
        What the factor is on average.
    factor
        A number, or "strength".
    """

    __pydantic_config__ = _STRICT

    kind: Literal["replace", "hold", "zero", "mean", "multiply", "add", "block", "add_noise", "multiply_noise", "scale"]
    at: Place
    source: str | None = None
    std: float | None = None
    relative: bool = False
    mean: float | None = None
    factor: float | str | None = None


@dataclass(frozen=True)
class Run:
    """One forward pass, or one for each cell of the dimensions that it is swept over.

    Attributes
    ----------
    name
        Of the run: which there are is the method's.
    on
        `clean`, `corrupted`, `corrupted_image`, `corrupted_text`, or `other` (the clean prompt of another pair).
    over
        Names of the dimensions it is swept over.
    edits, reads
        What is changed in it, in this order, and what is kept of it.
    """

    __pydantic_config__ = _STRICT

    name: str
    on: str
    over: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    reads: tuple[Read, ...] = ()


@dataclass(frozen=True)
class Dimension:
    """A sweep dimension.

    Attributes
    ----------
    name
        A name out of `DIMENSIONS`.
    values
        Its values; for `position` selectors, which are resolved per example when it runs.
    """

    __pydantic_config__ = _STRICT

    name: str
    values: tuple[str | int | float, ...]


@dataclass(frozen=True)
class InterventionGraph:
    """Runs, sweep dimensions, and what is measured.

    Attributes
    ----------
    name
        What results and figures are called.
    runs
        `clean` first, the swept run last; which others there are is the method's (`structure.METHODS`). `evaluate` has
        no swept run: it only measures.
    dimensions
        What the swept run is made for every value of.
    metrics
        What is measured of every run.
    direction
        `denoise` where the swept run starts from the corrupted run, `noise` where from the clean one.
    keep
        Which examples the swept run is made for.
    seed
        Noise draws are derived from it, and which cells are checked.
    method
        A name out of `structure.METHODS`.
    estimate
        `exact`: every cell is run. `attribution`, `integrated_gradients`: cells are estimated from gradients.
    steps
        Of integrated gradients.
    verify
        How many of each example's estimated cells, the strongest, are run exactly as well.
    version
        Of the JSON.
    """

    __pydantic_config__ = _STRICT

    version: Literal[1] = field(default=VERSION, kw_only=True)
    name: str
    runs: tuple[Run, ...]
    dimensions: tuple[Dimension, ...]
    metrics: tuple[str, ...]
    direction: Literal["denoise", "noise"] = "denoise"
    keep: str = "clean_correct"
    seed: int = 0
    method: str = "patch"
    estimate: Literal["exact", "attribution", "integrated_gradients"] = "exact"
    steps: int | None = None
    verify: int = 0

    def __post_init__(self) -> None:
        check_structure(self)

    def run(self, name: str) -> Run:
        """A run by name."""
        return next(run for run in self.runs if run.name == name)

    def dimension(self, name: str) -> Dimension | None:
        """A dimension by name, None where the graph has no such one."""
        return next((d for d in self.dimensions if d.name == name), None)

    @property
    def swept(self) -> Run:
        """The run that is made for every cell."""
        return self.runs[-1]

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
        """Plain data."""
        return json.loads(json.dumps(asdict(self)))

    def to_json(self) -> str:
        """The graph as JSON; `from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> InterventionGraph:
        """The inverse of `to_json`; `SpecError` where the text is not such a graph, or one of another version."""
        data = parse_json(text, "The graph")
        version = data.get("version") if isinstance(data, dict) else VERSION
        if type(version) is not int or version != VERSION:
            raise SpecError(f"graph: version is {version!r}; version {VERSION} is the one that is read here.")
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise SpecError(f"graph: {explain(error, _keys_at)}") from error

    def to_mermaid(self) -> str:
        """A Mermaid flow chart."""
        from vlm_patching.graph.draw import mermaid

        return mermaid(self)

    def to_svg(self, *, narrow: bool = False) -> str:
        """A drawing to put into a page: runs as boxes, what one takes from another as arrows."""
        from vlm_patching.graph.picture import svg

        return svg(self, narrow=narrow)

    def _repr_html_(self) -> str:
        return self.to_svg()

    def __str__(self) -> str:
        from vlm_patching.graph.draw import text

        return text(self)


def swept_place(graph: InterventionGraph) -> Place:
    """The place that the sweep goes over: where the first swept run is edited, or what is read where none is."""
    first = next(run for run in graph.runs if run.name in SWEPT)
    edits = main_edits(first)
    return edits[0].at if edits else first.reads[0].at


def values_of(graph: InterventionGraph, name: str, literal: Any) -> tuple[Any, ...]:
    """A dimension's values, or the one that is written into the place where the graph has no such dimension."""
    dimension = graph.dimension(name)
    return dimension.values if dimension else (literal,)


def parts(site: str) -> tuple[str, ...]:
    """The sites that are edited together under one name."""
    return tuple(site.split("+"))


def sites_of(graph: InterventionGraph) -> tuple[str, ...]:
    """The sites a graph sweeps; none where nothing is swept."""
    if graph.method == "evaluate":
        return ()
    return tuple(map(str, values_of(graph, "site", swept_place(graph).site)))


def edges_of(label: str) -> tuple[str, str]:
    """The selectors of the keys and of the queries of an edge set, "source -> target"."""
    source, target = label.split("->")
    return source.strip(), target.strip()


def noise_of(graph: InterventionGraph) -> Edit | None:
    """The edit that corrupts the corrupted run, None where its input does or there is no such run."""
    return next((edit for run in graph.runs[1:] for edit in run.edits if edit.kind in NOISE_KINDS), None)


def row_of(run: Run, draw: int) -> int:
    """The row in which a base run has a noise draw: its own, or the only one of a run that no noise is in."""
    return draw if "draw" in run.over else 0


def vector_file(graph: InterventionGraph) -> str | None:
    """The file whose vectors steer, None where none does."""
    sources = [edit.source for edit in graph.swept.edits if edit.source is not None and edit.source.startswith(FILE)]
    return sources[0].removeprefix(FILE) if sources else None


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
