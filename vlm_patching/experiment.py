"""`Experiment`: the frozen spec. YAML and JSON in and out; its content hash is its identity."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from vlm_patching.errors import SpecError, nearest
from vlm_patching.metrics import METRICS
from vlm_patching.pairs import CORRUPTED_INPUT, DATASETS, IMAGE_CORRUPTIONS
from vlm_patching.validation import explain, one_of, parse_json, parse_yaml, read_text

if TYPE_CHECKING:
    from vlm_patching.graph import InterventionGraph

DTYPE_NAMES = ("float32", "float16", "bfloat16")
_DESCRIPTIVE = {"name", "source", "deviations"}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"names {value!r} twice.")
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
    return _unique(tuple(value))


def _selectors(value: Any) -> tuple[str | int, ...]:
    """Group names and token indices; one name may stand alone."""
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or any(type(item) not in (int, str) for item in value):
        raise ValueError(f"{value!r} is not understood; give a list of group names and token indices, or 'all'.")
    if not value:
        raise ValueError("is empty; give group names, token indices, or 'all'.")
    return _unique(tuple(value))


Numbers = Annotated[str | tuple[int, ...], BeforeValidator(_numbers)]
Selectors = Annotated[tuple[str | int, ...], BeforeValidator(_selectors)]


class ModelSpec(_Section):
    """Which model: bundled name, local folder or hub id; its revision, dtype, and transformers' device_map."""

    name: str = Field(min_length=1)
    revision: str | None = None
    dtype: str = "float32"
    device_map: str | None = None

    _dtype = field_validator("dtype")(one_of("dtype", DTYPE_NAMES))


class PairsSpec(_Section):
    """Which pairs.

    Attributes
    ----------
    dataset, n, seed
        As `load_pairs` takes them.
    keep
        `clean_correct`: sweep only pairs whose clean run answers right. `clean_correct_corrupted_wrong`: and whose
        corrupted run does not. `all`: every pair.
    path
        Dataset folder: where the pairs are.
    questions, aligned
        Dataset shapes: kinds of question; same length within a kind.
    """

    dataset: str
    n: int | None = Field(default=None, ge=1)
    seed: int = 0
    keep: Literal["clean_correct", "all", "clean_correct_corrupted_wrong"] = "clean_correct"
    path: str | None = None
    questions: tuple[str, ...] | None = None
    aligned: bool | None = None

    _dataset = field_validator("dataset")(one_of("dataset", DATASETS))

    def options(self) -> dict[str, Any]:
        """The dataset's own options that were given."""
        given = {"path": self.path, "questions": self.questions, "aligned": self.aligned}
        return {name: value for name, value in given.items() if value is not None}


class FactorSpec(_Section):
    """Multiplicative noise: the values are multiplied by N(mean, std²)."""

    mean: float
    std: float = Field(gt=0)


class CorruptionSpec(_Section):
    """What corrupts the corrupted run.

    Attributes
    ----------
    kind
        `semantic_image_pair`, `symmetric_token_replacement`, `gaussian_noise`, or a name out of `IMAGE_CORRUPTIONS`.
    site
        Noise: `image_embeds` (where not given), `pixels`, or the `token_embeds` of a span.
    span
        Noise at token_embeds: whose tokens; `subject` where not given.
    k
        Noise that is added: its standard deviation, in standard deviations of the clean values over all pairs; 3 where
        nothing is given.
    std
        The same in absolute units, in place of k.
    multiplicative, scale
        In place of k: multiply by N(mean, std²), or by one number.
    draws
        Noise: how many seeded draws; every cell of a pair gets the same ones.
    color, radius, grid, region
        Of `blank_image`, `blurred_image` (pixels), `shuffled_image` (patches a side), `masked_region`.
    """

    kind: str
    site: Literal["image_embeds", "pixels", "token_embeds"] | None = None
    span: str | None = None
    k: float | None = Field(default=None, gt=0)
    std: float | None = Field(default=None, gt=0)
    multiplicative: FactorSpec | None = None
    scale: float | None = None
    draws: int | None = Field(default=None, ge=1)
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
        if self.span is not None and self.site != "token_embeds":
            raise ValueError("span is for noise at token_embeds.")
        return self

    def settings(self) -> dict[str, Any]:
        """The settings that were given."""
        return {name: value for name, value in self if name != "kind" and value is not None}


_SETTINGS: dict[str, tuple[str, ...]] = {
    "gaussian_noise": ("site", "span", "k", "std", "multiplicative", "scale", "draws"),
    **{kind: corruption.settings for kind, corruption in IMAGE_CORRUPTIONS.items()},
}


class PatchSpec(_Section):
    """What is swept: every site × layer × head × position, one cell at a time.

    Attributes
    ----------
    sites
        As ``stack.component``.
    layers, heads
        `all`, a list, or "start:stop".
    positions
        Selectors of `vlm_patching.positions`: group names, ``each:`` a group, indices, or `all`.
    window
        How many layers around each are patched together.
    direction
        `denoise`: clean values into the corrupted run. `noise`: corrupted values into the clean run.
    """

    sites: tuple[str, ...] = Field(min_length=1)
    layers: Numbers = "all"
    heads: Numbers = "all"
    positions: Selectors = ("last",)
    window: int = Field(default=1, ge=1)
    direction: Literal["denoise", "noise"] = "denoise"

    _no_repeated_sites = field_validator("sites")(_unique)


class Experiment(_Section):
    """One experiment, whole: which model, pairs, corruption, sweep and metrics.

    Attributes
    ----------
    name
        What results and figures are called.
    source, deviations
        The publication it follows, and where it departs from it on purpose.

    Examples
    --------
    >>> experiment = Experiment.from_spec("palit2023")
    >>> experiment.model.name
    'shapes-blip'
    """

    name: str = Field(min_length=1)
    model: ModelSpec
    pairs: PairsSpec
    corruption: CorruptionSpec
    patch: PatchSpec
    metrics: tuple[str, ...] = Field(default=("probability", "logit_difference"), min_length=1)
    seed: int = 0
    source: str | None = None
    deviations: tuple[str, ...] = ()

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            one_of("metric", METRICS)(name)
        return _unique(names)

    @classmethod
    def from_dict(cls, data: Any, where: str = "experiment") -> Experiment:
        """Check a mapping and make the experiment of it; `SpecError` names the field, the value and what is allowed."""
        if not isinstance(data, Mapping):
            known = ", ".join(cls.model_fields)
            raise SpecError(f"{where}: a mapping with the keys {known} is expected, not {data!r}.")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(f"{where}: {explain(error, _keys_at)}") from error

    @classmethod
    def from_yaml(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> Experiment:
        """Read a YAML (or JSON) file. `changes` maps dotted keys ("pairs.n") to values that replace the file's."""
        path = Path(path)
        if not _is_file(path):
            raise SpecError(f"Spec file {path} does not exist.")
        parse = parse_json if path.suffix == ".json" else parse_yaml
        return cls._from_data(parse(read_text(path), str(path)), str(path), changes)

    @classmethod
    def from_spec(cls, spec: str | Path, changes: Mapping[str, Any] | None = None) -> Experiment:
        """Read a preset by its name, or a YAML file by its path."""
        from vlm_patching.catalog import presets

        known = presets()
        if str(spec) in known:
            return cls.from_yaml(known[str(spec)], changes)
        if _is_file(Path(spec)):
            return cls.from_yaml(spec, changes)
        raise SpecError(
            f"{str(spec)!r} is neither a file nor a preset.{nearest(spec, known)} Presets: {', '.join(known)}."
        )

    @classmethod
    def _from_data(cls, data: Any, where: str, changes: Mapping[str, Any] | None) -> Experiment:
        for key, value in (changes or {}).items():
            data = _changed(data, key.split("."), value, key)
        return cls.from_dict(data, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; settings that were left out stay out."""
        data: dict[str, Any] = json.loads(self.model_dump_json(exclude_none=True))
        return data

    def to_yaml(self) -> str:
        data = self.to_dict()
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        if parse_yaml(text, "YAML") != data:  # rare characters, such as U+0085, survive only as escapes
            text = yaml.safe_dump(data, sort_keys=False)
        return text

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Experiment:
        """The inverse of `to_json`."""
        return cls.from_dict(parse_json(text, "The experiment"))

    @property
    def id(self) -> str:
        """Content hash over all that decides the numbers: 16 hexadecimal digits."""
        content = {key: value for key, value in self.to_dict().items() if key not in _DESCRIPTIVE}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def graph(self) -> InterventionGraph:
        """The deferred intervention graph of this experiment, resolved against its model's architecture.

        Needs the model's configuration, not its weights.
        """
        from vlm_patching.graph.lower import lower
        from vlm_patching.models import describe_model

        return lower(self, describe_model(self.model.name, self.model.revision).architecture)


def _changed(data: Any, keys: list[str], value: Any, whole: str) -> Any:
    if data is not None and not isinstance(data, Mapping):
        raise SpecError(f"Cannot set {whole}: {keys[0]!r} would go into {data!r}, which is not a mapping.")
    data = dict(data or {})
    data[keys[0]] = value if len(keys) == 1 else _changed(data.get(keys[0]), keys[1:], value, whole)
    return data


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """The keys of the section at a location of the spec."""
    section: Any = Experiment
    for part in location:
        section = section.model_fields[part].annotation
        section = next((kind for kind in get_args(section) if kind is not type(None)), section)
    return list(section.model_fields)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
