"""Every trust check, on a real small experiment at every site; and what no single experiment holds against a map."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import xarray as xr

from vlm_patching.doctor.sites import first_layer, forward, layers_with
from vlm_patching.errors import CheckError, RunError, SpecError
from vlm_patching.experiment import Experiment
from vlm_patching.inputs import EncodedPair
from vlm_patching.models import HEAD_COMPONENTS, IMAGE_STACKS, Architecture, Model, Stack
from vlm_patching.pairs import Pair
from vlm_patching.pipeline import run
from vlm_patching.results.checks import TOLERANCES, precision

METRIC = "logit_difference"
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """What one small experiment at a site found.

    Attributes
    ----------
    site, method
        What was done, and where.
    differences
        Trust check → how far off it is, in logits or attention.
    effect, apart
        The most that a cell changes the logit difference, and how far it is apart in the clean and the corrupted run;
        None where nothing is changed.
    wrong
        What failed; "" where all checks hold.
    """

    site: str
    method: str
    differences: dict[str, float] = field(default_factory=dict)
    effect: float | None = None
    apart: float | None = None
    wrong: str = ""

    def row(self) -> dict[str, Any]:
        """For a table."""
        held = ", ".join(f"{name} {value:.0e}" for name, value in self.differences.items())
        effect = "" if self.effect is None else f"{self.effect:.3g}"
        return {
            "site": self.site,
            "method": self.method,
            "passed": not self.wrong,
            "checks": f"FAILED: {self.wrong}" if self.wrong else held,
            "effect": effect,
        }


def tolerance(model: Model) -> float:
    """How far two logits may be apart that ought to be the same."""
    return TOLERANCES[precision(model.dtype, model.quantization)][1]


def attempt(make: Callable[[], T]) -> tuple[T | None, str]:
    """What comes of something that a wrong map may make fail in any way; None, and why, where it does."""
    try:
        return make(), ""
    except CheckError as error:
        return None, str(error).removeprefix("Trust check failed: ")
    except (SpecError, RunError) as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - whatever a model does when it is read or changed in a wrong place
        return None, f"{type(error).__name__}: {(str(error).strip() or 'no more is said').splitlines()[-1]}"


def trials(model: Model, pair: Pair, encoded: EncodedPair) -> Iterator[Trial]:
    """A little sweep over every site, every attention pattern, and every unembedding."""
    architecture, effects = model.description.architecture, dict[str, float]()
    for site in architecture.sites():
        stack, component = architecture.locate(site)
        if layers_with(stack, component) == "none":
            continue
        section = {
            "sites": [site],
            "layers": _layers(stack, component),
            "positions": _positions(encoded, stack, architecture),
            **({"heads": sorted({0, stack.heads - 1})} if component in HEAD_COMPONENTS else {}),
        }
        trial = _tried(model, pair, site, "patch", section)
        effects[site] = trial.effect or 0
        yield trial
    for site in architecture.pattern_sites():
        stack, attention = architecture.attention(site)
        component = site.split(".")[1]
        if layers_with(stack, component) == "none":
            continue
        common = {"sites": [site], "layers": _layers(stack, component)}
        last = _positions(encoded, stack, architecture)[-1]
        reading = {**common, "heads": [0], "positions": [last], "keys": "all"}
        yield _tried(model, pair, site, "attention", reading)
        if attention.mask is not None:
            section = {**common, "edges": [_edges(encoded, stack, attention.keys)]}
            trial = _tried(model, pair, site, "knockout", section)
            least, patched = tolerance(model) / 10, effects[site.replace("_pattern", "_out")]
            if not trial.wrong and least < 1e-4 and (trial.effect or 0) <= least and patched > 100 * least:
                wrong = "blocking keys changes nothing: `mask` may not be what the module takes its mask by"
                trial = replace(trial, wrong=wrong)
            yield trial
    for stack in architecture.stacks:
        if stack.unembed:
            at = [0, -1] if architecture.prompting.classes else [-1]  # classes are read at the first, or the last
            section = {"sites": [f"{stack.name}.resid_post"], "layers": [stack.last_layer], "positions": at}
            yield _tried(model, pair, f"{stack.name}.resid_post", "lens", section)


def _layers(stack: Stack, component: str) -> list[int]:
    """The first and the last layer that have a component, as far as anything reads them."""
    there = [layer for layer in range(stack.last_layer + 1) if stack.has(component, layer)]
    return sorted({there[0], there[-1]}) if there else [first_layer(stack, component)]


def _positions(encoded: EncodedPair, stack: Stack, architecture: Architecture) -> list[int]:
    """One of an image's positions (of the object that is asked about, if it can be), of the text one that differs in
    the other question, and the last."""
    found = encoded.positions[stack.name]
    images = [i for i, position in enumerate(found.positions) if position.modality == "image"]
    shown = [i for i in images if found.positions[i].role == "object"] or images
    here = shown[len(shown) // 2 : len(shown) // 2 + 1]
    if stack.name in (*IMAGE_STACKS, "image_embeds"):
        return here
    return [*here, *found.groups.get("answer_option", ())[:1], len(found.positions) - 1]


def _edges(encoded: EncodedPair, stack: Stack, keys: str) -> str:
    """From some of the keys, if it can be: where all are blocked, the engine does not rely on the mask."""
    known, groups = encoded.positions[keys], encoded.positions[stack.name].groups
    some = (name for name, indices in known.groups.items() if len(indices) < len(known.positions))
    return f"{next(some, 'all')} -> {'last' if 'last' in groups else next(iter(groups))}"


def _tried(model: Model, pair: Pair, site: str, method: str, section: dict[str, Any]) -> Trial:
    ds, wrong = attempt(lambda: _run(model, pair, site, method, section))
    if ds is None:
        return Trial(site, method, wrong=wrong)
    checks = json.loads(ds.attrs["checks"])
    differences = {}
    for name, value in checks.items():
        if isinstance(value, dict) and name != "tolerance":
            differences[name.removeprefix(f"{method} ")] = max(value.values())
        elif name == "read apart":
            differences[name] = value
    if method == "attention":
        return Trial(site, method, differences)
    base = ds[f"{METRIC}_{ds.attrs['base']}"]
    effect = float(abs(ds[METRIC] - base).max())
    if method == "lens":  # of the last layer: what the model itself says
        most, effect = tolerance(model), float(abs(ds[METRIC] - base).min())
        wrong = f"the last layer's lens is {effect:.3g} off the model's own logits (tolerance {most:g})"
        return Trial(site, method, differences | {"unembedding": effect}, wrong="" if effect <= most else wrong)
    apart = float(abs(ds[f"{METRIC}_clean"] - ds[f"{METRIC}_corrupted"]).max()) if method == "patch" else None
    return Trial(site, method, differences, effect, apart)


def _run(model: Model, pair: Pair, site: str, method: str, section: dict[str, Any]) -> xr.Dataset:
    has_image = bool(pair.clean.images)
    kind = "semantic_image_pair" if has_image and site != "token_embeds" else "symmetric_token_replacement"
    spec = {
        "name": "doctor",
        "model": {"name": model.description.name},
        "pairs": {"dataset": "shapes", "keep": "all"},
        method: section,
        "metrics": [METRIC],
        **({"corruption": {"kind": kind}} if method == "patch" else {}),
    }
    with warnings.catch_warnings(action="ignore"):
        return run(Experiment.from_dict(spec), model=model, inputs=[pair], progress=False)


def causal_trial(model: Model, encoded: EncodedPair) -> list[Trial]:
    """Whether positions of the text stack see later ones, where the map says that they do not."""
    architecture, module = model.description.architecture, model.envoy._module
    stack = architecture.stack(architecture.text_stack)
    attention = stack.attentions.get("attn_pattern")
    if attention is None or not attention.causal:
        return []
    site = f"{stack.name}.resid_post"
    tensors = dict(encoded.inputs["clean"])
    other = tensors["input_ids"].clone()
    marks = architecture.image.marks if architecture.image else ()
    words = [token for token in other[0].tolist() if token not in (int(other[0, -1]), *marks)]
    other[0, -1] = words[0]
    there = {site: (stack.taps["resid_post"], stack.last_layer)}
    runs = tensors, {**tensors, "input_ids": other}
    found, wrong = attempt(lambda: [forward(module, given, there)[site].float() for given in runs])
    if found is None:
        return [Trial(site, "causal", wrong=wrong)]
    moved = ((found[0] - found[1]).flatten(0, -2)[:-1].abs().max() / found[0].abs().max()).item()
    wrong = f"`causal: true`, but another last token moves what is before it by {moved:.3g}"
    sees = moved > min(tolerance(model), 0.05)  # as a share of the residual stream's largest number
    return [Trial(site, "causal", {"earlier positions": moved}, wrong=wrong if sees else "")]
