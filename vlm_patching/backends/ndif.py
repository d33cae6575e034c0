"""Programs on an NDIF server: the model's weights never come here, and only numbers come back.

A chunk of examples is one session, and one job. Jobs are sent without being waited for, noted in the store, and asked
for in turn; what fails in a way that may pass is sent again, what is too much at once is halved.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import nnsight
import torch
import zstandard
from nnsight import save
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend as NnsightBackend

from vlm_patching.backends.base import Failure, Outcome, Piece, shipped
from vlm_patching.backends.deployed import client_envoy, find_deployment, refuse_untrusted, refuse_versions
from vlm_patching.backends.jobs import SHIPPED, Job, Ledger, work_of, work_of_all
from vlm_patching.backends.kernels import run_programs, summarize
from vlm_patching.backends.plan import Settings
from vlm_patching.backends.wire import Gone, Refused, Remote, Server
from vlm_patching.errors import RunError
from vlm_patching.graph import InterventionGraph
from vlm_patching.models import ModelDescription
from vlm_patching.results.store import MemoryStore, ZarrStore

CHUNK_BYTES = 16 * 2**20
CHUNK_SECONDS = 10.0
"""A chunk takes about as long on the server, once it is known how long a cell takes."""
TRIES = 4
TOO_LARGE = 413
BROKEN = (zstandard.ZstdError, pickle.UnpicklingError, EOFError, RuntimeError, KeyError)
"""What reading a result raises that did not arrive as it was sent."""
UNKNOWN_SECONDS = 60.0
"""A job that the server has no word on for so long is lost."""
TOO_MUCH = ("OutOfMemoryError", "out of memory", "execution timeout", "CUDA error: out")
PASSING = (
    "cancelled or preempted",
    "ActorDied",
    "ActorUnavailable",
    "RayActorError",
    "try again",
    "evicted",
    "restart",
)
UNDER_WAY = ("RECEIVED", "QUEUED", "PROVISIONING", "DEPLOYING", "DISPATCHED", "RUNNING", "LOG")


@dataclass
class Flight:
    """A job that is under way, and what it was made of.

    Attributes
    ----------
    since
        When it was sent, or found again, by this process's clock.
    status, word
        The server's last ones on it.
    tries
        How often it was sent.
    refused
        Why the server did not take it, where it did not.
    """

    job: Job
    pieces: list[Piece]
    since: float = field(default_factory=time.monotonic)
    status: str = "RECEIVED"
    word: str = ""
    tries: int = 1
    refused: str = ""


class Lost(Exception):
    """A job of which nothing will come."""


class Failed(Exception):
    """A job that ended in an error."""


class NdifBackend:
    """A model that an NDIF server has deployed; see `vlm_patching.backends.base.Backend`.

    Parameters
    ----------
    graph
        What will be run, so that what the server refuses is said before anything is sent.
    results
        Where jobs are noted.

    Raises
    ------
    RunError
        The server cannot be reached, or does not have the model.
    SpecError
        What is asked for cannot work there.
    """

    name = "ndif"

    def __init__(
        self,
        description: ModelDescription,
        dtype: str,
        graph: InterventionGraph,
        results: MemoryStore | ZarrStore,
        remote: Remote,
    ) -> None:
        self.description, self.dtype, self.remote = description, dtype, remote
        self._graph, self._ledger, self._server = graph, Ledger(results), Server(remote)
        self._server.check()
        self._versions = refuse_versions(self._server)
        refuse_untrusted(graph, description.architecture, self._server)
        deployment = find_deployment(self._server, description)
        self._key, self._envoy = deployment.key, client_envoy(description, deployment)
        self._seconds_per_cell: float | None = None
        self._bytes_per_piece = 0.0
        for module in SHIPPED:
            nnsight.register(module)

    def attributes(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "device": "remote",
            "backend": self.name,
            "host": self._server.address,
            "model_key": self._key,
            "server_versions": json.dumps(self._versions),
        }

    def settings(self, rows: int | None) -> Settings:
        return Settings(rows=rows)

    @contextlib.contextmanager
    def running(self, threads: int | None) -> Iterator[None]:
        yield

    def execute(self, programs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._now("execute", programs)
        return found

    def summaries(self, programs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = self._now("summarize", programs)
        return found

    def stream(self, queue: deque[Piece], say: Callable[[str], None]) -> Iterator[tuple[Piece, Outcome]]:
        flights = self._found_again(queue)
        pause = 0.05
        while queue or flights:
            while queue and len(flights) < self.remote.jobs:
                flights.append(self._sent(self._chunk(queue)))
            before = [(flight.job.id, flight.status) for flight in flights]
            for flight in list(flights):
                flights.remove(flight)
                going, outcomes = self._asked(flight)
                flights += going
                yield from outcomes
                if outcomes:
                    self._ledger.drop(flight.job)
            say(_summary(flights))
            changed = before != [(flight.job.id, flight.status) for flight in flights]
            pause = 0.05 if changed else min(1.5 * pause, 5.0)
            if flights:
                time.sleep(pause * random.uniform(0.5, 1.5))

    def _found_again(self, queue: deque[Piece]) -> list[Flight]:
        """Jobs that an earlier process sent for pieces of the queue, which leave it; others are forgotten."""
        flights = []
        for job in self._ledger.jobs():
            pieces = [piece for piece in queue if piece.example in job.examples]
            if pieces and (work_of(self._graph.id, pieces), self._server.address) == (job.work, job.host):
                flights.append(Flight(job, pieces))
                for piece in pieces:
                    queue.remove(piece)
            elif job.examples:
                self._ledger.drop(job)
        return flights

    def _chunk(self, queue: deque[Piece]) -> list[Piece]:
        """Pieces for one job: as many as its payload and the server's time allow, one while nothing is known of it."""
        most = 1.0 if self._seconds_per_cell is None else CHUNK_SECONDS / max(self._seconds_per_cell, 1e-9)
        pieces, cells = [queue.popleft()], 0
        while queue:
            cells += len(pieces[-1].cells)
            if cells + len(queue[0].cells) > most or (len(pieces) + 1) * self._bytes_per_piece > CHUNK_BYTES:
                break
            pieces.append(queue.popleft())
        return pieces

    def _sent(self, pieces: list[Piece], tries: int = 1) -> Flight:
        work, examples = work_of(self._graph.id, pieces), [piece.example for piece in pieces]
        blob = self._blob("execute", [piece.program() for piece in pieces])
        self._bytes_per_piece = max(self._bytes_per_piece, len(blob) / len(pieces))
        try:
            return Flight(self._submitted(blob, work, examples), pieces, tries=tries)
        except Refused as error:
            if error.code != TOO_LARGE:
                raise RunError(f"{self._server.address} did not take a job: {error}") from error
            nowhere = Job("", work, self._server.address, self._key, examples)
            return Flight(nowhere, pieces, refused=f"a job of {len(blob) / 2**20:.1f} MiB is too large for the server")

    def _submitted(self, blob: bytes, work: str, examples: list[int]) -> Job:
        job = Job(self._server.submit(self._key, blob), work, self._server.address, self._key, examples)
        self._ledger.add(job)
        return job

    def _asked(self, flight: Flight) -> tuple[list[Flight], list[tuple[Piece, Outcome]]]:
        """What goes on in a job's place, and what came of it."""
        pieces = flight.pieces
        try:
            results = self._result(flight)
            if results is None:
                return [flight], []
            return [], list(zip(pieces, results, strict=True))
        except Lost as error:
            self._ledger.drop(flight.job)
            if flight.tries < TRIES:
                return [self._sent(pieces, flight.tries + 1)], []
            why = f"its job was sent {TRIES} times to {self._server.address}, and lost: {error}"
            return [], [(piece, Failure(why)) for piece in pieces]
        except Failed as error:
            why = self._server.scrubbed(str(error))
            if len(pieces) > 1:  # what is too much is halved, and of what fails the others go on
                self._ledger.drop(flight.job)
                half = len(pieces) // 2
                return [self._sent(pieces[:half]), self._sent(pieces[half:])], []
            return [], [(pieces[0], Failure(_last_line(why), size=any(text in why for text in TOO_MUCH)))]

    def _result(self, flight: Flight) -> Any:
        """A job's results, None while it is under way."""
        if flight.refused:
            raise Failed(flight.refused)
        found = self._server.state(flight.job.id)
        waited = time.monotonic() - flight.since
        if found is None:
            if waited > UNKNOWN_SECONDS:
                raise Lost("the server knows nothing of it")
            return None
        flight.status, flight.word = str(found["status"]), str(found.get("description") or "")
        if flight.status == "COMPLETED":
            if not found.get("data"):
                raise Lost("it ended without a result")
            try:
                results = _loaded(self._server.fetch(str(found["data"])))
            except (Gone, *BROKEN) as error:
                raise Lost(f"its result can no longer be fetched ({error})") from error
            self._learn(flight, (found.get("meta") or {}).get("runtime"))
            return results
        if flight.status == "ERROR":
            if any(text in flight.word for text in PASSING):
                raise Lost(_last_line(flight.word))
            raise Failed(flight.word)
        if flight.status not in UNDER_WAY:
            raise Failed(f"the server calls its status {flight.status!r}, which this client does not know")
        if waited > self.remote.deadline:
            raise Lost(f"no result within {self.remote.deadline:g} s; its last status was {flight.status}")
        return None

    def _learn(self, flight: Flight, seconds: Any) -> None:
        cells = sum(len(piece.cells) for piece in flight.pieces)
        if cells and isinstance(seconds, int | float):
            self._seconds_per_cell = max(seconds / cells, 0.5 * (self._seconds_per_cell or 0.0))

    def _now(self, kind: str, programs: Sequence[dict[str, Any]]) -> Any:
        """One job, waited for."""
        work = work_of_all(self._graph.id, kind, shipped(programs, self.dtype))
        known = self._ledger.find(work, self._server.address)
        flight = Flight(known or self._submitted(self._blob(kind, programs), work, []), [])
        pause = 0.05
        while True:
            try:
                results = self._result(flight)
            except Lost as error:
                self._ledger.drop(flight.job)
                if flight.tries >= TRIES:
                    raise RunError(f"A job was lost {TRIES} times on {self._server.address}: {error}") from error
                job = self._submitted(self._blob(kind, programs), work, [])
                flight, results = Flight(job, [], tries=flight.tries + 1), None
            except Failed as error:
                self._ledger.drop(flight.job)
                why = _last_line(self._server.scrubbed(str(error)))
                raise RunError(f"A job failed on {self._server.address}: {why}") from error
            if results is not None:
                self._ledger.drop(flight.job)
                return results
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(1.5 * pause, 5.0)

    def _blob(self, kind: str, programs: Sequence[dict[str, Any]]) -> bytes:
        """A session that interprets programs, as bytes: its source, the interpreter's, and the programs."""
        envoy, programs, held = self._envoy, shipped(programs, self.dtype), Held()
        if kind == "summarize":
            with envoy.session(backend=held):
                results = save(summarize(envoy, programs))
        else:
            with envoy.session(backend=held):
                results = save(run_programs(envoy, programs))  # noqa: F841 - the name by which it comes back
        return held.blob


class Held(NnsightBackend):
    """Keeps a session as bytes instead of running it."""

    blob = b""

    def __call__(self, tracer: Any) -> None:
        self.blob = RequestModel.serialize(tracer, compress=True)


def _loaded(content: bytes) -> Any:
    """A result's tensors and numbers; anything else in it is refused."""
    plain = zstandard.ZstdDecompressor().decompress(content)
    return torch.load(io.BytesIO(plain), map_location="cpu", weights_only=True)["results"]


def _summary(flights: Sequence[Flight]) -> str:
    """The states of all jobs, and what the server says of the first that waits."""
    states = [flight.status.lower() for flight in flights]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    waiting = [flight.word for flight in flights if flight.status == "QUEUED" and "position" in flight.word]
    return "; ".join([*counts, *waiting[:1]])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "the server gave no reason"
