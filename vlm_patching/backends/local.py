"""Programs on a model in this process, by nnsight: one session a chunk of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnsight

from vlm_patching.backends.kernels import moments, run_programs
from vlm_patching.models import Model


def execute(model: Model, programs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Interpret programs; one result dict a program, as `kernels.run_program` describes it."""
    envoy, programs = model.envoy, list(programs)
    with envoy.session():
        results = nnsight.save(run_programs(envoy, programs))
    return results


def reference_std(model: Model, programs: Sequence[dict[str, Any]]) -> float:
    """Standard deviation of the values that `plan.reference` programs read, over all of them."""
    envoy, programs = model.envoy, list(programs)
    with envoy.session():
        found = nnsight.save(moments(envoy, programs))
    total, squares, count = found.tolist()
    return float((squares / count - (total / count) ** 2) ** 0.5)
