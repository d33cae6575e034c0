"""The page about drawn pairs shows what is drawn."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from vlm_patching.pairs.shapes import PAIR_KINDS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "datasets" / "shapes.md"
SCRIPTS = ROOT / "experiments" / "shapes"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pairs_page", SCRIPTS / "pairs_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        spec.loader.exec_module(module)
    return module


def rows(heading: str) -> dict[str, list[str]]:
    """First cell of a table's rows → their other cells, of the section with this heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    found = [line.strip("|").split("|") for line in section.split("\n") if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in found[1:]}


def test_every_kind_has_a_row_with_the_pair_that_the_picture_shows(script: ModuleType) -> None:
    shown, written = script.examples(), rows("Kinds")
    assert list(written) == list(shown) == list(PAIR_KINDS)
    for kind, pair in shown.items():
        question, changes, spans, regions, *shares = written[kind]
        assert question == f"{pair.clean.text} {pair.answer} / {pair.foil}"
        assert changes == PAIR_KINDS[kind].changes
        assert set(re.findall(r"\w+", spans)) == set(pair.spans) - {"subject"}
        assert set(re.findall(r"\w+", regions)) == set(pair.regions) - {"object"}
        assert len(shares) == 2 and all(re.fullmatch(r"\d+\.\d%", share) for share in shares)


def test_both_wordings_are_those_of_the_same_scenes(script: ModuleType) -> None:
    numbers, yes_no = script.examples(), script.examples(answers="yes_no")
    assert rows("Yes or no") == {kind: [numbers[kind].clean.text, pair.clean.text] for kind, pair in yes_no.items()}
    for kind, pair in yes_no.items():
        assert pair.clean.picture().tobytes() == numbers[kind].clean.picture().tobytes()
        assert pair.answer == {"1": "yes", "0": "no"}[numbers[kind].answer]


def test_the_picture_is_that_of_the_script_and_small(script: ModuleType) -> None:
    path = PAGE.with_suffix(".png")
    assert path.stat().st_size < 60_000
    drawn = io.BytesIO()
    script.contact_sheet(script.examples()).save(drawn, "PNG")
    written, fresh = (Image.open(source).convert("L") for source in (path, drawn))
    assert written.size == fresh.size
    differing = sum(abs(a - b) > 60 for a, b in zip(written.tobytes(), fresh.tobytes(), strict=True))
    assert differing < 0.01 * len(written.tobytes()), "the fonts of another pillow may differ a little"
