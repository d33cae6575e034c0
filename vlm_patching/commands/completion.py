"""What the shell offers for a word that has been begun: names out of the package's tables, and spec files.

Nothing here imports torch, so that a completion takes no longer than Python itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

BACKENDS = ("local", "ndif")
SPEC_ENDINGS = (".yaml", ".yml", ".json")


def specs(incomplete: str) -> list[str]:
    """Presets, spec files, and folders that may hold some."""
    from vlm_patching.catalog import presets

    begun = Path(incomplete)
    folder = begun if incomplete.endswith("/") else begun.parent
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [str(path) for path in inside if path.suffix in SPEC_ENDINGS]
    folders = [f"{path}/" for path in inside if path.is_dir() and not path.name.startswith(".")]
    return _begun([*presets(), *files, *folders], incomplete)


def models(incomplete: str) -> list[str]:
    """The bundled models."""
    bundled = Path(str(resources.files("vlm_patching") / "models" / "bundled"))
    return _begun(sorted(path.parent.name for path in bundled.glob("*/config.json")), incomplete)


def datasets(incomplete: str) -> list[str]:
    """The datasets of pairs."""
    from vlm_patching.pairs import DATASETS

    return _begun(DATASETS, incomplete)


def backends(incomplete: str) -> list[str]:
    """Where a model may run."""
    return _begun(BACKENDS, incomplete)


def methods(incomplete: str) -> list[str]:
    """The sections that say what is done."""
    from vlm_patching.sweeps import METHOD_SECTIONS

    return _begun(METHOD_SECTIONS, incomplete)


def metrics(incomplete: str) -> list[str]:
    """What is measured."""
    from vlm_patching.metrics import METRICS

    return _begun(METRICS, incomplete)


def figures(incomplete: str) -> list[str]:
    """What results are drawn as."""
    from vlm_patching.figures import FIGURES

    return _begun(FIGURES, incomplete)


def figure_arguments(incomplete: str) -> list[str]:
    """What `plot --set` takes: arguments of figures that have no option of their own."""
    from vlm_patching.figures import FigureSpec

    options = ("figure", "metric", "site", "position", "normalize")
    return _begun([f"{name}=" for name in FigureSpec.model_fields if name not in options], incomplete)


def corruptions(incomplete: str) -> list[str]:
    """What corrupts a run."""
    from vlm_patching.pairs import CORRUPTED_INPUT

    return _begun(CORRUPTED_INPUT, incomplete)


def changes(incomplete: str) -> list[str]:
    """Dotted keys of a spec, as --set takes them."""
    from vlm_patching.experiment import Experiment
    from vlm_patching.manual import entries

    keys = []
    for entry in entries(Experiment):
        inside = dict.fromkeys(option.name for section in entry.sections for option in entries(section))
        keys += [f"{entry.name}.{name}=" for name in inside] or [f"{entry.name}="]
    return _begun(keys, incomplete)


def _begun(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
