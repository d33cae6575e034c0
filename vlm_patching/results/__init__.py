"""Arrays → labelled dataset → zarr store; provenance; trust checks."""

from vlm_patching.results.rebuilding import rebuild_pairs
from vlm_patching.results.store import load_results

__all__ = ["load_results", "rebuild_pairs"]
