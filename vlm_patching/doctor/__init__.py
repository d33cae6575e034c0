"""Can a model be used? Its map is held against its modules, one sample prompt, and small experiments at every site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from vlm_patching.doctor.checks import METRIC, Trial, attempt, causal_trial, tolerance, trials
from vlm_patching.doctor.engine import engine_rows, fusion
from vlm_patching.doctor.paint import misplaced
from vlm_patching.doctor.sample import position_rows, sample_pair
from vlm_patching.doctor.sites import forward, odd_places, patterns, site_rows, site_taps, stack_rows, widths
from vlm_patching.errors import SpecError
from vlm_patching.inputs import EncodedPair, encode_pair
from vlm_patching.models import ModelDescription
from vlm_patching.models.blank import meta_module, random_module
from vlm_patching.models.families import Family, UnknownFamilyError, find_family, parse_family, read_family
from vlm_patching.models.families.writing import doubts
from vlm_patching.models.fit import misfits
from vlm_patching.models.load import describe_source, load_module, wrap
from vlm_patching.models.proposal import propose
from vlm_patching.models.sources import Source, read_source
from vlm_patching.results.provenance import image_processor
from vlm_patching.sections import ModelSpec

Weights = Literal["load", "random", "none"]


@dataclass
class Report:
    """What was found of a model.

    Attributes
    ----------
    about
        The model, its family's file, its class, how it was loaded, how image and text meet.
    stacks, sites, engine, positions, checks
        Tables.
    problems
        What keeps it from being used.
    notes
        What does not, and should be known.
    proposed
        The file that was proposed, where no family is known; and what in it is to be looked at.
    """

    name: str
    about: dict[str, str]
    weights: Weights
    stacks: list[dict[str, Any]] = field(default_factory=list)
    sites: list[dict[str, Any]] = field(default_factory=list)
    engine: list[dict[str, Any]] = field(default_factory=list)
    positions: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    proposed: Path | None = None

    @property
    def usable(self) -> bool:
        """Whether nothing speaks against it, as far as was looked."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """One line."""
        file = f" with --family {self.proposed}" if self.proposed else ""
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"{self.name} cannot be used{file}: {self.problems[0]}{more}"
        if self.weights == "none":
            return (
                f"{self.name} fits its map{file}: {len(self.sites)} sites are there. No check was run without weights."
            )
        weights = " (of random weights)" if self.weights == "random" else ""
        look = "; look at what its comments call uncertain first" if self.proposed else ""
        return f"{self.name} can be used{file}: {len(self.sites)} sites, {len(self.checks)} checks hold{weights}{look}."

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        fields = ("about", "weights", "stacks", "sites", "engine", "positions", "checks", "problems", "notes")
        proposed = None if self.proposed is None else str(self.proposed)
        data = {"name": self.name, **{name: getattr(self, name) for name in fields}}
        return data | {"proposed": proposed, "usable": self.usable, "verdict": self.verdict}


def examine(
    spec: ModelSpec,
    weights: Weights = "load",
    propose_to: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Look at a model from all sides.

    Parameters
    ----------
    spec
        The model, and how it is loaded.
    weights
        `load` them; draw `random` ones, for a map that is to be tried without them; or `none`: the model is made on
        torch's meta device, and nothing is run.
    propose_to
        Where a file is written for a model of no known family; `MODEL_TYPE.yaml` where not given.
    say
        Takes a word on what is being done.

    Returns
    -------
    Report
        Its `usable` says whether everything holds.

    Raises
    ------
    SpecError
        The model, or its family's file, cannot be read, or does not fit.
    """
    if weights != "load" and spec.loading() != ModelSpec(name=spec.name).loading():
        raise SpecError("dtype, device_map and quantization are of weights that are loaded.")
    own = read_family(spec.family) if spec.family else None
    source, proposed = read_source(spec.name, spec.revision), None
    try:
        family = own or find_family(source.config)
    except UnknownFamilyError:
        say("no family is known: proposing one")
        family, proposed = _proposed(source, propose_to)
    description = describe_source(source, family, spec.attn_implementation)
    report = Report(spec.name, _about(description), weights, proposed=proposed)
    if proposed:
        report.notes += doubts(family.text)
    report.engine = engine_rows(description.architecture, spec.attn_implementation)
    say("making the model")
    module = _module(description, spec, weights)
    report.about["class"] = f"{type(module).__name__}, {sum(w.numel() for w in module.parameters()):,} parameters"
    wrong = misfits(module, description.architecture)
    report.problems += wrong.values()
    encoded = _sample(report, description)
    shapes: dict[str, tuple[int, ...]] = {}
    if encoded is not None and not wrong and weights != "none":
        say("one forward pass")
        shapes = _shapes(report, description, module, encoded)
    known = shapes or ({} if wrong else widths(description.architecture, module))
    report.stacks = stack_rows(description.architecture, known)
    report.sites = site_rows(description.architecture, module, wrong, shapes)
    if encoded is not None and not report.problems and weights != "none":
        _check(report, description, spec, module, encoded, say)
    return report


def _proposed(source: Source, path: Path | None) -> tuple[Family, Path]:
    path = path or Path(f"{source.config.model_type}.yaml")
    if path.exists():
        raise SpecError(
            f"No family is known of {source.name!r}, and {path}, where a proposal would go, exists already: check it "
            f"with --family {path}, or name another by --output."
        )
    text = propose(source.config, source.processor)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"The proposal could not be written to {path}: {error}.") from error
    return parse_family(path.stem, text, path), path


def _about(description: ModelDescription) -> dict[str, str]:
    family, made = description.family, image_processor(description)
    where = str(family.path) if family.path else "of the package"
    pixels = f"{made['image_processor']} ({made['image_backend']})" if made["image_processor"] else "none"
    return {
        "model": description.name + (f" at {description.revision}" if description.revision else ""),
        "family": f"{family.name} ({where}, sha256 {family.digest[:12]})",
        "class": description.architecture.model_class,
        "image": fusion(description.architecture),
        "image processor": pixels,
        "processor": type(description.processor).__name__,
    }


def _module(description: ModelDescription, spec: ModelSpec, weights: Weights) -> torch.nn.Module:
    if weights == "load":
        return load_module(description, **spec.loading())
    made = meta_module if weights == "none" else random_module
    module: torch.nn.Module = made(
        description.architecture.model_class, description.config, description.attn_implementation
    )
    return module


def _sample(report: Report, description: ModelDescription) -> EncodedPair | None:
    encoded, wrong = attempt(lambda: encode_pair(sample_pair(description), description, ("clean",)))
    if encoded is None:
        report.problems.append(f"a sample prompt cannot be put: {wrong}")
        return None
    report.about["sample prompt"] = encoded.pair.clean.text
    report.positions = position_rows(encoded)
    return encoded


def _shapes(
    report: Report, description: ModelDescription, module: torch.nn.Module, encoded: EncodedPair
) -> dict[str, tuple[int, ...]]:
    """What comes by at every site in one forward pass, and whether it is as wide as what it is said to be."""
    taps, tensors = site_taps(description.architecture), encoded.inputs["clean"]
    found, wrong = attempt(lambda: forward(module, tensors, taps) | patterns(module, tensors, description.architecture))
    if found is None:
        report.problems.append(f"a forward pass of the sample prompt fails: {wrong}")
        return {}
    for site, value in found.items():
        if not isinstance(value, torch.Tensor):
            report.problems.append(f"{site} is no tensor, but {type(value).__name__}: `part` says which is meant")
    for site in taps.keys() - found.keys():
        report.problems.append(f"{site}: nothing comes by at {taps[site][0].path} in a forward pass")
    shapes = {site: tuple(value.shape) for site, value in found.items() if isinstance(value, torch.Tensor)}
    report.problems += odd_places(description.architecture, shapes)
    image, order = description.architecture.image, list(found)
    if image is not None and {"image_embeds", "token_embeds"} <= set(order):
        first = order.index("image_embeds") < order.index("token_embeds")
        if first != image.before_tokens:
            report.notes.append(f"`image.before_tokens: {str(first).lower()}` is how the forward pass goes")
    for stack in description.architecture.stacks:
        residual, hidden = (shapes.get(f"{stack.name}.{name}", (name,))[-1] for name in ("resid_post", "mlp_neuron"))
        if residual == hidden:
            report.notes.append(f"{stack.name}.mlp_neuron is as wide as the residual stream: is `mlp` a whole MLP?")
    if not report.problems and encoded.pair.clean.images:
        odd, wrong = attempt(lambda: misplaced(module, description, encoded))
        report.problems += odd or []
        report.notes += [f"which position shows which part of a picture could not be tried: {wrong}"] if wrong else []
    return shapes


def _check(
    report: Report,
    description: ModelDescription,
    spec: ModelSpec,
    module: torch.nn.Module,
    encoded: EncodedPair,
    say: Callable[[str], None],
) -> None:
    """The trust checks, at every site."""
    say("weighing the weights")
    model = wrap(module, description, spec.quantization if report.weights == "load" else None)
    report.about["attention"] = model.attn_implementation
    how = (model.dtype, str(model.device), model.quantization)
    report.about["dtype, device"] = ", ".join(part for part in how if part)
    pair, done = encoded.pair, list[Trial]()
    for trial in trials(model, pair, encoded):
        done.append(trial)
        say(f"{trial.method} {trial.site}")
    done += causal_trial(model, encoded)
    report.checks = [trial.row() for trial in done]
    report.problems += [f"{trial.method} of {trial.site}: {trial.wrong}" for trial in done if trial.wrong]
    if report.problems:
        return
    apart = max(trial.apart for trial in done if trial.apart is not None)
    report.about["total effect"] = f"{apart:.3g} ({METRIC} of the sample pair's two runs)"
    if apart <= 10 * tolerance(model):
        report.notes.append(f"the sample pair's two runs are {apart:.2g} apart: checks of so small effects say little")
    still = sorted(
        trial.site for trial in done if trial.method == "patch" and (trial.effect or 0) <= tolerance(model) / 10
    )
    if still:
        report.notes.append(f"patching changes nothing at {', '.join(still)}")
