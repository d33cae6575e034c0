"""The dataset of docs/adding-a-dataset.md works as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.kit import picture, table
from tests.refusals import refusal, says
from vlm_patching.pairs import DATASETS, Pairs
from vlm_patching.pairs.datasets.base import Dataset
from vlm_patching.pairs.loading import load

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
