"""Every command says what it does, what each of its options does, and, where it lists something, lists it as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from tests.test_cli import Command
from vlm_patching.cli import app


def commands(group: Any = None, front: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    group = group or typer.main.get_command(app)
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, (*front, name))
        else:
            yield (*front, name), found


EVERY = dict(commands())
LISTING = [("presets",), ("models",), ("datasets",)]


@pytest.mark.parametrize("name", EVERY, ids=" ".join)
def test_a_command_says_what_it_does_in_a_sentence(name: tuple[str, ...]) -> None:
    first = (EVERY[name].help or "").split("\n\n")[0]
    assert first.endswith(".") and first[0].isupper()


@pytest.mark.parametrize("name", EVERY, ids=" ".join)
def test_every_option_says_what_it_is(name: tuple[str, ...]) -> None:
    for parameter in EVERY[name].params:
        if parameter.name != "help":
            assert str(parameter.help).endswith("."), f"{parameter.name}: {parameter.help!r}"


@pytest.mark.parametrize("name", EVERY, ids=" ".join)
def test_help_is_printed_and_no_word_of_it_is_lost(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    said = command(*name, "--help")
    assert said.code == 0
    shown = "".join(letter for letter in said.out if letter.isalnum())
    for parameter in EVERY[name].params:
        words = "".join(letter for letter in str(getattr(parameter, "help", "")) if letter.isalnum())
        assert words in shown, parameter.help
    for option in (option for parameter in EVERY[name].params for option in parameter.opts if option.startswith("--")):
        assert option in said.out


@pytest.mark.parametrize("name", LISTING, ids=" ".join)
def test_what_lists_something_lists_it_as_json(command: Command, name: tuple[str, ...]) -> None:
    listed = json.loads(command(*name, "--json").out)
    rows = listed if isinstance(listed, list) else [row for rows in listed.values() for row in rows]
    assert len(rows) >= 2 and all(isinstance(row, dict) and row for row in rows)


def test_whatever_prints_a_table_prints_it_as_json_too() -> None:
    printing = {name for name, found in EVERY.items() if any("--json" in each.opts for each in found.params)}
    tables = {*LISTING, ("jobs",), ("doctor",), ("diagnose",), ("plan",), ("graph",), ("replay",), ("bundle", "show")}
    assert tables <= printing


def test_commands_stand_under_headings(command: Command) -> None:
    said = command("--help").out
    places = [said.index(heading) for heading in ("Before a run", "Running", "Results", "What there is")]
    assert places == sorted(places)
    assert "--install-completion" in said and "--debug" in said
