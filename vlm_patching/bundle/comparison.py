"""A bundle run again, and its numbers held against those that are in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from vlm_patching.bundle.contents import plain
from vlm_patching.bundle.records import Environment
from vlm_patching.errors import SpecError
from vlm_patching.metrics import METRICS
from vlm_patching.models import bundled_models
from vlm_patching.results.checks import TOLERANCES, precision

STEP_SHARES = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.1}
"""dtype → in which share of cells a metric that jumps (a rank, an accuracy) may be another: rounding decides ties."""
_BASES = ("_clean", "_corrupted", "_placebo", "_exact")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Comparison:
    """One variable of the results, then and now.

    Attributes
    ----------
    name
        The variable's.
    cells
        How many numbers were compared: those that are there both times.
    largest
        Largest absolute difference.
    tolerance
        How large it may be; None where the metric jumps, and `differing` is what is held against `share`.
    differing, share
        In which share of cells it is another number, and in which it may be.
    same_cells
        Whether the same cells were run (are not NaN).
    """

    name: str
    cells: int
    largest: float
    tolerance: float | None
    differing: float
    share: float
    same_cells: bool

    @property
    def within(self) -> bool:
        """Whether it is the same, within its tolerance and of the same cells."""
        near = self.differing <= self.share if self.tolerance is None else self.largest <= self.tolerance
        return near and self.same_cells

    def __str__(self) -> str:
        allowed = f"{self.tolerance:g}" if self.tolerance is not None else f"{self.share:.0%} differ"
        found = f"{self.largest:.2g}" if self.tolerance is not None else f"{self.differing:.2%} differ"
        verdict = "within" if self.within else "NOT WITHIN" if self.same_cells else "OTHER CELLS WERE RUN"
        return f"  {self.name:<32} {found:>14} {allowed:>14} {self.cells:>8}  {verdict}"


@dataclass(frozen=True)
class Replay:
    """What a replay found; printed, it fits a screen.

    Attributes
    ----------
    name
        Of the experiment.
    digest
        Of the bundle.
    dtype
        Whose tolerances hold: the coarser of the bundle's and the replay's.
    comparisons
        One for each variable.
    problems
        What cannot be compared, or must not differ and does.
    environment
        What differs in it: name → (in the bundle, here).
    """

    name: str
    digest: str
    dtype: str
    comparisons: tuple[Comparison, ...]
    problems: tuple[str, ...]
    environment: dict[str, tuple[str, str]]

    @property
    def ok(self) -> bool:
        """Whether every variable is within its tolerance, of the same cells, and the same examples were kept."""
        return bool(self.comparisons) and not self.problems and all(one.within for one in self.comparisons)

    @property
    def other_weights(self) -> bool:
        """Whether the weights are known not to be those of the bundle (a remote backend does not tell)."""
        return all(self.environment.get("weights_sha256", ("", "")))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        comparisons = [asdict(one) | {"within": one.within} for one in self.comparisons]
        return asdict(self) | {"ok": self.ok, "other_weights": self.other_weights, "comparisons": comparisons}

    def __str__(self) -> str:
        lines = [
            f'Replay of "{self.name}" (bundle {self.digest[:16]}): {"within" if self.ok else "NOT within"} tolerance'
        ]
        if self.other_weights:
            then, now = (digest[:12] for digest in self.environment["weights_sha256"])
            lines.append(
                f"  OTHER WEIGHTS: the bundle's are {then}, these are {now}; the numbers are of another model."
            )
        if self.dtype != "float32":
            lines.append(f"  The tolerances are those of {self.dtype}, wider than float32's.")
        lines.append(f"  {'variable':<32} {'difference':>14} {'tolerance':>14} {'cells':>8}")
        lines += [str(one) for one in self.comparisons]
        lines += [f"  PROBLEM: {problem}" for problem in self.problems]
        lines += [
            f"  {name}: {then or 'unknown'} then, {now or 'unknown'} now"
            for name, (then, now) in self.environment.items()
        ]
        return plain("\n".join(lines))


def compare(then: xr.Dataset, now: xr.Dataset, digest: str) -> Replay:
    """Two results of one graph on the same pairs, held against each other."""
    made, here = Environment.of(then.attrs), Environment.of(now.attrs)
    dtypes = [precision(each.dtype, each.quantization) for each in (made, here)]
    dtype = max(dtypes, key=lambda name: TOLERANCES[name])
    problems, names = [], sorted({*map(str, then.data_vars), *map(str, now.data_vars)})
    comparisons = []
    for name in names:
        odd = _incomparable(then, now, name)
        if odd:
            problems.append(odd)
        else:
            comparisons.append(_compared(name, then[name].values, now[name].values, dtype))
    problems += _kept(then, now)
    return Replay(str(then.attrs["name"]), digest, dtype, tuple(comparisons), tuple(problems), _differences(made, here))


def model_to_load(environment: Environment, allow_download: bool) -> str:
    """The bundle's model by its name, where a stranger's word suffices to load it.

    Raises
    ------
    SpecError
        It is a folder, or a hub id that the reader has not agreed to.
    """
    name = environment.model
    if name in bundled_models():
        return name
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        raise SpecError(
            f"The bundle's model is {name!r}, a folder, and a bundle does not choose which folder is loaded. Name your "
            "own copy of the model: --model (model=...)."
        )
    if not allow_download:
        raise SpecError(
            f"The bundle's model is {name!r} of the Hugging Face hub, and a bundle does not choose what is downloaded. "
            f"If you trust that model, say so: --allow-download (allow_download=True), or --model {name}."
        )
    return name


def _incomparable(then: xr.Dataset, now: xr.Dataset, name: str) -> str:
    """Why a variable cannot be compared, or nothing."""
    for here, there, missing in ((then, now, "the replay"), (now, then, "the bundle")):
        if name in here and name not in there:
            return f"{name} is not in {missing}"
    if then[name].dims != now[name].dims:
        return f"{name} is over {', '.join(map(str, then[name].dims))} in the bundle, and over other dimensions here"
    for dimension in then[name].dims:
        if then[dimension].values.tolist() != now[dimension].values.tolist():
            return f"{name} has another {dimension} in the bundle than here"
    return ""


def _compared(name: str, then: np.ndarray, now: np.ndarray, dtype: str) -> Comparison:
    metric = name
    for suffix in _BASES:
        metric = metric.removesuffix(suffix)
    of_probability, of_logits = TOLERANCES[dtype]
    both = ~np.isnan(then) & ~np.isnan(now)
    a, b = then[both].astype(float), now[both].astype(float)
    difference = np.where(a == b, 0.0, np.abs(a - b))  # so that two infinities are equal
    tolerance: float | None = of_probability if metric in ("probability", "attention") else of_logits
    if "steps" in METRICS.get(metric, {}):
        tolerance = None
    return Comparison(
        name=name,
        cells=int(both.sum()),
        largest=float(difference.max(initial=0.0)),
        tolerance=tolerance,
        differing=float((difference > 0).mean()) if both.any() else 0.0,
        share=STEP_SHARES[dtype],
        same_cells=bool((np.isnan(then) == np.isnan(now)).all()),
    )


def _kept(then: xr.Dataset, now: xr.Dataset) -> list[str]:
    labels: Sequence[Mapping[str, str]] = [
        dict(zip(ds["example"].values.tolist(), ds["kept"].values.tolist(), strict=True)) for ds in (then, now)
    ]
    if labels[0].keys() != labels[1].keys():
        return ["the examples are others"]
    others = [name for name, label in labels[0].items() if label != labels[1][name]]
    shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return [f"whether they are kept, or why not, differs for {shown}"] if others else []


def _differences(made: Environment, here: Environment) -> dict[str, tuple[str, str]]:
    then, now = (_flat(environment) for environment in (made, here))
    return {
        name: (then.get(name, ""), now.get(name, ""))
        for name in sorted({*then, *now})
        if then.get(name, "") != now.get(name, "")
    }


def _flat(environment: Environment) -> dict[str, str]:
    data = environment.model_dump(exclude={"versions", "git_dirty"}, exclude_none=True)
    return {name: str(value) for name, value in (data | environment.versions).items()}
