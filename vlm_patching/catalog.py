"""The experiments that ship with the package, by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def presets() -> dict[str, Path]:
    """Name → YAML file. An installed wheel has them inside the package, a checkout under ``experiments/``."""
    package = Path(str(resources.files("vlm_patching")))
    folder = package / "presets"
    if not folder.is_dir():
        folder = package.parent / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
