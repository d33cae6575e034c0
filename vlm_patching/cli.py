"""The command line: thin commands over the Python API.

Exit code 0: done; 1: a run that failed (the store keeps what is done); 2: a bad spec or argument.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vlm_patching.commands import bundle, completion, doctor, init, pairs, plot, remote, report, serve
from vlm_patching.commands.output import AsJson, Backend, Changes, Family, Host, Spec, Threads, parse_changes, show
from vlm_patching.errors import RunError, SpecError
from vlm_patching.validation import parse_yaml

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")

LOOK, RUN, SHARE, LIST = "Before a run", "Running", "Results", "What there is"
"""Headings that the commands stand under."""


@app.callback()
def vlm_patching(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. Anywhere.")] = False,
) -> None:
    """Say where to intervene in a vision-language model, and get a labelled dataset of what it did back.

    Exit code 0: done. 1: a run that failed; its store keeps what is done, and the same command goes on from there.
    2: a bad spec or argument, said in one paragraph.
    """


app.command(rich_help_panel=LOOK)(init.init)


@app.command(rich_help_panel=RUN)
def run(
    spec: Spec,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="STORE", help="The store; results/NAME.zarr where not given."),
    ] = None,
    backend: Backend = "local",
    host: Host = None,
    jobs: Annotated[int, typer.Option(min=1, help="On ndif: how many jobs are under way at a time.")] = 4,
    deadline: Annotated[float, typer.Option(help="On ndif: seconds until a job is taken for lost.")] = 3600.0,
    patience: Annotated[float, typer.Option(help="On ndif: seconds for which a server may be out of reach.")] = 300.0,
    sandboxed: Annotated[
        bool, typer.Option("--sandboxed", help="On ndif: run isolated, even where the key is trusted.")
    ] = False,
    changes: Changes = None,
    family: Family = None,
    engine: Annotated[str, typer.Option(help="fast, or naive: one forward pass a cell, nothing reused.")] = "fast",
    checks: Annotated[bool, typer.Option(help="Hold the first kept pair's numbers against what must be true.")] = True,
    threads: Threads = None,
) -> None:
    """Run an experiment. A run that was cut off goes on where it stopped."""
    import vlm_patching as vp
    from vlm_patching.pairs.collection import told

    experiment = vp.Experiment.from_spec(spec, parse_changes(changes, family))
    store = output or _store(experiment.name)
    how = vp.Remote(host, jobs, deadline, patience, sandboxed) if backend == "ndif" else None
    with _stoppable(store):
        ds = vp.run(
            experiment,
            backend=backend,
            host=host,
            remote=how,
            store=store,
            engine=engine,
            checks=checks,
            threads=threads,
        )
    if ds.attrs.get("pairs_considered", ds.sizes["example"]) > ds.sizes["example"]:
        dropped = told(json.loads(ds.attrs["pairs_dropped"]))
        print(f"{ds.sizes['example']} pairs of {ds.attrs['pairs_considered']:,} candidates{dropped}.")
    print(f"{store}: {ds.attrs['examples_kept']} of {ds.sizes['example']} pairs kept.")
    if ds.attrs["examples_unaffected"]:
        print(
            f"  In {ds.attrs['examples_unaffected']} of them the corrupted run gives the same answer as the clean one."
        )
    reasons = [label for label in ds["kept"].values.tolist() if label != "kept"]
    for reason in reasons[:5]:
        print(f"  {reason}")
    if len(reasons) > 5:
        print(f"  and {len(reasons) - 5} more; the coordinate `kept` has the reason of each.")


@app.command(rich_help_panel=LOOK)
def evaluate(
    spec: Spec,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="STORE", help="The store; results/NAME-evaluated.zarr where not given."),
    ] = None,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--kept", metavar="FILE", help="Write the ids of kept pairs there; --set pairs.ids=FILE takes only these."
        ),
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="NAME", help="Count by this coordinate of the pairs, such as task or answer.")
    ] = "task",
    backend: Backend = "local",
    host: Host = None,
    changes: Changes = None,
    family: Family = None,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Say how often the model is right on an experiment's pairs, before anything is swept.

    A row for all pairs and one for each kind of question: how many there are, the share of right answers with its 95 %
    interval, and how many of those the corruption changes; below it how many are kept. An evaluation that was cut off
    goes on where it stopped.
    """
    import vlm_patching as vp
    from vlm_patching.commands.evaluate import report
    from vlm_patching.evaluation import write_kept

    experiment = vp.Experiment.from_spec(spec, parse_changes(changes, family))
    store = output or _store(f"{experiment.name}-evaluated")
    with _stoppable(store):
        ds = vp.evaluate(experiment, backend=backend, host=host, store=store, threads=threads)
    report(ds, by, as_json)
    told = [f"{store}: {ds.attrs['examples_kept']} of {ds.sizes['example']} pairs kept."]
    if kept is not None:
        write_kept(ds, kept)
        told.append(f"{kept}: their ids; --set pairs.ids={kept} takes only these.")
    typer.echo("\n".join(told), err=as_json)


@app.command(rich_help_panel=LOOK)
def graph(
    spec: Spec,
    changes: Changes = None,
    family: Family = None,
    as_json: AsJson = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flow chart.")] = False,
) -> None:
    """Show the intervention graph of an experiment: its runs, edits and reads."""
    import vlm_patching as vp

    if as_json and mermaid:
        raise SpecError("--json and --mermaid are two ways to print a graph; give one.")
    drawn = vp.Experiment.from_spec(spec, parse_changes(changes, family)).graph()
    print(drawn.to_json() if as_json else drawn.to_mermaid() if mermaid else drawn)


@app.command(rich_help_panel=LOOK)
def plan(
    spec: Spec,
    changes: Changes = None,
    family: Family = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Load the model, and time a pair.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what an experiment will cost: forward passes, arithmetic, memory; against one forward pass a cell."""
    import vlm_patching as vp
    from vlm_patching.pipeline import described, loaded

    experiment = vp.Experiment.from_spec(spec, parse_changes(changes, family))
    model = loaded(None, described(experiment, None), experiment) if calibrate else None
    found = vp.plan(experiment, model=model)
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)


@app.command(rich_help_panel=LOOK)
def diagnose(
    spec: Spec,
    changes: Changes = None,
    family: Family = None,
    corruptions: Annotated[
        list[str] | None,
        typer.Option(
            "--corruption",
            metavar="YAML",
            help="To be compared: a kind, or {kind: ..., ...}. May be repeated; the spec's own where not given.",
            autocompletion=completion.corruptions,
        ),
    ] = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Draw it too: a png, pdf, svg or jpg.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Say what corruptions do before anything is patched: how often the answer flips, how far activations move."""
    import vlm_patching as vp

    if output is not None:
        import matplotlib as mpl

        mpl.use("Agg")
        from vlm_patching.plots.style import check_format

        check_format(output.suffix)
    experiment = vp.Experiment.from_spec(spec, parse_changes(changes, family))
    parsed = [parse_yaml(text, f"--corruption {text!r}") for text in corruptions or []]
    sections = [section if isinstance(section, dict) else {"kind": section} for section in parsed]
    ds = vp.diagnose(experiment, sections or None, threads=threads)
    rows = []
    for name in ds["corruption"].values.tolist():
        one = ds.sel(corruption=name)
        row = {"corruption": name, "pairs": int(one["flipped"].notnull().sum())}
        row["flipped"] = f"{float(one['flipped'].mean()):.2f}"
        for metric in [str(m).removesuffix("_total_effect") for m in ds if str(m).endswith("_total_effect")]:
            row[f"TE {metric}"] = f"{float(one[f'{metric}_total_effect'].mean()):.3g}"
        for quantity in ("moved", "spread"):
            most = one[quantity].max("layer")
            shown = [f"{str(s).split('.')[0]} {float(v):.2f}" for s, v in zip(most["site"].values, most, strict=True)]
            row[f"{quantity} at most"] = ", ".join(shown)
        rows.append(row)
    show(rows, as_json, tuple(rows[0]))
    if output is not None:
        vp.plot.save(vp.plot.corruptions(ds), output, dpi=150)
        print(output, file=sys.stderr if as_json else sys.stdout)


app.add_typer(pairs.app, name="pairs", rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(doctor.doctor)
app.command(rich_help_panel=RUN)(remote.jobs)
app.command("serve-ndif", rich_help_panel=RUN)(serve.serve_ndif)
app.command(rich_help_panel=SHARE)(plot.plot)
app.command(rich_help_panel=SHARE)(report.report)
app.add_typer(bundle.app, name="bundle", rich_help_panel=SHARE)
app.command(rich_help_panel=SHARE)(bundle.replay)


@app.command(rich_help_panel=LIST)
def presets(as_json: AsJson = False) -> None:
    """List the experiments that ship with the package."""
    import vlm_patching as vp

    rows = []
    for name in vp.presets():
        spec = vp.Experiment.from_spec(name)
        rows.append(
            {
                "name": name,
                "model": spec.model.name,
                "method": spec.method,
                "corruption": spec.corruption.kind if spec.corruption else "",
                "sites": ", ".join(getattr(spec, spec.method).sites or ()),
                "source": (spec.source or "").strip(),
            }
        )
    show(rows, as_json, ("name", "model", "method", "corruption", "sites"))


@app.command(rich_help_panel=LIST)
def models(as_json: AsJson = False) -> None:
    """List the bundled models, and the families of models that are known."""
    import vlm_patching as vp
    from vlm_patching.models.families import families

    bundled = []
    for name, folder in vp.bundled_models().items():
        architecture = vp.describe_model(name).architecture
        bundled.append(
            {
                "name": name,
                "family": architecture.family,
                "stacks": ", ".join(f"{s.name} ({s.layers} layers × {s.heads} heads)" for s in architecture.stacks),
                "sites": architecture.sites(),
                "folder": str(folder),
            }
        )
    known = [
        {
            "family": name,
            "class": family.file.model_class,
            "stacks": ", ".join(stack.name for stack in family.file.stacks),
            "image": family.file.image.place if family.file.image else "none",
            "matches": family.file.model_dump(mode="json")["matches"],
        }
        for name, family in families().items()
    ]
    if as_json:
        print(json.dumps({"models": bundled, "families": known}, indent=2))
        return
    show(bundled, False, ("name", "family", "stacks"))
    print()
    show(known, False, ("family", "class", "stacks", "image"))


@app.command(rich_help_panel=LIST)
def datasets(as_json: AsJson = False) -> None:
    """List the datasets of pairs, and which files each needs."""
    from vlm_patching.pairs import DATASETS

    rows = [
        {"name": name, "about": d.about, "files": d.files, "options": ", ".join(d.options)}
        for name, d in DATASETS.items()
    ]
    show(rows, as_json, ("name", "about", "files", "options"))


app.command(rich_help_panel=LIST)(plot.figures)


def _store(name: str) -> Path:
    file_name = re.sub(r"[^\w+-]+", "_", name)
    return Path("results") / f"{file_name}.zarr"


@contextlib.contextmanager
def _stoppable(store: Path) -> Iterator[None]:
    """A run that the user may interrupt."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nStopped. What is done is in {store}; the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line; errors become one paragraph and an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except SpecError as error:
        _report(error, 2, debug)
    except RunError as error:
        _report(error, 1, debug)


def _report(error: Exception, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    else:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
