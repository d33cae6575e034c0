"""A real NDIF server on this machine: its five services as child processes that listen on 127.0.0.1 only."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from vlm_patching.errors import RunError, SpecError
from vlm_patching.serving import services
from vlm_patching.serving.deployment import Deployment, resolve_deployment
from vlm_patching.serving.environment import require_environment
from vlm_patching.serving.processes import Service, free_ports, is_free, listens, start_service, stop_services
from vlm_patching.serving.services import PORTS, Settings
from vlm_patching.serving.state import State, read_state, remove_state, write_state

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Loopback:
    """An NDIF server that lives as long as a `with` block, or from `start` to `stop`.

    Nothing is started before everything that was asked for has been checked. Several servers can run at once: each has
    ports, a Ray cluster and a state folder of its own. If the process that started one dies, its services go on;
    `stop_server` on the state folder ends them. A server knows no accounts, and a request is code: whoever can reach
    127.0.0.1 of this machine can run code as the user who started it.

    Parameters
    ----------
    models
        Bundled names, local folders or hub ids.
    environment
        The virtual environment that the server is installed in; see `build_environment`.
    state
        Folder for logs and for what is needed to stop the server; None makes a temporary one, removed by `stop`.
    port
        Of the API; None takes a free one.
    redis
        The redis-server program; None looks for it on PATH.
    sandboxed
        Run every request in the server's sandbox, as NDIF does for users it has no reason to trust. Otherwise requests
        run in the model's own process.
    wrappers
        Also give the server the classes that load models without a pipeline task (BLIP-VQA), which a public server
        lacks.
    execution_timeout
        Seconds after which the server ends a request; None lets it run.
    deadline
        Seconds that starting may take.

    Attributes
    ----------
    host
        What a client takes as NDIF_HOST.
    model_keys
        Model as named in `models` → the key that the server knows it by.
    services
        The processes that run.

    Raises
    ------
    SpecError
        Something asked for cannot be had: a model, a port, a program, a state folder that is in use.
    RunError
        A service did not come up; all others have been stopped.

    Examples
    --------
    >>> with Loopback(["shapes-llava"], environment="server-environment") as server:  # doctest: +SKIP
    ...     server.status()["deployments"]
    """

    def __init__(
        self,
        models: Sequence[str] = ("shapes-llava",),
        *,
        environment: str | Path,
        state: str | Path | None = None,
        port: int | None = None,
        redis: str | Path | None = None,
        sandboxed: bool = False,
        wrappers: bool = False,
        execution_timeout: float | None = None,
        deadline: float = 300.0,
    ) -> None:
        self.models = list(models)
        self.environment = Path(environment).absolute()
        self.state = None if state is None else Path(state).absolute()
        self.port = port
        self.redis = None if redis is None else str(redis)
        self.sandboxed = sandboxed
        self.wrappers = wrappers
        self.execution_timeout = execution_timeout
        self.deadline = deadline
        self.host = ""
        self.model_keys: dict[str, str] = {}
        self.services: list[Service] = []
        self._is_temporary = state is None
        self._settings: Settings | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> Self:
        """Start the services and deploy the models; returns when requests can be sent."""
        if self.services:
            raise SpecError(f"This server runs already, at {self.host}.")
        deployments, redis = self.check_request()
        require_environment(self.environment)
        settings = self._settings = self._prepare(redis, len(deployments))
        self.host = f"http://127.0.0.1:{settings.ports['api']}"
        self.model_keys = {d.name: d.model_key for d in deployments}
        self._until = time.monotonic() + self.deadline
        try:
            self._start_services(settings)
            self._deploy(settings, deployments)
        except BaseException:
            self.stop()
            raise
        return self

    def check_request(self) -> tuple[list[Deployment], str]:
        """What is to be deployed and the redis-server program; raises a `SpecError` for what cannot work."""
        if self.state is not None:
            other = read_state(self.state)
            if other is not None and other.runs:
                raise SpecError(
                    f"The state folder {self.state} is that of a server that runs at {other.host}. Stop it "
                    "(vlm-patching serve-ndif --stop, with the same --state), or give another --state."
                )
        deployments = [resolve_deployment(name, self.wrappers) for name in dict.fromkeys(self.models)]
        if self.port is not None and not is_free(self.port):
            raise SpecError(f"Port {self.port} is in use; give another one, or none, which takes a free one.")
        return deployments, self._find_redis()

    def stop(self) -> None:
        """End what `start` started. Harmless where nothing runs."""
        stop_services(self.services)
        for process in self._processes.values():
            process.wait()
        if self._settings is not None:
            shutil.rmtree(self._settings.ray_folder, ignore_errors=True)
        if self.services and self.state is not None:
            remove_state(self.state)
        if self._is_temporary and self.state is not None:
            shutil.rmtree(self.state, ignore_errors=True)
            self.state = None
        self.services, self._processes, self._settings, self.host = [], {}, None, ""

    def wait(self) -> None:
        """Wait until somebody else stops the server; raises a `RunError` if a service ends by itself."""
        while self.services:
            for service in self.services:
                if not service.alive:
                    found = None if self.state is None else read_state(self.state)
                    if found is None or found.stopping:
                        return
                    raise self._failure(service, f"The {service.name} of the NDIF server has ended.")
            time.sleep(0.5)

    def ping(self) -> bool:
        """Whether the API answers."""
        try:
            return self.get("/ping") == "pong"
        except (OSError, ValueError):
            return False

    def status(self) -> dict[str, Any]:
        """What the server says of its deployments."""
        return self.get("/status")

    def get(self, path: str, timeout: float = 30.0) -> Any:
        """The JSON that the API answers on a path; raises `urllib.error.HTTPError` for an error of HTTP."""
        with _OPENER.open(self.host + path, timeout=timeout) as response:
            return json.load(response)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _find_redis(self) -> str:
        wanted = self.redis or "redis-server"
        found = shutil.which(wanted)
        if found is None:
            raise SpecError(
                f"{wanted} was not found: an NDIF server needs Redis. Install it (Debian, Ubuntu: apt-get install "
                "redis-server; macOS: brew install redis; conda: conda install -c conda-forge redis-server), or name "
                "the program by --redis PATH."
            )
        return found

    def _prepare(self, redis: str, models: int) -> Settings:
        if self.state is None:
            self.state = Path(tempfile.mkdtemp(prefix="vlm-patching-ndif-"))
        remove_state(self.state)  # left by a server that is gone
        self.state.mkdir(parents=True, exist_ok=True)
        names = [name for name in PORTS if not (name == "api" and self.port)]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        if self.port:
            ports["api"] = self.port
        # the sockets in Ray's folder have paths of at most 107 characters: a folder under the state's is soon too deep
        ray_folder = tempfile.mkdtemp(prefix="ndif-", dir="/tmp")
        return Settings(
            environment=self.environment,
            state=self.state,
            ray_folder=Path(ray_folder),
            redis=redis,
            ports=ports,
            models=models,
            sandboxed=self.sandboxed,
            wrappers=self.wrappers,
            execution_timeout=self.execution_timeout,
        )

    def _start_services(self, settings: Settings) -> None:
        ports = settings.ports
        self._launch("redis", settings, services.redis_command(settings))
        self._launch("store", settings, services.store_command(settings))
        self._launch("ray", settings, services.ray_command(settings))
        self._wait("redis", lambda: listens(ports["redis"]))
        self._wait("ray", lambda: listens(ports["ray"]) and listens(ports["ray_client"]))
        self._run("controller", settings, services.controller_command(settings))
        self._wait("store", lambda: listens(ports["store"]))
        self._launch("api", settings, services.api_command(settings))
        self._wait("api", self._is_connected)

    def _deploy(self, settings: Settings, deployments: list[Deployment]) -> None:
        if deployments:
            file = settings.state / "models.yaml"
            file.write_text(yaml.safe_dump({"models": [d.to_dict() for d in deployments]}))
            self._run("deploy", settings, services.deploy_command(settings, file))

    def _launch(self, name: str, settings: Settings, command: list[str]) -> None:
        environment = services.service_environment(settings, name)
        try:
            service, process = start_service(name, command, environment, settings.state)
        except OSError as error:
            raise RunError(f"The {name} of the NDIF server could not be started: {error}.") from error
        self.services.append(service)
        self._processes[name] = process
        self._save(settings)

    def _run(self, name: str, settings: Settings, command: list[str]) -> None:
        """Run a step that ends by itself."""
        self._launch(name, settings, command)
        process = self._processes[name]
        self._wait(name, lambda: process.poll() is not None)
        if process.returncode:
            raise self._failure(self.services[-1], f"The step {name!r} of starting the NDIF server failed.")
        self.services.pop()
        self._save(settings)

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        service = next(s for s in self.services if s.name == name)
        while not ready():
            for other in self.services:
                if self._processes[other.name].poll():
                    raise self._failure(other, f"The {other.name} of the NDIF server ended while it was started.")
            if time.monotonic() > self._until:
                raise self._failure(service, f"The NDIF server was not up after {self.deadline:.0f} s: {name} is late.")
            time.sleep(0.1)

    def _is_connected(self) -> bool:
        try:
            return self.get("/connected", timeout=5.0)["status"] == "connected"
        except (OSError, ValueError):
            return False

    def _save(self, settings: Settings) -> None:
        state = State(self.host, str(settings.ray_folder), self.model_keys, settings.ports, self.services)
        write_state(settings.state, state)

    def _failure(self, service: Service, what: str) -> RunError:
        return RunError(f"{what} The end of its log:\n{service.log_tail()}")


def stop_server(state: str | Path) -> str | None:
    """End the server of a state folder, whoever started it, and nothing else.

    Returns
    -------
    str or None
        The host it had, or None where none was running.
    """
    folder = Path(state).absolute()
    found = read_state(folder)
    if found is None:
        return None
    write_state(folder, replace(found, stopping=True))
    stop_services(found.services)
    remove_state(folder)
    return found.host
