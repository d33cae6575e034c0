"""Sections of a spec: the model, and what corrupts (the pairs' are their datasets'); and how values are written."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vlm_patching.pairs import CORRUPTED_INPUT, IMAGE_CORRUPTIONS
from vlm_patching.validation import Section, one_of, repeated

MAX_DRAWS = 10_000
DTYPE_NAMES = ("float32", "float16", "bfloat16")
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
"""No others: transformers takes a hub id for a name, and runs the code that is there."""
MASKED: tuple[Attention, ...] = ("eager", "sdpa")
"""Those that take any additive mask."""
Quantization = Literal["4bit", "8bit"]


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = repeated(values)
    if twice:
        raise ValueError(f"names {twice[0]!r} twice.")
    return values


def _numbers(value: Any) -> str | tuple[int, ...]:
    """`all`, "start:stop" with start < stop, or a list of numbers."""
    allowed = "give 'all', a list of whole numbers, or 'start:stop' with start < stop"
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+):(\d+)", value)
        if value != "all" and not (found and int(found[1]) < int(found[2])):
            raise ValueError(f"{value!r} is not understood; {allowed}.")
        return value
    if not isinstance(value, list | tuple) or any(type(number) is not int for number in value):
        raise ValueError(f"{value!r} is not understood; {allowed}.")
    if not value:
        raise ValueError(f"is empty; {allowed}.")
    return unique(tuple(value))


def _selectors(value: Any) -> tuple[str | int, ...]:
    """Group names and token indices; one name may stand alone."""
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or any(type(item) not in (int, str) for item in value):
        raise ValueError(f"{value!r} is not understood; give a list of group names and token indices, or 'all'.")
    if not value:
        raise ValueError("is empty; give group names, token indices, or 'all'.")
    return unique(tuple(value))


Numbers = Annotated[str | tuple[int, ...], BeforeValidator(_numbers)]
Selectors = Annotated[tuple[str | int, ...], BeforeValidator(_selectors)]


class ModelSpec(Section):
    """Which model, and how it is loaded.

    Attributes
    ----------
    name
        Bundled name, local folder or hub id.
    revision
        Of a hub id: branch, tag or commit.
    family
        A family's file, for a model that none of the package's files is of; a relative path begins at the working
        directory.
    dtype
        What its numbers are. Metrics are computed in float32 whatever it is.
    device_map
        Where it is loaded to, as transformers takes it ("auto", "cuda:0").
    attn_implementation
        How attention is computed, as transformers calls it; its own choice (mostly sdpa) where not given. With one that
        takes no additive mask nothing can be blocked, and cells are not packed over a key-value prefix.
    quantization
        `4bit`, or (with float16) `8bit`, by bitsandbytes, while the weights are loaded.
    """

    name: str = Field(min_length=1)
    revision: str | None = None
    family: str | None = Field(default=None, min_length=1)
    dtype: str = "float32"
    device_map: str | None = None
    attn_implementation: Attention | None = None
    quantization: Quantization | None = None

    _dtype = field_validator("dtype")(one_of("dtype", DTYPE_NAMES))

    def describing(self) -> dict[str, Any]:
        """What `describe_model` takes beside the name."""
        return {"revision": self.revision, "family": self.family, "attn_implementation": self.attn_implementation}

    def loading(self) -> dict[str, Any]:
        """What `load_model` takes beside a description."""
        return {"dtype": self.dtype, "device_map": self.device_map, "quantization": self.quantization}


class FactorSpec(Section):
    """Multiplicative noise: the values are multiplied by N(mean, std²).

    Attributes
    ----------
    mean
        Of the factor.
    std
        Its standard deviation.
    """

    mean: float
    std: float = Field(gt=0)


class CorruptionSpec(Section):
    """What corrupts the corrupted run.

    Attributes
    ----------
    kind
        What is done.
    automatic
        Symmetric token replacement: choose other words of the same role and token count among the pairs', in place of
        the pairs' own corrupted texts.
    phrase
        Constraint replacement: what is put in the place of the span; the phrase of another pair where not given.
    site
        Noise: `image_embeds` (where not given), `pixels`, or the `token_embeds` of a span.
    span
        Noise at token_embeds: whose tokens; `subject` where not given. Constraint replacement: which span is replaced;
        `constraint` where not given.
    k
        Noise that is added: its standard deviation, in standard deviations of the clean values over all pairs,
        positions and dimensions together, as Meng et al. have it (where dimensions have offsets of their own, that is
        more than any of them varies by: `vp.diagnose` says how far it takes the model); 3 where nothing is given.
    std
        The same in absolute units, in place of k.
    multiplicative
        In place of k: multiply by N(mean, std²).
    scale
        In place of k: multiply by one number.
    draws
        Noise: how many seeded draws; every cell of a pair gets the same ones. 10 where not given.
    color
        Of `blank_image`: red, green, blue, 0 to 255; black where not given.
    radius
        Of `blurred_image`, in pixels; a tenth of the shorter side where not given.
    grid
        Of `shuffled_image`: patches a side; 4 where not given.
    region
        Of `masked_region`: which region of the pair is painted over; `object` where not given.
    """

    kind: str
    automatic: Literal[True] | None = None
    phrase: str | None = Field(default=None, min_length=1)
    site: Literal["image_embeds", "pixels", "token_embeds"] | None = None
    span: str | None = None
    k: float | None = Field(default=None, gt=0)
    std: float | None = Field(default=None, gt=0)
    multiplicative: FactorSpec | None = None
    scale: float | None = None
    draws: int | None = Field(default=None, ge=1, le=MAX_DRAWS)
    color: tuple[int, ...] | None = Field(default=None, min_length=3, max_length=3)
    radius: float | None = Field(default=None, gt=0)
    grid: int | None = Field(default=None, ge=2)
    region: str | None = None

    _kind = field_validator("kind")(one_of("corruption", CORRUPTED_INPUT))

    @model_validator(mode="after")
    def _settings_belong_to_the_kind(self) -> Self:
        own = _SETTINGS.get(self.kind, ())
        foreign = [name for name in self.settings() if name not in own]
        if foreign:
            owners = [kind for kind, names in _SETTINGS.items() if foreign[0] in names]
            raise ValueError(f"{', '.join(foreign)} belong to {' and '.join(owners)}, not to {self.kind}.")
        strengths = [name for name in ("k", "std", "multiplicative", "scale") if getattr(self, name) is not None]
        if len(strengths) > 1:
            raise ValueError(f"{' and '.join(strengths)} are each a strength of the noise; give either one, not both.")
        if self.scale is not None and self.draws is not None:
            raise ValueError("scale draws nothing; leave draws out.")
        if self.kind == "gaussian_noise" and self.span is not None and self.site != "token_embeds":
            raise ValueError("span is for noise at token_embeds.")
        return self

    def settings(self) -> dict[str, Any]:
        """The settings that were given."""
        return {name: value for name, value in self if name != "kind" and value is not None}


_SETTINGS: dict[str, tuple[str, ...]] = {
    "symmetric_token_replacement": ("automatic",),
    "constraint_replacement": ("span", "phrase"),
    "gaussian_noise": ("site", "span", "k", "std", "multiplicative", "scale", "draws"),
    **{kind: corruption.settings for kind, corruption in IMAGE_CORRUPTIONS.items()},
}
