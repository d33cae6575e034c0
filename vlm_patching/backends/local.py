"""Programs on a model in this process, by nnsight: one session a chunk of examples."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile
from typing import Any

import nnsight
import torch

from vlm_patching.backends.base import Failure, Outcome, Piece, shipped
from vlm_patching.backends.kernels import run_programs, summarize
from vlm_patching.backends.plan import Settings, settings_on
from vlm_patching.models import Model

SMALL_MODEL = 20_000_000
"""Parameters under which a second CPU thread costs more than it gives (measured 7 to 15 times on two cores)."""


class LocalBackend:
    """A loaded model; see `vlm_patching.backends.base.Backend`."""

    name = "local"

    def __init__(self, model: Model) -> None:
        self.model = model
        self.description = model.description
        self.dtype = model.dtype

    def attributes(self) -> dict[str, Any]:
        return {
            "weights_sha256": self.model.digest,
            "dtype": self.dtype,
            "attn_implementation": self.model.attn_implementation,
            "quantization": self.model.quantization or "",
            "device": str(self.model.device),
            "backend": self.name,
        }

    def settings(self, rows: int | None) -> Settings:
        return settings_on(self.model.device, rows)

    def execute(self, programs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        envoy, programs = self.model.envoy, shipped(programs, self.dtype)
        with envoy.session():
            results = nnsight.save(run_programs(envoy, programs))
        return results

    def summaries(self, programs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        envoy, programs = self.model.envoy, shipped(programs, self.dtype)
        with envoy.session():
            found = nnsight.save(summarize(envoy, programs))
        return found

    def stream(self, queue: deque[Piece], say: Callable[[str], None]) -> Iterator[tuple[Piece, Outcome]]:
        """While pieces run, the programs of those that come next are made, and their pictures read."""
        with making_programs() as ahead:
            yield from self._stream(queue, ahead)

    def _stream(self, queue: deque[Piece], ahead: ThreadPoolExecutor) -> Iterator[tuple[Piece, Outcome]]:
        begun: list[tuple[Piece, Future[dict[str, Any]]]] = []
        while queue:
            pieces = first_of(queue)
            for _ in pieces:
                queue.popleft()
            known = {id(piece): program for piece, program in begun}
            made = [known.get(id(piece)) or ahead.submit(piece.program) for piece in pieces]
            begun = [(piece, ahead.submit(piece.program)) for piece in first_of(queue)]
            outcomes: Sequence[Outcome]
            try:
                outcomes = self.execute([program.result() for program in made])
            except torch.OutOfMemoryError as error:
                if len(pieces) > 1:  # what is too much for several may suffice for one
                    apart = [replace(piece, group=None) for piece in [*pieces, *queue]]
                    queue.clear()
                    queue.extend(apart)
                    continue
                outcomes = [Failure(str(error), size=True)]
            yield from zip(pieces, outcomes, strict=True)

    @contextlib.contextmanager
    def running(self, threads: int | None) -> Iterator[None]:
        """Torch's CPU threads: as asked for, else one for a model too small to gain from more."""
        before = torch.get_num_threads()
        small = sum(parameter.numel() for parameter in self.model.envoy._module.parameters()) < SMALL_MODEL
        torch.set_num_threads(threads or (1 if small else before))
        try:
            yield
        finally:
            torch.set_num_threads(before)


def first_of(queue: Iterable[Piece]) -> list[Piece]:
    """The pieces that are run next: those of one group at the head of the queue."""
    first = next(iter(queue), None)
    if first is None or first.group is None:
        return [] if first is None else [first]
    return list(takewhile(lambda piece: piece.group == first.group, queue))


@contextlib.contextmanager
def making_programs() -> Iterator[ThreadPoolExecutor]:
    """A thread beside the model's; what it has not begun when the run ends, it leaves."""
    threads = torch.get_num_threads()  # OpenMP gives a new thread its own number of them
    ahead = ThreadPoolExecutor(1, "programs", torch.set_num_threads, (threads,))
    try:
        yield ahead
    finally:
        ahead.shutdown(cancel_futures=True)
