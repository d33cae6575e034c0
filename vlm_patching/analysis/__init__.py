"""From metrics to findings: effects, their uncertainty, thresholds, universal heads, agreement of maps."""

from vlm_patching.analysis.accuracy import accuracy
from vlm_patching.analysis.agreement import agreement
from vlm_patching.analysis.attention import above_mean, head_functions
from vlm_patching.analysis.effects import effect, metrics_of, shares, total_effect
from vlm_patching.analysis.heads import by_task, label_by_modality, universal_heads
from vlm_patching.analysis.knockout import knockout_change
from vlm_patching.analysis.placebo import against_placebo, verification
from vlm_patching.analysis.thresholds import benjamini_hochberg, cell_p, permutation_max_t
from vlm_patching.analysis.uncertainty import bootstrap, split_half

__all__ = [
    "above_mean",
    "accuracy",
    "against_placebo",
    "agreement",
    "benjamini_hochberg",
    "bootstrap",
    "by_task",
    "cell_p",
    "effect",
    "head_functions",
    "knockout_change",
    "label_by_modality",
    "metrics_of",
    "permutation_max_t",
    "shares",
    "split_half",
    "total_effect",
    "universal_heads",
    "verification",
]
