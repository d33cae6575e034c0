"""Values of a configuration, which a family's file names by their paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from vlm_patching.errors import SpecError

Value = str | int | float | bool
"""A value, or (text) the path of one in the configuration."""


def value_at(config: Any, path: str, *default: Any) -> Any:
    """A value of a configuration by its path; `SpecError` where it has none and no default is given."""
    value = config
    for part in path.split("."):
        if part.startswith("_"):
            raise SpecError(f"{path} is no setting of a configuration")
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else getattr(value, part, _MISSING)
        if value is _MISSING:
            if default:
                return default[0]
            raise SpecError(f"the configuration has no {path}")
    return value


_MISSING = object()


def resolved(config: PreTrainedConfig, value: Any) -> Any:
    """A value as it is, or what a path in the configuration leads to: text with a dot, or a key of the config."""
    if isinstance(value, str) and (("." in value and " " not in value) or hasattr(config, value)):
        return value_at(config, value)
    return value


def window_of(config: PreTrainedConfig, value: Value) -> int | None:
    """How many positions the cache of a sliding window keeps (all but one); None for configurations that have none."""
    found = value_at(config, value, None) if isinstance(value, str) else value
    return None if found is None else whole_number(config, found) - 1


def whole_number(config: PreTrainedConfig, value: Value) -> int:
    found = resolved(config, value)
    if isinstance(found, bool) or not isinstance(found, int):
        raise SpecError(f"{value} must be a whole number, and is {found!r}")
    return found
