"""The drawing of a graph: every run is a box that holds its lines, every value that is taken an arrow."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

import vlm_patching as vp
from vlm_patching.graph.draw import edit_text, taken_from

PRESETS = list(vp.presets())
NARROWEST = 320
"""Pixels that a phone has beside its margins."""


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float
    lines: list[str]


@pytest.fixture(scope="module")
def graphs() -> dict[str, vp.InterventionGraph]:
    return {name: vp.Experiment.from_spec(name).graph() for name in PRESETS}


def boxes(svg: str) -> list[Box]:
    """The boxes of a drawing, in order; the last one is what is measured."""
    found = []
    for group in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        (frame,) = group.iter("{http://www.w3.org/2000/svg}rect")
        x, y, width, height = (float(frame.attrib[name]) for name in ("x", "y", "width", "height"))
        texts = [text.text or "" for text in group.iter("{http://www.w3.org/2000/svg}text")]
        found.append(Box(x, y, x + width, y + height, texts))
    return found


def arrows(svg: str) -> list[str]:
    return re.findall(r'<path class="arrow" d="([^"]*)"', svg)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_every_run_is_a_box_that_says_what_is_done_in_it(
    graphs: dict[str, vp.InterventionGraph], name: str, narrow: bool
) -> None:
    graph = graphs[name]
    *runs, measured = boxes(graph.to_svg(narrow=narrow))
    assert len(runs) == len(graph.runs)
    for run, box in zip(graph.runs, runs, strict=True):
        said = "".join("".join(box.lines).split())
        assert said.startswith(f"{run.name}run,on{run.on}")
        for edit in run.edits:
            assert "".join(edit_text(edit).split()) in said
        for read in run.reads:
            assert f"read{read.name}=" in said
    said = "".join("".join(measured.lines).split())
    assert f"keep{graph.keep},seed{graph.seed}" in said
    assert all(metric in said for metric in graph.metrics if graph.method != "attention")


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_lines_fit_their_boxes_and_boxes_do_not_overlap(
    graphs: dict[str, vp.InterventionGraph], name: str, narrow: bool
) -> None:
    svg = graphs[name].to_svg(narrow=narrow)
    found = boxes(svg)
    root = ElementTree.fromstring(svg)
    for box in found:
        assert max(map(len, box.lines)) * 7.2 <= box.right - box.left - 20
        assert len(box.lines) * 16 <= box.bottom - box.top
        assert box.left >= 0 and box.right <= float(root.attrib["width"])
        assert box.top >= 0 and box.bottom <= float(root.attrib["height"])
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            apart = one.right < other.left or other.right < one.left or one.bottom < other.top or other.bottom < one.top
            assert apart


@pytest.mark.parametrize("name", PRESETS)
def test_an_arrow_goes_from_what_gives_a_value_to_what_takes_it(
    graphs: dict[str, vp.InterventionGraph], name: str
) -> None:
    graph = graphs[name]
    svg = graph.to_svg()
    found = dict(zip([run.name for run in graph.runs], boxes(svg), strict=False))
    wanted = [(source, run.name) for run in graph.runs for edit in run.edits for source in taken_from(edit)]
    assert len(arrows(svg)) == len(wanted)
    for path, (source, target) in zip(arrows(svg), wanted, strict=True):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
        (x0, y0), (x1, y1) = numbers[:2], numbers[6:8]
        assert x0 == pytest.approx(found[source].right) and found[source].top < y0 < found[source].bottom
        assert x1 == pytest.approx(found[target].left, abs=3) and found[target].top < y1 < found[target].bottom


@pytest.mark.parametrize("name", PRESETS)
def test_the_narrow_drawing_fits_a_phone(graphs: dict[str, vp.InterventionGraph], name: str) -> None:
    svg = graphs[name].to_svg(narrow=True)
    taken = len(arrows(svg))
    assert float(ElementTree.fromstring(svg).attrib["width"]) <= NARROWEST + 14 * max(0, taken - 1)
    assert all(box.right <= NARROWEST for box in boxes(svg)[:-1])


def test_a_name_that_is_markup_stays_a_name() -> None:
    graph = replace(vp.Experiment.from_spec("lens_llava").graph(), name='<script>"&')
    svg = graph.to_svg()
    assert "<script>" not in svg
    assert '<script>"&' in ElementTree.fromstring(svg).attrib["aria-label"]


def test_a_graph_shows_its_drawing_in_a_notebook() -> None:
    graph = vp.Experiment.from_spec("heads_llava_paths").graph()
    assert graph._repr_html_() == graph.to_svg()
    said = ElementTree.fromstring(graph.to_svg()).attrib
    assert said["role"] == "img" and "sender on corrupted_image" in said["aria-label"]
