"""Reports in a real browser: they load alone, show the dataset's numbers, and can be used by everybody."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

import vlm_patching as vp
from tests.browser.conftest import NASTY, Made
from tests.browser.viewing import View
from vlm_patching.reports import page as pages

NAMES = ("heads", "modules", "tokens", "knockout", "lens", "noise", "attention", "positions", "nasty")
Reports = dict[str, Made]


def shown(value: float, unit: str = "") -> str:
    """A number as the page writes it."""
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e6):
        text = re.sub(r"e([+-])0*(\d)", r"e\1\2", f"{value:.2e}")
    else:
        text = f"{float(f'{value:.4g}'):.10f}".rstrip("0").rstrip(".")
    return text.replace("-", "\u2212") + (f"\u202f{unit}" if unit else "")


@pytest.mark.parametrize("name", NAMES)
def test_a_report_opens_alone_without_a_complaint(driver: Chrome, reports: Reports, name: str) -> None:
    view = View(driver, reports[name].report.path)
    assert view.one("#map .main-svg").is_displayed()
    assert view.errors() == []
    assert list(view.requests()) == [reports[name].report.path.as_uri()]


def test_what_is_used_of_a_report_asks_for_nothing_either(driver: Chrome, reports: Reports) -> None:
    view = View(driver, reports["tokens"].report.path)
    list(view.requests())
    view.point(3, 2)
    view.choose("Pair", view.options("Pair")[1])
    view.one("#table-alternative summary").click()
    view.run("document.getElementById('to-map').click()")
    view.run("document.getElementById('save-map').click()")
    assert view.errors() == []
    assert [url for url in view.requests() if not url.startswith("blob:")] == []


def test_the_policy_lets_no_other_script_run(driver: Chrome, reports: Reports, tmp_path: Path) -> None:
    path = tmp_path / "tampered.html"
    path.write_text(reports["lens"].report.html.replace("</body>", "<script>window.hit = 1</script></body>"))
    view = View(driver, path)
    assert view.run("return window.hit") is None
    assert any("Content Security Policy" in message for message in view.errors())


def test_pointing_at_a_cell_shows_the_value_and_interval_of_the_dataset(driver: Chrome, reports: Reports) -> None:
    ds = reports["heads"].ds
    interval = vp.analysis.bootstrap(vp.effect(ds, "probability")).isel(position=0)
    view = View(driver, reports["heads"].report.path)
    for site in ds["site"].values:
        view.choose("Site", site)
        for layer, head in ((0, 0), (3, 1), (5, 3)):
            cell = interval.sel(site=site, layer=layer, head=head)
            mean, ends = shown(float(cell["mean"])), f"{shown(float(cell['low']))} to {shown(float(cell['high']))}"
            view.point(head, layer)
            assert view.hovered().startswith(mean) and ends in view.hovered()
            assert view.texts("#inspector .big") == [mean]
            assert view.texts("#inspector h4") == [f"layer {layer}, head {head}, position answer_option"]
            assert ends in view.texts("#inspector dd") and "answer_option" in view.texts("#inspector dd")


def test_pointing_at_a_patch_frames_it_in_the_picture(driver: Chrome, reports: Reports) -> None:
    made = reports["tokens"]
    ds, view = made.ds, View(driver, made.report.path)
    view.choose("Site", "language.resid_post")
    view.choose("Pair", view.options("Pair")[2])
    effect = vp.effect(ds, "probability").sel(site="language.resid_post").isel(example=1)
    for patch, layer in (("3", 0), ("9", 2)):
        column = ds["position"].values.tolist().index(patch)
        assert ds["modality"].values[1, column] == "image"
        view.point(column, layer)
        assert shown(float(effect.sel(layer=layer, position=patch))) in view.hovered()
        x0, y0, x1, y1 = ds["box"].values[1, column].tolist()
        frames = view.run(
            "return [...document.querySelectorAll('#inspector svg rect[fill=none]')].map((r) =>"
            "  ['x', 'y', 'width', 'height'].map((n) => Number(r.getAttribute(n))))"
        )
        assert frames, "the patch has a frame"
        for left, top, width, height in frames:
            assert x0 <= left <= left + width <= x1 and y0 <= top <= top + height <= y1
            assert width > (x1 - x0) / 2
        tinted = view.run("return document.querySelectorAll('#inspector svg rect[fill^=rgba]').length")
        assert tinted == int((ds["modality"].values[1] == "image").sum())
    assert made.pairs[1].id in view.texts("#inspector figcaption")[0]


def test_the_tokens_of_the_prompt_are_under_the_map_of_tokens(driver: Chrome, reports: Reports) -> None:
    ds = reports["modules"].ds
    view = View(driver, reports["modules"].report.path)
    view.choose("Pair", view.options("Pair")[3])
    assert view.texts("#inspector .chip") == ds["token"].isel(example=2).values.tolist()
    view.point(4, 3)
    assert view.texts("#inspector .chip.here") == [ds["token"].values[2, 4]]
    assert f"token {ds['token'].values[2, 4]}" in view.hovered()


def test_a_head_paints_what_it_looks_at(driver: Chrome, reports: Reports) -> None:
    ds = reports["attention"].ds
    wanted = vp.analysis.above_mean(ds).sel(layer=4, head=2, position="last").isel(site=0, example=0)
    view = View(driver, reports["attention"].report.path)
    view.choose("Position", "last")
    view.choose("Pair", view.options("Pair")[1])
    view.point(2, 4)
    ratio = (
        vp.analysis.head_functions(ds)["pointing_ratio"].sel(layer=4, head=2, position="last").isel(site=0, example=0)
    )
    assert shown(float(ratio)) in view.hovered()
    fills = view.run(
        "return [...document.querySelectorAll('#inspector svg rect[fill^=rgba]')].map((r) => r.getAttribute('fill'))"
    )
    strength = [float(fill.rsplit(",", 1)[1].rstrip(")")) for fill in fills]
    shares = np.sqrt(abs(wanted.values) / abs(wanted.values).max())
    np.testing.assert_allclose(strength, 0.8 * shares, atol=1e-3)
    red = [fill.startswith("rgba(178,24,43") for fill in fills]
    assert red == (wanted.values >= 0).tolist()


def test_choices_change_the_map(driver: Chrome, reports: Reports) -> None:
    made = reports["positions"]
    effect, view = vp.effect(made.ds, "logit_difference"), View(driver, made.report.path)
    labels = {
        metric: label for metric, label in zip(("probability", "logit_difference"), view.options("Metric"), strict=True)
    }
    view.choose("Metric", labels["logit_difference"])
    for position in ("answer_option", "last"):
        view.choose("Position", position)
        mean = effect.sel(position=position).isel(site=0).mean("example")
        np.testing.assert_allclose(view.drawn(), mean, rtol=1e-5)
        view.choose("Pair", view.options("Pair")[2])
        np.testing.assert_allclose(view.drawn(), effect.sel(position=position).isel(site=0, example=1), rtol=1e-5)
        view.choose("Show", "share of the total effect")
        share = vp.effect(made.ds, "logit_difference", normalize=True).sel(position=position).isel(site=0, example=1)
        np.testing.assert_allclose(view.drawn(), share, rtol=1e-4)
        view.choose("Show", "effect")
        view.choose("Pair", view.options("Pair")[0])
    assert view.errors() == []


def test_a_site_shows_its_own_columns(driver: Chrome, reports: Reports) -> None:
    ds, view = reports["noise"].ds, View(driver, reports["noise"].report.path)
    for site in ds["site"].values:
        view.choose("Site", site)
        mean = vp.effect(ds, "probability").sel(site=site).mean(("example", "draw"))
        mean = mean.isel(position=np.flatnonzero(mean.notnull().any("layer")))
        np.testing.assert_allclose(view.drawn(), mean, rtol=1e-5)


def test_lines_show_the_change_of_a_knockout_and_its_windows(driver: Chrome, reports: Reports) -> None:
    ds, view = reports["knockout"].ds, View(driver, reports["knockout"].report.path)
    interval = vp.analysis.bootstrap(vp.analysis.knockout_change(ds)).isel(site=0)
    lines = "return document.getElementById('map').data.filter((t) => t.name).map((t) => [t.name, [...t.y]])"
    for window in (1, 3):
        view.choose("Window", str(window))
        found = view.run(lines)
        assert [name.replace("&gt;", ">") for name, _ in found] == ds["edges"].values.tolist()
        for edges, values in found:
            wanted = interval["mean"].sel(edges=edges.replace("&gt;", ">"), window=window)
            np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5)
    lowest = interval["mean"].sel(window=3).argmin(("edges", "layer"))
    cell = interval.sel(window=3).isel(lowest)
    view.point(int(cell["layer"]), float(cell["mean"]))
    assert view.hovered().startswith(shown(float(cell["mean"]), "%"))
    assert str(cell["edges"].item()) in view.hovered()
    view.choose("As", "map")
    np.testing.assert_allclose(
        view.drawn(), interval["mean"].sel(window=3).transpose("layer", "edges"), rtol=1e-5, atol=1e-5
    )


def test_a_lens_has_the_models_own_output_beside_it(driver: Chrome, reports: Reports) -> None:
    ds, view = reports["lens"].ds, View(driver, reports["lens"].report.path)
    own = "return document.getElementById('map').layout.shapes[0]"
    assert view.run(own)["y0"] == pytest.approx(float(ds["probability_clean"].mean()), rel=1e-5)
    view.choose("Pair", view.options("Pair")[1])
    assert view.run(own)["y0"] == pytest.approx(float(ds["probability_clean"][0]), rel=1e-5)


def test_the_table_says_what_the_map_shows(driver: Chrome, reports: Reports) -> None:
    ds, view = reports["heads"].ds, View(driver, reports["heads"].report.path)
    view.one("#table-alternative summary").click()
    WebDriverWait(driver, 5).until(lambda d: view.texts("#map-table tbody tr"))
    for site in ds["site"].values:
        view.choose("Site", site)
        mean = vp.effect(ds, "probability").sel(site=site).isel(position=0).mean("example")
        rows = [[str(layer), *map(shown, mean.sel(layer=layer).values)] for layer in ds["layer"].values[::-1]]
        found = "return [...document.querySelectorAll('#map-table tbody tr')]"
        assert view.run(f"{found}.map((row) => [...row.children].map((cell) => cell.textContent))") == rows
        assert site in view.texts("#map-table caption")[0]


def test_cells_that_were_not_run_say_so(driver: Chrome, reports: Reports, tmp_path: Path) -> None:
    made = reports["heads"]
    ds = made.ds.copy(deep=True)
    ds["probability"][:, 0, 2, 1] = np.nan
    view = View(driver, vp.report(ds, tmp_path / "holes.html").path)
    view.choose("Site", str(ds["site"].values[0]))
    view.point(1, 2)
    assert view.hovered().startswith("not run")
    assert view.texts("#inspector .big") == ["not run"]


def test_the_map_is_used_by_keyboard_and_says_what_it_shows(driver: Chrome, reports: Reports) -> None:
    ds, view = reports["heads"].ds, View(driver, reports["heads"].report.path)
    view.choose("Site", str(ds["site"].values[0]))
    mean = vp.effect(ds, "probability").isel(site=0, position=0).mean("example")
    view.run("document.getElementById('map').focus()")
    view.press(Keys.HOME, *[Keys.ARROW_LEFT] * 4)
    place = [0, 0]
    for key, (layer, head) in (
        (Keys.ARROW_UP, (1, 0)),
        (Keys.ARROW_RIGHT, (0, 1)),
        (Keys.ARROW_RIGHT, (0, 1)),
        (Keys.END, (4, 0)),
        (Keys.ARROW_DOWN, (-1, 0)),
    ):
        view.press(key)
        place = [place[0] + layer, place[1] + head]
        said = view.texts("#announcer")[0]
        assert said.startswith(f"layer {place[0]}, head {place[1]}, position answer_option: ")
        assert shown(float(mean.sel(layer=place[0], head=place[1]))) in said
        (frame,) = view.run("return document.getElementById('map').layout.shapes.filter((s) => s.type === 'rect')")
        assert (frame["x0"], frame["y0"]) == (place[1] - 0.5, place[0] - 0.5)


def test_a_control_keeps_the_focus_while_it_changes_the_map(driver: Chrome, reports: Reports) -> None:
    view = View(driver, reports["modules"].report.path)
    site = "document.querySelector('[data-control=Site]')"
    view.run(f"{site}.selectedIndex = 0; {site}.dispatchEvent(new Event('change')); {site}.focus()")
    for number in (1, 2):
        view.press(Keys.ARROW_DOWN)
        assert view.run(f"return [{site}.selectedIndex, document.activeElement === {site}]") == [number, True]
        assert reports["modules"].ds["site"].values[number] in view.texts("#map-said")[0]


def test_a_zoomed_map_goes_along_with_the_cell(driver: Chrome, reports: Reports, tmp_path: Path) -> None:
    ds = reports["modules"].ds
    many = ds.isel(position=np.arange(60) % ds.sizes["position"]).assign_coords(position=[str(i) for i in range(60)])
    view = View(driver, vp.report(many, tmp_path / "many.html").path)
    zoomed = "return document.getElementById('map')._fullLayout.xaxis.range"
    view.run("Plotly.relayout(document.getElementById('map'), {'xaxis.range': [9.5, 19.5]})")
    view.run("document.getElementById('map').focus()")
    view.press(*[Keys.ARROW_LEFT] * 60)
    assert view.run(zoomed) == pytest.approx([-0.5, 9.5])
    view.press(*[Keys.PAGE_DOWN] * 6)
    assert view.run(zoomed) == pytest.approx([49.5, 59.5])
    assert len(view.texts("#map .xtick text")) == 10, "every column in sight has its name"
    view.one("#reset-zoom").click()
    assert view.run(zoomed) == pytest.approx([-0.5, 59.5])


@pytest.mark.parametrize("name", ["heads", "knockout"])
def test_tab_reaches_everything_in_order_and_leaves_it_again(driver: Chrome, reports: Reports, name: str) -> None:
    view = View(driver, reports[name].report.path)
    wanted = view.run(
        "const able = 'a[href], button, select, input, summary, [tabindex=\"0\"]';"
        "const list = [...document.querySelectorAll(able)].filter((e) => e.checkVisibility());"
        "list.forEach((e, i) => { e.dataset.order = i; }); return list.length"
    )
    view.run("document.body.tabIndex = -1; document.body.focus()")
    reached = []
    for _ in range(wanted):
        view.press(Keys.TAB)
        reached.append(int(view.run("return document.activeElement.dataset.order ?? -1")))
    assert reached == list(range(wanted))
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert view.run(outline) == "solid", "one sees where one is"


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_can_be_used_has_a_name(driver: Chrome, reports: Reports, name: str) -> None:
    View(driver, reports[name].report.path)
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    used = ("button", "link", "combobox", "listbox", "option", "checkbox", "application", "region", "image")
    names = [
        (node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in nodes if not node["ignored"]
    ]
    landmarks = [role for role, _ in names]
    assert {"banner", "navigation", "main", "contentinfo", "complementary"} <= set(landmarks)
    assert [role for role, said in names if role in used and not said] == []
    assert ("application", view_said(driver)) in names


def view_said(driver: Chrome) -> str:
    return driver.execute_script("return document.getElementById('map-said').textContent")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wider_than_the_window(driver: Chrome, reports: Reports, name: str, width: int) -> None:
    view = View(driver, reports[name].report.path, width=width)
    view.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    wide, inner = view.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= inner == width
    over = view.run(
        "const scrolls = '.scroll, pre, nav, #pair-list, .static, svg, .unseen';"
        "return [...document.querySelectorAll('main *')]"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(scrolls))"
        ".map((e) => e.outerHTML.slice(0, 90))"
    )
    assert over == []


CONTRAST = """
const channel = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const parse = (text) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r / 255, g / 255, b / 255, a / 255];
};
const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
const ground = (element) => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
  return layers.reduce((below, layer) => over(layer, below), [1, 1, 1]);
};
const bad = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || element.closest("script, style, .unseen, .skip, option")) continue;
  if (!element.checkVisibility()) continue;
  const style = getComputedStyle(element), behind = ground(element);
  const ink = parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
  ink[3] *= parseFloat(style.opacity);
  const [one, two] = [light(over(ink, behind)), light(behind)];
  const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
  const kind = element.className.baseVal ?? element.className;
  if (ratio < 4.5) bad.push([ratio.toFixed(2), element.tagName, kind, element.textContent.trim().slice(0, 40)]);
}
return bad;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["heads", "modules", "knockout", "attention"])
def test_texts_stand_out_from_their_ground(driver: Chrome, reports: Reports, name: str, scheme: str) -> None:
    view = View(driver, reports[name].report.path, scheme=scheme)
    view.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert (
        view.run("return getComputedStyle(document.body).backgroundColor")
        == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    )
    assert view.run(CONTRAST) == []


def test_the_map_follows_when_the_colours_of_the_page_change(driver: Chrome, reports: Reports) -> None:
    view = View(driver, reports["heads"].report.path)
    middle = "return document.getElementById('map').data[0].colorscale[1][1]"
    before = view.run(middle)
    view.scheme("dark")
    WebDriverWait(driver, 5).until(lambda d: d.execute_script(middle) != before)
    view.scheme("light")


def test_texts_of_a_dataset_are_shown_as_they_are_and_do_nothing(driver: Chrome, reports: Reports) -> None:
    made = reports["nasty"]
    view = View(driver, made.report.path)
    assert view.errors() == []
    assert view.texts("h1") == ["<script>window.hit=1</script>"]
    assert view.texts("#pair-detail h3") == [made.pairs[0].id]
    assert view.texts("#pair-detail .prompt")[0] == NASTY
    assert f"subject: {NASTY[NASTY.index('<b>') :][:11]}" in view.texts("#pair-detail .legend li")[0]
    tokens = made.ds["token"].values[0].tolist()
    assert view.texts("#inspector .chip") == [token.strip() for token in tokens]
    ticks = view.texts("#map .xtick text")
    assert ticks == [token.strip() for token in tokens], "names on the axis are not markup either"
    for column in (tokens.index(next(t for t in tokens if "<" in t)), len(tokens) - 1):
        view.point(column, 1)
        assert f"token {tokens[column].strip()}" in view.hovered()
    assert view.run("return window.hit") is None
    assert view.run("return document.querySelectorAll('img[onerror], main b, #map script').length") == 0


def test_pairs_are_browsed_by_keyboard(driver: Chrome, reports: Reports) -> None:
    made = reports["noise"]
    view = View(driver, made.report.path)
    view.run("document.getElementById('pair-list').focus()")
    for key, pair in ((Keys.ARROW_DOWN, 1), (Keys.END, 3), (Keys.ARROW_UP, 2), (Keys.HOME, 0), (Keys.ARROW_RIGHT, 1)):
        view.press(key)
        assert view.texts("#pair-detail h3") == [made.pairs[pair].id]
        assert view.texts("#pair-list [aria-selected=true] strong") == [made.pairs[pair].id]
        assert (
            view.run("return document.getElementById('pair-list').getAttribute('aria-activedescendant')")
            == f"pair-{pair}"
        )
        said = " ".join(view.texts("#pair-detail"))
        assert made.ds["said_clean"].values[pair] in said and made.pairs[pair].answer in said
    assert "with add_noise image_embeds, std 3σ" in said
    pictures = view.run(
        "return [...document.querySelectorAll('#pair-detail svg image')].map((i) => i.getBoundingClientRect().width)"
    )
    assert len(pictures) == 2 and min(pictures) > 100


def test_pairs_that_were_left_out_can_be_looked_at_alone(driver: Chrome, reports: Reports, tmp_path: Path) -> None:
    made = reports["lens"]
    ds = made.ds.copy(deep=True)
    why = "dropped: the clean run says 'red', not 'blue'"
    ds["kept"][2] = why
    view = View(driver, vp.report(ds, tmp_path / "dropped.html", made.pairs).path)
    assert "mean of 3 pairs" in view.options("Pair")[0] and len(view.options("Pair")) == 4
    Select(view.one("#pair-filter")).select_by_visible_text("pairs left out (1)")
    assert view.texts("#pair-list strong") == [made.pairs[2].id]
    assert view.texts("#pair-detail .outcome") == [f"{why[0].upper()}{why[1:]}."]
    assert not view.driver.find_elements(By.ID, "to-map"), "it has no numbers of its own"


def test_a_pair_is_taken_to_the_map(driver: Chrome, reports: Reports) -> None:
    ds, view = reports["modules"].ds, View(driver, reports["modules"].report.path)
    view.run("document.getElementById('pair-2').click()")
    view.run("document.getElementById('to-map').click()")
    assert ds["example"].values[2] in view.texts("#map-said")[0]
    assert view.run("return document.activeElement.id") == "map"
    title, nav = view.run(
        "return ['#map-title', 'nav'].map((s) => document.querySelector(s).getBoundingClientRect().y)"
    )
    assert title > nav + 30, "it is not behind the links"
    site = view.run("return document.querySelector('[data-control=Site]').selectedOptions[0].textContent")
    np.testing.assert_allclose(view.drawn(), vp.effect(ds, "probability").sel(site=site).isel(example=2), rtol=1e-5)
    strongest = abs(vp.effect(ds, "probability").isel(example=2)).max()
    assert shown(float(strongest)).lstrip("\u2212") in view.texts("#pair-strongest td.number")[0]


def test_a_page_of_one_pair_or_of_none_works(driver: Chrome, reports: Reports, tmp_path: Path) -> None:
    ds = reports["heads"].ds
    view = View(driver, vp.report(ds.isel(example=[0]), tmp_path / "one.html").path)
    assert "none (one pair)" in view.texts("#inspector dd")
    assert view.errors() == []
    none = ds.copy(deep=True)
    none["kept"][:] = "dropped: the clean run says 'red', not 'blue'"
    view = View(driver, vp.report(none, tmp_path / "none.html").path)
    assert not view.one("#browser").get_attribute("hidden") and len(view.texts("#pair-list li")) == 4
    assert view.errors() == []


def test_a_notebook_shows_the_page_in_a_frame(driver: Chrome, reports: Reports, tmp_path: Path) -> None:
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><title>notebook</title>{reports['heads'].report._repr_html_()}", encoding="utf-8")
    view = View.__new__(View)
    view.driver = driver
    view.errors()
    driver.get(path.as_uri())
    driver.switch_to.frame(driver.find_element(By.TAG_NAME, "iframe"))
    try:
        WebDriverWait(driver, 20).until(
            lambda d: d.execute_script("return !!document.getElementById('map')?._fullLayout")
        )
        driver.execute_script("document.querySelector('nav a[href=\"#pairs\"]').click()")
        assert driver.execute_script("return document.activeElement.id") == "pairs", "the frame stays at the report"
        assert view.texts("#inspector h4")
    finally:
        driver.switch_to.default_content()
    assert view.errors() == []


def test_the_drawn_numbers_have_the_licence_of_the_library_with_them(driver: Chrome, reports: Reports) -> None:
    view = View(driver, reports["lens"].report.path)
    assert view.run("return Plotly.version") == "4.1.1"
    assert "plotly.js (MIT" in view.texts("footer")[0]
    assert b"Licensed under the MIT license" in (pages.ASSETS / pages.LIBRARY).read_bytes()[:300]
