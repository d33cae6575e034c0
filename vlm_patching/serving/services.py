"""How each service of an NDIF server is started: its command line, and the environment that all of them share."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import psutil  # type: ignore[import-untyped]

PORTS = (
    "api",
    "redis",
    "store",
    "ray",
    "ray_client",
    "ray_object_manager",
    "ray_node_manager",
    "ray_dashboard",
    "ray_agent_http",
    "ray_agent_grpc",
    "ray_runtime_env",
    "ray_metrics",
)
"""What listens; Ray's own defaults would clash with another Ray on the machine."""

OBJECT_STORE_BYTES = 300_000_000


@dataclass(frozen=True)
class Settings:
    """What the services have to know.

    Attributes
    ----------
    environment
        The server's virtual environment.
    state
        Folder for logs and configuration.
    ray_folder
        Ray's own folder, with a short path.
    redis
        The redis-server program.
    ports
        One for each name in `PORTS`.
    models
        How many will be deployed.
    sandboxed, wrappers, execution_timeout
        As `Loopback` takes them.
    """

    environment: Path
    state: Path
    ray_folder: Path
    redis: str
    ports: dict[str, int]
    models: int
    sandboxed: bool
    wrappers: bool
    execution_timeout: float | None

    @property
    def bin(self) -> Path:
        return self.environment / "bin"


def redis_command(settings: Settings) -> list[str]:
    """The queue of requests; nothing is kept on disk."""
    port = str(settings.ports["redis"])
    return [settings.redis, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"]


def store_command(settings: Settings) -> list[str]:
    """A stand-in for S3, where results lie until they are fetched: in memory, until the server stops."""
    return [str(settings.bin / "moto_server"), "-H", "127.0.0.1", "-p", str(settings.ports["store"])]


def ray_command(settings: Settings) -> list[str]:
    """The cluster that models run on, of one node."""
    options = {
        "node-ip-address": "127.0.0.1",
        "port": settings.ports["ray"],
        "ray-client-server-port": settings.ports["ray_client"],
        "object-manager-port": settings.ports["ray_object_manager"],
        "node-manager-port": settings.ports["ray_node_manager"],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": settings.ports["ray_dashboard"],
        "dashboard-agent-listen-port": settings.ports["ray_agent_http"],
        "dashboard-agent-grpc-port": settings.ports["ray_agent_grpc"],
        "runtime-env-agent-port": settings.ports["ray_runtime_env"],
        "metrics-export-port": settings.ports["ray_metrics"],
        "min-worker-port": 0,  # any free one
        "max-worker-port": 0,
        "include-dashboard": "true",  # the server asks it what runs
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": settings.ray_folder,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [str(settings.bin / "ray"), "start", "--head", "--block", "--disable-usage-stats", *flags]


def controller_command(settings: Settings) -> list[str]:
    """The step that puts NDIF's controller on the cluster; it ends when that is there."""
    return [str(settings.bin / "python"), "-m", "ndif.services.ray.deployments.controller.controller"]


def api_command(settings: Settings) -> list[str]:
    """What clients talk to, and the dispatcher behind it."""
    program = str(settings.bin / "gunicorn")
    return [program, "--config", "python:ndif.services.api.gunicorn_conf", "ndif.services.api.app:app"]


def deploy_command(settings: Settings, models: Path) -> list[str]:
    """The step that deploys models; it ends when they are ready."""
    return [str(settings.bin / "ndif"), "deploy", "-f", str(models)]


def service_environment(settings: Settings, name: str) -> dict[str, str]:
    """The environment of a service: that of this process, without what steers another Python, Ray or NDIF."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "RAY_", "NDIF_", "GUNICORN_", "AWS_")) and key != "VIRTUAL_ENV"
    }
    ports = settings.ports
    here = resources.files("vlm_patching.serving")
    plugins = ["extension", "wrappers"] if settings.wrappers else ["extension"]
    memory = psutil.virtual_memory().total
    # the server places models on GPUs only: one that is as large as the memory stands for this machine
    node = {
        "GPU": 1,
        "CPU": settings.models + 3,
        "cuda_memory_bytes": memory,
        "cpu_memory_bytes": memory,
        "head": 10,
    }
    local = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1,localhost"]))
    environment = inherited | {
        "PATH": f"{settings.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(str(here / plugin) for plugin in plugins),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": local,
        "no_proxy": local,
        "HF_HUB_OFFLINE": "1",  # what was to be downloaded is there by now
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "TOKENIZERS_PARALLELISM": "false",
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # as the server's own start script has it
        "RAY_OVERRIDE_RESOURCES": json.dumps(node),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or Ray takes the address of the network card for 127.0.0.1
        "RAY_AUTH_MODE": "disabled",  # or half of it takes the token that another Ray has put into the home folder
        "RAY_ENABLE_AUTO_CONNECT": "0",  # or the API, when Ray has died, starts another one of its own
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "NDIF_SERVICE": "ray" if name in ("ray", "controller") else "api",
        "NDIF_HOME": str(settings.state / "home"),
        "NDIF_REDIS_URL": f"redis://127.0.0.1:{ports['redis']}",
        "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{ports['store']}",
        "NDIF_OBJECT_STORE_PUBLIC_URL": f"http://127.0.0.1:{ports['store']}",
        "NDIF_API_PORT": str(ports["api"]),
        "NDIF_API_URL": f"http://127.0.0.1:{ports['api']}",
        "NDIF_RAY_HEAD_PORT": str(ports["ray"]),
        "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{ports['ray_client']}",
        "NDIF_RAY_TEMP_DIR": str(settings.ray_folder),
        "NDIF_MODEL_IMPORT_PATH": f"cpu_actor.{'SandboxedActor' if settings.sandboxed else 'TrustedActor'}",
        "NDIF_SANDBOX_POOL_SIZE": "1",
        "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
        "NDIF_DEFAULT_DTYPE": "float32",
        "NDIF_DEFAULT_PADDING_BIAS": "0",
        "NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS": "0",
        "NDIF_STATUS_TTL_S": "1",
        "NDIF_LOKI_URL": "",
        "NDIF_INFLUX_URL": "",
        "NDIF_POSTGRES_URL": "",
        "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{ports['api']} --no-control-socket",  # it would be at a fixed path
    }
    if settings.execution_timeout is not None:
        environment["NDIF_DEFAULT_EXECUTION_TIMEOUT_SECONDS"] = str(settings.execution_timeout)
    if name == "controller":
        environment["RAY_ADDRESS"] = f"127.0.0.1:{ports['ray']}"
    return environment
