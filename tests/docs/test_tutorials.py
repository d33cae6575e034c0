"""Every tutorial runs from its first cell to its last, and shows what it says it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.tools import tutorials


@pytest.mark.parametrize("source", tutorials.sources(), ids=lambda source: source.stem)
def test_a_tutorial_runs_and_shows_its_figures(source: Path) -> None:
    made = tutorials.tutorial(source)
    assert made.markdown.startswith("# ") and f"[As a notebook]({source.stem}.ipynb)" in made.markdown
    figures = {name: data for name, data in made.files.items() if name.endswith(".png")}
    assert figures and all(data.startswith(b"\x89PNG") and len(data) > 3000 for data in figures.values())
    assert all(f"]({name})" in made.markdown and f"]({name})" in made.text for name in figures)
    assert "Traceback" not in made.text and "<div" not in made.text


@pytest.mark.parametrize("source", tutorials.sources(), ids=lambda source: source.stem)
def test_a_tutorial_has_a_number_in_the_order_of_reading(source: Path) -> None:
    assert int(source.stem.split("_")[0]) == tutorials.sources().index(source) + 1


def test_the_first_tutorial_finds_what_it_tells_of() -> None:
    text = tutorials.tutorial(tutorials.sources()[0]).text
    assert "is the ring black or cyan? -> cyan" in text
    assert "layer 5: [1.00, 1.00]  stands out: True" in text
    assert "layer 0: [0.00, 0.00]  stands out: False" in text


def test_html_of_a_cell_gets_a_tree_of_its_own() -> None:
    made = tutorials.Tutorial(html=["<style>:root{color:red}</style><table></table>"])
    page = tutorials.placed(f"<p>before</p>{tutorials.PLACE.format(0)}<p>after</p>", made)
    assert '<template shadowrootmode="open">' in page and ":host{color:red}" in page and ":root" not in page


def test_a_cell_that_fails_fails_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tutorials, "RUN", tmp_path / "run")
    source = tmp_path / "09_wrong.py"
    source.write_text("# %% [markdown]\n# # Wrong\n\n# %%\n1 / 0\n", encoding="utf-8")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        tutorials.executed(source)
    assert not (tmp_path / "run").exists()
