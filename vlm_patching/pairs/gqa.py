"""GQA's questions, as Zhang et al. 2024 have them in tables and as GQA has them in its own files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from vlm_patching.errors import shown
from vlm_patching.pairs.pair import Box
from vlm_patching.pairs.reading.json_files import read_json_by_key
from vlm_patching.pairs.reading.rows import BadRow, Row

Task = Literal["ChooseAttr", "ChooseCat", "ChooseRel", "CompareAttr", "LogicalObj", "QueryAttr"]
TASKS: tuple[Task, ...] = get_args(Task)
_LOGICAL = ("select", "filter", "exist", "select", "filter", "exist", "or")
_KINDS: Mapping[str, tuple[Task, tuple[tuple[str, ...], ...]]] = {
    **dict.fromkeys(
        ("chooseAttr", "materialChoose", "typeChoose", "activityChoose"), ("ChooseAttr", (("select", "choose"),))
    ),
    **dict.fromkeys(
        ("objThisChoose", "categoryThisChoose", "categoryThatChoose"),
        ("ChooseCat", (("select", "choose"), ("select", "filter", "choose"))),
    ),
    "relChooser": ("ChooseRel", (("select", "choose"),)),
    "twoCommon": ("CompareAttr", (("select", "select", "common"),)),
    **dict.fromkeys(("existThatOr", "existThatOrC"), ("LogicalObj", (_LOGICAL,))),
    "positionQuery": ("QueryAttr", (("select", "query"),)),
}
"""What GQA calls a kind of question (`types.detailed`) → its task, and the programs that the tables have of it."""
COLUMNS = ("question_id", "img_id", "question", "answer", "operations", "image_w", "image_h")
_CENTRAL, _TWO = ("central object",), ("object1", "object2")


@dataclass(frozen=True, slots=True)
class Thing:
    """What is asked about: its name, and its box where the picture holds it."""

    name: str
    box: Box | None


@dataclass(frozen=True, slots=True)
class Question:
    """A question of either source.

    Attributes
    ----------
    other
        The other word that it offers, where it offers two.
    kind
        What kind of words they are: "color", "material", ... or "".
    """

    id: str
    task: Task
    picture: str
    text: str
    answer: str
    other: str | None
    kind: str
    things: tuple[Thing, ...]


def tables(folder: Path) -> dict[str, Path]:
    """Task → its table, of those that a folder, or a folder in it, has."""
    return {
        task: path
        for task in TASKS
        for path in (*sorted(folder.glob(f"*/*_{task}.csv")), *sorted(folder.glob(f"*_{task}.csv")))
    }


def columns_of(task: Task) -> tuple[str, ...]:
    """Those that the table of a task has."""
    names = _CENTRAL if task in ("ChooseAttr", "ChooseCat", "QueryAttr") else _TWO
    options = ("true option", "false option") if task.startswith("Choose") else ()
    return (*COLUMNS, *options, *(f"{name} {of}" for name in names for of in ("name", "x", "y", "w", "h")))


def of_table(row: Row, task: Task) -> Question:
    """The question of a row of a table; `BadRow` where it is none."""
    size = row.whole("image_w"), row.whole("image_h")
    names = _CENTRAL if f"{_CENTRAL[0]} name" in row.values else _TWO
    things = []
    for name in names:
        there = row.text(f"{name} x") != "-"
        box = [row.whole(f"{name} {side}") for side in ("x", "y", "w", "h")] if there else None
        things.append(Thing(row.text(f"{name} name"), _cut(box, size) if box else None))
    answer, other = row.text("answer"), row.values.get("false option")
    if other is not None and row.text("true option") != answer:
        raise row.bad("its answer is not its true option", f": {answer!r} and {row.text('true option')!r}")
    if other == answer:
        raise row.bad("its two options are the same", f": {answer!r}")
    kind = re.search(r"'choose ?(\w*)'", row.text("operations"))
    picture = row.text("img_id").removesuffix(".jpg")
    return Question(
        row.text("question_id"),
        task,
        picture,
        row.text("question"),
        answer,
        other if other is None else row.text("false option"),
        kind[1] if kind else "",
        tuple(things),
    )


@dataclass
class Boxes:
    """Boxes of things, by their ids: those that are wanted are read out of the scene graphs."""

    wanted: set[str] = field(default_factory=set)
    found: dict[str, Box | None] = field(default_factory=dict)

    def read(self, file: Path) -> None:
        for _, row in read_json_by_key(file):
            if isinstance(row, BadRow) or not isinstance(row.values.get("objects"), dict):
                continue
            for name, thing in row.values["objects"].items():
                if name in self.wanted:
                    try:
                        box = [int(thing[side]) for side in ("x", "y", "w", "h")]
                        self.found[name] = _cut(box, (row.whole("width"), row.whole("height")))
                    except (BadRow, KeyError, TypeError, ValueError):
                        continue  # a thing without a box, as those that a picture does not hold


def task_of(row: Row) -> Task | None:
    """The task that a question of GQA's own is of; None where of none. `BadRow` where it is no question."""
    types, steps = row.value("types"), _steps(row)
    detailed = str(types.get("detailed")) if isinstance(types, dict) else ""
    if detailed not in _KINDS:
        return None
    task, programs = _KINDS[detailed]
    return task if tuple(name.split()[0] for name, _ in steps) in programs else None


def of_graphs(name: str, row: Row, task: Task, boxes: Boxes) -> Question:
    """A question of GQA's own of a task; what boxes it wants is noted. `BadRow` where it is none."""
    steps = _steps(row)
    things = []
    for step, argument in steps:
        if step in ("select", "choose rel"):
            number = re.search(r"\((\d+)\)\s*$", argument)
            if number:
                boxes.wanted.add(number[1])
            words = re.sub(r"\s*\([\d-]*\)\s*$", "", argument).split(",")[0].strip()
            things.append(Thing(words, boxes.found.get(number[1]) if number else None))
    answer, other, (last, argument) = row.text("answer"), None, steps[-1]
    if last.startswith("choose"):
        offered = argument.split(",")[1] if last == "choose rel" and "," in argument else argument
        options = [_word(option) for option in offered.split("|")]
        if answer not in options or len(set(options)) != 2:
            raise row.bad("its answer is none of two options", f": {answer!r} of {argument!r}")
        other = next((option for option in options if option != answer), None)
    picture, kind = row.text("imageId"), last.partition(" ")[2] if last.startswith("choose") else ""
    return Question(name, task, picture, row.text("question"), answer, other, kind, tuple(things))


def _steps(row: Row) -> list[tuple[str, str]]:
    """A question's program: each function, and its argument."""
    steps: Any = row.value("semantic")
    try:
        found = [(str(step["operation"]), str(step["argument"])) for step in steps]
    except (TypeError, KeyError) as error:
        said = f": a list of objects with operation and argument is expected, not {shown(steps)}"
        raise row.bad("'semantic' is no program", said) from error
    if not found or not all(name.strip() for name, _ in found):
        raise row.bad("'semantic' is no program")
    return found


def _word(option: str) -> str:
    """The word that a relation is answered by: left, of "to the left of"."""
    return re.sub(r"^(?:to the|in) (\w+) of$", r"\1", option.strip())


def _cut(box: Sequence[int], size: tuple[int, int]) -> Box | None:
    """x, y, width and height → the box, as far as it lies in the picture; None where nothing of it does."""
    x, y, width, height = box
    x0, y0, x1, y1 = max(0, x), max(0, y), min(size[0], x + width), min(size[1], y + height)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
