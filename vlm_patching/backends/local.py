"""Programs on a model in this process, by nnsight: one session a chunk of examples."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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
        while queue:
            pieces = [queue.popleft()]
            while queue and queue[0].group is not None and queue[0].group == pieces[0].group:
                pieces.append(queue.popleft())
            outcomes: Sequence[Outcome]
            try:
                outcomes = self.execute([piece.program() for piece in pieces])
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
