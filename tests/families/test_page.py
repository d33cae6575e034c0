"""docs/models.md is of the models that the tests try, and of no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.families import all_known
from tests.families.page import COLUMNS, PAGE, page
from vlm_patching.models.families import families


def rows() -> dict[str, list[str]]:
    """Model → the cells of its row, of the page's first table."""
    table = PAGE.read_text(encoding="utf-8").partition("\n| model |")[2].partition("\n\n")[0]
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in table.splitlines()[2:]]
    return {first: rest for first, *rest in cells}


def test_the_page_has_every_model_and_nothing_failed() -> None:
    assert list(rows()) == sorted(all_known()), "make test-families writes it anew"
    assert "failed" not in PAGE.read_text(encoding="utf-8")
    assert all(row[2] == "yes" for row in rows().values())  # sites and heads


def test_every_family_of_the_package_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [name for name in families() if f"| {name}.yaml |" not in text]
    assert set(missing) <= {"blip_captioning", "blip_vqa"}, missing  # these have tests of their own


@pytest.mark.parametrize(("outcome", "cell"), [("", "yes"), ("<failure/>", "–"), ('<skipped message="why"/>', "–")])
def test_a_cell_says_what_the_test_found(tmp_path: Path, outcome: str, cell: str) -> None:
    test = next(iter(COLUMNS))
    results = tmp_path / "results.xml"
    results.write_text(
        f'<testsuite><testcase classname="tests.families.test_families" name="{test}[llava]">{outcome}</testcase>'
        "</testsuite>"
    )
    row = next(line for line in page(results).splitlines() if line.startswith("| llava "))
    assert row.split("|")[4].strip() == cell
