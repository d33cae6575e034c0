"""`vlm-patching pairs`: pairs side by side as a page or a figure, and as a folder that gives the same pairs again."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.offsetbox import TextArea
from matplotlib.patches import Rectangle
from PIL import Image

import vlm_patching as vp
from tests.datasets.kit import many, svo_probes, svo_row
from tests.refusals import RECORD, folder_of, refusal, says, second
from tests.test_cli import Command, command, is_one_paragraph  # noqa: F401 - a fixture
from vlm_patching.pairs import Pairs, pairs_digest
from vlm_patching.pairs.marking import PALETTE, colors_of, marked
from vlm_patching.pairs.preview import preview_html

EVIL = '<script>alert("x")</script> & <img src=http://a/b onerror=alert(1)> {{ 7 * 7 }}'


class Page(HTMLParser):
    """The elements of a page: name, attributes, and the text directly inside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        inside: list[str] = []
        self.elements.append((tag, dict(attrs), inside))
        if tag not in ("meta", "img"):
            self._open.append(inside)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(inside)) for name, attributes, inside in self.elements if name == tag]


@pytest.fixture
def written(tmp_path: Path) -> Pairs:
    other = second({"clean.text": EVIL, "corrupted.text": EVIL, "answer": EVIL, "spans": {"subject": [0, 8]}})
    return vp.load_pairs("folder", path=folder_of(tmp_path / "mypairs", RECORD, other))


@given(st.text("ab ", max_size=12), st.data())
def test_pieces_of_a_text_make_the_text_and_know_their_spans(text: str, data: st.DataObject) -> None:
    span = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).filter(lambda s: s[0] < s[1])
    spans = {str(i): s for i, s in enumerate(data.draw(st.lists(span, max_size=4) if text else st.just([])))}
    pieces = marked(text, spans)
    assert "".join(piece for piece, _ in pieces) == text
    for name, (start, end) in spans.items():
        assert "".join(piece for piece, names in pieces if name in names) == text[start:end]


def test_a_name_has_one_colour_whatever_the_pairs() -> None:
    one, other = (vp.load_pairs("shapes", n=3, questions=[kind]) for kind in ("color_choice", "relation"))
    colors = colors_of([*one, *other])
    assert set(colors) == {"answer_option", "foil_option", "subject", "object", "landmark"}
    assert len(set(colors.values())) == 5 and set(colors.values()) <= set(PALETTE)
    assert colors_of(other) == colors == colors_of([*other, *one])


# The page


def test_whatever_a_dataset_s_texts_hold_stays_text(written: Pairs) -> None:
    page = Page(preview_html(written, EVIL))
    assert not page.all("script")
    assert all(str(attributes["src"]).startswith("data:image/") for attributes, _ in page.all("img"))
    assert not [key for _, attributes, _ in page.elements for key in attributes if key.startswith("on")]
    assert page.all("title") == [({}, EVIL)]
    text = "".join("".join(inside) for _, _, inside in page.elements)
    assert text.count("alert(1)") >= 3 and "{{ 7 * 7 }}" in text


def test_the_page_needs_nothing_but_itself(written: Pairs) -> None:
    page = Page(preview_html(written, "a"))
    for _, attributes, _ in page.elements:
        for key in ("src", "href", "srcset", "action"):
            assert str(attributes.get(key, "data:")).startswith("data:")
    (style,) = page.all("style")
    assert "url(" not in style[1] and "@import" not in style[1]


def test_the_page_marks_spans_and_boxes_and_holds_the_pictures(written: Pairs) -> None:
    page = Page(preview_html(written[:1], "a"))
    marks = [(attributes["title"], text) for attributes, text in page.all("mark") if "title" in attributes]
    assert marks == [("answer_option", "red")]
    ((box, _),) = page.all("i")
    numbers = dict(re.findall(r"(left|top|width|height):([\d.]+)%", str(box["style"])))
    assert box["title"] == "object"
    assert {key: round(float(value) * 0.96, 2) for key, value in numbers.items()} == {
        "left": 1,
        "top": 1,
        "width": 29,
        "height": 29,
    }
    sources = [str(attributes["src"]) for attributes, _ in page.all("img")]
    shown = [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB") for source in sources]
    assert [picture.getpixel((5, 5)) for picture in shown] == [(255, 0, 0), (0, 0, 255)]


def test_the_page_says_how_many_were_dropped_and_why_and_how_many_are_not_shown(tmp_path: Path) -> None:
    unsaid = svo_row(9, "It is touched.", "circle,touch,star", "circle,touch,ring", "object")
    pairs = vp.load_pairs("svo_probes", path=svo_probes(tmp_path, [*many(5), unsaid]))
    page = Page(preview_html(pairs, "a", most=2))
    text = " ".join(text for _, text in page.all("p"))
    says(text, "5 pairs of 6 candidates", "the last 3 are not shown")
    assert [text for _, text in page.all("td")] == ["1", *pairs.dropped]
    assert len(page.all("article")) == 2


def test_large_pictures_are_made_smaller_and_none_is_no_fault(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mypairs", second({"clean.image": None, "corrupted.image": None, "regions": {}}))
    says(preview_html(vp.load_pairs("folder", path=folder), "a"), "no picture")
    Image.effect_noise((2000, 1000), 80).save(folder / "red.png")
    folder_of(folder, RECORD)
    Image.effect_noise((2000, 1000), 80).save(folder / "red.png")
    assert len(preview_html(vp.load_pairs("folder", path=folder), "a")) < 100_000


# The figure


def texts(figure: Any) -> list[str]:
    return [area.get_text() for ax in figure.axes for box in ax.artists for area in box.findobj(TextArea)]


def test_the_gallery_marks_words_in_the_colour_of_their_span_and_frames_regions() -> None:
    pairs = vp.load_pairs("shapes", n=3, questions=["color_choice"])
    figure = vp.plot.gallery(pairs)
    colors = colors_of(pairs)
    clean = figure.axes[0]
    boxes = [patch for patch in clean.patches if isinstance(patch, Rectangle)]
    (x0, y0, x1, y1) = pairs[0].regions["object"]
    assert [(box.get_x(), box.get_y(), box.get_width(), box.get_height()) for box in boxes] == [
        (x0 - 0.5, y0 - 0.5, x1 - x0, y1 - y0)
    ]
    assert to_hex(boxes[0].get_edgecolor()).upper() == colors["object"]
    areas = [area for box in clean.artists for area in box.findobj(TextArea)]
    marks = {area.get_text(): area._text.get_bbox_patch() for area in areas}
    assert "".join(area.get_text() for area in areas) == pairs[0].clean.text.replace(" ", "")
    for name in ("answer_option", "foil_option", "subject"):
        patch = marks[pairs[0].clean.text[slice(*pairs[0].spans[name])]]
        assert to_hex(patch.get_facecolor()).upper() == colors[name]
    assert marks["or"] is None and marks["?"] is None
    assert figure.legends and {t.get_text() for t in figure.legends[0].get_texts()} >= {"answer option", "object"}
    plt.close(figure)


def test_the_gallery_draws_so_many_pairs_as_are_asked_for_also_of_odd_texts(written: Pairs) -> None:
    figure = vp.plot.gallery(written, most=1)
    assert len(figure.axes) == 2
    plt.close(figure)
    figure = vp.plot.gallery([vp.Pair("$x$", *[vp.Prompt(None, "costs $5 or $6_a?")] * 2, "5", "6")] * 3, columns=3)
    assert len(figure.axes) == 6
    figure.savefig(io.BytesIO())  # a formula would fail here
    plt.close(figure)
    says(refusal(lambda: vp.plot.gallery([])), "at least one pair")


# The commands


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    folder = svo_probes(
        tmp_path / "svo", [*many(6), svo_row(8, "No.", "circle,touch,star", "circle,touch,ring", "object")]
    )
    data = {
        "name": "look",
        "model": {"name": "shapes-llava"},
        "pairs": {"dataset": "svo_probes", "path": str(folder), "n": 4, "keep": "all"},
        "corruption": {"kind": "symmetric_token_replacement", "automatic": True},
        "patch": {"sites": ["language.attn_head"], "positions": ["last"]},
    }
    path = tmp_path / "spec.yaml"
    path.write_text(vp.Experiment.from_dict(data).to_yaml())
    return path


def test_pairs_of_a_spec_are_counted_and_listed(command: Command, spec: Path) -> None:  # noqa: F811
    said = command("pairs", spec)
    assert said.code == 0, said.err
    says(said.out, "4 pairs of 7 candidates; dropped: its sentence does not say", "touching")
    data = json.loads(command("pairs", "--json", spec, "--set", "pairs.n=2").out)
    assert (data["pairs"], data["considered"], len(data["first"])) == (2, 7, 2)
    assert list(data["dropped"].values()) == [1]


@pytest.mark.parametrize("ending", ["html", "png"])
def test_a_preview_is_written_and_named(command: Command, spec: Path, tmp_path: Path, ending: str) -> None:  # noqa: F811
    path = tmp_path / "new" / f"look.{ending}"
    said = command("pairs", spec, "--preview", path)
    assert said.code == 0, said.err
    says(said.out, str(path), "4 pairs of 7")
    if ending == "html":
        assert len(Page(path.read_text(encoding="utf-8")).all("article")) == 4
    else:
        with Image.open(path) as picture:
            assert picture.width > 500


def test_the_preview_shows_what_the_corruption_makes_where_it_is_asked_for(
    command: Command,  # noqa: F811
    spec: Path,
    tmp_path: Path,
) -> None:
    for flags, differs in (((), False), (("--corrupted",), True)):
        command("pairs", spec, "--preview", tmp_path / "a.html", *flags)
        pieces = [text for _, text in Page((tmp_path / "a.html").read_text(encoding="utf-8")).all("mark")]
        named = pieces[len(colors_of(vp.load_pairs("svo_probes", path=tmp_path / "svo"))) :]
        half = len(named) // 8
        assert (named[:half] != named[half : 2 * half]) == differs


def test_exported_pairs_are_the_same_when_they_are_loaded_back(
    command: Command,  # noqa: F811
    spec: Path,
    tmp_path: Path,
) -> None:
    pairs = vp.load_pairs("svo_probes", path=tmp_path / "svo", n=4)
    said = command("pairs", "export", spec, "-o", tmp_path / "out")
    assert said.code == 0, said.err
    again = vp.load_pairs("folder", path=tmp_path / "out")
    assert pairs_digest(again) == pairs_digest(pairs) and pairs_digest(pairs) in said.out
    assert len(list((tmp_path / "out").glob("*.png"))) == 8
    refused = command("pairs", "export", spec, "-o", tmp_path / "out")
    assert refused.code == 2 and is_one_paragraph(refused.err) and "exists already" in refused.err
    changed = command("pairs", "export", spec, "-o", tmp_path / "replaced", "--corrupted")
    assert changed.code == 0
    replaced = vp.load_pairs("folder", path=tmp_path / "replaced")
    assert [p.clean.text for p in replaced] == [p.clean.text for p in pairs]
    assert all(p.corrupted.text != p.clean.text for p in replaced)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--preview", "a.gif"], ["kind of preview", "'.gif'", ".html"]),
        (["--set", "pairs.roles=[verbs]"], ["pairs.roles", "'verbs'", "Did you mean 'verb'?"]),
        (["--set", "pairs.path=nowhere"], ["nowhere", "does not exist"]),
        (["--set", "pairs.n=99"], ["pairs.n is 99", "6 pairs"]),
    ],
)
def test_what_cannot_be_shown_is_one_paragraph(
    command: Command,  # noqa: F811
    spec: Path,
    arguments: list[str],
    parts: list[str],
) -> None:
    said = command("pairs", spec, *arguments)
    assert said.code == 2 and is_one_paragraph(said.err)
    says(said.err, *parts)
