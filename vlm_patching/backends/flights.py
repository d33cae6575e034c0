"""What becomes of a job on an NDIF server: its states, its results, and the ways in which it can be lost."""

from __future__ import annotations

import io
import pickle
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import zstandard

from vlm_patching.backends.base import Piece
from vlm_patching.backends.jobs import Job
from vlm_patching.backends.wire import Gone, Server

FETCHES = 3
"""How often a result is asked for that cannot be had, or did not arrive as it was sent."""
BROKEN = (zstandard.ZstdError, EOFError, RuntimeError)
"""What reading a result raises that did not arrive as it was sent."""
UNKNOWN_SECONDS = 60.0
"""A job that the server has had no word on for so long is lost."""
STALLED_SECONDS = 900.0
"""A job that has waited for so long is sent once more: a server that was restarted may have forgotten it."""
TOO_SLOW = ("execution timeout",)
TOO_MUCH = ("OutOfMemoryError", "out of memory", "CUDA error: out")
PASSING = (
    "cancelled or preempted",
    "ActorDied",
    "ActorUnavailable",
    "RayActorError",
    "try again",
    "evicted",
    "restart",
)
WAITING = ("RECEIVED", "QUEUED")
UNDER_WAY = (*WAITING, "PROVISIONING", "DEPLOYING", "DISPATCHED", "RUNNING", "LOG")


class Lost(Exception):
    """A job of which nothing will come, whatever is in it."""


class Interrupted(Lost):
    """A job that ended with what it ran on; perhaps by what it does."""


class Stalled(Exception):
    """A job that has waited for very long."""


class Failed(Exception):
    """A job that ended in an error."""


@dataclass
class Chunk:
    """Pieces for one job.

    Attributes
    ----------
    tries
        How often they were sent, this time included.
    first
        When they were first sent, or found again, by this process's clock.
    after
        When they may be sent.
    """

    pieces: list[Piece]
    tries: int = 1
    first: float = field(default_factory=time.monotonic)
    after: float = 0.0


@dataclass
class Flight:
    """A chunk that is under way.

    Attributes
    ----------
    jobs
        Those that do its work, of which one suffices; the last is the one that is waited for.
    since
        When it was sent, or found again, by this process's clock.
    heard
        When the server last had a word on it.
    status, word
        The server's last ones.
    seconds
        How long it ran, where the server has said so.
    """

    jobs: list[Job]
    chunk: Chunk
    since: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    status: str = "RECEIVED"
    word: str = ""
    fetches: int = 0
    seconds: float | None = None

    @property
    def job(self) -> Job:
        return self.jobs[-1]


def results_of(flight: Flight, server: Server, ended: float = 0.0) -> Any:
    """A flight's results, None while it is under way.

    Parameters
    ----------
    ended
        When the latest of those jobs was sent that are done, in seconds since 1970: a server takes them in order.

    Raises
    ------
    Lost, Stalled, Failed
    """
    found, now = _latest(flight, server), time.monotonic()
    if found is None:
        if now - flight.heard > UNKNOWN_SECONDS:
            raise Lost("the server knows nothing of it")
        return None
    flight.heard, flight.status, flight.word = now, str(found.get("status")), found["description"]
    if flight.status == "COMPLETED":
        return _fetched(flight, server, found)
    if flight.status == "ERROR":
        if any(text in flight.word for text in PASSING) and not too_much(flight.word) and not too_slow(flight.word):
            raise Interrupted(last_line(flight.word))
        raise Failed(flight.word)
    if flight.status not in UNDER_WAY:
        status = server.scrubbed(repr(flight.status)[:50])
        raise Failed(f"the server calls its status {status}, which this client does not know")
    waited = now - flight.since
    if waited > server.remote.deadline:
        raise Lost(f"no result within {server.remote.deadline:g} s; its last status was {flight.status}")
    if flight.status in WAITING:
        if flight.job.sent < ended:
            raise Lost("it still waits, while one that was sent later is done")
        if waited > STALLED_SECONDS * (2 ** len(flight.jobs) - 1):
            raise Stalled
    return None


def _latest(flight: Flight, server: Server) -> dict[str, Any] | None:
    """What the server says of a flight's job; where there are several, of the one that gets on."""
    last = None
    for job in reversed(list(flight.jobs)):
        found = server.state(job.id)
        last = last or found
        if found is not None and found.get("status") not in WAITING:
            flight.jobs.remove(job)
            flight.jobs.append(job)
            return found
    return last


def _fetched(flight: Flight, server: Server, found: dict[str, Any]) -> Any:
    seconds = (found.get("meta") or {}).get("runtime")
    flight.seconds = seconds if isinstance(seconds, int | float) else None
    if not found.get("data"):
        raise Lost("it ended without a result")
    try:
        content = server.fetch(str(found["data"]))
    except Gone as error:
        return _once_more(flight, error)
    try:
        results = loaded(content)
    except BROKEN as error:
        return _once_more(flight, error)
    if flight.chunk.pieces and (not isinstance(results, list) or len(results) != len(flight.chunk.pieces)):
        raise Failed("its result is not what was asked for")
    return results


def _once_more(flight: Flight, error: Exception) -> None:
    """Nothing yet, so that the job is asked about again; `Lost` where that has been tried."""
    flight.fetches += 1
    if flight.fetches >= FETCHES:
        raise Lost(f"its result could not be fetched: {last_line(str(error))}") from error


def loaded(content: bytes) -> Any:
    """A result's tensors and numbers; `Failed` where something else is in it, which is not touched."""
    plain = zstandard.ZstdDecompressor().decompress(content)
    try:
        found = torch.load(io.BytesIO(plain), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Failed("its result holds something other than tensors, numbers and texts; it was not opened") from error
    if not isinstance(found, dict) or "results" not in found:
        raise Failed("its result is not what was asked for")
    return found["results"]


def too_much(word: str) -> bool:
    """Whether an error is of memory that did not suffice."""
    return any(text in word for text in TOO_MUCH)


def too_slow(word: str) -> bool:
    """Whether an error is of time that did not suffice."""
    return any(text in word for text in TOO_SLOW)


def last_line(text: str) -> str:
    """The line of an error that says what is wrong."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "the server gave no reason"
