"""`vlm-patching jobs`: what is under way on a server."""

from __future__ import annotations

import contextlib
import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_patching.commands.output import AsJson, show

if TYPE_CHECKING:
    from vlm_patching.backends.jobs import Job


def jobs(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A store that `run --backend ndif` has begun.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until none is under way; `run` then fetches their results.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Forget them; `run` sends their work anew. The server is not told.")
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
