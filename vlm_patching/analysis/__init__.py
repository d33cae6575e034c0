"""From metrics to findings: effects, their uncertainty, thresholds, universal heads, agreement of maps."""

from vlm_patching.analysis.agreement import agreement
from vlm_patching.analysis.effects import effect, metrics_of, total_effect
from vlm_patching.analysis.heads import label_by_modality, universal_heads
from vlm_patching.analysis.thresholds import benjamini_hochberg, cell_p, permutation_max_t
from vlm_patching.analysis.uncertainty import bootstrap, split_half

__all__ = [
    "agreement",
    "benjamini_hochberg",
    "bootstrap",
    "cell_p",
    "effect",
    "label_by_modality",
    "metrics_of",
    "permutation_max_t",
    "split_half",
    "total_effect",
    "universal_heads",
]
