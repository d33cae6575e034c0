"""HTTP with an NDIF server: what it says of itself, jobs in, results out.

The API key goes into a header and nowhere else: not into a store, a log or an error.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

import httpx
from nnsight import CONFIG

from vlm_patching.errors import RunError, SpecError

PUBLIC = "https://api.ndif.us"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0
TOO_LARGE = 413
TRANSIENT = (408, 425, 429, *range(500, 600))


@dataclass(frozen=True)
class Remote:
    """How an NDIF server is used.

    Attributes
    ----------
    host
        Its address; the environment's NDIF_HOST, or the public server, where None.
    jobs
        How many jobs are under way at a time.
    deadline
        Seconds that a job may take, from sending to result, before it is taken for lost and sent again.
    patience
        Seconds for which a server that does not answer, or answers that it cannot, is asked again.
    sandboxed
        Ask for isolated execution even where the server trusts the key. Gradients need execution that is not.
    """

    host: str | None = None
    jobs: int = 4
    deadline: float = 3600.0
    patience: float = 300.0
    sandboxed: bool = False

    def __post_init__(self) -> None:
        for name in ("jobs", "deadline", "patience"):
            if not getattr(self, name) > 0:
                raise SpecError(f"{name} of a remote run must be more than 0, not {getattr(self, name)}.")
        parts = urlsplit(self.address) if _is_url(self.address) else None
        if parts is None or parts.query or parts.fragment:
            raise SpecError(f"host: {self.address!r} is no address of a server; http(s)://NAME[:PORT] is expected.")
        if parts.username or parts.password:
            raise SpecError("host: the address has a name or a password in it, which stores would keep; leave it out.")

    @property
    def address(self) -> str:
        """Of the server that is meant, without a slash at its end."""
        return (self.host or os.environ.get("NDIF_HOST") or PUBLIC).rstrip("/")


@dataclass(frozen=True)
class Deployment:
    """A model that a server has.

    Attributes
    ----------
    key
        What a job names it by: the class that loads it, and `repo`, `revision` and `task` as JSON.
    state
        "RUNNING", "DEPLOYING", "NOT_STARTED" or "UNHEALTHY".
    """

    key: str
    repo: str
    revision: str
    task: str
    state: str

    @property
    def loader(self) -> str:
        """Import path of the class that loads it."""
        return self.key.split(":", 1)[0]


def _deployment(name: str, value: Mapping[str, Any]) -> Deployment | None:
    """One entry of /status; None for what is only on the server's disk, or is no model of nnsight's."""
    key = str(value.get("model_key") or name.split("ModelActor:", 1)[-1])
    if value.get("deployment_level") == "COLD" or ":" not in key:
        return None
    try:
        known = json.loads(key.split(":", 1)[1])
    except ValueError:
        return None
    if not isinstance(known, dict):
        return None
    revision, task = known.get("revision") or "main", known.get("task") or ""
    return Deployment(key, str(known.get("repo_id")), revision, task, str(value.get("application_state", "UNHEALTHY")))


class Gone(Exception):
    """A link, or a job, that the server no longer knows."""


class Refused(Exception):
    """A request that the server understood and does not take."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Server:
    """One NDIF server. What fails on the way is tried again, with growing pauses, for as long as patience lasts.

    Parameters
    ----------
    anonymous
        Do not show it the API key.

    Raises
    ------
    SpecError
        The API key cannot be one.
    """

    def __init__(self, remote: Remote, anonymous: bool = False) -> None:
        self.remote = remote
        self.address = remote.address
        self._key = "" if anonymous else (CONFIG.API.APIKEY or "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise SpecError("NDIF_API_KEY holds what no API key has: line breaks, or letters that are not ASCII.")
        read, connect = (min(seconds, remote.patience) for seconds in (READ_SECONDS, CONNECT_SECONDS))
        self._client = httpx.Client(timeout=httpx.Timeout(read, connect=connect))

    @property
    def has_key(self) -> bool:
        return bool(self._key)

    @property
    def is_loopback(self) -> bool:
        return urlsplit(self.address).hostname in LOOPBACK

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def check(self) -> None:
        """`RunError` where there is no server at the address, `SpecError` where it wants a key and there is none."""
        try:
            response = self._client.get(f"{self.address}/ping")
        except httpx.RequestError as error:
            raise RunError(
                f"No NDIF server answers at {self.address} ({_name(error)}). Is the address right (--host, or "
                "NDIF_HOST in the environment)? `vlm-patching serve-ndif` starts one on this machine."
            ) from error
        if response.status_code in TRANSIENT:
            response = self._ask(lambda: self._client.get(f"{self.address}/ping"))
        if response.status_code != 200 or response.text.strip().strip('"') != "pong":
            raise RunError(
                f"{self.address} answers, but not as an NDIF server does: status {response.status_code}, and no "
                '"pong", to /ping.'
            )
        if not self.has_key and not self.is_loopback:
            raise SpecError(
                f"{self.address} wants an API key, and none is set: put it into the environment as NDIF_API_KEY. "
                "A key is free at https://login.ndif.us."
            )

    def deployments(self) -> list[Deployment]:
        """Every model that is up or coming up, once for each of its replicas."""
        found = self._json("/status").get("deployments", {})
        known = [_deployment(str(name), value) for name, value in found.items()]
        return [deployment for deployment in known if deployment is not None]

    def environment(self) -> dict[str, str]:
        """The server's packages → versions, "python" among them."""
        found = self._json("/env")
        python = str(found.get("python_version", "")).split(" ")[0]
        return {"python": python} | {str(k): str(v) for k, v in found.get("packages", {}).items()}

    def is_trusted(self) -> bool:
        """Whether code of this key runs without a sandbox: by the key's tags, or as nobody is asked for a key."""
        if self.remote.sandboxed:
            return False
        found = self._json("/whoami")
        return "trusted" in (found.get("tags") or ()) or (found.get("email") is None and self.is_loopback)

    def submit(self, model_key: str, blob: bytes, job: str) -> str:
        """Send a job that nobody waits for, under an id of ours; the id by which the server knows it.

        Raises
        ------
        Refused
            The server does not take it.
        """
        envelope: dict[str, Any] = {"model_key": model_key, "session_id": "", "compress": True, "env": {}, "id": job}
        if self.remote.sandboxed:
            envelope["trusted"] = False
        tries = itertools.count()

        def send() -> httpx.Response:
            if next(tries):  # it may have arrived, and only the answer be lost
                known = self._client.get(f"{self.address}/response/{job}", headers=self._headers)
                if known.status_code == 200:
                    return known
            return self._client.post(
                f"{self.address}/request",
                data={"data": json.dumps(envelope)},
                files={"blob": ("request", blob, "application/octet-stream")},
                headers={
                    "ndif-timestamp": repr(time.time()),
                    "nnsight-version": metadata.version("nnsight"),
                    "python-version": sys.version,
                    **self._headers,
                },
            )

        response = self._accepted(self._ask(send))
        if response.status_code != 200:
            code, detail = response.status_code, self._detail(response)
            if code == 400 and "parsing the body" in detail and len(blob) > 1_000_000:
                code, detail = TOO_LARGE, f"{detail} (a server with anyio 4.15 or later takes 1 MB at most)"
            raise Refused(code, detail)
        return str(self._object(response).get("id", job))

    def state(self, job: str) -> dict[str, Any] | None:
        """The latest word on a job: status, description, data, meta; None where there is none yet."""
        response = self._ask(lambda: self._client.get(f"{self.address}/response/{job}", headers=self._headers))
        if response.status_code == 404:
            return None
        found = self._object(self._accepted(response))
        return {**found, "description": self.scrubbed(str(found.get("description") or ""))}

    def fetch(self, link: str) -> bytes:
        """A result, compressed as it came; `Gone` where the link has expired, or is none."""
        if not _is_url(link):
            raise Gone("it is not at an address")
        response = self._ask(lambda: self._client.get(link, follow_redirects=True))
        if response.status_code != 200:
            raise Gone(f"status {response.status_code}")
        return response.content

    @property
    def _headers(self) -> dict[str, str]:
        return {"ndif-api-key": self._key} if self._key else {}

    def _json(self, path: str) -> Mapping[str, Any]:
        return self._object(
            self._accepted(self._ask(lambda: self._client.get(self.address + path, headers=self._headers)))
        )

    def _accepted(self, response: httpx.Response) -> httpx.Response:
        """A response, if the server takes our key."""
        if response.status_code in (401, 403):
            raise SpecError(f"{self.address} does not accept the API key in NDIF_API_KEY: {self._detail(response)}")
        return response

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        """What an NDIF server answers; `RunError` where it is something else."""
        path = response.url.path
        if response.status_code != 200:
            raise RunError(f"{self.address}: status {response.status_code} to {path}, {self._detail(response)}")
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RunError(f"{self.address} does not answer {path} as an NDIF server does: {self._detail(response)}")
        return found

    def _ask(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        start, pause = time.monotonic(), FIRST_PAUSE
        while True:
            after = 0.0
            try:
                response = send()
                if response.status_code not in TRANSIENT:
                    return response
                why = f"status {response.status_code}, {self._detail(response)}"
                after = _seconds(response.headers.get("retry-after", ""))
            except httpx.RequestError as error:
                why = _name(error)
            left = self.remote.patience - (time.monotonic() - start)
            if left <= 0:
                raise RunError(
                    f"The NDIF server {self.address} has not answered for {self.remote.patience:g} s ({why}). Jobs "
                    "that are under way are noted in the store: the same command finds their results."
                )
            time.sleep(min(max(after, pause * random.uniform(0.5, 1.5)), left))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _detail(self, response: httpx.Response) -> str:
        try:
            body = response.json()
        except ValueError:
            body = response.text
        text = self.scrubbed(str(body.get("detail", body) if isinstance(body, dict) else body))
        return " ".join(text.split())[:500] or response.reason_phrase

    def scrubbed(self, text: str) -> str:
        """A text of the server's without the key, should it be in there."""
        return text.replace(self._key, "<key>") if self._key else text


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and bool(httpx.URL(text))
    except (ValueError, httpx.InvalidURL):
        return False


def _seconds(text: str) -> float:
    try:
        return min(max(0.0, float(text)), 4 * LONGEST_PAUSE)
    except ValueError:  # a date, which no NDIF server sends
        return 0.0
