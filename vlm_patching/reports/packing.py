"""Arrays and data as text inside a page."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def packed(array: np.ndarray) -> str:
    """Float32 numbers, little end first, as base64; NaN stays NaN."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")


def packed_size(count: int) -> int:
    """Characters that so many numbers are packed into."""
    return (4 * count + 2) // 3 * 4


def number(value: Any) -> float | None:
    """A number as JSON has it: None for NaN."""
    value = float(value)
    return value if np.isfinite(value) else None


def shown(value: float) -> str:
    """A number with four digits, as the page's scripts write it."""
    size = abs(value)
    text = f"{value:.2e}" if size and (size < 1e-4 or size >= 1e6) else f"{float(f'{value:.4g}'):.10f}".rstrip("0")
    return re.sub(r"e([+-])0*(\d)", r"e\1\2", text.rstrip(".")).replace("-", "\u2212")


def embedded(data: Any) -> str:
    """JSON for a script element: nothing in it can end the element, begin another, or break a line of JavaScript."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)
