"""What columns are in each example: token, role, modality, and the box that a place covers of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr


def places(ds: xr.Dataset, dimension: str) -> dict[str, Any] | None:
    """The coordinates that describe a dimension (`position` or `key`), each distinct row once.

    Returns
    -------
    dict or None
        `labels`, `picture` (which of the prompt's pictures each label is of) and, each as `rows` and `of` (example →
        its row), `token`, `role`, `modality`, `box` (x0, y0, x1, y1 in pixels of the original picture, or None) and
        `patch` (whether it is a single patch). Texts are numbers of `strings`. None where the dataset does not describe
        it.
    """
    prefix = "key_" if dimension == "key" else ""
    if f"{prefix}token" not in ds.coords or dimension not in ds.dims:
        return None
    labels = [str(label) for label in ds[dimension].values]
    strings: dict[str, int] = {}
    found: dict[str, Any] = {"labels": labels, "picture": _pictures(ds[f"{prefix}image"], dimension)}
    for name in ("token", "role", "modality"):
        table = ds[f"{prefix}{name}"].transpose("example", dimension).values
        found[name] = _rows([[strings.setdefault(str(text), len(strings)) for text in row] for row in table])
    patch = (ds[f"{prefix}row"] >= 0) & (ds[f"{prefix}modality"] == "image")
    found["patch"] = _rows(patch.transpose("example", dimension).values.astype(int).tolist())
    if f"{prefix}box" in ds.coords:
        boxes = ds[f"{prefix}box"].transpose("example", dimension, "corner").values
        found["box"] = _rows([[_box(box) for box in row] for row in boxes])
    found["strings"] = list(strings)
    return found


def _box(corners: np.ndarray) -> list[int] | None:
    x0, y0, x1, y1 = (int(corner) for corner in corners)
    return [x0, y0, x1, y1] if x1 > x0 and y1 > y0 else None


def _pictures(numbers: xr.DataArray, dimension: str) -> list[int]:
    """Which of a prompt's pictures each label is of, the same in every example that has it; 0 where it is of none."""
    return [max(0, int(number)) for number in numbers.max("example").transpose(dimension).values]


def _rows(table: Sequence[list[Any]]) -> dict[str, Any]:
    """Each distinct row once, and which one every example has."""
    numbers: dict[str, int] = {}
    rows: list[list[Any]] = []
    of = []
    for row in table:
        key = repr(row)
        if key not in numbers:
            numbers[key] = len(rows)
            rows.append(row)
        of.append(numbers[key])
    return {"rows": rows, "of": of}
