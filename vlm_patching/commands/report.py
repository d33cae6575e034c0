"""`vlm-patching report`: a store as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_patching.commands.output import outside_store


def report(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A store that `run` has written.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The report; STORE with .html where not given.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What it opens with; where not given, what its figures show.")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Make the pairs anew, for their pictures and spans.")] = True,
) -> None:
    """Write a store as one HTML file: what was asked, found, on which pairs, and how to run it again."""
    import matplotlib as mpl

    mpl.use("Agg")
    import vlm_patching as vp
    from vlm_patching.errors import SpecError

    if output is not None:
        outside_store(output)
    ds = vp.load_results(store)
    output = output or store.with_name(store.name).with_suffix(".html")
    pairs, why = None, "the report was asked for without them (--no-pictures)"
    if pictures:
        try:
            pairs = vp.rebuild_pairs(ds)
        except SpecError as error:
            if output.exists():
                raise SpecError(
                    f"{output} is there already, and a new one would have no pictures, as the pairs cannot be made "
                    f"anew: {error} Name another file by -o, or replace it with --no-pictures."
                ) from error
            why = f"the pairs could not be made anew. {str(error).rstrip('.')}"
    made = vp.report(ds, output, pairs, metric=metric, without_pictures=why)
    print(f"{made.path}: {len(made.html.encode()) / 1e6:.1f} MB" + ("" if pairs else f", without pictures: {why}."))
