"""Tables of the reference, out of those in the code: a page has one where it says ``<!-- table: NAME -->``.

Where it says ``<!-- preset: NAME -->``, it has the file of a preset.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import vlm_patching as vp
from vlm_patching import graph
from vlm_patching.cli import app
from vlm_patching.experiment import Experiment
from vlm_patching.graph.structure import METHODS
from vlm_patching.manual import Entry, documented, entries, summary
from vlm_patching.metrics import METRICS
from vlm_patching.models.families import families
from vlm_patching.pairs import CORRUPTED_INPUT, DATASETS, IMAGE_CORRUPTIONS
from vlm_patching.pairs.datasets.base import DatasetSpec

_MARK = re.compile(r"^<!-- (table|preset): ([\w-]+) -->$", re.MULTILINE)
CORRUPTIONS = {
    "semantic_image_pair": ("", "the pair's other picture, which differs in what is asked about"),
    "symmetric_token_replacement": ("`automatic`", "the pair's other text, of as many tokens; or other words drawn"),
    "constraint_replacement": ("`span`, `phrase`", "a span's words become another phrase, of any length"),
    "gaussian_noise": (
        "`site`, `span`, `k`, `std`, `multiplicative`, `scale`, `draws`",
        "noise on the image embeddings, the pixels or a span's token embeddings, in seeded draws",
    ),
}
"""The corruptions that are no row of `IMAGE_CORRUPTIONS`: settings, and what they do."""


def filled(markdown: str) -> str:
    """A page with its tables and presets."""

    def made(match: re.Match[str]) -> str:
        kind, name = match.groups()
        known = TABLES if kind == "table" else vp.presets()
        if name not in known:
            raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(known)}")
        return TABLES[name]() if kind == "table" else preset(name)

    return _MARK.sub(made, markdown)


def preset(name: str) -> str:
    """A preset's file as a block."""
    return f'```yaml title="{name}.yaml"\n{vp.presets()[name].read_text(encoding="utf-8").strip()}\n```'


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def code(names: Iterable[object]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def spec() -> str:
    """Every section of a spec and every field of it."""
    return "\n\n".join(_section(Experiment, "The spec", ""))


def _section(section: type[BaseModel], title: str, path: str) -> Iterator[str]:
    """A section's fields, then those of the sections in it; where there are several kinds, what they share first."""
    yield f"## {title} {{#{path.rpartition('.')[2] or 'spec'}}}"
    yield summary(section)
    yield _fields(entries(section))
    for entry in entries(section):
        inside = f"{path}.{entry.name}".strip(".")
        if len(entry.sections) == 1:
            yield from _section(entry.sections[0], inside, inside)
        elif entry.sections:
            yield from _kinds(entry, inside)


def _kinds(entry: Entry, path: str) -> Iterator[str]:
    """The kinds of a section that one of its own fields names: the pairs of each dataset."""
    shared = {field.name for field in entries(DatasetSpec)}
    yield f"## {path} {{#{path}}}"
    yield f"{summary(DatasetSpec)} Beside these keys each dataset has its own."
    yield _fields(entries(DatasetSpec))
    for section in entry.sections:
        (kind,) = next(field.allowed for field in entries(section) if field.name == "dataset")
        own = [field for field in entries(section) if field.name not in shared]
        yield f"### {path}: {kind} {{#{path}-{kind}}}"
        yield summary(section)
        yield _fields(own) if own else "It has no keys of its own."


def _fields(found: Iterable[Entry]) -> str:
    return rows(("key", "value", "where left out", "meaning"), map(_field, found))


def _field(entry: Entry) -> tuple[str, ...]:
    written, meaning = entry.written, entry.meaning
    if entry.allowed:
        meaning += f" {'Each one of' if written.startswith('list') else 'One of'} {code(entry.allowed)}."
    if entry.sections:
        written = f"[{written}](#{entry.name})"
    default = (
        "**must be given**" if entry.required else "" if entry.default in (None, ()) else f"`{entry.shown_default}`"
    )
    return f"`{entry.name}`", written, default, meaning


def metrics() -> str:
    body = []
    for name, row in METRICS.items():
        about = " ".join((inspect.getdoc(row["of"]) or "").split())
        better = "more" if row["better"] == 1 else "less"
        over = {"answer": "the answer", "answer and foil": "answer and foil", "all": "all candidates"}
        of = f"whole answers: {over[row['scores']]}" if "scores" in row else "first token"
        body.append((f"`{name}`", about, of, better, f"{row['least']:g}"))
    return rows(("metric", "what it is", "of", "better", "least total effect divided by"), body)


def corruptions() -> str:
    body = []
    for name, on in CORRUPTED_INPUT.items():
        image = IMAGE_CORRUPTIONS.get(name)
        settings, about = CORRUPTIONS[name] if image is None else (code(image.settings), image.about)
        body.append((f"`{name}`", about, settings, f"`{on}`" + (" with noise" if name == "gaussian_noise" else "")))
    return rows(("kind", "what corrupts", "settings", "the corrupted run is on"), body)


def datasets() -> str:
    """Every dataset; its name leads to its page where it has one."""
    pages = Path(__file__).parents[1] / "datasets"
    body = []
    for name, dataset in DATASETS.items():
        linked = f"[`{name}`]({name}.md)" if (pages / f"{name}.md").is_file() else f"`{name}`"
        body.append((linked, dataset.about, dataset.files))
    return rows(("dataset", "what it is", "files"), body)


def bundled_sites() -> str:
    body = []
    for name in vp.bundled_models():
        architecture = vp.describe_model(name).architecture
        for stack in architecture.stacks:
            size = f"{stack.layers} layers × {stack.heads} heads"
            body.append((f"`{name}`", f"`{stack.name}`", size, code([*stack.components, *stack.attentions])))
        body.append((f"`{name}`", "–", "", code(architecture.entries)))
    return rows(("model", "stack", "size", "components"), body)


def stacks() -> str:
    body = []
    for name, family in families().items():
        image = family.file.image
        place = {"marks": "in the text", "before": "before the text", "apart": "cross-attended to"}
        body.append(
            (
                f"`{name}`",
                f"`{family.file.model_class}`",
                code(stack.name for stack in family.file.stacks),
                place[image.place] if image else "none",
            )
        )
    return rows(("family", "transformers class", "stacks", "image positions"), body)


def presets() -> str:
    body = []
    for name in vp.presets():
        spec = vp.Experiment.from_spec(name)
        section = getattr(spec, spec.method)
        sites = code(section.sites or ()) or "all that fit"
        corruption = f"`{spec.corruption.kind}`" if spec.corruption else "–"
        body.append((f"`{name}`", f"`{spec.model.name}`", f"`{spec.method}`", corruption, sites))
    return rows(("preset", "model", "method", "corruption", "sites"), body)


def deviations() -> str:
    """What presets follow, and where they depart from it; those of one text together."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in vp.presets():
        spec = vp.Experiment.from_spec(name)
        groups.setdefault((" ".join((spec.source or "").split()), spec.deviations), []).append(name)
    parts = []
    for (source, departures), names in groups.items():
        points = [f"- {' '.join(each.split())}" for each in departures] or ["- Nothing: it is ours."]
        parts.append("\n".join([f"**{code(names)}** — {source}\n", *points]))
    return "\n\n".join(parts)


def vocabulary() -> str:
    """What a graph is made of: the records' fields, out of their docstrings."""
    parts = []
    for record in (graph.InterventionGraph, graph.Run, graph.Edit, graph.Read, graph.Place, graph.Dimension):
        means = documented(record)
        body = [(f"`{name}`", meaning) for name, meaning in means.items()]
        parts += [f"### {record.__name__}", summary(record), rows(("field", "meaning"), body)]
    return "\n\n".join(parts)


def methods() -> str:
    body = []
    for name, method in METHODS.items():
        edits = code(method.edits) or "none: it only reads"
        body.append((f"`{name}`", ", ".join(method.runs).replace("[", "(").replace("]", ")"), edits))
    return rows(("method", "runs, in order (optional ones in brackets)", "edit of the swept run"), body)


def commands() -> str:
    """Every command, its arguments and options."""
    return "\n\n".join(
        part for name, found in _commands(typer.main.get_command(app), ()) for part in _command(name, found)
    )


def _commands(group: Any, front: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from _commands(found, (*front, name))
        else:
            yield " ".join((*front, name)), found


def _command(name: str, found: Any) -> Iterator[str]:
    yield f"## {name}"
    yield " ".join(paragraph.replace("\n", " ") + "\n\n" for paragraph in (found.help or "").split("\n\n")).strip()
    body = []
    for parameter in found.params:
        if parameter.name == "help":
            continue
        options = [option for option in (*parameter.opts, *parameter.secondary_opts) if option.startswith("-")]
        value = parameter.metavar or _VALUES.get(parameter.type_descriptor.annotation, "")
        called = f"{' / '.join(options)} {'' if getattr(parameter, 'is_flag', False) else value}".strip()
        default = parameter.default
        plain = default not in (None, False, True) and not isinstance(default, Path)
        left_out = "must be given" if parameter.required else f"`{default}`" if plain else ""
        body.append((f"`{called}`", left_out, str(parameter.help)))
    yield rows(("argument or option", "where left out", "meaning"), body)


_VALUES: dict[Any, str] = {int: "NUMBER", float: "NUMBER", str: "NAME", Path: "PATH"}
"""Type of an argument or option → what its value is called, where the command does not say it."""

TABLES: dict[str, Callable[[], str]] = {
    "spec": spec,
    "metrics": metrics,
    "corruptions": corruptions,
    "datasets": datasets,
    "bundled-sites": bundled_sites,
    "stacks": stacks,
    "presets": presets,
    "deviations": deviations,
    "graph": vocabulary,
    "methods": methods,
    "commands": commands,
}
