"""Where numbers come from: the one place that makes a result's attributes. All values are text or numbers."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_patching.experiment import Experiment
from vlm_patching.graph import InterventionGraph, vector_file
from vlm_patching.models import ModelDescription
from vlm_patching.pairs import Pairs, pairs_digest

_PACKAGES = ("vlm_patching", "nnsight", "torch", "transformers", "pillow", "xarray", "zarr", "numpy")


def planned_attributes(
    experiment: Experiment | None, graph: InterventionGraph, description: ModelDescription, pairs: Pairs
) -> dict[str, Any]:
    """What is known before anything runs. A graph that was written by hand is its own experiment."""
    attributes: dict[str, Any] = {
        "name": graph.name,
        "experiment_id": experiment.id if experiment and graph.method == experiment.method else graph.id,
        "graph": graph.to_json(),
        "graph_id": graph.id,
        "pairs_sha256": pairs_digest(pairs),
        "method": graph.method,
        "direction": graph.direction,
        "base": graph.base,
        "estimate": graph.estimate,
        "model": description.name,
        "model_revision": description.revision or "",
        "family": description.family.name,
        "family_file": description.family.text,
        "family_sha256": description.family.digest,
        **image_processor(description),
        "seed": graph.seed,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": json.dumps({name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()}),
        **_git(),
        **_vector(graph),
        **_counted(pairs),
    }
    if experiment:
        attributes["experiment"] = experiment.to_json()
        attributes["experiment_yaml"] = experiment.to_yaml()
        attributes["source"] = experiment.source or ""
        attributes["deviations"] = "\n".join(experiment.deviations)
    return attributes


def image_processor(description: ModelDescription) -> dict[str, str]:
    """What makes pixels of pictures, and by which library; empty where the model takes none."""
    processor = getattr(description.processor, "image_processor", None)
    if processor is None:
        return {"image_processor": "", "image_backend": ""}
    backend = str(getattr(processor, "backend", ""))
    return {"image_processor": type(processor).__name__, "image_backend": "Pillow" if backend == "pil" else backend}


def _counted(pairs: Pairs) -> dict[str, Any]:
    """How many candidates the pairs are out of, and why others were dropped; nothing of pairs from nowhere."""
    if pairs.considered is None:
        return {}
    return {"pairs_considered": pairs.considered, "pairs_dropped": json.dumps(dict(sorted(pairs.dropped.items())))}


def _vector(graph: InterventionGraph) -> dict[str, str]:
    """Which numbers a file of vectors holds, where one steers."""
    path = vector_file(graph)
    return {} if path is None else {"vector_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git() -> dict[str, Any]:
    """Commit of the checkout that the package runs from, and whether it has changes; nothing where it is none."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return {}
    try:
        commit = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
        dirty = bool(_output(["git", "-C", str(folder), "status", "--porcelain"]))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"git_commit": commit, "git_dirty": int(dirty)}


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
