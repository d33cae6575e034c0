"""`vlm-patching init`: a spec to begin with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from vlm_patching.commands import completion


def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What results and figures are called, and the file: NAME.yaml.")
    ] = "my-experiment",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Another file; - prints the spec.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="What is done: patch, knockout, ablate, steer, path, lens or attention.",
            autocompletion=completion.methods,
        ),
    ] = "patch",
    model: Annotated[
        str, typer.Option(help="A bundled name, a folder or a hub id.", autocompletion=completion.models)
    ] = "shapes-llava",
    dataset: Annotated[
        str, typer.Option(help="A name that `datasets` lists.", autocompletion=completion.datasets)
    ] = "shapes",
    force: Annotated[bool, typer.Option("--force", help="Replace a file of this name.")] = False,
) -> None:
    """Write a spec that runs as it is, with every option, what it means, its default and what is allowed.

    Of a dataset of files it runs once it says where they are. Sites and positions are chosen that the model
    has; its configuration is read for it, not its weights.
    """
    import vlm_patching as vp
    from vlm_patching.errors import SpecError
    from vlm_patching.template import commented_spec

    if not re.fullmatch(r"[\w+-]+", name):
        raise SpecError(f"NAME {name!r} becomes a file's name: give letters, digits, _, + and - alone.")
    path = output or Path(f"{name}.yaml")
    printed = str(path) == "-"
    if not printed and path.exists() and not force:
        raise SpecError(f"{path} exists; --force replaces it, and -o FILE writes another file.")
    architecture = vp.describe_model(model).architecture
    text = commented_spec(name, architecture, method=method, model=model, dataset=dataset)
    if printed:
        print(text, end="")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"The spec could not be written to {path}: {error}.") from error
    first = "say where its files are (path/to/...), then " if "path/to/" in text else ""
    print(f"{path}. To run it: {first}vlm-patching run {path}")
