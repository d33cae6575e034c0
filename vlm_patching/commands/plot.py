"""`vlm-patching plot` and `figures`: a store's figures as files, and which figures there are."""

from __future__ import annotations

import os
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlm_patching.commands import completion
from vlm_patching.commands.output import AsJson, outside_store, parse_changes, show
from vlm_patching.errors import SpecError
from vlm_patching.figures import FIGURES


def plot(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The store that a run has written.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="A folder, or the file of one figure; next to the store where not given.",
        ),
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Only this kind, as heatmap, or one of several, as heatmap_2; vlm-patching figures lists them.",
            autocompletion=completion.figures,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which metric's effect, in the place of the figures' own.",
            autocompletion=completion.metrics,
        ),
    ] = None,
    site: Annotated[str | None, typer.Option(metavar="NAME", help="Only this site.")] = None,
    position: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this position, of figures that take one.")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Shares of the total effect.")] = False,
    other: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Figure compare: the store to compare with.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any other argument of a figure, as in --set layers=x. May be repeated.",
            autocompletion=completion.figure_arguments,
        ),
    ] = None,
    width: Annotated[
        Literal["screen", "single", "double"], typer.Option(help="A page's one or two columns, with letters for print.")
    ] = "screen",
    title: Annotated[bool, typer.Option(help="Say above the panels what a figure is of.")] = True,
    form: Annotated[
        Literal["png", "pdf", "svg", "jpg"] | None, typer.Option("--format", help="Where -o names no file: png.")
    ] = None,
) -> None:
    """Draw a store: the figures that its experiment names, or those that its method calls for."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    import vlm_patching as vp
    from vlm_patching.plots.draw import draw_each, figures_of, not_drawn
    from vlm_patching.plots.style import check_format

    if output is not None:
        outside_store(output)
    ds = vp.load_results(store)
    compared = vp.load_results(other) if other is not None else None
    given = {"metric": metric, "site": site, "position": position, "normalize": normalize or None}
    given |= parse_changes(changes, None, "layers=x")
    specs = figures_of(ds, figure or ("compare" if other else None), given, compared is not None)
    if output is not None and _is_file_name(output):
        check_format(output.suffix)
        if form is not None and output.suffix.lower() != f".{form}":
            raise SpecError(f"-o {output} and --format {form} do not agree; give one of them.")
        if len(specs) > 1:
            picks = ", ".join(f"{name}_1" if f"{name}_2" in specs else name for name in specs)
            raise SpecError(
                f"{output} is one file, and these are {len(specs)} figures: give -o a folder, or --figure one of "
                f"{picks}."
            )
    failed: dict[str, list[str]] = {}
    with vp.plot.style(width, title=title):
        rebuilt = cache(partial(vp.rebuild_pairs, ds))
        for name, figure_ in draw_each(ds, specs, failed, pairs=rebuilt, other=compared):
            print(vp.plot.save(figure_, _path(store, output, name, form or "png"), dpi=150))
            plt.close(figure_)
    if failed:
        (why, names), *_ = failed.items()
        raise SpecError(why if len(names) == len(specs) else not_drawn(failed))


def figures(as_json: AsJson = False) -> None:
    """List the figures: what each shows, which methods' results it draws, and what can be said of it."""
    rows: list[dict[str, Any]] = []
    for name, kind in FIGURES.items():
        rows.append(
            {
                "name": name,
                "shows": kind.about,
                "of": ", ".join(kind.methods),
                "arguments": ", ".join(kind.arguments),
                "form of": kind.follows,
            }
        )
    show(rows, as_json, ("name", "shows", "of", "arguments"))


def _path(store: Path, output: Path | None, name: str, form: str) -> Path:
    """Where a figure goes: the file that was named, into the folder, or next to the store."""
    if output is None:
        return store.with_name(f"{store.stem}_{name}.{form}")
    return output if _is_file_name(output) else output / f"{name}.{form}"


def _is_file_name(output: Path) -> bool:
    return bool(output.suffix) and not os.path.isdir(output)
