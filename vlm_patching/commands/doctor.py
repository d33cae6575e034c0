"""`vlm-patching doctor`: whether a model, or a backend, can be used."""

from __future__ import annotations

import contextlib
import json
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console

from vlm_patching.commands import completion
from vlm_patching.commands.output import AsJson, Backend, Host, show

Table = list[dict[str, Any]]


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A bundled name, a folder or a hub id. Left out: the backend is looked at.",
            autocompletion=completion.models,
        ),
    ] = None,
    family: Annotated[Path | None, typer.Option(metavar="FILE", help="The model's family file.")] = None,
    weights: Annotated[
        Literal["load", "random", "none"],
        typer.Option(help="Load the weights, draw random ones, or do without: what the configuration says alone."),
    ] = "load",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where a file for an unknown family goes; MODEL_TYPE.yaml if none."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device_map: Annotated[str | None, typer.Option(help="As transformers takes it: cpu, cuda:0, auto.")] = None,
    attn_implementation: Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2, ...")] = None,
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit, by bitsandbytes.")] = None,
    backend: Backend = "local",
    host: Host = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a model can be used: its stacks, sites and positions, and every trust check at every site.

    Of a model of no known family a file is proposed. Without MODEL: whether a backend can be used (versions, devices;
    of a server its models too). Exit code 1 where a check fails.
    """
    from vlm_patching.errors import SpecError, unknown

    if model is None:
        checks = {"local": _local, "ndif": lambda: _ndif(host)}
        if family is not None:
            raise SpecError("--family is a model's: vlm-patching doctor MODEL --family FILE.")
        if backend not in checks:
            raise unknown("backend", backend, checks)
        _print(checks[backend](), as_json)
        return
    if backend != "local" or host is not None:
        raise SpecError("--backend and --host are without MODEL; a model is looked at here.")
    options = {
        "family": None if family is None else str(family),
        "revision": revision,
        "dtype": dtype,
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "quantization": quantization,
    }
    _examine({"name": model, **options}, weights, output, as_json)


def _examine(
    options: dict[str, Any], weights: Literal["load", "random", "none"], output: Path | None, as_json: bool
) -> None:
    from vlm_patching.doctor import examine
    from vlm_patching.errors import SpecError
    from vlm_patching.sections import ModelSpec
    from vlm_patching.validation import explain

    try:
        spec = ModelSpec.model_validate(options)
    except ValidationError as error:
        raise SpecError(explain(error, lambda at: ModelSpec.model_fields)) from error
    console = Console(stderr=True)
    with console.status("reading the configuration") as status:
        found = examine(spec, weights, output, lambda line: status.update(line))
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        about: dict[str, Any] = {**found.about}
        for name in ("stacks", "sites", "engine", "positions", "checks"):
            about[name] = [
                {key: value for key, value in row.items() if key != "passed"} for row in getattr(found, name)
            ]
        _print(about, False)
        for kind, lines in (("problem", found.problems), ("note", found.notes)):
            for line in lines:
                print(f"{kind}: {line}")
        print(found.verdict)
    if not found.usable:
        raise typer.Exit(1)


def _print(found: dict[str, Any], as_json: bool) -> None:
    """A title and a value a line, or a table below its title."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, list) and value:
            print(f"\n{name}")
            show(value, False, tuple(value[0]))
        else:
            print(f"{name}: {value or 'none'}")


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
