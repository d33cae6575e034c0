"""What a bundle holds, checked part against part, while its files are in a temporary folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xarray as xr

from vlm_patching.bundle.archive import INPUTS, Unpacked, unpacked
from vlm_patching.bundle.arrays import STORE, read_results
from vlm_patching.bundle.inputs import LINES, VECTORS, check_png, check_vectors, read_pairs
from vlm_patching.bundle.records import Environment, Manifest
from vlm_patching.errors import RunError, SpecError, shown
from vlm_patching.experiment import Experiment
from vlm_patching.graph import FILE, InterventionGraph, vector_file
from vlm_patching.graph.lower import lower
from vlm_patching.models import bundled_models, describe_model
from vlm_patching.models.families import Family, parse_family
from vlm_patching.pairs import Pair, Pairs, pairs_digest
from vlm_patching.results.dataset import KEPT
from vlm_patching.validation import parse_yaml

EXPERIMENT, GRAPH, ENVIRONMENT = "experiment.yaml", "graph.json", "environment.json"
FAMILY = "family.yaml"
FIGURES = "figures/"
_MAX_LINES = 40
"""Of a graph, where it is printed."""
_NEEDED = (GRAPH, ENVIRONMENT, f"{INPUTS}/{LINES}", f"{STORE}/zarr.json")


@dataclass(frozen=True)
class Contents:
    """A bundle's parts, as long as its files are unpacked.

    Attributes
    ----------
    digest
        SHA-256 of the manifest, which has that of every file: two bundles of one digest hold the same.
    experiment
        None where the graph was written by hand.
    vectors
        The file of vectors that steer, None where none does.
    family
        The file that says where the model's sites are; None where the package's own does.
    """

    manifest: Manifest
    digest: str
    environment: Environment
    experiment: Experiment | None
    graph: InterventionGraph
    pairs: Sequence[Pair]
    results: xr.Dataset
    vectors: Path | None
    family: Family | None

    @property
    def runnable(self) -> InterventionGraph:
        """The graph, with the bundle's own vectors in the place of those of the file it names."""
        if self.vectors is None:
            return self.graph
        *others, swept = self.graph.runs
        edits = tuple(
            replace(edit, source=f"{FILE}{self.vectors}") if str(edit.source).startswith(FILE) else edit
            for edit in swept.edits
        )
        return replace(self.graph, runs=(*others, replace(swept, edits=edits)))


@dataclass(frozen=True)
class Summary:
    """What a bundle holds, in a few words; printed, it fits a screen.

    Attributes
    ----------
    name, experiment_id
        Of the experiment.
    digest
        SHA-256 of the manifest, which has that of every file: two bundles of one digest hold the same.
    created_at
        When the results were made.
    files, size
        How many files it has, and their bytes, unpacked.
    environment
        What made the numbers: model, weights, device, versions.
    family
        The family's file that it carries: its name and digest; "" where the package's own is meant.
    graph
        Drawn as text.
    pairs, kept
        How many pairs it has, and how many of them were swept.
    sizes
        Dimension of the results → its length.
    variables, figures
        Their names.
    agrees
        Whether the experiment, lowered here, still gives the bundle's graph; None where there is no experiment, or the
        model does not come with the package.
    """

    name: str
    digest: str
    created_at: str
    files: int
    size: int
    environment: Environment
    experiment_id: str
    family: str
    graph: str
    pairs: int
    kept: int
    sizes: dict[str, int]
    variables: tuple[str, ...]
    figures: tuple[str, ...]
    agrees: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"environment": self.environment.model_dump()}

    def __str__(self) -> str:
        made = self.environment
        weights = f", weights {made.weights_sha256[:12]}" if made.weights_sha256 else ""
        revision = f" ({made.model_revision})" if made.model_revision else ""
        packages = ", ".join(f"{name} {version}" for name, version in sorted(made.versions.items()))
        lines = [
            f'Bundle {self.digest[:16]} "{self.name}": {self.files} files, {self.size:,} bytes, as the manifest says',
            f"  made     {self.created_at} on {made.backend}, {made.device}, {made.dtype}",
            f"  model    {made.model}{revision}{weights}",
            f"  with     {packages}",
            f"  pairs    {self.pairs}, {self.kept} kept",
            f"  results  {', '.join(f'{name} {length}' for name, length in self.sizes.items())}",
            f"           {', '.join(self.variables)}",
            f"  figures  {', '.join(self.figures) or 'none'}",
        ]
        if self.family:
            lines.insert(3, f"  family   {self.family}")
        if self.agrees is False:
            lines.append("  NOTE     experiment.yaml does not give this graph here; the graph is what replay runs")
        drawn = self.graph.splitlines()
        more = [f"  … and {len(drawn) - _MAX_LINES} lines more"] if len(drawn) > _MAX_LINES else []
        return plain("\n".join((*lines, *drawn[:_MAX_LINES], *more)))


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Contents]:
    """A bundle's contents; its files are unpacked in a temporary folder until the block ends.

    Raises
    ------
    SpecError
        It is not a bundle, or not whole, or its parts do not belong together; it names the file in it.
    RunError
        The temporary folder could not be written.
    """
    path = Path(path)
    if not path.is_file():
        raise SpecError(f"Bundle {path} does not exist.")
    with contextlib.ExitStack() as stack:
        try:
            contents = _read(stack.enter_context(unpacked(path)))
        except SpecError as error:
            raise SpecError(plain(f"Bundle {path.name}: {_shortened(error)}")) from error
        except OSError as error:
            raise RunError(f"Bundle {path} could not be unpacked: {error}.") from error
        yield contents


def summary(contents: Contents) -> Summary:
    """What a bundle holds, in a few words."""
    ds, files = contents.results, contents.manifest.files
    return Summary(
        name=contents.graph.name,
        digest=contents.digest,
        created_at=contents.manifest.created_at,
        files=len(files),
        size=sum(record.size for record in files.values()),
        environment=contents.environment,
        experiment_id=str(ds.attrs["experiment_id"]),
        family=f"{contents.family.name}, a file of its own ({contents.family.digest[:12]})" if contents.family else "",
        graph=str(contents.graph),
        pairs=len(contents.pairs),
        kept=int((ds["kept"] == KEPT).sum()),
        sizes={str(name): length for name, length in ds.sizes.items()},
        variables=tuple(sorted(map(str, ds.data_vars))),
        figures=tuple(sorted(name.removeprefix(FIGURES) for name in files if name.startswith(FIGURES))),
        agrees=_agrees(contents),
    )


def plain(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _shortened(error: SpecError) -> str:
    text = str(error)
    return text if len(text) <= 2000 else f"{text[:2000]} …"


def _read(bundle: Unpacked) -> Contents:
    manifest, inputs = bundle.manifest, bundle.folder / INPUTS
    for name in _NEEDED:
        if name not in manifest.files:
            raise SpecError(f"it lacks {name}.")
    for name, content in bundle.files.items():
        if name.startswith(FIGURES):
            check_png(content, name, figure=True)
    environment = Environment.from_json(bundle.text(ENVIRONMENT))
    graph = InterventionGraph.from_json(bundle.text(GRAPH))
    experiment = None
    if EXPERIMENT in manifest.files:
        experiment = Experiment.from_dict(parse_yaml(bundle.text(EXPERIMENT), EXPERIMENT), EXPERIMENT)
    results = read_results(bundle.files)
    vectors = inputs / VECTORS if f"{INPUTS}/{VECTORS}" in manifest.files else None
    if (vectors is None) != (vector_file(graph) is None):
        raise SpecError(f"{GRAPH} and {INPUTS}/{VECTORS} do not agree about whether vectors of a file steer.")
    if vectors is not None:
        check_vectors(vectors)
    pairs = _pairs(bundle.folder)
    family = None
    if FAMILY in manifest.files:
        family = parse_family(str(results.attrs.get("family")), bundle.text(FAMILY))
    contents = Contents(manifest, bundle.digest, environment, experiment, graph, pairs, results, vectors, family)
    _check_attributes(contents)
    _check_results(contents)
    return contents


def _pairs(folder: Path) -> Pairs:
    try:
        return read_pairs(folder)
    except SpecError as error:
        raise SpecError(str(error).replace(f"{folder}/", "")) from error


def _check_attributes(contents: Contents) -> None:
    """What the results say they are of is what is in the bundle."""
    attributes, manifest, graph = contents.results.attrs, contents.manifest, contents.graph
    own = contents.experiment.id if contents.experiment else graph.id
    wanted = {
        "experiment_id": own,
        "graph_id": graph.id,
        "name": graph.name,
        "created_at": manifest.created_at,
        "pairs_sha256": pairs_digest(contents.pairs),
    }
    if contents.vectors is not None:
        wanted["vector_sha256"] = manifest.files[f"{INPUTS}/{VECTORS}"].sha256
    if contents.family is not None:
        wanted |= {"family_file": contents.family.text, "family_sha256": manifest.files[FAMILY].sha256}
    elif contents.experiment and contents.experiment.model.family:
        raise SpecError(f"{EXPERIMENT} names a family's file, and the bundle lacks {FAMILY}.")
    for name, value in wanted.items():
        if attributes.get(name) != value:
            found = shown(attributes.get(name))
            raise SpecError(f"{STORE}: attribute {name} is {found}, and the bundle holds {shown(value)}.")
    if manifest.name != graph.name:
        raise SpecError(f"manifest.json: name is {manifest.name!r}, and the graph is called {graph.name!r}.")
    if Environment.of(attributes) != contents.environment:
        raise SpecError(f"{ENVIRONMENT} is not what the attributes of {STORE} say.")


def _check_results(contents: Contents) -> None:
    """There are results, and they are of the bundle's pairs and of its graph's metrics."""
    ds, graph = contents.results, contents.graph
    for name in ("example", "kept"):
        if name not in ds.coords or ds[name].dims != ("example",) or ds[name].dtype != object:
            raise SpecError(f"{STORE} lacks the coordinate {name} of the examples.")
    if ds["example"].values.tolist() != [pair.id for pair in contents.pairs]:
        raise SpecError(f"{STORE}: its examples are not the pairs of {INPUTS}/{LINES}.")
    wanted = {"attention"} if graph.method == "attention" else set(graph.metrics)
    if not wanted <= set(ds.data_vars):
        lacking = ", ".join(sorted(wanted - set(map(str, ds.data_vars))))
        raise SpecError(f"{STORE} lacks {lacking}, which the graph measures.")
    for variable in ds.data_vars.values():
        if variable.dtype != "float32" or variable.dims[:1] != ("example",):
            raise SpecError(f"{STORE}: {variable.name} is not float32 over the examples.")
    if math.prod(ds.sizes.values()) == 0:
        raise SpecError(f"{STORE} is empty.")


def _agrees(contents: Contents) -> bool | None:
    name = contents.environment.model
    if contents.experiment is None or name not in bundled_models():
        return None
    try:
        architecture = describe_model(name, family=contents.family).architecture
        return lower(contents.experiment, architecture).id == contents.graph.id
    except SpecError:
        return False
