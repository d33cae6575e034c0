"""Jobs on an NDIF server, noted in the store before they are waited for: a client that dies finds them again."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from vlm_patching import metrics
from vlm_patching.backends import interventions, joining, kernels
from vlm_patching.backends.base import Piece
from vlm_patching.results.store import MemoryStore, StoreAttributes

SHIPPED = (metrics, interventions, joining, kernels)
"""Modules whose functions travel with a job, by value."""
ATTRIBUTE = "jobs"


@dataclass
class Job:
    """A job that was sent.

    Attributes
    ----------
    id
        The server's name for it.
    work
        What it does: equal for equal work.
    host, model_key
        Where.
    examples
        Those whose pieces are in it; none for what is of all examples together.
    sent
        When, in seconds since 1970.
    """

    id: str
    work: str
    host: str
    model_key: str
    examples: list[int] = field(default_factory=list)
    sent: float = field(default_factory=time.time)


class Ledger:
    """The jobs of one store, in its attributes."""

    def __init__(self, results: MemoryStore | StoreAttributes) -> None:
        self._results = results

    def jobs(self) -> list[Job]:
        return [Job(**entry) for entry in json.loads(self._results.attributes.get(ATTRIBUTE, "[]"))]

    def add(self, job: Job) -> None:
        self._write([*self.jobs(), job])

    def drop(self, job: Job) -> None:
        self._write([other for other in self.jobs() if other.id != job.id])

    def find(self, work: str, host: str) -> Job | None:
        """A job that does this work on this server already."""
        return next((job for job in self.jobs() if (job.work, job.host) == (work, host)), None)

    def _write(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self._results.annotate({ATTRIBUTE: json.dumps([asdict(job) for job in jobs])})
        else:
            self._results.forget(ATTRIBUTE)


def work_of(graph_id: str, pieces: Sequence[Piece]) -> str:
    """The name of some pieces' work: the same in every process, another where anything that decides it is another."""
    content = [
        graph_id,
        code_digest(),
        [[piece.example, piece.cells.tolist(), asdict(piece.settings)] for piece in pieces],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def work_of_all(graph_id: str, kind: str, programs: Sequence[dict[str, Any]]) -> str:
    """The name of work on whole programs, by what is in them."""
    return hashlib.sha256(json.dumps([graph_id, code_digest(), kind, _plain(programs)]).encode()).hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 of the source that travels with a job."""
    return hashlib.sha256("".join(inspect.getsource(module) for module in SHIPPED).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Plain data that stands for a program's content."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "numpy"):
        array = value.detach().float().contiguous().numpy()
        return [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    return value
