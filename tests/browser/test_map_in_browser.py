"""The map in a real browser: what is pointed at, chosen and read out is what the dataset has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.support.ui import WebDriverWait

import vlm_patching as vp
from tests.browser.conftest import Made
from tests.browser.viewing import View, shown

Reports = dict[str, Made]


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
    view = View(driver, vp.report(ds, tmp_path / "holes.html", metric="probability").path)
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


def test_the_map_follows_when_the_colours_of_the_page_change(driver: Chrome, reports: Reports) -> None:
    view = View(driver, reports["heads"].report.path)
    middle = "return document.getElementById('map').data[0].colorscale[1][1]"
    before = view.run(middle)
    view.scheme("dark")
    WebDriverWait(driver, 5).until(lambda d: d.execute_script(middle) != before)
    view.scheme("light")


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
