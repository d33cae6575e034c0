"""`vlm-patching bundle`: share results as one file, and run again what others share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vlm_patching.commands import completion
from vlm_patching.commands.output import AsJson, Backend, Host, Threads

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Share results as one file, and run again what others share.",
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A bundle.")]


@app.command()
def save(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A store that `run` has written.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The bundle; STORE with .vlmp.zip where not given."),
    ] = None,
    figures: Annotated[bool, typer.Option(help="Draw the results' figures into it.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of this name.")] = False,
) -> None:
    """Put the experiment, the pairs and the results of a store into one file."""
    import matplotlib as mpl

    mpl.use("Agg")
    import vlm_patching as vp
    from vlm_patching.errors import SpecError

    ds = vp.load_results(store)
    if "experiment" not in ds.attrs:
        raise SpecError(
            f"{store} is of a graph written by hand, and does not hold its pairs: use vp.bundle.save(graph, ds, path, "
            "inputs=pairs)."
        )
    experiment = vp.Experiment.from_json(ds.attrs["experiment"])
    output = output or store.with_name(f"{store.stem}.vlmp.zip")
    path = vp.bundle.save(experiment, ds, output, figures=None if figures else {}, overwrite=force)
    print(f"{path}: digest {vp.bundle.verify(path).digest}")


@app.command()
def show(file: File, as_json: AsJson = False) -> None:
    """Say what is in a bundle; it is checked first."""
    import vlm_patching as vp

    found = vp.bundle.verify(file)
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)


@app.command()
def verify(file: File) -> None:
    """Check every file of a bundle against its manifest, and its parts against each other."""
    import vlm_patching as vp

    found = vp.bundle.verify(file)
    print(f"{file}: {found.files} files, all as the manifest says; digest {found.digest}")


@app.command()
def replay(
    file: File,
    backend: Backend = "local",
    host: Host = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Run this model: a bundled name, a folder, a hub id.",
            autocompletion=completion.models,
        ),
    ] = None,
    allow_download: Annotated[
        bool, typer.Option("--allow-download", help="Load the hub model that the bundle names.")
    ] = False,
    device_map: Annotated[str | None, typer.Option(help="As transformers takes it: cpu, cuda:0, auto.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="STORE", help="Where the new results go; nowhere where not given."),
    ] = None,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Run a bundle again and compare; exit code 1 where the numbers are not within their tolerance."""
    import vlm_patching as vp

    found = vp.bundle.replay(
        file,
        backend,
        host,
        model,
        output,
        allow_download=allow_download,
        device_map=device_map,
        threads=threads,
        progress=not as_json,
    )
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)
    if not found.ok:
        raise typer.Exit(1)
