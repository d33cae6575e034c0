"""`vp.report`: a dataset → one HTML file that explains itself."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr

from vlm_patching.analysis import metrics_of
from vlm_patching.analysis.effects import method_of
from vlm_patching.errors import SpecError, unknown
from vlm_patching.graph import InterventionGraph
from vlm_patching.pairs import Pair
from vlm_patching.reports.content import content
from vlm_patching.reports.page import page
from vlm_patching.results import rebuild_pairs

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class Report:
    """A report that was written; shows itself in a notebook.

    Attributes
    ----------
    path
        The file.
    html
        What is in it.
    """

    path: Path
    html: str = field(repr=False)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, which can reach nothing outside."""
        name = html.escape(self.path.name, quote=True)
        return (
            f'<iframe title="{name}" srcdoc="{html.escape(self.html, quote=True)}" width="100%" height="780" '
            'sandbox="allow-scripts allow-popups allow-downloads" style="border:1px solid #8888;border-radius:6px">'
            "</iframe>"
        )


def report(
    ds: xr.Dataset,
    path: str | Path,
    pairs: Sequence[Pair] | None = None,
    *,
    metric: str | None = None,
    without_pictures: str = "",
) -> Report:
    """Write a dataset as one self-contained HTML file: what was asked, found, on which pairs, and whether to trust it.

    The file works offline and from a folder, needs nothing beside it, and asks the network for nothing. Texts out of
    the dataset stay texts. The same dataset and pairs give the same bytes.

    Parameters
    ----------
    ds
        What `vp.run` gave, by any method, finished or not.
    path
        The file, ending in .html; one that is there is replaced.
    pairs
        The pairs that were run, for their pictures and spans: `vp.rebuild_pairs(ds)` makes them anew. The dataset has
        none; without them the report says so and leaves pictures out.
    metric
        What the page opens with; where not given, what the experiment's figures show, else its first metric.
    without_pictures
        Why there are no pairs, for the sentence in the report.

    Returns
    -------
    Report
        The path, and what a notebook shows. At most about 10 MB: where there are too many cells, the report has the
        numbers of fewer single pairs, and says so.

    Raises
    ------
    SpecError
        A dataset that no run has written, a metric that it lacks, pairs that are not those of the run, a path that
        does not end in .html or cannot be written.

    Examples
    --------
    >>> report(ds, "heads.html", pairs=vp.rebuild_pairs(ds))  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise unknown("kind of report", path.suffix or path.name, SUFFIXES)
    for name in ("experiment_id", "graph", "method"):
        if name not in ds.attrs:
            raise SpecError(f"The dataset is not one that a run gave: it has no {name} in its attributes.")
    for name in ("example", "site", "layer"):
        if name not in ds.dims and (name == "example" or method_of(ds) != "evaluate"):
            raise SpecError(f"The dataset has no dimension {name}; select with lists: ds.sel({name}=[...]).")
    known = metrics_of(ds)
    if metric is not None and metric not in known:
        raise unknown("metric in this dataset", metric, known)
    _check_writable(path)
    matched = _by_example(ds, pairs)
    graph = InterventionGraph.from_json(ds.attrs["graph"])
    parts = content(ds, graph, matched, metric, _why_not(pairs, without_pictures))
    made = Report(path, page(parts))
    _write(path, made.html)
    return made


def _by_example(ds: xr.Dataset, pairs: Sequence[Pair] | None) -> dict[str, Pair]:
    """The pairs by their ids, where they are those of the run."""
    return {} if pairs is None else {pair.id: pair for pair in rebuild_pairs(ds, pairs)}


def _why_not(pairs: Sequence[Pair] | None, why: str) -> str:
    if pairs is not None:
        return ""
    return why or "this report was written without the pairs (vp.report(ds, path, pairs=...))"


def _check_writable(path: Path) -> None:
    """Refuse a path that cannot be written, before the work is done."""
    if path.is_dir():
        raise SpecError(f"{path} is a folder; name a file in it.")
    place = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise SpecError(f"The report could not be written to {path}: {place} is not a folder that can be written to.")


def _write(path: Path, text: str) -> None:
    """All of it, or nothing."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(text.encode("utf-8", "replace"))
        part.replace(path)
    except OSError as error:
        raise SpecError(f"The report could not be written to {path}: {error}.") from error
    finally:
        part.unlink(missing_ok=True)
