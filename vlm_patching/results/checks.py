"""Trust checks of every run: cells whose outcome is known beforehand, random cells against one forward pass a cell."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm_patching.backends.base import Backend
from vlm_patching.backends.cells import Cell, check_cells
from vlm_patching.backends.plan import NAIVE, Job, Settings, derived_seed
from vlm_patching.errors import CheckError
from vlm_patching.graph import InterventionGraph
from vlm_patching.metrics import METRICS

RANDOM_CELLS = 8
PLACEBO = ("other", "placebo")
TOLERANCES = {"float32": (1e-5, 1e-4), "float16": (1e-2, 1e-1), "bfloat16": (5e-2, 5e-1)}
"""dtype → how far a probability, and how far a logit or log-probability, may be off."""


def precision(dtype: str, quantization: str | None) -> str:
    """The dtype whose tolerances hold: kernels of quantized weights round otherwise for other numbers of rows."""
    return "float16" if quantization and dtype == "float32" else dtype


def check_example(backend: Backend, job: Job, cells: Sequence[Cell], results: Mapping[str, Any]) -> dict[str, Any]:
    """Hold one example's sweep against what must be true of it.

    Returns
    -------
    dict
        Check → largest difference by metric; the tolerance; how many cells were recomputed.

    Raises
    ------
    CheckError
        Naming the check, the cell and both values.
    """
    graph, pair, run = job.graph, job.pair, job.graph.swept.name
    precise = precision(backend.dtype, backend.attributes().get("quantization"))
    outcome: dict[str, Any] = {"example": pair.pair.id, "tolerance": _tolerances(precise, graph)}
    known = check_cells(graph, job.architecture, pair, list(cells))
    keep_all = {"keep": "all"}
    plain = replace(graph, runs=tuple(r for r in graph.runs if not (graph.method == "patch" and r.name in PLACEBO)))
    found = backend.execute(
        [replace(job, graph=plain).program([cell for cell, _ in known.values()], Settings()) | keep_all]
    )[0]
    for row, (name, (cell, wanted)) in enumerate(known.items()):
        outcome[f"{graph.method} {name}"] = {
            metric: _compare(
                f"{graph.method} of {name} must give the {wanted} run",
                metric,
                cell,
                found[f"{run}.{metric}"][row],
                results[f"{wanted}.{metric}"][cell.draw if len(results[f"{wanted}.{metric}"]) > 1 else 0],
                outcome["tolerance"],
            )
            for metric in outcome["tolerance"]
        }
    rng = random.Random(derived_seed(graph.seed, "checked cells", pair.pair.id, 0))
    rows = sorted(rng.sample(range(len(cells)), min(RANDOM_CELLS, len(cells))))
    alone = backend.execute([job.program([cells[row] for row in rows], NAIVE) | keep_all])[0]
    if graph.method == "attention":
        outcome["read apart"] = max(
            _compare_attention(cells[row], results["attention"][row], alone["attention"][i], TOLERANCES[precise][0])
            for i, row in enumerate(rows)
        )
    else:
        outcome["one forward pass a cell"] = {
            metric: max(
                _compare(
                    "a cell must be the same in a batch as alone",
                    metric,
                    cells[row],
                    results[f"{run}.{metric}"][row],
                    alone[f"{run}.{metric}"][i],
                    outcome["tolerance"],
                )
                for i, row in enumerate(rows)
            )
            for metric in outcome["tolerance"]
        }
    outcome["cells"] = len(rows)
    outcome["passed"] = True
    return outcome


def _compare_attention(cell: Cell, found: Any, wanted: Any, tolerance: float) -> float:
    """Attention of a cell, read together with others and alone; and no more of it than there is."""
    assert cell.keys is not None
    count = len(cell.keys.indices)
    difference = float(abs(found[:count] - wanted[:count]).max())
    if not difference <= tolerance or float(found[:count].sum()) > 1 + tolerance:
        raise CheckError(
            f"Trust check failed: attention of {_place(cell)} differs by {difference:.2g} from what it is when it is "
            f"read apart, or sums to {float(found[:count].sum()):.6g}. These numbers must not be used."
        )
    return difference


def _tolerances(dtype: str, graph: InterventionGraph) -> dict[str, float]:
    of_probability, of_logits = TOLERANCES[dtype]
    smooth = [metric for metric in graph.metrics if "steps" not in METRICS[metric]] or ["probability"]
    return {metric: of_probability if metric == "probability" else of_logits for metric in smooth}


def _compare(claim: str, metric: str, cell: Cell, found: Any, wanted: Any, tolerance: Mapping[str, float]) -> float:
    difference = abs(float(found) - float(wanted))
    if not difference <= tolerance[metric]:
        raise CheckError(
            f"Trust check failed: {claim}, but at {_place(cell)}, {metric} is {float(found):.8g} where "
            f"{float(wanted):.8g} was expected (difference {difference:.2g}, tolerance {tolerance[metric]:g}). These "
            "numbers must not be used. run(..., checks=False) leaves the checks out, to look into it."
        )
    return difference


def _place(cell: Cell) -> str:
    head = "" if cell.head is None else f", head {cell.head}"
    where = f"edges {cell.edges!r}" if cell.edges else f"position {cell.position.label!r}"
    return f"{cell.site}, layer {cell.layer}{head}, {where}, draw {cell.draw}"
