"""Trust checks of every run: cells whose outcome is known beforehand, random cells against one forward pass a cell."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_patching.backends.local import execute
from vlm_patching.backends.plan import NAIVE, Cell, Settings, check_cells, derived_seed, program
from vlm_patching.errors import CheckError
from vlm_patching.graph import InterventionGraph
from vlm_patching.inputs import EncodedPair
from vlm_patching.metrics import METRICS
from vlm_patching.models import Model

RANDOM_CELLS = 8
TOLERANCES = {"float32": (1e-5, 1e-4), "float16": (1e-2, 1e-1), "bfloat16": (5e-2, 5e-1)}
"""dtype → how far a probability, and how far a logit or log-probability, may be off."""


def check_example(
    model: Model,
    graph: InterventionGraph,
    pair: EncodedPair,
    cells: Sequence[Cell],
    results: Mapping[str, Any],
    noise_std: float,
) -> dict[str, Any]:
    """Hold one example's sweep against what must be true of it.

    Returns
    -------
    dict
        Check → largest difference by metric; the tolerance; which cells were recomputed.

    Raises
    ------
    CheckError
        Naming the check, the cell and both values.
    """
    architecture = model.description.architecture
    outcome: dict[str, Any] = {"example": pair.pair.id, "tolerance": _tolerances(model, graph)}
    known = check_cells(graph, architecture, pair, cells)
    keep_all = {"keep": "all"}
    checked = program(graph, architecture, pair, list(known.values()), noise_std, Settings()) | keep_all
    found = execute(model, [checked])[0]
    for row, (name, cell) in enumerate(known.items()):
        run = graph.origin if name.startswith("everything") else graph.base
        outcome[f"patch {name}"] = {
            metric: _compare(
                f"patching {name} must give the {run} run",
                metric,
                cell,
                found[f"patched.{metric}"][row],
                results[f"{run}.{metric}"][cell.draw if len(results[f"{run}.{metric}"]) > 1 else 0],
                outcome["tolerance"],
            )
            for metric in outcome["tolerance"]
        }
    rng = random.Random(derived_seed(graph.seed, "checked cells", pair.pair.id, 0))
    rows = sorted(rng.sample(range(len(cells)), min(RANDOM_CELLS, len(cells))))
    naive = program(graph, architecture, pair, [cells[row] for row in rows], noise_std, NAIVE) | keep_all
    alone = execute(model, [naive])[0]
    outcome["one forward pass a cell"] = {
        metric: max(
            _compare(
                "a cell must be the same in a batch as alone",
                metric,
                cells[row],
                results[f"patched.{metric}"][row],
                alone[f"patched.{metric}"][i],
                outcome["tolerance"],
            )
            for i, row in enumerate(rows)
        )
        for metric in outcome["tolerance"]
    }
    outcome["cells"] = len(rows)
    outcome["passed"] = True
    return outcome


def _tolerances(model: Model, graph: InterventionGraph) -> dict[str, float]:
    of_probability, of_logits = TOLERANCES[model.dtype]
    smooth = [metric for metric in graph.metrics if "steps" not in METRICS[metric]] or ["probability"]
    return {metric: of_probability if metric == "probability" else of_logits for metric in smooth}


def _compare(claim: str, metric: str, cell: Cell, found: Any, wanted: Any, tolerance: Mapping[str, float]) -> float:
    difference = abs(float(found) - float(wanted))
    if not difference <= tolerance[metric]:
        head = "" if cell.head is None else f", head {cell.head}"
        where = f"{cell.site}, layer {cell.layer}{head}, position {cell.position.label!r}, draw {cell.draw}"
        raise CheckError(
            f"Trust check failed: {claim}, but at {where}, {metric} is {float(found):.8g} where {float(wanted):.8g} "
            f"was expected (difference {difference:.2g}, tolerance {tolerance[metric]:g}). These numbers must not be "
            "used. run(..., checks=False) leaves the checks out, to look into it."
        )
    return difference
