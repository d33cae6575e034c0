"""From metrics to findings."""

from vlm_patching.analysis.effects import effect, metrics_of, total_effect

__all__ = ["effect", "metrics_of", "total_effect"]
