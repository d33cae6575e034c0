"""Graph + architecture + one encoded pair → a program: batches whose rows are cells, as plain data.

A program is a dict: `inputs` (kind → tensors), `answer`, `foil`, `forced` (whole answers), `metrics`, `keep`,
`vectors`, `readout`, `joins` (how many examples may share passes), and two lists of traces, `bases` and `sweeps`. A
trace has `run`, `on`, `rows`, `measured`, `reuses_image` (whether the image encoder is skipped), `pixels` (noise on the
pixels, or None), `eager` (whether attention probabilities are wanted), `operations` in the order of execution, `most`
(rows, where other examples' may be added) and, where its rows are not what is measured, `lens` or `gradients`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from vlm_patching.backends.batches import exact_traces
from vlm_patching.backends.cells import Cell
from vlm_patching.backends.gradients import gradient_traces
from vlm_patching.backends.kernels import given_of
from vlm_patching.backends.reading import attention_trace, lens_traces
from vlm_patching.backends.traces import at, trace
from vlm_patching.errors import SpecError
from vlm_patching.graph import SWEPT, InterventionGraph, Run, draws_of, noise_of, row_of
from vlm_patching.inputs import EncodedPair
from vlm_patching.metrics import METRICS
from vlm_patching.models import Architecture

MOST_ROWS = 512
BATCH_BYTES = 192 * 2**20
"""On a CPU larger passes gain nothing, as they leave its caches; on a GPU a quarter of what is free is used."""
TOKENS_ON_GPU = 1024
TOGETHER = 8
"""Most examples that share passes, and most packed passes' worth of positions in a base run that they share."""


@dataclass(frozen=True)
class Settings:
    """How a program is cut into batches, and what of its base run a swept run takes over. The numbers do not change.

    Attributes
    ----------
    rows
        Cells a batch; from size where None.
    budget
        Bytes that the widest activations of a batch may take, where `rows` does not say.
    tokens
        Query positions a packed pass.
    reuse_image
        Encode an image once.
    layers
        Start at the lowest edited layer.
    cross_keys
        Make keys and values of cross-attention once, where what they are made of does not change.
    fold
        Rows with one image cross-attend to it as query positions of one row, so that its keys are not copied.
    pack
        Recompute only positions from the first edited one on, cells packed over one key-value prefix.
    cone
        Fill cells that cannot reach the read-out without running them.
    join
        Run several examples' rows in one pass, where their passes are alike and small.
    """

    rows: int | None = None
    budget: int = BATCH_BYTES
    tokens: int = 128
    reuse_image: bool = True
    layers: bool = True
    cross_keys: bool = True
    fold: bool = True
    pack: bool = True
    cone: bool = True
    join: bool = True


NAIVE = Settings(1, reuse_image=False, layers=False, cross_keys=False, fold=False, pack=False, cone=False, join=False)
"""One forward pass per cell and nothing reused: what every other way must agree with."""


def settings_on(device: torch.device, rows: int | None = None) -> Settings:
    """Everything reused, in passes as large as the device's free memory makes sensible."""
    if device.type != "cuda":
        return Settings(rows=rows)
    free, _ = torch.cuda.mem_get_info(device)
    return Settings(rows=rows, budget=free // 4, tokens=TOKENS_ON_GPU)


@dataclass(frozen=True)
class Reference:
    """What all pairs together give, before any is swept.

    Attributes
    ----------
    noise_std
        Standard deviation of the graph's noise in absolute units; 0 where it has none.
    vectors
        Key → [1, 1, width]: means, and vectors that steer.
    candidates
        The answers and foils of all pairs, as tokens, for metrics that rank them.
    """

    noise_std: float
    vectors: Mapping[str, torch.Tensor]
    candidates: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Job:
    """One example of a graph on a model, and what all pairs give: what every part of a program is made from."""

    graph: InterventionGraph
    architecture: Architecture
    pair: EncodedPair
    reference: Reference

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", self.architecture.on(len(self.pair.pair.clean.images)))

    def program(self, cells: Sequence[Cell], settings: Settings, exact: bool = False) -> dict[str, Any]:
        """What `kernels.run_program` interprets: the base runs, then the cells' batches.

        Parameters
        ----------
        exact
            Run every cell, even where the graph estimates.
        """
        graph, architecture, pair = self.graph, self.architecture, self.pair
        sweeps = self._sweeps(cells, settings, exact)
        metrics = list(dict.fromkeys([*graph.metrics, "probability"]))  # trust checks need one without steps
        return {
            "inputs": pair.inputs,
            "answer": pair.answer[0],
            "foil": pair.foil[0],
            "forced": self._forced(metrics),
            "extends": "input_ids" if architecture.continues else "decoder_input_ids",
            "lengthens": architecture.prompting.extends,
            "indexes": architecture.image.indexes if architecture.image else {},
            "metrics": metrics,
            "keep": graph.keep,
            "joins": examples_together(graph, architecture, pair, settings),
            "vectors": self.reference.vectors,
            "keeps_logits": architecture.keeps_logits,
            "readout": {"path": architecture.readout.path, "part": architecture.readout.part},
            "bases": [self._base(run, sweeps) for run in graph.runs if run.name not in SWEPT],
            "sweeps": sweeps,
        }

    def halved(self, settings: Settings) -> Settings:
        """Passes of half the size; the same where they are of one cell already."""
        rows = self.rows_per_pass(settings, in_vision=False)
        return replace(settings, rows=max(1, rows // 2), tokens=max(1, settings.tokens // 2))

    def _forced(self, metrics: Sequence[str]) -> list[dict[str, Any] | None]:
        """Whole answers to be teacher-forced, one after the other; only None where no metric is of them."""
        wanted = {METRICS[metric]["scores"] for metric in metrics if "scores" in METRICS[metric]}
        if not wanted:
            return [None]
        answers = [self.pair.answer]
        if wanted & {"answer and foil", "all"}:
            answers.append(self.pair.foil)
        if "all" in wanted:
            answers += [tokens for tokens in self.reference.candidates if tokens not in answers]
        longest = max(map(len, answers))
        padded = [[*tokens[:-1], *[tokens[-1]] * (longest - len(tokens))] for tokens in answers]
        return [
            {"tokens": list(tokens), "given": torch.tensor([given], dtype=torch.long)}
            for tokens, given in zip(answers, padded, strict=True)
        ]

    def _sweeps(self, cells: Sequence[Cell], settings: Settings, exact: bool) -> list[dict[str, Any]]:
        graph, rows = self.graph, self.rows_per_pass(settings)
        if not cells:
            return []
        if graph.method == "attention":
            return [attention_trace(graph, self.architecture, cells)]
        if graph.method == "lens":
            return lens_traces(graph, self.architecture, cells)
        if graph.estimate != "exact" and not exact:
            return gradient_traces(self, cells, rows)
        return exact_traces(self, cells, settings)

    @cached_property
    def length(self) -> int:
        """Positions of the swept run's text sequence."""
        return self.pair.length(self.graph.swept.on)

    @cached_property
    def last_image(self) -> int:
        """The last image position of the text sequence; -1 where it has none."""
        positions = self.pair.positions[self.architecture.text_stack].positions
        return max((i for i, position in enumerate(positions) if position.modality == "image"), default=-1)

    @property
    def has_image(self) -> bool:
        """Whether the prompt has one."""
        return len(self.pair.pair.clean.images) > 0

    @cached_property
    def given(self) -> int:
        """Tokens of an answer that are given behind the prompt, where whole answers are measured."""
        return given_of(self._forced(self.graph.metrics)[0])

    @cached_property
    def first_difference(self) -> int:
        """The first position of the text sequence at which the clean and the corrupted run can differ."""
        stack = self.pair.positions[self.architecture.text_stack]
        clean, corrupted = (self.pair.inputs[self.graph.run(run).on] for run in ("clean", "corrupted"))
        ids = [inputs["input_ids"][0] for inputs in (clean, corrupted)]
        shorter = min(map(len, ids))
        differ = (ids[0][:shorter] != ids[1][:shorter]).nonzero().flatten().tolist()
        found = [self.pair.ahead + i for i in (*differ[:1], shorter)]
        noise = noise_of(self.graph)
        images = [name for name in clean if name not in ("input_ids", "attention_mask")]
        same = all(torch.equal(clean[name], corrupted[name]) for name in images)
        if not same or (noise and noise.at.position is None):
            apart = self.architecture.image is not None and not self.architecture.image.inline
            of_image = [i for i, position in enumerate(stack.positions) if position.modality == "image"]
            found += [0] if apart else of_image[:1]
        if noise and noise.at.position is not None:
            found += [self.pair.ahead + i for i in noise_positions(self.graph, self.architecture, self.pair) or []]
        return min(found)

    @property
    def draws(self) -> int:
        return draws_of(self.graph)

    def rows_per_pass(self, settings: Settings, in_vision: bool = True) -> int:
        return rows_per_pass(self.architecture, self.pair, settings, in_vision)

    def positions_per_row(self, in_vision: bool = True) -> int:
        return positions_per_row(self.architecture, self.pair, in_vision)

    def _base(self, run: Run, sweeps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A base run, which reads whatever the sweeps take from it."""
        image, name = self.architecture.image, run.name
        operations: list[dict[str, Any]] = []
        if image and name == self.graph.base and any(sweep["reuses_image"] for sweep in sweeps):
            operations += [{"do": "keep_whole", "name": f"{name}.{tap.path}", **at(tap)} for tap in image.bypass]
            operations.append({"do": "keep_whole", "name": f"{name}.image", **at(image.embeds)})
        keeps = {key: tap for sweep in sweeps for key, tap in sweep.get("keeps", {}).items()}
        if name == self.graph.base:
            operations += [{"do": "keep_whole", "name": key, **at(tap)} for key, tap in keeps.items()]
        reads = {key: read for sweep in sweeps for key, read in sweep["needs"].items() if key.startswith(f"{name}.")}
        keeps_cache = any(sweep.get("pack", {}).get("cache") == f"{name}.cache" for sweep in sweeps)
        entries = {stack.taps["resid_pre"]: stack.entry for stack in self.architecture.stacks if stack.entry}
        instead = entries if keeps_cache else {}
        operations += [
            {"do": "read", "name": key, **at(instead.get(tap, tap), layer)} for key, (tap, layer) in reads.items()
        ]
        if keeps_cache and self.architecture.rotary:
            operations.append({"do": "keep_as_is", "name": f"{name}.rotary", **at(self.architecture.rotary)})
        draws = list(range(draws_of(self.graph))) if "draw" in run.over else [0]
        noise = self.noise(run, draws)
        return trace(
            self.architecture, run, len(draws), operations, noise, measured=name != "other", keeps_cache=keeps_cache
        )

    def skipped_image(self, draws: Sequence[int]) -> list[dict[str, Any]]:
        """Operations that give a swept run the image of its base run, row by draw."""
        base, image = self.graph.run(self.graph.base), self.architecture.image
        assert image is not None
        index = torch.tensor([row_of(base, draw) for draw in draws])
        skipped = [
            {"do": "skip", "name": f"{base.name}.{tap.path}", "index": index if tap.part else None, **at(tap)}
            for tap in image.bypass
        ]
        embeds = {"do": "skip", "name": f"{base.name}.image", "index": index, "own": True, **at(image.embeds)}
        embeds |= {"joined": True} if image.joined else {}
        return [*skipped, embeds | ({"carried": list(image.carried)} if image.carried else {})]

    def noise(self, run: Run, draws: Sequence[int]) -> dict[str, Any] | None:
        """What perturbs a run, row by draw; None where nothing does."""
        edit = noise_of(self.graph)
        if edit is None or edit not in run.edits:
            return None
        site, name = edit.at.site, self.pair.pair.id
        all_draws = range(draws_of(self.graph))
        return {
            "do": "perturb",
            "kind": edit.kind,
            "site": site,
            "seeds": [derived_seed(self.graph.seed, f"{site} noise", name, draw) for draw in all_draws],
            "index": torch.tensor(draws),
            "std": self.reference.noise_std,
            "mean": edit.mean,
            "positions": noise_positions(self.graph, self.architecture, self.pair),
            **(at(self.architecture.tap(site)) if site != "pixels" else {}),
        }


def rows_per_pass(architecture: Architecture, pair: EncodedPair, settings: Settings, in_vision: bool = True) -> int:
    """Rows a forward pass, so that its widest activations stay within the budget; with images, or without."""
    if settings.rows:
        return settings.rows
    keys, queries = (positions_per_row(architecture, pair, whole) for whole in (True, in_vision))
    heads = max(stack.heads for stack in architecture.stacks)
    return max(1, min(MOST_ROWS, settings.budget // (4 * queries * max(keys * heads, 4096))))


def positions_per_row(architecture: Architecture, pair: EncodedPair, in_vision: bool = True) -> int:
    """Positions of the longest sequence, with images; of the text stack's own, without."""
    if not in_vision:
        return len(pair.positions[architecture.text_stack].positions)
    return max(len(stack.positions) for stack in pair.positions.values())


def examples_together(
    graph: InterventionGraph, architecture: Architecture, pair: EncodedPair, settings: Settings
) -> int:
    """How many examples of one shape may share passes: as many as fill a base run; 1 where none are joined."""
    if not settings.join or not architecture.joins or graph.estimate != "exact":
        return 1
    rows, positions = draws_of(graph), positions_per_row(architecture, pair)
    most = min(TOGETHER, TOGETHER * settings.tokens // (rows * positions))
    return max(1, most if settings.rows is None else min(most, settings.rows // rows))


def groups_of(
    graph: InterventionGraph, architecture: Architecture, encoded: Sequence[EncodedPair], settings: Settings
) -> list[list[int]]:
    """Numbers of the examples that may share passes: those of one shape in turn, whichever of them are done."""
    groups: list[list[int]] = []
    open_at: dict[Any, int] = {}
    for number, pair in enumerate(encoded):
        lengths = [len(stack.positions) for stack in pair.positions.values()]
        partners = [len(indices) - indices.count(None) for indices in pair.alignment.values()]
        shape = (*lengths, *partners, len(pair.answer), len(pair.foil))
        at = open_at.get(shape)
        if at is None or len(groups[at]) >= examples_together(graph, architecture, pair, settings):
            at = open_at[shape] = len(groups)
            groups.append([])
        groups[at].append(number)
    return groups


def noise_positions(graph: InterventionGraph, architecture: Architecture, pair: EncodedPair) -> list[int] | None:
    """Which token embeddings are perturbed in this example; None for all of what is perturbed.

    Raises
    ------
    SpecError
        The pair has no such span.
    """
    edit = noise_of(graph)
    if edit is None or edit.at.position is None:
        return None
    stack = pair.positions["token_embeds"]
    indices = [i for chosen in stack.choose(edit.at.position) for i in chosen.indices]
    if any(stack.positions[i].modality == "image" for i in indices):
        raise SpecError(
            f"noise at the token_embeds of {edit.at.position!r}: image tokens only hold a place for the image"
        )
    return indices


def derived_seed(seed: int, purpose: str, example: str, draw: int) -> int:
    """A seed for one purpose, example and draw, the same whatever else is run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{example}/{draw}".encode()).digest()[:7])
