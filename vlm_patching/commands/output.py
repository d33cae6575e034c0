"""What commands share: their common arguments and options; tables on the terminal, or the same as JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlm_patching.commands import completion
from vlm_patching.errors import SpecError
from vlm_patching.validation import parse_yaml

Spec = Annotated[
    str, typer.Argument(metavar="SPEC", help="A preset's name, or a YAML file.", autocompletion=completion.specs)
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Replace a value of the spec, as in --set pairs.n=8. May be repeated.",
        autocompletion=completion.changes,
    ),
]
Family = Annotated[
    str | None, typer.Option(metavar="FILE", help="The model's family file, as --set model.family=FILE.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of torch; where not given, one for a small model.")
]
Backend = Annotated[
    str,
    typer.Option(metavar="NAME", help="Where the model runs: local, or ndif.", autocompletion=completion.backends),
]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Address of the NDIF server; that of NDIF_HOST, or the public one, where not given."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def parse_changes(changes: list[str] | None, family: str | None, example: str = "pairs.n=8") -> dict[str, Any]:
    """Dotted keys of a spec → the values that replace what stands there."""
    parsed: dict[str, Any] = {} if family is None else {"model.family": family}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals or not all(key.split(".")):
            raise SpecError(f"--set {change!r}: KEY.PATH=VALUE is expected, as in --set {example}.")
        parsed[key] = parse_yaml(value, f"--set {change!r}: the value")
    return parsed


def show(rows: list[dict[str, Any]], as_json: bool, columns: tuple[str, ...]) -> None:
    """Print rows: the named columns of them as a table, or everything as JSON."""
    if as_json:
        print(json.dumps([{key: _json_value(value) for key, value in row.items()} for row in rows], indent=2))
        return
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(str(row[column])) for column in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def outside_store(path: Path) -> None:
    """Refuse a place for a file that is inside a store, which is nothing but arrays."""
    inside = next((place for place in (path, *path.parents) if os.path.isfile(place / "zarr.json")), None)
    if inside is not None:
        raise SpecError(
            f"{path} is inside the store {inside}, which holds nothing but arrays; name a place outside of it."
        )


def _json_value(value: Any) -> Any:
    """A number that is none (no pair to take a mean of) is null in JSON, which has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
