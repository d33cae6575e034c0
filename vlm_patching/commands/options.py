"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from vlm_patching.commands import completion

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
Backend = Annotated[str, typer.Option(help="Where the model runs: local, or ndif.", autocompletion=completion.backends)]
Host = Annotated[
    str | None, typer.Option(help="Address of the NDIF server; that of NDIF_HOST, or the public one, where not given.")
]
