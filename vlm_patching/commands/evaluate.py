"""What `vlm-patching evaluate` prints: how often a model is right, by kind of question."""

from __future__ import annotations

import math
from typing import Any

import xarray as xr

from vlm_patching.commands.output import show


def report(ds: xr.Dataset, by: str, as_json: bool) -> None:
    """A row for all pairs of an evaluation, and one for each kind of them where there are several."""
    from vlm_patching.analysis import accuracy

    parts = accuracy(ds, by)
    rows = [_row(by, "all", accuracy(ds, None))]
    if parts.sizes[by] > 1:
        rows += [_row(by, name, parts.sel({by: name})) for name in parts[by].values.tolist()]
    shown = rows if as_json else [_in_percent(row) for row in rows]
    show(shown, as_json, tuple(shown[0]))


def _row(by: str, name: str, counts: xr.Dataset) -> dict[str, Any]:
    return {by: name, **{str(key): value.item() for key, value in counts.data_vars.items()}}


def _in_percent(row: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: row[key] for key in ("accuracy", "lower", "upper", "flipped") if key in row}
    percent = {key: "none to flip" if math.isnan(n) else f"{100 * n:.1f} %" for key, n in numbers.items()}
    interval = {"95 % interval": f"{percent.pop('lower')} to {percent.pop('upper')}"}
    flipped = {"flipped when corrupted": percent.pop("flipped")} if "flipped" in percent else {}
    return {key: value for key, value in row.items() if isinstance(value, str | int)} | percent | interval | flipped
