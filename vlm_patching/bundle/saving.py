"""Saving a bundle: its parts are laid out in a folder, packed, and opened once before the file has its name."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from vlm_patching.bundle.archive import INPUTS, pack
from vlm_patching.bundle.arrays import write_results
from vlm_patching.bundle.contents import ENVIRONMENT, EXPERIMENT, FAMILY, FIGURES, GRAPH, opened
from vlm_patching.bundle.inputs import VECTORS
from vlm_patching.bundle.records import Environment
from vlm_patching.errors import RunError, SpecError
from vlm_patching.experiment import Experiment
from vlm_patching.graph import InterventionGraph, vector_file
from vlm_patching.models.families import Family, families, parse_family
from vlm_patching.pairs import Pair, Pairs
from vlm_patching.pairs.exporting import write_folder
from vlm_patching.results.rebuilding import rebuild_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(
    experiment: Experiment | InterventionGraph,
    ds: xr.Dataset,
    path: str | Path,
    inputs: Sequence[Pair] | None = None,
    figures: Mapping[str, Figure] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Put an experiment, its pairs and its results into one file.

    Parameters
    ----------
    experiment
        The experiment, or the graph written by hand, that was run.
    ds
        What `vlm_patching.run` gave.
    path
        The bundle; `NAME.vlmp.zip` by custom.
    inputs
        The pairs that were given to `run`; the experiment's own where none were.
    figures
        File name without ending → figure; `vlm_patching.plot.draw` draws them where not given. An empty mapping leaves
        them out.
    overwrite
        Whether a file of this name may be replaced.

    Returns
    -------
    Path
        The bundle. The same results give the same digest (`verify(path).digest`).

    Raises
    ------
    SpecError
        The results are not finished, not of this experiment, or not of these pairs.
    RunError
        The file could not be written.

    Examples
    --------
    >>> save(experiment, ds, "heads.vlmp.zip")  # doctest: +SKIP
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise SpecError(f"{path} exists already; name another file, or overwrite it (overwrite=True, --force).")
    graph = _graph_of(experiment, ds)
    family = _family_of(experiment, ds)
    pairs = _pairs_of(experiment, ds, inputs)
    vectors = _vectors_of(graph, ds)
    part = path.with_name(f"{path.name}.part")
    try:
        with tempfile.TemporaryDirectory(prefix="vlmp-") as made:
            folder = Path(made)
            if isinstance(experiment, Experiment):
                (folder / EXPERIMENT).write_text(experiment.to_yaml(), encoding="utf-8")
            (folder / GRAPH).write_text(graph.to_json() + "\n", encoding="utf-8")
            (folder / ENVIRONMENT).write_text(Environment.of(ds.attrs).to_json(), encoding="utf-8")
            write_folder(pairs, folder / INPUTS)
            if vectors is not None:
                (folder / INPUTS / VECTORS).write_bytes(vectors)
            if family is not None:
                (folder / FAMILY).write_text(family.text, encoding="utf-8")
            write_results(ds, folder)
            _write_figures(ds, figures, folder / FIGURES, pairs)
            path.parent.mkdir(parents=True, exist_ok=True)
            pack(folder, part, graph.name, ds.attrs["created_at"])
        with opened(part):
            part.replace(path)
    except OSError as error:
        raise RunError(f"The bundle {path} could not be written: {error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _graph_of(experiment: Experiment | InterventionGraph, ds: xr.Dataset) -> InterventionGraph:
    """The graph that was run, where the results are of this experiment and whole."""
    attributes = ds.attrs
    if not isinstance(experiment, Experiment | InterventionGraph):
        raise SpecError(f"save takes the Experiment or the graph that was run, not {type(experiment).__name__}.")
    if "experiment_id" not in attributes or "graph" not in attributes:
        raise SpecError("The dataset is not one that a run gave: it has no experiment_id and graph in its attributes.")
    if attributes["experiment_id"] != experiment.id:
        raise SpecError(
            f"The results are of another experiment: theirs has id {attributes['experiment_id']} "
            f"({attributes.get('name')!r}), this one {experiment.id} ({experiment.name!r})."
        )
    if "examples_kept" not in attributes:
        raise SpecError("The results are not finished; run the experiment on the same store to the end first.")
    if isinstance(experiment, InterventionGraph) and "experiment" in attributes:
        raise SpecError("The results are of an experiment, not of a graph written by hand; give the experiment.")
    return InterventionGraph.from_json(attributes["graph"])


def _family_of(experiment: Experiment | InterventionGraph, ds: xr.Dataset) -> Family | None:
    """The family's file of the results, where it is not one of the package's as it is now."""
    if "family_file" not in ds.attrs:
        return None
    family = parse_family(ds.attrs["family"], ds.attrs["family_file"])
    named = isinstance(experiment, Experiment) and experiment.model.family is not None
    return family if named or families().get(family.name) != family else None


def _pairs_of(experiment: Experiment | InterventionGraph, ds: xr.Dataset, inputs: Sequence[Pair] | None) -> Pairs:
    """The pairs as they were run, corrupted as the experiment says."""
    if inputs is None and isinstance(experiment, InterventionGraph):
        raise SpecError("A graph written by hand does not say its pairs: give save(..., inputs=pairs).")
    return rebuild_pairs(ds, inputs)


def _vectors_of(graph: InterventionGraph, ds: xr.Dataset) -> bytes | None:
    """The file of vectors that steered, where it is still what it was."""
    name = vector_file(graph)
    if name is None:
        return None
    if not Path(name).is_file():
        raise SpecError(f"The file of vectors {name} does not exist any more.")
    content = Path(name).read_bytes()
    if hashlib.sha256(content).hexdigest() != ds.attrs["vector_sha256"]:
        raise SpecError(f"The file of vectors {name} is not the one that was run with (its sha256 is another).")
    return content


def _write_figures(ds: xr.Dataset, given: Mapping[str, Figure] | None, folder: Path, pairs: Sequence[Pair]) -> None:
    """The given figures, or those that the experiment names, as far as its results can be drawn."""
    import matplotlib.pyplot as plt

    figures = _drawn(ds, pairs) if given is None else given
    if figures:
        folder.mkdir()
    for name, figure in figures.items():
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)[:80]
        figure.savefig(folder / f"{safe}.png", dpi=150, metadata={"Software": None})
        if given is None:
            plt.close(figure)


def _drawn(ds: xr.Dataset, pairs: Sequence[Pair]) -> dict[str, Figure]:
    from vlm_patching.plots.draw import draw_each, figures_of, not_drawn

    failed: dict[str, list[str]] = {}
    drawn = dict(draw_each(ds, figures_of(ds), failed, pairs=lambda: pairs))
    if failed:
        warnings.warn(f"The bundle lacks figures. {not_drawn(failed)}", stacklevel=4)
    return drawn
