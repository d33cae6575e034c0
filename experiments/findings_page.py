"""What the findings page is made of: runs, intervals in words, sentences that must be true, tables and figures."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import vlm_patching as vp
from vlm_patching.analysis.effects import linearised

PAGE = Path("docs/findings.md")
FIGURES = Path("docs/findings")
STORES = Path("results")
LD, P, KL = "logit_difference", "probability", "kl_divergence"
BLIP, LLAVA = "shapes-blip", "shapes-llava"
TEXT_STACK = {BLIP: "question_encoder", LLAVA: "language"}
SIP = {"kind": "semantic_image_pair"}
STR = {"kind": "symmetric_token_replacement"}
NOISE = {"kind": "gaussian_noise", "site": "image_embeds", "k": 3.0, "draws": 10}
FIXED = "\N{NO-BREAK SPACE}"
COLORS = sns.color_palette("colorblind", 10)


@dataclass(frozen=True)
class Section:
    """A section of the page, and what of it belongs at the page's head."""

    title: str
    body: tuple[str, ...]
    findings: tuple[str, ...] = ()


class Runs:
    """Presets and the page's own runs; what results/ has of the same experiment from before is not run again."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._presets: dict[str, xr.Dataset] = {}

    def model(self, name: str) -> Any:
        """A bundled model, loaded once."""
        if name not in self._models:
            self._models[name] = vp.load_model(name)
        return self._models[name]

    def preset(self, name: str) -> xr.Dataset:
        """What a preset gives: out of results/presets, where `make presets` leaves it, or run."""
        if name not in self._presets:
            self._presets[name] = self._run(vp.Experiment.from_spec(name), STORES / "presets" / f"{name}.zarr")
        return self._presets[name]

    def own(self, name: str, model: str, question: str, *, inputs: Any = None, **sections: Any) -> xr.Dataset:
        """A run of this page alone, on the pairs that the presets have where no others are given."""
        return self._run(experiment(name, model, question, **sections), None, inputs)

    def _run(self, what: vp.Experiment, made: Path | None, inputs: Any = None) -> xr.Dataset:
        store = STORES / "findings" / f"{what.name}-{what.id[:8]}.zarr"
        if made is not None and made.exists() and vp.load_results(made).attrs["experiment_id"] == what.id:
            store = made
        shown = sys.stderr.isatty()
        return vp.run(what, model=self.model(what.model.name), inputs=inputs, store=store, progress=shown).load()


def experiment(name: str, model: str, question: str, **sections: Any) -> vp.Experiment:
    """An experiment on the 32 pairs of one kind of question that the presets use."""
    return vp.Experiment.from_dict(
        {
            "name": name,
            "model": {"name": model},
            "pairs": {"dataset": "shapes", "n": 32, "seed": 0, "questions": [question]},
            "metrics": [P, LD],
            **sections,
        }
    )


def grammatical(pairs: Sequence[vp.Pair]) -> list[vp.Pair]:
    """Place pairs whose corrupted text says "on the left" and "at the top", whatever the clean one says."""
    found = []
    for pair in pairs:
        sideways = re.search(r"\b(left|right)\b", pair.corrupted.text)
        text = re.sub(r"\b(on|at)(?= the \w+ or )", "on" if sideways else "at", pair.corrupted.text)
        found.append(replace(pair, corrupted=replace(pair.corrupted, text=text)))
    return found


def share(ds: xr.Dataset, metric: str = LD) -> xr.DataArray:
    """Share of the total effect, per example: its mean over examples and draws is mean effect / mean total effect."""
    effect = vp.effect(ds, metric)
    return linearised(effect, vp.total_effect(ds, metric).where(effect.notnull()), metric)


interval = vp.analysis.bootstrap


def one(values: xr.DataArray, digits: int = 2) -> str:
    """Mean and interval of a single cell, per example."""
    return ci(interval(values), digits)


def ci(found: xr.Dataset, digits: int = 2) -> str:
    """Mean [low, high] of one cell of what `bootstrap` gave."""
    low, high = num(found["low"], digits), num(found["high"], digits)
    return f"{num(found['mean'], digits)}{FIXED}[{low},{FIXED}{high}]"


def num(value: Any, digits: int = 2) -> str:
    """A number with a true minus sign and no minus zero."""
    rounded = round(float(value), digits)
    return f"{rounded + 0.0:.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def bound(value: Any, digits: int = 2) -> str:
    """As `num`, rounded up: what "at most" may be said of."""
    return num(np.ceil(float(value) * 10**digits - 1e-9) / 10**digits, digits)


def percent(value: Any) -> str:
    """A share as whole percents."""
    return f"{num(100 * float(value), 0)}{FIXED}%"


def claim(holds: Any, sentence: str) -> str:
    """The sentence, if it is true of the numbers at hand; if not, there is no page."""
    if not bool(holds):
        raise AssertionError(f"No longer true, so look at the numbers and write it anew: {sentence}")
    return sentence


def prose(text: str) -> str:
    """A paragraph, wrapped."""
    return textwrap.fill(re.sub(r"[ \n]+", " ", text.strip()), 120, break_long_words=False, break_on_hyphens=False)


def bullet(text: str) -> str:
    """A bullet point, wrapped."""
    return textwrap.indent(prose(text), "  ").replace("  ", "- ", 1)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(figure: Figure, name: str, caption: str) -> str:
    """Save a figure beside the page; the Markdown that shows it."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=100)
    plt.close(figure)
    return f"![{' '.join(caption.split())}]({FIGURES.name}/{name}.png)"


def line(ax: Axes, found: xr.Dataset, label: str, color: Any, style: str = "-") -> None:
    """Mean over layers and the band of its interval; layers that were not run are left out."""
    found = found.dropna("layer", subset=["mean"])
    layers = found["layer"].values
    ax.plot(layers, found["mean"], style, color=color, label=label, marker="o", markersize=3, linewidth=1.6)
    ax.fill_between(layers, found["low"], found["high"], color=color, alpha=0.18, linewidth=0)


def finish(ax: Axes, title: str, ylabel: str, columns: int = 2) -> None:
    """Titles and axes of a panel of lines over layers, its legend (of lines that have points) under it."""
    handles, labels = ax.get_legend_handles_labels()
    shown = [(h, name) for h, name in zip(handles, labels, strict=True) if np.size(plt.getp(h, "xdata"))]
    style: dict[str, Any] = {"fontsize": 8, "frameon": False, "loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
    ax.legend([h for h, _ in shown], [name for _, name in shown], ncol=columns, **style)
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(ylabel)
    sns.despine(ax=ax)


def head(layer: Any, number: Any) -> str:
    """A head's name."""
    return f"L{int(layer)}.H{int(number)}"


def strongest(found: xr.Dataset, count: int) -> list[tuple[int, int]]:
    """The heads with the largest absolute mean, (layer, head)."""
    cells = abs(found["mean"]).stack(cell=("layer", "head"))
    return [(int(a), int(b)) for a, b in cells.sortby(-cells)["cell"].values[:count]]


def heads_in(chosen: xr.DataArray) -> str:
    """Names of the heads that are True, or a dash."""
    chosen = chosen.transpose("layer", "head")
    return ", ".join(head(*where) for where in np.argwhere(chosen.values)) or "–"
