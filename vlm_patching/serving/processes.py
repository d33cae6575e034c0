"""Child processes in sessions of their own, so that all that descends from them can be found and stopped later, by
anybody, and nothing else with them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

CLOCK_TOLERANCE = 2.0
"""Seconds by which the recorded start of a process may differ from what the system says later."""


@dataclass(frozen=True)
class Service:
    """A process that was started here.

    Attributes
    ----------
    name
        What it is.
    pid
        Its process id, and the id of the session that it and its descendants are in.
    started
        When it started, in seconds of the epoch: a later process with the same id is another one.
    log
        The file that its output goes to.
    """

    name: str
    pid: int
    started: float
    log: str

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and self._is_same(process)
        except psutil.NoSuchProcess:
            return False

    @property
    def owns_session(self) -> bool:
        """Whether what is in the session with its id descends from it.

        An id is not given to another process as long as a session has it, so the session of a process that ended is
        still its own; it is not once somebody else has the id.
        """
        try:
            return self._is_same(psutil.Process(self.pid))
        except psutil.NoSuchProcess:
            return True

    def log_tail(self, lines: int = 15) -> str:
        try:
            text = Path(self.log).read_text(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.strip().splitlines()[-lines:]) or "(the log is empty)"

    def _is_same(self, process: psutil.Process) -> bool:
        return abs(process.create_time() - self.started) < CLOCK_TOLERANCE


def start_service(
    name: str, command: list[str], environment: dict[str, str], folder: Path
) -> tuple[Service, subprocess.Popen[bytes]]:
    """Start a command in a session of its own; its output goes to `FOLDER/logs/NAME.log`."""
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Service(name, process.pid, psutil.Process(process.pid).create_time(), str(log)), process


def stop_services(services: Iterable[Service], grace: float = 2.0) -> None:
    """End services and all that descends from them: SIGTERM, and SIGKILL for what is left after `grace` seconds."""
    sessions = {service.pid for service in services if service.owns_session}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in members(sessions):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + grace
        while members(sessions) and time.monotonic() < deadline:
            time.sleep(0.05)


def members(sessions: Iterable[int]) -> list[int]:
    """The ids of the running processes of some sessions."""
    wanted = set(sessions)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) in wanted and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def is_free(port: int) -> bool:
    """Whether a server could listen on a port of the loopback interface."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether somebody answers on a port of the loopback interface."""
    with socket.socket() as one:
        one.settimeout(1.0)
        return one.connect_ex(("127.0.0.1", port)) == 0
