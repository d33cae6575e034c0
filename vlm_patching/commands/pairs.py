"""`vlm-patching pairs`: look at the pairs of a spec, and write them as a folder of pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vlm_patching.commands.output import AsJson, Changes, Family, Spec, parse_changes, show
from vlm_patching.errors import RunError, SpecError, unknown

if TYPE_CHECKING:
    from vlm_patching.experiment import Experiment
    from vlm_patching.pairs import Pairs


class _ShowByDefault(TyperGroup):
    """`pairs SPEC` is `pairs show SPEC`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        (spec, *_) = self.commands["show"].params
        return [*super().shell_complete(ctx, incomplete), *spec.shell_complete(ctx, incomplete)]


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at the pairs of a spec, or write them as a folder.\n\n`pairs SPEC` is short for `pairs show SPEC`.",
    cls=_ShowByDefault,
)

Corrupted = Annotated[
    bool, typer.Option("--corrupted", help="As the spec's corruption makes them, not as the dataset has them.")
]


@app.command("show")
def show_pairs(
    spec: Spec,
    preview: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show them side by side: .html, .png, .pdf or .svg.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="How many pairs are shown at most (of a picture 12).")] = 100,
    corrupted: Corrupted = False,
    changes: Changes = None,
    family: Family = None,
    as_json: AsJson = False,
) -> None:
    """Say which pairs a spec gives, how many candidates were dropped, and why.

    The first twenty as a table, or with --preview side by side, their spans and regions marked.
    """
    import vlm_patching as vp

    experiment = vp.Experiment.from_spec(spec, parse_changes(changes, family))
    _check_kind(preview)
    pairs = _pairs(experiment, corrupted)
    if preview is not None:
        _write_preview(pairs, preview, f"{experiment.name}: {experiment.pairs.dataset}", most)
    rows = [
        {"id": p.id, "question": p.clean.text, "answer": p.answer, "foil": p.foil, "task": p.task} for p in pairs[:most]
    ]
    if as_json:
        counts = {"pairs": len(pairs), "considered": pairs.considered, "dropped": dict(pairs.dropped)}
        print(json.dumps({**counts, "first": rows}, indent=2, ensure_ascii=False))
        return
    print(f"{pairs.counted()}.")
    if preview is None:
        show(rows[:20], False, ("id", "question", "answer", "foil"))
    else:
        print(preview)


@app.command()
def export(
    spec: Spec,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="The folder; it must not exist.")],
    corrupted: Corrupted = False,
    changes: Changes = None,
    family: Family = None,
) -> None:
    """Write the pairs of a spec as a folder, to look at, change and share: pairs.jsonl and PNGs.

    `pairs: {dataset: folder, path: FOLDER}` in a spec reads it.
    """
    import vlm_patching as vp
    from vlm_patching.pairs import pairs_digest
    from vlm_patching.pairs.exporting import write_folder

    experiment = vp.Experiment.from_spec(spec, parse_changes(changes, family))
    if output.exists():
        raise SpecError(f"{output} exists already; name another folder.")
    pairs = _pairs(experiment, corrupted)
    try:
        write_folder(pairs, output)
    except OSError as error:
        raise RunError(f"The pairs could not be written to {output}: {error}.") from error
    print(f"{pairs.counted()}.")
    print(f"{output}: sha256 {pairs_digest(pairs)}")


def _pairs(experiment: Experiment, corrupted: bool) -> Pairs:
    from vlm_patching.pairs import load
    from vlm_patching.pipeline import described
    from vlm_patching.preparation import corrupted_pairs

    pairs = load(experiment.pairs)
    if not corrupted:
        return pairs
    if experiment.corruption is None:
        raise SpecError(f"{experiment.name} has no corruption; leave --corrupted out.")
    return corrupted_pairs(pairs, experiment.corruption, described(experiment, None), experiment.seed)


_FIGURES = (".png", ".pdf", ".svg")


def _check_kind(preview: Path | None) -> None:
    if preview is not None and preview.suffix.lower() not in (".html", *_FIGURES):
        raise unknown("kind of preview", preview.suffix, (".html", *_FIGURES))


def _write_preview(pairs: Pairs, path: Path, title: str, most: int) -> None:
    from vlm_patching.pairs.preview import preview_html

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".html":
            path.write_text(preview_html(pairs, title, most), encoding="utf-8")
        else:
            import matplotlib as mpl

            mpl.use("Agg")
            from vlm_patching.plots import gallery

            gallery(pairs, most=min(most, 12)).savefig(path, dpi=150)
    except OSError as error:
        raise RunError(f"The preview could not be written to {path}: {error}.") from error
