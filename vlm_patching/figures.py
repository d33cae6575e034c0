"""The figures that results can be drawn as: one table, without anything that draws. `plots/` has a function for each.

A figure is added by adding its row here and a function of its name to `plots/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue

from vlm_patching.errors import nearest
from vlm_patching.metrics import METRICS
from vlm_patching.sections import Section
from vlm_patching.validation import one_of

EFFECTS = ("patch", "path", "ablate", "steer")
"""Methods whose cells have an effect."""


@dataclass(frozen=True)
class Kind:
    """One kind of figure.

    Attributes
    ----------
    about
        What it shows, in a line.
    methods
        The methods whose datasets it draws.
    arguments
        What `FigureSpec` may say of it: the names of its function's keyword arguments.
    follows
        The publication whose form it has.
    pictures
        Whether it is drawn over an example's picture, which a dataset does not hold.
    """

    about: str
    methods: tuple[str, ...]
    arguments: tuple[str, ...]
    follows: str = ""
    pictures: bool = False


_PANEL = ("site", "window", "strength")
_MAP = (*_PANEL, "normalize", "scale", "layers", "mark", "limit")

FIGURES: dict[str, Kind] = {
    "heatmap": Kind(
        "mean effect of every layer × position",
        EFFECTS,
        ("metric", *_MAP, "patches"),
        "Meng et al. 2022, Palit et al. 2023 and Golovanevsky et al. 2024 (`layers: x`, `scale: metric` or `minmax`)",
    ),
    "heads": Kind(
        "mean effect of every layer × head, those that stand out outlined",
        EFFECTS,
        ("metric", "position", *_MAP),
        "Golovanevsky et al. 2024",
    ),
    "head_function": Kind(
        "what every head looks at in the picture, in one number",
        ("attention",),
        ("statistic", "site", "position", "region", "layers", "limit"),
    ),
    "universal_heads": Kind(
        "heads that matter in every task, by the published and by the tested rule",
        EFFECTS,
        ("metric", "site", "position", "layers", "limit"),
        "Golovanevsky et al. 2024",
    ),
    "lines": Kind(
        "effect over layers, a line for each position (or site, window, strength, head), with its 95 % interval",
        (*EFFECTS, "knockout"),
        ("metric", "by", "position", *_PANEL, "head", "normalize", "patches"),
        "Meng et al. 2022; of knockouts Zhang et al. 2024",
    ),
    "knockout": Kind(
        "percent of the answer's probability that blocked attention takes, over layers, a line for each set of edges",
        ("knockout",),
        ("metric", "site", "window"),
        "Zhang et al. 2024",
    ),
    "windows": Kind(
        "effect over layers, a line for each width of the window, beside the sum of its single layers",
        EFFECTS,
        ("metric", "site", "position", "normalize", "sums"),
        "Basu et al. 2024 (ΔP); Zhang & Nanda 2023 (sums)",
    ),
    "lens": Kind(
        "what the residual stream says of the answer at every layer",
        ("lens",),
        ("metric", "site", "position"),
        "nostalgebraist 2020",
    ),
    "distribution": Kind(
        "every example's effect, of the strongest cells or of chosen ones",
        EFFECTS,
        ("metric", "position", *_PANEL, "layer", "head", "normalize", "top", "limit"),
    ),
    "compare": Kind(
        "two maps side by side, and cell against cell with their rank agreement",
        EFFECTS,
        ("metric", "other_metric", "site", "position", "window", "strength", "normalize"),
        "Zhang & Nanda 2023",
    ),
    "image": Kind(
        "what single patches do, over the picture they are of",
        EFFECTS,
        ("metric", "example", *_PANEL, "layer", "head", "normalize", "region", "limit"),
        pictures=True,
    ),
    "attention": Kind(
        "where in the picture a head looks, more or less than the mean of all heads",
        ("attention",),
        ("example", "site", "position", "layer", "head", "top", "minus_mean", "region", "limit"),
        "Golovanevsky et al. 2024",
        pictures=True,
    ),
    "corruptions": Kind(
        "what corruptions do before anything is patched: flips, total effects, how far activations move",
        ("diagnose",),
        ("metric", "quantity", "site"),
        "Zhang & Nanda 2023",
    ),
}
"""Name → what it draws."""


def drawn_by(method: str) -> list[str]:
    """The figures that draw what a method gives."""
    return [name for name, kind in FIGURES.items() if method in kind.methods]


def _names(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class FigureSpec(Section):
    """One figure of a spec's list `figures`: its name alone, or a mapping with what it is to be drawn by.

    Attributes
    ----------
    figure
        A name out of `FIGURES`.
    metric, other_metric
        Which metric's effect; what it is compared with.
    site, window, strength, layer, head, example
        Only this one.
    position
        Only this one; of lines and windows also several.
    normalize
        Shares of the total effect.
    scale
        Of maps: the `effect`; the `metric` itself, from the corrupted run's upwards; `minmax`, every panel from 0 to 1.
    layers
        Of maps: layers on the `y` axis, the lowest at the bottom; or on `x`, positions in reading order from the top.
    patches
        Of many single patches: `expanded`, `block`, `rows`, `regions`, or `auto`.
    mark
        Outline cells that stand out.
    limit
        End of the colour scale, or of the axis of effects.
    by
        Lines: what a line is for.
    sums
        Windows: beside each the sum of its single layers.
    top
        How many cells, or heads, where none are named.
    statistic
        Head functions: which number.
    minus_mean, region
        Attention: take off the mean of all heads. Which region is framed, or pointed at.
    quantity
        Corruptions: only this one.
    """

    figure: str
    metric: str | None = None
    other_metric: str | None = None
    site: str | None = None
    position: Annotated[str | tuple[str, ...] | None, BeforeValidator(_names)] = None
    window: int | None = Field(default=None, ge=1)
    strength: float | None = None
    layer: int | None = Field(default=None, ge=0)
    head: int | None = Field(default=None, ge=0)
    example: str | None = None
    normalize: bool | None = None
    scale: Literal["effect", "metric", "minmax"] | None = None
    layers: Literal["y", "x"] | None = None
    patches: Literal["auto", "expanded", "block", "rows", "regions"] | None = None
    mark: bool | None = None
    limit: float | None = Field(default=None, gt=0, lt=1e30)
    by: Literal["position", "site", "window", "strength", "head", "edges"] | None = None
    sums: bool | None = None
    top: int | None = Field(default=None, ge=1)
    statistic: Literal["mass", "pointing_ratio", "top_k_share", "entropy"] | None = None
    minus_mean: bool | None = None
    region: str | None = None
    quantity: Literal["flipped", "total_effect", "moved", "spread"] | None = None

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "enum": list(FIGURES)}, handler(core)]}

    _figure = field_validator("figure")(one_of("figure", FIGURES))

    @model_validator(mode="before")
    @classmethod
    def _a_name_stands_for_its_figure(cls, value: Any) -> Any:
        return {"figure": value} if isinstance(value, str) else value

    @field_validator("metric", "other_metric")
    @classmethod
    def _known_metrics(cls, name: str | None) -> str | None:
        return name if name is None else one_of("metric", METRICS)(name)

    @model_validator(mode="after")
    def _arguments_are_the_figures_own(self) -> Self:
        own = FIGURES[self.figure].arguments
        foreign = [name for name in self.arguments() if name not in own]
        if foreign:
            raise ValueError(
                f"{self.figure} takes no {foreign[0]}.{nearest(foreign[0], own)} It takes: {', '.join(own)}."
            )
        if isinstance(self.position, tuple) and self.figure not in ("lines", "windows", "lens"):
            raise ValueError(f"{self.figure} takes one position, not {len(self.position)}.")
        return self

    def arguments(self) -> dict[str, Any]:
        """What was given beside the figure's name."""
        return {name: value for name, value in self if name != "figure" and value is not None}
