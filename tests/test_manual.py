"""What the reference and the commented specs say of a field is what the models that check specs do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

import vlm_patching as vp
from tests.refusals import BLIP, changed, refusal
from vlm_patching.experiment import Experiment
from vlm_patching.manual import Entry, as_yaml, documented, entries, summary
from vlm_patching.sweeps import PatchSpec
from vlm_patching.validation import parse_yaml


def sections(section: type[BaseModel] = Experiment) -> Iterator[type[BaseModel]]:
    yield section
    for entry in entries(section):
        for inside in entry.sections:
            yield from sections(inside)


EVERY = [(section, entry) for section in dict.fromkeys(sections()) for entry in entries(section)]


def field(section: type[BaseModel], name: str) -> Entry:
    return next(entry for entry in entries(section) if entry.name == name)


def test_every_section_of_a_spec_is_found() -> None:
    found = {section.__name__ for section in sections()}
    assert {"Experiment", "ModelSpec", "CorruptionSpec", "FactorSpec", "PatchSpec", "PathSpec", "ReceiverSpec"} <= found
    assert {name for entry in entries(Experiment) for name in [entry.name]} == set(Experiment.model_fields)


@pytest.mark.parametrize("section", dict.fromkeys(sections()), ids=lambda section: section.__name__)
def test_every_section_says_what_it_is(section: type[BaseModel]) -> None:
    assert summary(section).endswith(".")


@pytest.mark.parametrize(("section", "entry"), EVERY, ids=[f"{s.__name__}.{e.name}" for s, e in EVERY])
def test_every_field_says_what_it_means_and_how_it_is_written(section: type[BaseModel], entry: Entry) -> None:
    assert entry.meaning.endswith("."), f"{section.__name__}.{entry.name} is not in the Attributes of its docstring"
    assert entry.written
    assert "\n" not in entry.meaning and "``" not in entry.meaning


@pytest.mark.parametrize(("section", "entry"), EVERY, ids=[f"{s.__name__}.{e.name}" for s, e in EVERY])
def test_a_default_is_shown_as_yaml_that_stands_for_it(section: type[BaseModel], entry: Entry) -> None:
    if entry.required:
        with pytest.raises(ValueError, match=entry.name):
            section.model_validate({})
        return
    shown = parse_yaml(entry.shown_default, "default")
    if isinstance(entry.default, tuple):
        assert shown in (list(entry.default), *entry.default)
    else:
        assert shown == entry.default


@pytest.mark.parametrize(
    ("key", "section", "name"),
    [
        ("model.dtype", "model", "dtype"),
        ("pairs.dataset", "pairs", "dataset"),
        ("corruption.kind", "corruption", "kind"),
        ("metrics", "", "metrics"),
    ],
)
def test_the_names_that_are_allowed_are_those_that_an_error_lists(key: str, section: str, name: str) -> None:
    of = field(Experiment, section).sections if section else (Experiment,)
    wrong = ["no such name"] if key == "metrics" else "no such name"
    said = refusal(lambda: vp.Experiment.from_dict(changed(BLIP, {key: wrong})))
    listed = said.rpartition("Known: ")[2].rstrip(".").split(", ")
    assert listed == [allowed for each in of for allowed in field(each, name).allowed]


def test_a_field_that_is_inherited_is_documented_by_the_class_that_has_it() -> None:
    assert documented(PatchSpec)["sites"].startswith("`stack.component`")
    assert "restor" not in documented(PatchSpec)["direction"]
    assert set(PatchSpec.model_fields) <= set(documented(PatchSpec))


def test_ranges_and_lengths_are_said() -> None:
    corruption = field(Experiment, "corruption").sections[0]
    assert field(corruption, "draws").written == "whole number, at least 1 and at most 10000"
    assert field(corruption, "k").written == "number, more than 0"
    assert field(corruption, "color").written == "list of whole numbers, 3 of them"


@pytest.mark.parametrize(
    "value", ["all", "3:6", "image -> last", "image:object", "", "null", "1", [1, "last"], {"a": [True, None]}, -1.5]
)
def test_values_written_as_yaml_read_back(value: object) -> None:
    assert parse_yaml(as_yaml(value), "value") == value
