"""`Experiment`: the frozen spec. YAML and JSON in and out; its content hash is its identity."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from vlm_patching.errors import SpecError, nearest
from vlm_patching.figures import FIGURES, FigureSpec, drawn_by
from vlm_patching.metrics import METRICS
from vlm_patching.pairs import DATASETS, PairsSpec, pairs_keys
from vlm_patching.sections import CorruptionSpec, ModelSpec, unique
from vlm_patching.sweeps import (
    METHOD_SECTIONS,
    NEED_CORRUPTION,
    AblateSpec,
    AttentionSpec,
    KnockoutSpec,
    LensSpec,
    PatchSpec,
    PathSpec,
    SteerSpec,
)
from vlm_patching.validation import Section, explain, one_of, parse_json, parse_yaml, read_text

if TYPE_CHECKING:
    from vlm_patching.graph import InterventionGraph

_DESCRIPTIVE = {"name", "source", "deviations", "figures"}


class Experiment(Section):
    """One experiment, whole: which model, pairs, corruption, method and metrics.

    Attributes
    ----------
    name
        What results and figures are called.
    model
        Which model, and how it is loaded.
    pairs
        Which pairs of prompts.
    corruption
        What corrupts the corrupted run; for methods that have one (patch, path, steer).
    patch, knockout, ablate, steer, path, lens, attention
        What is done: exactly one of them.
    metrics
        What is measured of every run.
    seed
        Noise, and the words and pictures that corruptions draw, are derived from it.
    source
        The publication it follows.
    deviations
        Where it departs from that on purpose, a sentence each.
    figures
        What its results are drawn as; where none are named, as its method asks for. Numbers do not depend on it.

    Examples
    --------
    >>> experiment = Experiment.from_spec("palit2023")
    >>> experiment.model.name
    'shapes-blip'
    """

    name: str = Field(min_length=1)
    model: ModelSpec
    pairs: PairsSpec
    corruption: CorruptionSpec | None = None
    patch: PatchSpec | None = None
    knockout: KnockoutSpec | None = None
    ablate: AblateSpec | None = None
    steer: SteerSpec | None = None
    path: PathSpec | None = None
    lens: LensSpec | None = None
    attention: AttentionSpec | None = None
    metrics: tuple[str, ...] = Field(default=("probability", "logit_difference"), min_length=1)
    seed: int = 0
    source: str | None = None
    deviations: tuple[str, ...] = ()
    figures: tuple[FigureSpec, ...] = ()

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            one_of("metric", METRICS)(name)
        return unique(names)

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        given = [name for name in METHOD_SECTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one section says what is done, out of {', '.join(METHOD_SECTIONS)}; {' and '.join(given) or 'none'} "
                f"{'are' if len(given) > 1 else 'is'} given."
            )
        needed = given[0] in NEED_CORRUPTION or (self.steer is not None and self.steer.needs_corruption)
        if needed and self.corruption is None:
            raise ValueError(f"{given[0]} compares with a corrupted run; the section corruption says what corrupts it.")
        if not needed and self.corruption is not None:
            raise ValueError(f"{given[0]} is done to the clean run alone; leave corruption out.")
        return self

    @model_validator(mode="after")
    def _figures_are_of_the_method(self) -> Self:
        for each in self.figures:
            methods = FIGURES[each.figure].methods
            if self.method not in methods:
                raise ValueError(
                    f"figures: {each.figure} draws {', '.join(methods)}, and this experiment's method is "
                    f"{self.method}, which {', '.join(drawn_by(self.method))} draw."
                )
        return self

    @property
    def method(self) -> str:
        """The name of the section that says what is done."""
        return next(name for name in METHOD_SECTIONS if getattr(self, name) is not None)

    @classmethod
    def from_dict(cls, data: Any, where: str = "experiment") -> Experiment:
        """Check a mapping and make the experiment of it; `SpecError` names the field, the value and what is allowed."""
        if not isinstance(data, Mapping):
            known = ", ".join(cls.model_fields)
            raise SpecError(f"{where}: a mapping with the keys {known} is expected, not {data!r}.")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(f"{where}: {explain(error, _keys_at, DATASETS)}") from error

    @classmethod
    def from_yaml(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> Experiment:
        """Read a YAML (or JSON) file. `changes` maps dotted keys ("pairs.n") to values that replace the file's."""
        path = Path(path)
        if not os.path.isfile(path):
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
        if os.path.isfile(spec):
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
        """A spec file's text; `from_yaml` reads it back."""
        data = self.to_dict()
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        if parse_yaml(text, "YAML") != data:  # rare characters, such as U+0085, survive only as escapes
            text = yaml.safe_dump(data, sort_keys=False)
        return text

    def to_json(self) -> str:
        """The same as JSON."""
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

        return lower(self, describe_model(self.model.name, **self.model.describing()).architecture)


def _changed(data: Any, keys: list[str], value: Any, whole: str) -> Any:
    if data is not None and not isinstance(data, Mapping):
        raise SpecError(f"Cannot set {whole}: {keys[0]!r} would go into {data!r}, which is not a mapping.")
    data = dict(data or {})
    data[keys[0]] = value if len(keys) == 1 else _changed(data.get(keys[0]), keys[1:], value, whole)
    return data


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """The keys of the section at a location of the spec."""
    if location[:1] == ("pairs",):
        return pairs_keys(location)
    section: Any = Experiment
    for part in location:
        if part in section.model_fields:  # other parts name the member of a union
            section = section.model_fields[part].annotation
            section = next((kind for kind in get_args(section) if hasattr(kind, "model_fields")), section)
    return list(section.model_fields)
