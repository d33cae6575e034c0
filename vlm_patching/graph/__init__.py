"""The deferred intervention graph: pure data, no torch."""

from vlm_patching.graph.ir import Dimension, Edit, InterventionGraph, Place, Read, Run

__all__ = ["Dimension", "Edit", "InterventionGraph", "Place", "Read", "Run"]
