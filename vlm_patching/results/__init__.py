"""Arrays → labelled dataset → zarr store; provenance; trust checks."""

from vlm_patching.results.store import load_results

__all__ = ["load_results"]
