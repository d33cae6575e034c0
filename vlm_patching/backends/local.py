"""Programs on a model in this process, by nnsight: one session a chunk of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnsight
import torch

from vlm_patching.backends.kernels import run_programs, summarize
from vlm_patching.models import Model


def execute(model: Model, programs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Interpret programs; one result dict a program, as `kernels.run_program` describes it."""
    envoy, programs = model.envoy, list(programs)
    with envoy.session():
        results = nnsight.save(run_programs(envoy, programs))
    return results


def summaries(model: Model, programs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What `kernels.summarize` gives: name → sum, sum of squares and count over all programs, [3, width] in float64."""
    envoy, programs = model.envoy, list(programs)
    with envoy.session():
        found = nnsight.save(summarize(envoy, programs))
    return found
