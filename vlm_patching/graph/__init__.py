"""The deferred intervention graph: pure data, no torch."""

from vlm_patching.graph.ir import (
    Dimension,
    Edit,
    InterventionGraph,
    Place,
    Read,
    Run,
    draws_of,
    noise_of,
    patch_place,
    sites_of,
    values_of,
)

__all__ = [
    "Dimension",
    "Edit",
    "InterventionGraph",
    "Place",
    "Read",
    "Run",
    "draws_of",
    "noise_of",
    "patch_place",
    "sites_of",
    "values_of",
]
