"""Where a model's files are: bundled, in a folder, or of the hub; what can be read of them without weights."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from vlm_patching.errors import SpecError, nearest
from vlm_patching.models.processors import load_processor


@dataclass(frozen=True)
class Source:
    """A model's files, of whatever family it is.

    Attributes
    ----------
    name, revision
        As the spec gives them.
    place
        Folder or hub id that transformers loads from.
    config, processor
        What it is, how its inputs are made.
    """

    name: str
    revision: str | None
    place: str
    config: PreTrainedConfig
    processor: Any


def bundled_models() -> dict[str, Path]:
    """The models that ship inside the package: name → folder."""
    folder = Path(str(resources.files("vlm_patching.models") / "bundled"))
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def read_source(name: str, revision: str | None = None) -> Source:
    """A model's configuration and processor; `SpecError` for an unknown name, or files that cannot be read."""
    place = _place(name)
    try:
        config = AutoConfig.from_pretrained(place, revision=revision)
        processor = load_processor(place, revision, config)
    except (OSError, ImportError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        why = f"Model {name!r} could not be read from {place}: {first_line(error)}"
        raise SpecError(not_cached(place, revision, "config.json") or why) from error
    return Source(name, revision, place, config, processor)


def _place(name: str) -> str:
    bundled = bundled_models()
    if name in bundled:
        return str(bundled[name])
    if Path(name).is_dir():
        return str(Path(name).resolve())
    if "/" in name and not name.startswith((".", "/", "~")):
        return name
    raise SpecError(
        f"model.name: unknown model {name!r}.{nearest(name, bundled)} It is neither a bundled model "
        f"({', '.join(bundled)}), nor a folder that exists, nor a hub id ('owner/name')."
    )


def not_cached(place: str, revision: str | None, file: str) -> str:
    """Why a hub model's file cannot be had offline; "" where that is not what is wrong."""
    if Path(place).is_dir() or not constants.is_offline_mode():
        return ""
    if isinstance(try_to_load_from_cache(place, file, revision=revision), str):
        return ""
    at = f" at revision {revision}" if revision else ""
    return (
        f"{file} of the hub model {place!r}{at} is not in this machine's cache ({constants.HF_HUB_CACHE}), and "
        "HF_HUB_OFFLINE=1 keeps it from being fetched: leave that out once, or name a folder that holds the model."
    )


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
