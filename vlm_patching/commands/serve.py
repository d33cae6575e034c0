"""`vlm-patching serve-ndif`: a real NDIF server on this machine."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, NoReturn

import typer

DEFAULT_STATE = Path.home() / ".cache" / "vlm_patching" / "serve-ndif"


def serve_ndif(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Bundled names, local folders or hub ids; shapes-llava if none."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of the API; a free one where not given.")] = None,
    sandboxed: Annotated[
        bool, typer.Option("--sandboxed/--trusted", help="Run requests in NDIF's sandbox, as for untrusted users.")
    ] = False,
    wrappers: Annotated[
        bool, typer.Option("--with-wrappers", help="Also serve BLIP-VQA, by a class that public servers lack.")
    ] = False,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds a request may run; no limit if none.")] = None,
    state: Annotated[Path, typer.Option(help="Folder for logs; one for each server.")] = DEFAULT_STATE,
    environment: Annotated[
        Path | None, typer.Option(help="The server's virtual environment; built where it is missing.")
    ] = None,
    redis: Annotated[Path | None, typer.Option(help="The redis-server program, where it is not on PATH.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave the server running; --stop ends it.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the server of --state, and nothing else.")] = False,
) -> None:
    """Start an NDIF server on this machine, for experiments with `--backend ndif` without an account.

    The first time, its packages are installed into a virtual environment of their own (about 2 GB). It listens on
    127.0.0.1 only and knows no accounts: whoever uses this machine can run code in it. Ctrl-C ends it.
    """
    from vlm_patching.serving import Loopback, build_environment, default_environment, stop_server

    if stop:
        host = stop_server(state)
        print(f"Stopped {host}." if host else f"No server runs in {state}.")
        return
    environment = environment or default_environment()
    server = Loopback(
        models or ["shapes-llava"],
        environment=environment,
        state=state,
        port=port,
        redis=redis,
        sandboxed=sandboxed,
        wrappers=wrappers,
        execution_timeout=timeout,
    )
    server.check_request()
    build_environment(environment)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    print("Starting an NDIF server; this takes about a minute.", flush=True)
    try:
        server.start()
        print(f"NDIF server at {server.host}, serving {', '.join(server.model_keys)}; logs in {state}.")
        print(f"To use it: NDIF_HOST={server.host}", flush=True)
        if detach:
            print("It goes on until `vlm-patching serve-ndif --stop`, with the same --state.")
            return
        print("Ctrl-C stops it.", flush=True)
        server.wait()
        print("It was stopped.")
    except KeyboardInterrupt:
        print("\nStopping.", flush=True)
    finally:
        if not detach:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            server.stop()


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
