"""Programs on an NDIF server: the model's weights never come here, and only numbers come back.

A chunk of examples is one session, and one job. Jobs are sent without being waited for, noted in the store, and asked
for in turn; what fails in a way that may pass is sent again, what is too much at once is halved.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import nnsight
import torch
from nnsight import save
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend as NnsightBackend

from vlm_patching.backends.base import Failure, Outcome, Piece, shipped
from vlm_patching.backends.deployed import client_envoy, find_deployment, refuse_untrusted, refuse_versions
from vlm_patching.backends.flights import (
    Chunk,
    Failed,
    Flight,
    Interrupted,
    Lost,
    Stalled,
    last_line,
    results_of,
    too_much,
    too_slow,
)
from vlm_patching.backends.jobs import SHIPPED, Job, Ledger, work_of, work_of_all
from vlm_patching.backends.kernels import run_programs, summarize
from vlm_patching.backends.plan import Settings
from vlm_patching.backends.wire import TOO_LARGE, Refused, Remote, Server
from vlm_patching.errors import RunError, SpecError
from vlm_patching.graph import InterventionGraph
from vlm_patching.models import ModelDescription
from vlm_patching.results.store import MemoryStore, ZarrStore

CHUNK_BYTES = 16 * 2**20
CHUNK_SECONDS = 10.0
"""A chunk takes about as long on the server, once it is known how long a cell takes."""
PAUSES = (2.0, 10.0, 30.0)
"""Seconds before what was lost is sent again, the second, third and fourth time; then it is given up."""


class TooMuch(RunError):
    """What was to be done at once is more than the server takes."""


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
        with contextlib.ExitStack() as stack:
            stack.callback(self._server.close)
            self._server.check()
            self._versions = refuse_versions(self._server)
            refuse_untrusted(graph, description.architecture, self._server)
            deployment = find_deployment(self._server, description)
            self._key, self._envoy = deployment.key, client_envoy(description, deployment)
            stack.pop_all()
        self._seconds_per_cell: float | None = None
        self._bytes_per_piece, self._most_bytes, self._most_cells = 0.0, float(CHUNK_BYTES), float("inf")
        self._ended, self._heard = 0.0, 0.0  # when the latest job that is done was sent; when a result last came
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
        return Settings(rows=rows, join=False)  # what is written is never asked for again

    @contextlib.contextmanager
    def running(self, threads: int | None) -> Iterator[None]:
        with contextlib.closing(self._server):
            yield

    def execute(self, programs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._now("execute", programs)
        return found

    def summaries(self, programs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        try:
            found: dict[str, torch.Tensor] = self._now("summarize", programs)
        except TooMuch:
            if len(programs) == 1:
                raise
            half = len(programs) // 2
            found, others = self.summaries(programs[:half]), self.summaries(programs[half:])
            for name, total in others.items():
                found[name] = found[name] + total if name in found else total
        return found

    def stream(self, queue: deque[Piece], say: Callable[[str], None]) -> Iterator[tuple[Piece, Outcome]]:
        flights, chunks, pause = self._found_again(queue), list[Chunk](), 0.05
        while queue or chunks or flights:
            outcomes: list[tuple[Piece, Outcome]] = []
            before = [(flight.job.id, flight.status) for flight in flights]
            while len(flights) < self.remote.jobs and (chunk := self._next(queue, chunks)):
                try:
                    flights.append(self._sent(chunk))
                except Refused as error:
                    outcomes += self._parted(chunk, Failure(self._refusal(error)), chunks)
            yield from outcomes
            for flight in list(flights):
                flights.remove(flight)
                going, outcomes = self._asked(flight, chunks)
                flights += going
                yield from outcomes
                if not going:
                    self._drop(flight)
            say(_summary(flights))
            changed = before != [(flight.job.id, flight.status) for flight in flights]
            pause = 0.05 if changed else min(1.5 * pause, 5.0)
            if flights or chunks:
                time.sleep(pause * random.uniform(0.5, 1.5))

    def _found_again(self, queue: deque[Piece]) -> list[Flight]:
        """Jobs that an earlier process sent for pieces of the queue, which leave it; others are forgotten."""
        flights: list[Flight] = []
        for job in self._ledger.jobs():
            pieces = [piece for piece in queue if piece.example in job.examples]
            if pieces and (work_of(self._graph.id, pieces), self._server.address) == (job.work, job.host):
                flights.append(_again(job, pieces))
                for piece in pieces:
                    queue.remove(piece)
            elif job.examples:
                self._ledger.drop(job)
        return flights

    def _next(self, queue: deque[Piece], chunks: list[Chunk]) -> Chunk | None:
        """What is sent next: what was lost, once its time has come, or pieces of the queue.

        Of these as many as the job's payload and the server's time allow, one while nothing is known of it.
        """
        for chunk in chunks:
            if chunk.after <= time.monotonic():
                chunks.remove(chunk)
                return chunk
        if not queue:
            return None
        most = 1.0 if self._seconds_per_cell is None else CHUNK_SECONDS / max(self._seconds_per_cell, 1e-9)
        pieces, cells = [queue.popleft()], 0
        while queue:
            cells += len(pieces[-1].cells)
            too_many = cells + len(queue[0].cells) > min(most, self._most_cells)
            if too_many or (len(pieces) + 1) * self._bytes_per_piece > self._most_bytes:
                break
            pieces.append(queue.popleft())
        return Chunk(pieces)

    def _sent(self, chunk: Chunk) -> Flight:
        work, examples = work_of(self._graph.id, chunk.pieces), [piece.example for piece in chunk.pieces]
        blob = self._blob("execute", [piece.program() for piece in chunk.pieces])
        self._bytes_per_piece = max(self._bytes_per_piece, len(blob) / len(chunk.pieces))
        try:
            return Flight([self._submitted(blob, work, examples)], chunk)
        except Refused as error:
            if error.code != TOO_LARGE:
                raise RunError(self._refusal(error)) from error
            self._most_bytes = min(self._most_bytes, len(blob) / 2)
            raise

    def _submitted(self, blob: bytes, work: str, examples: list[int]) -> Job:
        """A job, noted before it is sent: what arrives is found again, even where nobody hears of it."""
        job = Job(uuid.uuid4().hex, work, self._server.address, self._key, examples)
        self._ledger.add(job)
        try:
            name = self._server.submit(self._key, blob, job.id)
        except (Refused, SpecError):
            self._ledger.drop(job)
            raise
        if name != job.id:
            self._ledger.drop(job)
            job.id = name
            self._ledger.add(job)
        return job

    def _refusal(self, error: Refused) -> str:
        if error.code == TOO_LARGE:
            return f"its job is larger than {self._server.address} takes: {error}"
        return f"{self._server.address} did not take a job: {error}"

    def _drop(self, flight: Flight) -> None:
        for job in flight.jobs:
            self._ledger.drop(job)

    def _asked(self, flight: Flight, chunks: list[Chunk]) -> tuple[list[Flight], list[tuple[Piece, Outcome]]]:
        """What goes on of a flight, and what came of it; what is to be sent again goes to `chunks`."""
        chunk = flight.chunk
        try:
            results = results_of(flight, self._server, self._ended)
        except Stalled:
            flight.jobs += self._sent(chunk).jobs
            return [flight], []
        except Lost as error:
            if chunk.tries <= len(PAUSES):
                after = time.monotonic() + PAUSES[chunk.tries - 1]
                chunks.append(replace(chunk, tries=chunk.tries + 1, after=after))
                return [], []
            why = f"its job was sent {chunk.tries} times to {self._server.address}, and lost: {error}"
            if not isinstance(error, Interrupted) and self._heard < chunk.first:
                self._drop(flight)
                raise RunError(_given_up(self._server.address, chunk.tries, error)) from error
            return [], self._parted(chunk, Failure(why), chunks)
        except Failed as error:
            why = str(error)
            failure = Failure(last_line(why), size=too_much(why), time=too_slow(why))
            if failure.size or failure.time:
                self._most_cells = min(self._most_cells, _cells(chunk) / 2)
            return [], self._parted(chunk, failure, chunks)
        if results is None:
            return [flight], []
        self._heard, self._ended = time.monotonic(), max(self._ended, flight.job.sent)
        if flight.seconds is not None and _cells(chunk):
            self._seconds_per_cell = max(flight.seconds / _cells(chunk), 0.5 * (self._seconds_per_cell or 0.0))
        return [], list(zip(chunk.pieces, results, strict=True))

    def _parted(self, chunk: Chunk, failure: Failure, chunks: list[Chunk]) -> list[tuple[Piece, Outcome]]:
        """What comes of pieces that failed together: nothing yet, but two halves of them; or one's failure."""
        if len(chunk.pieces) == 1:
            return [(chunk.pieces[0], failure)]
        half = len(chunk.pieces) // 2
        chunks += [Chunk(chunk.pieces[:half]), Chunk(chunk.pieces[half:])]
        return []

    def _now(self, kind: str, programs: Sequence[dict[str, Any]]) -> Any:
        """What one job gives, waited for."""
        work, address = work_of_all(self._graph.id, kind, shipped(programs, self.dtype)), self._server.address
        known, pause = self._ledger.find(work, address), 0.05

        def send() -> Job:
            try:
                return self._submitted(self._blob(kind, programs), work, [])
            except Refused as error:
                raise (TooMuch if error.code == TOO_LARGE else RunError)(self._refusal(error)) from error

        flight = _again(known, []) if known else Flight([send()], Chunk([]))
        while True:
            results, tries = None, flight.chunk.tries
            try:
                results = results_of(flight, self._server, self._ended)
            except Stalled:
                flight.jobs.append(send())
            except Lost as error:
                self._drop(flight)
                if tries > len(PAUSES):
                    raise RunError(_given_up(address, tries, error)) from error
                time.sleep(PAUSES[tries - 1])
                flight = Flight([send()], Chunk([], tries + 1))
            except Failed as error:
                self._drop(flight)
                why = str(error)
                kind_of = TooMuch if too_much(why) or too_slow(why) else RunError
                raise kind_of(f"A job failed on {address}: {last_line(why)}") from error
            if results is not None:
                self._drop(flight)
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


def _summary(flights: Sequence[Flight]) -> str:
    """The states of all jobs, and what the server says of the first that waits."""
    states = [flight.status.lower() for flight in flights]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    waiting = [flight.word for flight in flights if flight.status == "QUEUED" and "position" in flight.word]
    return "; ".join([*counts, *waiting[:1]])


def _again(job: Job, pieces: list[Piece]) -> Flight:
    """A job that was sent earlier, perhaps by another process."""
    return Flight([job], Chunk(pieces), heard=time.monotonic() - max(0.0, time.time() - job.sent))


def _cells(chunk: Chunk) -> int:
    return sum(len(piece.cells) for piece in chunk.pieces)


def _given_up(address: str, tries: int, error: Lost) -> str:
    return (
        f"{address} does not get on: a job was sent {tries} times, and lost ({error}). What is done is in the store; "
        "the same command goes on from there."
    )
