"""Say where to intervene in a vision-language model, and get a labelled dataset of what it did back.

>>> import vlm_patching as vp
>>> experiment = vp.Experiment.from_spec("palit2023")
>>> print(experiment.graph())  # doctest: +SKIP
>>> ds = vp.run(experiment, store="palit2023.zarr")  # doctest: +SKIP
>>> vp.plot.heatmap(ds)  # doctest: +SKIP

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_patching import analysis, bundle
    from vlm_patching import plots as plot
    from vlm_patching.analysis import effect, total_effect
    from vlm_patching.backends.wire import Remote
    from vlm_patching.catalog import presets
    from vlm_patching.diagnosis import diagnose
    from vlm_patching.errors import CheckError, RunError, SpecError
    from vlm_patching.evaluation import evaluate
    from vlm_patching.experiment import Experiment
    from vlm_patching.forecast import plan
    from vlm_patching.graph import InterventionGraph
    from vlm_patching.models import bundled_models, describe_model, load_model
    from vlm_patching.pairs import Pair, Prompt, corrupt_images, load_pairs
    from vlm_patching.pipeline import run
    from vlm_patching.reports import Report, report
    from vlm_patching.results import load_results, rebuild_pairs

_ROOMS = {"analysis": "analysis", "bundle": "bundle", "plot": "plots"}
_HOME = {
    "CheckError": "errors",
    "Experiment": "experiment",
    "InterventionGraph": "graph",
    "Pair": "pairs",
    "Prompt": "pairs",
    "Remote": "backends.wire",
    "Report": "reports",
    "RunError": "errors",
    "SpecError": "errors",
    "bundled_models": "models",
    "corrupt_images": "pairs",
    "describe_model": "models",
    "diagnose": "diagnosis",
    "effect": "analysis",
    "evaluate": "evaluation",
    "load_model": "models",
    "load_pairs": "pairs",
    "load_results": "results",
    "plan": "forecast",
    "presets": "catalog",
    "rebuild_pairs": "results",
    "report": "reports",
    "run": "pipeline",
    "total_effect": "analysis",
}

__all__ = [
    "CheckError",
    "Experiment",
    "InterventionGraph",
    "Pair",
    "Prompt",
    "Remote",
    "Report",
    "RunError",
    "SpecError",
    "analysis",
    "bundle",
    "bundled_models",
    "corrupt_images",
    "describe_model",
    "diagnose",
    "effect",
    "evaluate",
    "load_model",
    "load_pairs",
    "load_results",
    "plan",
    "plot",
    "presets",
    "rebuild_pairs",
    "report",
    "run",
    "total_effect",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        value: Any = importlib.import_module(f"vlm_patching.{_ROOMS[name]}")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"vlm_patching.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'vlm_patching' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
