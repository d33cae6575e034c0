"""`vlm-patching jobs` and `vlm-patching doctor`: what is under way on a server, and whether it can be used."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_patching.commands.output import AsJson, show

if TYPE_CHECKING:
    from vlm_patching.backends.jobs import Job

Host = Annotated[str | None, typer.Option(help="Address of the NDIF server; NDIF_HOST, or the public one.")]


def jobs(
    store: Annotated[Path, typer.Argument(help="A store that `run --backend ndif` has begun.")],
    wait: Annotated[bool, typer.Option("--wait", help="Until none is under way; `run` then fetches results.")] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Forget them: `run` sends their work anew. The server is not told.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs that a store waits for, with their states."""
    from vlm_patching.backends.flights import UNDER_WAY
    from vlm_patching.backends.jobs import Ledger
    from vlm_patching.errors import SpecError
    from vlm_patching.results.store import StoreAttributes, load_results

    if cancel and wait:
        raise SpecError("--wait and --cancel exclude each other.")
    load_results(store)
    ledger = Ledger(StoreAttributes(store))
    while True:
        noted = ledger.jobs()
        rows = [_row(job, "FORGOTTEN", []) if cancel else _asked(job) for job in noted]
        if not wait or not any(row["status"] in UNDER_WAY for row in rows):
            break
        time.sleep(2)
    if cancel:
        for job in noted:
            ledger.drop(job)
    if not rows and not as_json:
        print(f"{store} waits for no job.")
        return
    show(rows, as_json, ("job", "status", "examples", "sent", "host"))
    if cancel and not as_json:
        print(f"{len(rows)} jobs are forgotten; the same run command sends their work anew.")


def _asked(job: Job) -> dict[str, Any]:
    """A job and what its server says of it. A store is data of anybody's: only the user's own server sees the key."""
    from vlm_patching.backends.wire import Remote, Server

    with contextlib.closing(
        Server(Remote(host=job.host, patience=10), anonymous=job.host != Remote().address)
    ) as server:
        state = server.state(job.id) or {"status": "UNKNOWN", "description": ""}
    return _row(job, state["status"], state["description"].strip().splitlines()[-1:])


def _row(job: Job, status: str, description: list[str]) -> dict[str, Any]:
    sent = datetime.datetime.fromtimestamp(job.sent, datetime.UTC).isoformat(timespec="seconds")
    return {
        "job": job.id,
        "status": status,
        "examples": len(job.examples),
        "sent": sent,
        "host": job.host,
        "description": description,
    }


def doctor(
    backend: Annotated[str, typer.Option(help="local, or ndif.")] = "local",
    host: Host = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a backend can be used: versions, devices; of a server its models too."""
    from vlm_patching.errors import unknown

    checks = {"local": _local, "ndif": lambda: _ndif(host)}
    if backend not in checks:
        raise unknown("backend", backend, checks)
    found = checks[backend]()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, list) and value:
            show(value, False, tuple(value[0]))
        else:
            print(f"{name}: {value if value else 'none'}")


def _local() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names = ("vlm-patching", "nnsight", "torch", "transformers", "xarray", "zarr")
    rows = [{"package": name, "here": metadata.version(name)} for name in names]
    return {"backend": "local", "GPUs": ", ".join(gpus), "CPU threads": torch.get_num_threads(), "versions": rows}


def _ndif(host: str | None) -> dict[str, Any]:
    from vlm_patching.backends.deployed import version_table
    from vlm_patching.backends.wire import Remote, Server

    with contextlib.closing(Server(Remote(host=host, patience=30))) as server:
        server.check()
        models = [
            {"model": one.repo, "revision": one.revision, "task": one.task or "-", "state": one.state}
            for one in server.deployments()
        ]
        return {
            "server": server.address,
            "API key": "set" if server.has_key else "not set (a server on this machine needs none)",
            "execution": "trusted" if server.is_trusted() else "sandboxed: no gradients, no switching of attention",
            "versions": version_table(server),
            "models": models,
        }
