"""Widths and letters for print, files that keep text as text, words that the user chooses."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

import vlm_patching as vp
from vlm_patching.metrics import METRICS
from vlm_patching.plots.panels import fitted
from vlm_patching.plots.style import Style, current


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def ds() -> xr.Dataset:
    """Two sites and nine positions; one cell was not run."""
    values = np.random.default_rng(0).uniform(-0.1, 0.8, (4, 2, 6, 9))
    values[:, 0, 2, 3] = np.nan
    return xr.Dataset(
        {
            "probability": (("example", "site", "layer", "position"), values),
            "probability_clean": ("example", [0.9] * 4),
            "probability_corrupted": ("example", [0.1] * 4),
        },
        {
            "example": list("abcd"),
            "kept": ("example", ["kept"] * 4),
            "site": ["question_encoder.cross_attn_block_out", "language.mlp_out"],
            "layer": np.arange(6),
            "position": ["subject", "answer_option", *(f"group_{i}" for i in range(7))],
        },
        {"method": "patch", "name": "figure-name", "model": "shapes-blip"},
    )


def sizes(figure: Any) -> set[float]:
    """Points of all letters that are there."""
    return {text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()}


@pytest.mark.parametrize(("width", "inches"), [("single", 3.35), ("double", 7.0), (5, 5.0)])
def test_a_figure_for_print_has_the_columns_width_and_small_letters(
    ds: xr.Dataset, width: str | float, inches: float
) -> None:
    with vp.plot.style(width):
        figure = vp.plot.figure_of(vp.plot.heatmap(ds))
    figure.canvas.draw()
    assert figure.get_figwidth() == pytest.approx(inches)
    assert max(sizes(figure)) == 7 and min(sizes(figure)) >= 4.8
    assert figure.get_figheight() < 2 * inches


def test_letters_and_titles_can_be_chosen(ds: xr.Dataset) -> None:
    with vp.plot.style("double", points=9, title=False) as chosen:
        figure = vp.plot.figure_of(vp.plot.heatmap(ds))
        assert current() == chosen == Style(7.0, 9, False)
    assert max(sizes(figure)) == 9 and not figure.get_suptitle()
    assert current() == Style()


def test_no_global_setting_is_changed(ds: xr.Dataset, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    with vp.plot.style("single"):
        vp.plot.save(vp.plot.heatmap(ds), tmp_path / "a.svg")
        vp.plot.lines(ds, position=["subject", "group_0"])
    assert dict(mpl.rcParams) == before


def test_a_notebook_whose_first_figure_is_ours_stays_interactive() -> None:
    script = """
import matplotlib as mpl
from IPython.core.interactiveshell import InteractiveShell
from vlm_patching.plots.style import canvas, styled
InteractiveShell.instance()
styled(lambda: canvas(1, 1, 2, 2)[1][0])()
print(mpl.is_interactive())
"""
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "True"


def test_matplotlibs_own_size_of_letters_holds_on_a_screen(ds: xr.Dataset) -> None:
    with mpl.rc_context({"font.size": 13}):
        figure = vp.plot.figure_of(vp.plot.heatmap(ds))
    assert max(sizes(figure)) == 13


@pytest.mark.parametrize("width", ["screen", "single", "double"])
def test_no_letters_lie_over_one_another_or_outside_of_the_page(ds: xr.Dataset, width: str) -> None:
    with vp.plot.style(width):
        figure = vp.plot.figure_of(vp.plot.heatmap(ds))
    figure.canvas.draw()
    page = figure.bbox
    for ax in figure.axes:
        labels = [text for text in ax.get_yticklabels() if text.get_text()]
        boxes = sorted((text.get_window_extent() for text in labels), key=lambda box: box.y0)
        assert all(a.y1 <= b.y0 + 1 for a, b in pairwise(boxes))
        for text in (ax.title, ax.xaxis.label, ax.yaxis.label, *labels, *ax.get_xticklabels()):
            box = text.get_window_extent()
            assert not text.get_text() or (page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1), text
            assert not text.get_text() or (page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1), text
    first, second = (ax.title.get_window_extent() for ax in figure.axes[:2])
    assert not first.overlaps(second)


def test_svg_keeps_text_as_text_and_hatches_what_was_not_run(ds: xr.Dataset, tmp_path: Path) -> None:
    path = vp.plot.save(vp.plot.heatmap(ds, site="question_encoder.cross_attn_block_out"), tmp_path / "new" / "a.svg")
    root = ElementTree.parse(path).getroot()
    words = [" ".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for wanted in ("answer_option", "layer", "figure-name", "question_encoder.cross_attn_block_out"):
        assert wanted in words
    assert any("indirect effect" in word for word in words)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}pattern"))) == 1
    again = vp.plot.save(vp.plot.heatmap(ds, site="question_encoder.cross_attn_block_out"), tmp_path / "b.svg")
    assert path.read_bytes() == again.read_bytes(), "the same figure is the same file"


def test_pdf_keeps_letters_as_letters_of_a_font_that_editors_know(ds: xr.Dataset, tmp_path: Path) -> None:
    content = vp.plot.save(vp.plot.heatmap(ds), tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF") and content.rstrip().endswith(b"%%EOF")
    assert b"/TrueType" in content or b"/CIDFontType2" in content
    assert b"/Type3" not in content


def test_a_kind_of_file_that_there_is_not_is_refused(ds: xr.Dataset, tmp_path: Path) -> None:
    ax = vp.plot.heatmap(ds, site="language.mlp_out")
    with pytest.raises(vp.SpecError, match=re.escape("Known: .png, .pdf, .svg, .jpg")):
        vp.plot.save(ax, tmp_path / "a.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(vp.SpecError, match="could not be written"):
        vp.plot.save(ax, tmp_path / "file" / "a.png")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("singel",), "Did you mean 'single'"), ((-1,), "width.*positive"), ((float("nan"),), "positive")],
)
def test_a_style_that_there_is_not_is_refused(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(vp.SpecError, match=named), vp.plot.style(*arguments):
        pass


def test_words_can_be_replaced_by_a_mapping(ds: xr.Dataset) -> None:
    words = {
        "language.mlp_out": "MLP",
        "subject": "the thing",
        "probability": "p(answer)",
        "shapes-blip": "BLIP",
    }
    ax = vp.plot.heatmap(ds, site="language.mlp_out", labeller=vp.plot.Labeller(words))
    assert ax.get_title() == "MLP" and ax.get_xticklabels()[0].get_text() == "the thing"
    assert "p(answer)" in ax.collections[0].colorbar.ax.get_ylabel()
    assert "BLIP: cells restored" in " ".join(ax.figure.get_suptitle().split())


def test_a_labeller_of_ones_own_says_what_positions_and_layers_are_called(ds: xr.Dataset) -> None:
    class Mine(vp.plot.Labeller):
        def position(self, label: str, token: str, role: str, modality: str) -> str:
            return f"<{label}>"

        def layer(self, layer: int) -> str:
            return f"L{layer}"

    ax = vp.plot.heatmap(ds, site="language.mlp_out", labeller=Mine())
    assert [text.get_text() for text in ax.get_xticklabels()][:2] == ["<subject>", "<answer_option>"]
    assert [tick.label1.get_text() for tick in ax.yaxis.get_major_ticks()][-1] == "L0"
    axes = vp.plot.lines(ds, position="subject", by="position", labeller=Mine())
    assert axes[0].get_lines()[1].get_label() == "<subject>"


def test_every_metric_says_its_label_and_unit() -> None:
    for name, row in METRICS.items():
        said = vp.plot.Labeller().metric(name)
        assert said.startswith(row["label"].split(" - ")[0]) and said.endswith(
            f"({row['unit']})" if row["unit"] else ""
        )


@given(st.text("ab._: +", max_size=60), st.floats(0.2, 3))
def test_fitted_text_loses_nothing_but_spaces(text: str, inches: float) -> None:
    lines = fitted(text, inches, 10).split("\n")
    assert "".join("".join(lines).split()) == "".join(text.split())


@pytest.mark.parametrize("name", ["heatmap", "lines", "distribution"])
def test_dollar_signs_of_a_dataset_are_letters(ds: xr.Dataset, tmp_path: Path, name: str) -> None:
    given = ds.assign_attrs(name=r"cost $5_a$ of $\foo{$").isel(position=slice(8))
    given = given.assign_coords(position=[f"$x_{i}$" for i in range(8)])
    own = plt.subplots()[1]
    for ax in (None, own):
        if ax is not None:
            given = given.isel(site=[0])
        vp.plot.save(getattr(vp.plot, name)(given, ax=ax), tmp_path / "a.svg")
        said = " ".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
        assert "$x_1$" in said and (ax is not None or r"cost $5_a$ of $\foo{$" in said)


def test_dollar_signs_of_pairs_are_letters(tmp_path: Path) -> None:
    (pair,) = vp.load_pairs("shapes", n=1)
    pair = dataclasses.replace(pair, id=r"$\foo{$", foil="$5_a$")
    vp.plot.save(vp.plot.gallery([pair]), tmp_path / "a.svg")
    said = " ".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    assert r"$\foo{$" in said and "$5_a$" in said


def test_letters_that_the_font_lacks_are_told_of_once(tmp_path: Path) -> None:
    (pair,) = vp.load_pairs("shapes", n=1)
    pair = dataclasses.replace(pair, id="\U0001f388\u732b")
    with pytest.warns(UserWarning) as told:
        vp.plot.save(vp.plot.gallery([pair]), tmp_path / "a.png")
    assert [str(each.message) for each in told] == [
        f"{tmp_path / 'a.png'} has boxes in the place of characters that the font DejaVu Sans lacks."
    ]


def test_a_figure_with_panels_side_by_side_is_refused_in_a_column_that_is_too_narrow(ds: xr.Dataset) -> None:
    other = ds.assign(probability=ds["probability"] ** 2)
    with vp.plot.style("double"):
        assert vp.plot.compare(ds, other)[0].get_figure().get_figwidth() == 7
    with vp.plot.style("single"), pytest.raises(vp.SpecError, match=r"compare has its panels .*double has 7"):
        vp.plot.compare(ds, other)


@pytest.mark.parametrize("width", ["single", "double", "screen"])
def test_the_label_below_single_examples_is_inside_the_figure(ds: xr.Dataset, width: str) -> None:
    with vp.plot.style(width):
        ax = vp.plot.distribution(ds, normalize=True)
    figure = ax.get_figure()
    figure.draw_without_rendering()
    box = ax.xaxis.label.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_cells_of_fewer_pairs_than_others_are_told_of(ds: xr.Dataset) -> None:
    ds["probability"][0, :, :, 8] = np.nan
    assert "cells of 3 to 4 pairs" in vp.plot.heatmap(ds)[0].get_figure().get_suptitle()
    ds["kept"][1:3] = ""
    assert "2 of 4 pairs (2 not run yet)" in vp.plot.heatmap(ds)[0].get_figure().get_suptitle().replace("\n", " ")
