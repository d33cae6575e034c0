"""The page in a real browser: it loads alone, and everybody can use all of it."""

from __future__ import annotations

from pathlib import Path

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
