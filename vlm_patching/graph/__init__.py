"""The deferred intervention graph: pure data, no torch."""

from vlm_patching.graph.ir import (
    Dimension,
    Edit,
    InterventionGraph,
    Place,
    Read,
    Run,
    draws_of,
    edges_of,
    noise_of,
    parts,
    row_of,
    sites_of,
    swept_place,
    values_of,
    vector_file,
)
from vlm_patching.graph.structure import DIMENSIONS, FILE, NOISE_KINDS, SWEPT, main_edits

__all__ = [
    "DIMENSIONS",
    "FILE",
    "NOISE_KINDS",
    "SWEPT",
    "Dimension",
    "Edit",
    "InterventionGraph",
    "Place",
    "Read",
    "Run",
    "draws_of",
    "edges_of",
    "main_edits",
    "noise_of",
    "parts",
    "row_of",
    "sites_of",
    "swept_place",
    "values_of",
    "vector_file",
]
