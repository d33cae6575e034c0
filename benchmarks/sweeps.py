"""Which sweeps are timed: what each asks for, on which shape, and how much faster than the naive loop it must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import optimum
from problem import Problem, Regions
from torch import Tensor

EDGES = (
    "image -> question",
    "image -> last",
    "question -> last",
    "last -> last",
    "image:object -> question",
    "image:other -> question",
)


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    Attributes
    ----------
    shape
        Which of `shapes.SHAPES` it runs on.
    about
        What it is, in a few words.
    section
        The section of the spec that says what is done, with its name.
    target
        How many times faster than the naive loop it must be; None where nothing is asked for.
    notice_target
        The same against NOTICE's own loop, where it is compared with that.
    optimum
        A version written by hand: the log-probabilities in the order [site, layer, head, position].
    on_request
        Whether it runs only when it is named.
    """

    name: str
    shape: str
    about: str
    section: Mapping[str, Any]
    target: float | None
    regions: Regions = "none"
    notice_target: float | None = None
    optimum: Callable[[Any, Problem], Tensor] | None = None
    on_request: bool = False

    @property
    def base_runs(self) -> int:
        """Runs of the model that the method cannot do without: clean, and of a patch corrupted."""
        return 2 if "patch" in self.section else 1

    @property
    def window(self) -> int:
        return int(next(iter(self.section.values())).get("window", 1))

    @property
    def sites(self) -> list[str]:
        """What the naive loop reads in the clean run."""
        return list(self.section["patch"]["sites"]) if "patch" in self.section else []

    def spec(self, folder: str) -> dict[str, Any]:
        """The whole experiment."""
        return {
            "name": self.name,
            "model": {"name": folder},
            "pairs": {"dataset": "shapes", "keep": "all"},
            **({"corruption": {"kind": "semantic_image_pair"}} if "patch" in self.section else {}),
            **self.section,
            "metrics": ["probability", "log_probability"],
        }


def _patch(*sites: str, positions: list[str]) -> dict[str, Any]:
    return {"patch": {"sites": list(sites), "positions": positions}}


HEADS = _patch("language.attn_head", positions=["last"])
MODULES = _patch("language.mlp_out", "language.attn_out", positions=["each:text"])
GRID = [f"image:r{row}c{col}" for row in range(7) for col in range(7)]
BLIP_MODULES = [f"question_encoder.{site}" for site in optimum.BLIP_SITES]
BLIP_HEADS = ["question_encoder.attn_head", "question_encoder.cross_attn_head"]


def sweeps(small: bool, device: str) -> dict[str, Sweep]:
    """Name → sweep; targets are those of full-size models on a CPU."""
    window = 3 if small else 9
    flow = {"knockout": {"edges": list(EDGES), "window": window}}
    every = [
        Sweep("llava_heads", "llava", "every head at the last position", HEADS, 250, optimum=optimum.llava_heads),
        Sweep("llava_modules", "llava", "MLP and attention outputs at every text token", MODULES, 55),
        Sweep(
            "llava_regions",
            "llava",
            "residual stream at 7 × 7 image regions",
            _patch("language.resid_post", positions=GRID),
            3,
            regions="grid",
        ),
        Sweep(
            "llava_knockout", "llava", f"six sets of attention edges, windows of {window}", flow, 25, regions="object"
        ),
        Sweep(
            "blip_modules",
            "blip",
            "question encoder: MLP, attention and cross-attention outputs at every token",
            _patch(*BLIP_MODULES, positions=["all"]),
            35,
            notice_target=100,
            optimum=optimum.blip_modules,
        ),
        Sweep(
            "blip_heads",
            "blip",
            "question encoder: every head of both attentions at one token",
            _patch(*BLIP_HEADS, positions=["subject"]),
            50,
        ),
        Sweep("llava7b_heads", "llava7b", "every head at the last position", HEADS, None, on_request=True),
        Sweep(
            "llava7b_modules",
            "llava7b",
            "MLP and attention outputs at every text token",
            MODULES,
            None,
            on_request=True,
        ),
    ]
    if small or device != "cpu":
        every = [replace(sweep, target=None, notice_target=None) for sweep in every]
    return {sweep.name: sweep for sweep in every}
