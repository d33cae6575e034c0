"""The dataset of docs/adding-a-dataset.md works as it stands there."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import vlm_patching as vp
from tests.datasets.kit import picture, table
from tests.refusals import refusal, says
from vlm_patching.pairs import DATASETS, Pairs, candidates, coco, english, pictures
from vlm_patching.pairs.datasets import base
from vlm_patching.pairs.datasets.base import Dataset
from vlm_patching.pairs.loading import load
from vlm_patching.pairs.reading import csv_files, folders, json_files, lines, rows

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-dataset.md"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module on the page, registered by the row on the page."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (row,) = re.findall(r'```python title=.*\n"toy_animals": (.*),\n```', PAGE.read_text(encoding="utf-8"))
    module = types.ModuleType("toy_animals")
    monkeypatch.setitem(sys.modules, "toy_animals", module)
    exec(compile(source, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(DATASETS, "toy_animals", eval(row, {"Dataset": Dataset, "toy_animals": module}))
    return module


def pairs_of(toy: types.ModuleType, folder: Path, **options: Any) -> Pairs:
    return load(toy.ToyAnimals.model_validate({"dataset": "toy_animals", "path": str(folder), **options}))


def test_the_page_s_dataset_asks_counts_and_refuses(toy: types.ModuleType, tmp_path: Path) -> None:
    for number, name in enumerate(("ant", "bee", "cat", "dog")):
        picture(tmp_path / "photos" / f"{name}.png", number)
    rows = [(f"{a}.png", a, f"{b}.png", b) for a, b in (("ant", "bee"), ("cat", "dog"), ("bee", "cat"))]
    table(tmp_path / "animals.csv", ("photo", "animal", "other_photo", "other_animal"), rows)
    pairs = pairs_of(toy, tmp_path)
    asked = {pair.answer: pair.clean.text for pair in pairs}
    assert asked["ant"] in ("Is this an ant or a bee?", "Is this a bee or an ant?")
    assert all(pair.clean.text[slice(*pair.spans["answer_option"])] == pair.answer for pair in pairs)
    assert set(pairs.vocabulary.words["animal"]) == {"ant", "bee", "cat", "dog"}
    assert pairs_of(toy, tmp_path, animals=["ant", "bee"]).dropped == {"its animals are not asked for": 2}
    (tmp_path / "photos" / "dog.png").unlink()
    says(refusal(lambda: pairs_of(toy, tmp_path)), "animals.csv, line 3", "dog.png", "does not exist")
    assert pairs_of(toy, tmp_path, on_error="skip").dropped == {"error: an image does not exist": 1}


def test_every_helper_and_file_that_the_page_names_is_there() -> None:
    part = PAGE.read_text(encoding="utf-8").partition("## What to use")[2].partition("## Its tests")[0]
    code = re.findall(r"`([^`]+)`", part)
    files = [name for name in code if "/" in name and "{" not in name]
    pairs = Path(vp.__file__).parent / "pairs"
    assert len(files) >= 6 and all((pairs / name.removeprefix("pairs/")).exists() for name in files)
    modules = (base, candidates, coco, csv_files, english, folders, json_files, lines, pictures)
    there = {name for holder in (*modules, rows.Row, pictures.StoredPicture) for name in dir(holder)}
    there |= {*base.QuestionsSpec.model_fields, *base.YesNoSpec.model_fields}
    there |= {field.name for each in (candidates.Choice, rows.Row) for field in fields(each)}
    named = {found[1] for each in code if (found := re.fullmatch(r"(?:\w+\.)?(\w+)(?:\([\w, ]*\))?", each))}
    spans = {"subject", "object", "constraint"}
    assert len(named) > 40 and sorted(named - there - spans) == []
