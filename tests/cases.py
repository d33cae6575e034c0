"""Models and pairs prepared for the oracle without the package's help, and how results are held against it.

The oracle gets its own inputs from the processor, its own token positions and its own noise; the package is only
asked for results.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import vlm_patching as vp
from tests.conftest import BUNDLED, RANDOM
from tests.oracle import patching as oracle
from vlm_patching.models import Model

NAMES = (*BUNDLED, *RANDOM)
TOLERANCE = {"probability": 1e-5, "log_probability": 1e-4, "logit_difference": 1e-4}
SEED = 11
DRAWS = 2
CORRUPTIONS: dict[str, dict[str, Any]] = {
    "semantic_image_pair": {"kind": "semantic_image_pair"},
    "symmetric_token_replacement": {"kind": "symmetric_token_replacement"},
    "gaussian_noise": {"kind": "gaussian_noise", "draws": DRAWS},
}
QUESTION = {"semantic_image_pair": "color_choice", "symmetric_token_replacement": "place", "gaussian_noise": "color"}
NOISE = 3.0
# What stands in the place of "small red object".
PHRASES = {"shorter": "red object", "longer": "object cyan red object"}

Inputs = dict[str, Tensor]
Cell = dict[str, Any]


def family(name: str) -> str:
    """The family of a test model, by its name."""
    return "blip" if "blip" in name else "llava"


@dataclass
class Case:
    """One model and one pair, prepared for the oracle without the package's help.

    Answer and foil are the words most likely in the clean and the corrupted run, so that effects are large whatever the
    weights; `noise` is in absolute units, `embeds` the shape of the image embeddings.
    """

    module: Any
    pair: vp.Pair
    inputs: dict[str, Inputs]
    answer: int
    foil: int
    columns: int
    tokenizer: Any
    noise: float
    embeds: torch.Size

    @property
    def text_stack(self) -> str:
        return "question_encoder" if hasattr(self.module, "text_encoder") else "language"

    def word_ids(self, words: str) -> list[int]:
        return list(self.tokenizer(words, add_special_tokens=False)["input_ids"])

    def indices(self, stack: str, label: str) -> list[int]:
        """Where a position group is, or one position by its label: "7", "r0c3", "cls"."""
        groups = self.groups(stack)
        if label in groups:
            return groups[label]
        if place := re.fullmatch(r"r(\d+)c(\d+)", label):
            return [groups["image"][int(place[1]) * self.columns + int(place[2])]]
        return [int(label)]

    def groups(self, stack: str) -> dict[str, list[int]]:
        """Every position group of a stack, found by looking."""
        if stack == "answer_decoder":
            return {"decoding": [0], "last": [0], "all": [0]}
        if stack in ("vision", "image_embeds"):
            front = 0 if stack == "image_embeds" and self.text_stack == "language" else 1
            found = self._image_groups(front) | {"all": list(range(front + self.columns**2))}
            return found | ({"cls": [0]} if front else {})
        ids = self.inputs["clean"]["input_ids"][0].tolist()
        found = self._text_groups(ids, self.pair.clean.text, self.pair.spans)
        if self.text_stack == "language":
            found |= self._image_groups(ids.index(self.module.config.image_token_id))
        return found

    def _text_groups(self, ids: list[int], text: str, spans: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
        question = self.word_ids(text)
        start = next(i for i in range(len(ids)) if ids[i : i + len(question)] == question)
        places = {"question": (0, len(text)), **spans}
        found = {"all": list(range(len(ids))), "last": [len(ids) - 1]}
        for name, (first, stop) in places.items():
            before, words = self.word_ids(text[:first]), self.word_ids(text[first:stop])
            found[name] = list(range(start + len(before), start + len(before) + len(words)))
        if "subject" in found:
            subject, after = found["subject"], list(range(found["subject"][-1] + 1, len(ids) - 1))
            found |= {"subject_first": subject[:1], "subject_middle": subject[1:-1], "subject_last": subject[-1:]}
            found |= {"first_subsequent": after[:1], "further": after[1:]}
        return found

    def _image_groups(self, start: int) -> dict[str, list[int]]:
        x0, y0, x1, y1 = self.pair.regions["object"]
        width, height = self.pair.clean.picture().size
        patch_w, patch_h = width / self.columns, height / self.columns
        inside: list[int] = []
        outside: list[int] = []
        for i, (r, c) in enumerate(product(range(self.columns), repeat=2)):
            touches = c * patch_w < x1 and (c + 1) * patch_w > x0 and r * patch_h < y1 and (r + 1) * patch_h > y0
            (inside if touches else outside).append(start + i)
        return {"image": sorted(inside + outside), "image:object": inside, "image:other": outside}

    def draws(self, count: int = DRAWS) -> list[Tensor]:
        """The noise that each draw adds to the image embeddings."""
        return [self.noise * drawn for drawn in standard_normal(self.pair.id, SEED, count, self.embeds)]

    def settings(self, corruption: str) -> dict[str, Any]:
        """The section `corruption` of a spec."""
        return CORRUPTIONS[corruption] | ({"std": self.noise} if corruption == "gaussian_noise" else {})

    def sides(self, corruption: str, direction: str, draw: int = 0) -> tuple[Inputs, Inputs, dict[str, Tensor | None]]:
        """The inputs of the base and of the source run, and the noise of each."""
        clean, corrupted = self.inputs["clean"], self.inputs.get(corruption, self.inputs["clean"])
        noise = self.draws()[draw] if corruption == "gaussian_noise" else None
        if direction == "denoise":
            return corrupted, clean, {"base_noise": noise, "source_noise": None}
        return clean, corrupted, {"base_noise": None, "source_noise": noise}

    def metrics(self, logits: Tensor) -> dict[str, float]:
        return oracle.metrics(logits, self.answer, self.foil)

    def functions(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The metrics once more, as what can be differentiated."""
        return {
            "probability": lambda logits: logits.softmax(-1)[self.answer],
            "log_probability": lambda logits: logits.log_softmax(-1)[self.answer],
            "logit_difference": lambda logits: logits[self.answer] - logits[self.foil],
        }


def make_case(model: Model, corruption: str = "semantic_image_pair", pair: vp.Pair | None = None) -> Case:
    """Prepare a pair; one drawn to suit the corruption where none is given."""
    module, processor = model.envoy._module, model.description.processor
    pair = pair or vp.load_pairs("shapes", n=1, seed=5, questions=[QUESTION[corruption]])[0]
    inputs = {
        "clean": prepare(model, pair.clean.image, pair.clean.text),
        "semantic_image_pair": prepare(model, pair.corrupted.image, pair.clean.text),
        "symmetric_token_replacement": prepare(model, pair.clean.image, pair.corrupted.text),
    }
    clean, read = oracle.run(module, inputs["clean"], read=[("image_embeds", None)])
    embeds = read["image_embeds", None]
    noise = NOISE * embeds.std().item()
    if corruption == "gaussian_noise":
        added = noise * standard_normal(pair.id, SEED, 1, embeds.shape)[0]
        other, _ = oracle.run(module, inputs["clean"], edits=[("add", "image_embeds", None, None, None, added)])
    else:
        other, _ = oracle.run(module, inputs[corruption])
    words = [i for w, i in processor.tokenizer.get_vocab().items() if w.isalpha()]
    first = max(words, key=lambda i: float(clean[i]))
    likely = [first, max((i for i in words if i != first), key=lambda i: float(other[i]))]
    answer, foil = (processor.tokenizer.convert_ids_to_tokens(i) for i in likely)
    pair = replace(pair, answer=answer, foil=foil)
    grid = inputs["clean"]["pixel_values"].shape[-1] // module.config.vision_config.patch_size
    return Case(module, pair, inputs, likely[0], likely[1], grid, processor.tokenizer, noise, embeds.shape)


def make_cases(model: Model, pairs: Sequence[vp.Pair], corruption: str = "semantic_image_pair") -> list[Case]:
    """Prepare several pairs, with the noise of the first."""
    return with_one_noise([make_case(model, corruption, pair) for pair in pairs])


def with_one_noise(cases: Sequence[Case]) -> list[Case]:
    """Cases of one run share the noise of the first."""
    return [replace(case, noise=cases[0].noise) for case in cases]


def unsure_cases(model: Model, subject: str = "small red object", n: int = 1) -> list[Case]:
    """Of 24 drawn pairs the n of which the model is least sure, with either picture, once the subject is not clear.

    What changes an answer little shows in its probability only where that is neither 0 nor 1. Answer and foil are the
    words that are furthest from both, and the noise is a twentieth of the other cases'.
    """
    vocabulary = model.description.processor.tokenizer.get_vocab()
    words = [i for word, i in vocabulary.items() if word.isalpha()]
    made = []
    for drawn in vp.load_pairs("shapes", n=24, seed=3):
        pair = _about(drawn, subject)
        inputs = [prepare(model, prompt.image, prompt.text) for prompt in (pair.clean, pair.corrupted)]
        both = torch.stack([oracle.run(model.envoy._module, one)[0] for one in inputs]).softmax(-1)
        doubt = torch.minimum(both, 1 - both).min(0).values
        answer, foil = (words[i] for i in doubt[words].topk(2).indices.tolist())
        made.append((doubt[answer].item(), pair, answer, foil))
    found = []
    for _, pair, answer, foil in sorted(made, key=lambda one: -one[0])[:n]:
        case = make_case(model, pair=pair)
        names = case.tokenizer.convert_ids_to_tokens([answer, foil])
        named = replace(case.pair, answer=names[0], foil=names[1])
        found.append(replace(case, pair=named, answer=answer, foil=foil, noise=case.noise / 20))
    return with_one_noise(found)


def _about(pair: vp.Pair, subject: str) -> vp.Pair:
    """A question about a colour, asked about another subject in both texts."""
    before, middle = f"is the {subject} ", f"{pair.foil} or "
    text = f"{before}{middle}{pair.answer}?"
    spans = {
        "subject": (len("is the "), len(before) - 1),
        "foil_option": (len(before), len(before + pair.foil)),
        "answer_option": (len(before + middle), len(text) - 1),
    }
    clean, corrupted = (replace(prompt, text=text) for prompt in (pair.clean, pair.corrupted))
    name = f"{subject}-{pair.id}"
    return replace(pair, id=name, clean=clean, corrupted=corrupted, spans=spans, spans_corrupted=spans)


def with_phrase(model: Model, case: Case, phrase: str) -> tuple[Case, dict[int, int]]:
    """The case with its subject replaced, and where each clean token is in the new prompt, if it is there.

    Tokens of the subject are paired from its end: last with last, and those left over at the front with none.
    """
    start, stop = case.pair.spans["subject"]
    text = case.pair.clean.text[:start] + phrase + case.pair.clean.text[stop:]
    inputs = {**case.inputs, "constraint_replacement": prepare(model, case.pair.clean.image, text)}
    clean, corrupted = (inputs[kind]["input_ids"][0].tolist() for kind in ("clean", "constraint_replacement"))
    subject, shift = case.indices(case.text_stack, "subject"), len(corrupted) - len(clean)
    before = {i: i for i in range(subject[0])}
    within = {i: i + shift for i in subject if i + shift >= subject[0]}
    after = {i: i + shift for i in range(subject[-1] + 1, len(clean))}
    assert all(clean[i] == corrupted[j] for i, j in (before | after).items())
    return replace(case, inputs=inputs), before | within | after


def prepare(model: Model, image: Any, text: str) -> Inputs:
    """What the model's forward takes, batch 1."""
    processor, blip = model.description.processor, hasattr(model.envoy._module, "text_encoder")
    prompt = text if blip else f"USER: <image>\n{text} ASSISTANT:"
    made = processor(images=image, text=prompt, return_tensors="pt")
    inputs = {name: made[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    if blip:
        inputs["decoder_input_ids"] = torch.tensor([[processor.tokenizer.bos_token_id]])
    return inputs


def standard_normal(
    pair_id: str, seed: int, draws: int, shape: Sequence[int], site: str = "image_embeds"
) -> list[Tensor]:
    """Draw d of a pair is seeded by the first 7 bytes of SHA-256 of "seed/purpose/pair/draw"."""
    drawn = []
    for draw in range(draws):
        text = f"{seed}/{site} noise/{pair_id}/{draw}"
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
        drawn.append(torch.randn(shape[1:], generator=generator)[None])
    return drawn


def experiment(
    section: Mapping[str, Any], corruption: Mapping[str, Any] | None = None, metrics: Sequence[str] = tuple(TOLERANCE)
) -> vp.Experiment:
    """An experiment on all pairs that are given; `section` is the one that says what is done, with its name."""
    return vp.Experiment.from_dict(
        {
            "name": "oracle",
            "model": {"name": "shapes-blip"},
            "pairs": {"dataset": "shapes", "keep": "all"},
            "metrics": list(metrics),
            "seed": SEED,
            **section,
            **({"corruption": dict(corruption)} if corruption else {}),
        }
    )


def results(
    model: Model,
    cases: Sequence[Case],
    section: Mapping[str, Any],
    corruption: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = tuple(TOLERANCE),
) -> xr.Dataset:
    """What the package gives for an experiment on the cases' pairs."""
    pairs = [case.pair for case in cases]
    return vp.run(experiment(section, corruption, metrics), model=model, inputs=pairs, progress=False)


def window(layer: int, width: int, layers: int) -> list[int]:
    """The layers of a window, cut off at the edges: odd widths are symmetric, width 10 is [l - 5, l + 4]."""
    return list(range(max(0, layer - width // 2), min(layers, layer - (-width // 2))))


def assert_equals_oracle(
    ds: xr.Dataset,
    wanted: Callable[[Cell], Mapping[str, float] | None],
    tolerance: Mapping[str, float] = TOLERANCE,
    example: int = 0,
    suffix: str = "",
) -> None:
    """Every cell of one example has the oracle's metrics, and these differ enough over the cells to show an error.

    Parameters
    ----------
    wanted
        Takes a cell, its labels by dimension, and gives its metrics; None for a cell that cannot be run (NaN).
    tolerance
        Metric → how far it may be off; no error shows where the oracle's values spread over less than 100 times that.
    suffix
        Which variable of a metric: `_exact`, `_placebo`.
    """
    dims = [str(dim) for dim in ds[next(iter(tolerance)) + suffix].dims if dim != "example"]
    cells: list[Cell] = [
        dict(zip(dims, labels, strict=True)) for labels in product(*(ds[dim].values.tolist() for dim in dims))
    ]
    values = [wanted(cell) for cell in cells]
    for metric, allowed in tolerance.items():
        found = ds[metric + suffix].isel(example=example).transpose(*dims).values.ravel()
        truth = np.array([np.nan if value is None else value[metric] for value in values])
        different = ~np.isclose(found, truth, rtol=0, atol=allowed, equal_nan=True)
        shown = [f"{cells[i]}: {found[i]}, not {truth[i]}" for i in np.flatnonzero(different)[:5]]
        assert not shown, f"{metric}{suffix}, {different.sum()} of {len(cells)} cells differ: " + "; ".join(shown)
        spread = np.ptp(truth[np.isfinite(truth)])
        assert spread >= 100 * allowed, f"{metric}: values within {spread:.2g} could not show an error"
