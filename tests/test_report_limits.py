"""Reports at their limits: large and empty datasets, missing pairs, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import vlm_patching as vp
from tests.reading import Page, shaped, unpacked
from tests.reporting import (
    PAIRS,
    SEMANTIC,
    cut,
    dataset,
    decoded,
    nasty_pairs,
    photo,
    quantity,
    run,
    same,
)
from vlm_patching import cli
from vlm_patching.errors import SpecError
from vlm_patching.plots import mean_effect
from vlm_patching.reports import content as contents
from vlm_patching.reports import page as pages
from vlm_patching.reports.content import PICTURE_ROOM, VALUE_ROOM
from vlm_patching.reports.packing import packed_size
from vlm_patching.reports.pictures import Album


@pytest.fixture(scope="module")
def photos() -> list[vp.Pair]:
    drawn = vp.load_pairs("shapes", n=100, seed=0)
    return [
        vp.Pair(pair.id, vp.Prompt(photo(2 * i), pair.clean.text), vp.Prompt(photo(2 * i + 1), pair.corrupted.text),
                pair.answer, pair.foil, pair.spans, pair.spans_corrupted, {"object": (40, 32, 160, 128)})
        for i, pair in enumerate(drawn)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def hundred(photos: list[vp.Pair]) -> xr.Dataset:
    """The heads of a hundred pairs with photographs."""
    spec = {"name": "hundred", "model": {"name": "shapes-llava"}, "pairs": PAIRS, "corruption": SEMANTIC}
    spec["patch"] = {"sites": ["language.attn_head"]}
    return vp.run(vp.Experiment.from_dict(spec), inputs=photos, progress=False)


def test_a_hundred_pairs_of_a_large_model_stay_under_10_megabytes(
    hundred: xr.Dataset, photos: list[vp.Pair], tmp_path: Path
) -> None:
    large = hundred.isel(layer=np.arange(32) % 6, head=np.arange(32) % 4).assign_coords(layer=range(32), head=range(32))
    rng = np.random.default_rng(0)
    for metric in ("probability", "logit_difference"):
        large[metric] = large[metric].copy(data=rng.normal(size=large[metric].shape).astype(np.float32))
    made = vp.report(large, tmp_path / "large.html", photos)
    found = Page(made.html)
    assert 4e6 < made.path.stat().st_size < 7e6
    assert found.data["map"]["absent"] == 0 and not found.data["map"]["dropped"], "all numbers of all pairs"
    assert len(found.data["pictures"]) == 200 and all(picture["link"] for picture in found.data["pictures"])
    assert max(decoded(found.data["pictures"][0]["link"]).size) >= 192


def test_what_there_is_room_for_leaves_10_megabytes_for_everything_else() -> None:
    assert VALUE_ROOM + PICTURE_ROOM + (pages.ASSETS / pages.LIBRARY).stat().st_size < 9e6


def test_more_numbers_than_there_is_room_for_are_left_out_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = dataset("heads")
    cells = ds.sizes["layer"] * ds.sizes["head"] * ds.sizes["position"]
    room = 6 * packed_size(cells) + 2 * packed_size(cells)
    monkeypatch.setattr(contents, "VALUE_ROOM", room)
    found = Page(vp.report(ds, tmp_path / "tight.html").html)
    drawn = found.data["map"]
    assert {(one["kind"], one["metric"]) for one in drawn["quantities"]} == {
        ("effect", "probability"),
        ("share", "probability"),
    }
    effect = quantity(drawn, "effect")
    assert sum(len(text) for part in effect["blocks"] for text in (part["mean"], part["low"], part["high"])) <= room
    assert sorted(effect["blocks"][0]["pairs"]) == ["0", "1"] and drawn["absent"] == ds.sizes["example"] - 2
    assert "2 kept pairs are in the mean only" in found.text
    assert (
        "Left out for the same reason: effect of another pair's value (probability of the answer), effect (logit"
        in found.text
    )
    mean = shaped(drawn, 0, effect["blocks"][0]["mean"])
    np.testing.assert_allclose(mean, cut(drawn, 0, mean_effect(ds, "probability", False)), rtol=1e-4, atol=1e-7)


def test_of_more_heads_than_there_is_room_for_the_most_telling_are_painted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = dataset("attention")
    each = ds.sizes["example"] * packed_size(ds.sizes["position"] * ds.sizes["key"])
    monkeypatch.setattr(contents, "VALUE_ROOM", 2 * (3 * each + 10))
    drawn = Page(vp.report(ds, tmp_path / "tight.html").html).data["map"]
    ratio = vp.analysis.head_functions(ds)["pointing_ratio"].mean("example")
    strength = abs(ratio - 1).max("position").stack(one=("site", "layer", "head"))
    wanted = strength.sortby(strength, ascending=False)["one"].values[:3].tolist()
    assert list(drawn["looks"]["heads"]) == [f"{site}|{layer}|{head}" for site, layer, head in wanted]
    assert drawn["looks"]["all"] == ds.sizes["layer"] * ds.sizes["head"]


def test_pictures_get_smaller_until_they_fit() -> None:
    album = Album()
    for seed in range(4):
        assert album.add(photo(seed)) == seed
    assert album.add(photo(0)) == 0, "a picture is there once"
    assert album.sizes == [(640, 480)] * 4
    roomy, tight = album.links(10**6), album.links(60_000)
    assert max(decoded(roomy[0]).size) == 320
    assert 64 <= max(decoded(tight[0]).size) < 320 and sum(map(len, tight)) <= 60_000
    least = album.links(4000)
    assert least[0] and not least[-1] and sum(map(len, least)) <= 4000


def test_without_pairs_the_report_says_so_and_has_no_pictures(tmp_path: Path) -> None:
    found = Page(vp.report(dataset("heads"), tmp_path / "a.html").html)
    assert "There are no pictures and no spans: this report was written without the pairs" in found.text
    assert found.data["pictures"] == []
    record = found.data["pairs"][0]
    assert record["prompts"] == [] and record["text"] == dataset("heads")["text"].values[0]


def test_a_store_of_dropped_pairs_says_why_of_each(tmp_path: Path) -> None:
    ds = run(lens={"positions": ["last"]}, pairs={**PAIRS, "keep": "clean_correct"})
    reasons = [
        "dropped: the clean run says 'red', not 'blue'",
        "dropped: the clean run says 'cyan', not 'red'",
        "dropped: the corrupted run still says 'red'",
    ]
    ds = ds.copy(deep=True)
    ds["kept"] = ("example", np.array([*reasons, ""], dtype=object))
    found = Page(vp.report(ds, tmp_path / "none.html", vp.rebuild_pairs(ds)).html)
    assert found.data["map"] is None
    assert "No pair was kept" in found.text and "0 of 4 pairs were kept" in found.text
    assert "2: the clean run says …, not …" in found.text
    assert "1: not run yet" in found.text
    assert [record["why"] for record in found.data["pairs"]] == [*reasons, "not run yet"]
    assert [record["kept"] for record in found.data["pairs"]] == [False] * 4


def test_of_one_pair_there_is_a_mean_without_an_interval(tmp_path: Path) -> None:
    ds = run(lens={"positions": ["last"]}, pairs={**PAIRS, "n": 1})
    drawn = Page(vp.report(ds, tmp_path / "one.html").html).data["map"]
    part = quantity(drawn, "value")["blocks"][0]
    same(unpacked(part["mean"]), ds["probability"].values.ravel())
    assert np.isnan(unpacked(part["low"])).all()


def test_a_report_opens_with_what_its_figures_show_and_says_which_cannot_be_drawn(tmp_path: Path) -> None:
    shown = {"figure": "heads", "metric": "logit_difference"}
    ds = run(
        patch={"sites": ["language.attn_head"], "positions": ["last"]},
        corruption=SEMANTIC,
        figures=[shown, {"figure": "universal_heads", "metric": "probability"}],
    )
    found = Page(vp.report(ds, tmp_path / "heads.html").html)
    assert found.data["map"]["quantities"][0]["metric"] == "logit_difference"
    assert "heads" in found.text and "Not drawn: universal_heads. " in found.text
    other = Page(vp.report(ds, tmp_path / "heads.html", metric="probability").html)
    assert other.data["map"]["quantities"][0]["metric"] == "probability"


def test_an_evaluation_says_how_often_the_model_is_right(tmp_path: Path) -> None:
    experiment = vp.Experiment.from_spec("notice2024_llava_universal", {"pairs.n": 12})
    ds = vp.evaluate(experiment, progress=False)
    found = Page(vp.report(ds, tmp_path / "right.html", vp.rebuild_pairs(ds)).html)
    assert found.data["map"] is None and "No pair was kept" not in found.text
    for task, row in vp.analysis.accuracy(ds).groupby("task"):
        pairs, right, share = (row[name].item() for name in ("pairs", "right", "accuracy"))
        assert f" {task} {pairs} {right} {share:.4g} " in found.text
    assert f" all {ds.sizes['example']} {int(ds['right'].sum())} " in found.text
    assert "vlm-patching evaluate notice2024_llava_universal.yaml" in found.text
    assert len(found.data["pairs"]) == 12 and len(found.data["pairs"][0]["prompts"]) == 2


def test_candidates_that_were_dropped_before_the_run_are_counted(tmp_path: Path) -> None:
    folder = nasty_pairs(tmp_path / "pairs")
    (folder / "1.png").write_text("no picture")
    pairs = {"dataset": "folder", "path": str(folder), "keep": "all", "on_error": "skip"}
    ds = run(lens={"positions": ["last"]}, pairs=pairs)
    found = Page(vp.report(ds, tmp_path / "skipped.html", vp.rebuild_pairs(ds)).html)
    assert "looked through for 2 candidates, of which were dropped:" in found.text
    (reason,) = json.loads(ds.attrs["pairs_dropped"])
    assert f"1: {reason}" in found.text
    assert len(found.data["pairs"]) == 1


def test_a_graph_written_by_hand_has_a_report(tmp_path: Path) -> None:
    experiment = vp.Experiment.from_spec("lens_llava", {"pairs.n": 2})
    pairs = vp.load_pairs("shapes", n=2, questions=["color_choice"])
    ds = vp.run(experiment.graph(), model="shapes-llava", inputs=pairs, progress=False)
    found = Page(vp.report(ds, tmp_path / "graph.html", pairs).html)
    assert "vp.InterventionGraph.from_json" in found.text
    assert len(found.data["pictures"]) == 2, "a lens has no corrupted run"


def refused(what: Any, *words: str) -> None:
    with pytest.raises(SpecError) as caught:
        what()
    for word in words:
        assert word in str(caught.value)


def test_what_cannot_be_reported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    ds = dataset("heads")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    refused(lambda: vp.report(ds, tmp_path / "a.txt"), "'.txt'", ".html")
    refused(lambda: vp.report(ds, tmp_path / "report"), "'report'", ".html")
    refused(lambda: vp.report(ds, tmp_path / "folder.html"), "folder.html is a folder")
    refused(lambda: vp.report(ds, tmp_path / "file" / "a.html"), "file/a.html", "could not be written")
    refused(lambda: vp.report(ds, tmp_path / "a.html", metric="probabilty"), "Did you mean 'probability'")
    refused(lambda: vp.report(xr.Dataset(), tmp_path / "a.html"), "not one that a run gave", "experiment_id")
    refused(lambda: vp.report(ds.isel(site=0), tmp_path / "a.html"), "no dimension site", "ds.sel(site=[...])")
    refused(
        lambda: vp.report(ds, tmp_path / "a.html", vp.load_pairs("shapes", n=4, seed=9)),
        "other pairs",
        "in their order",
    )
    refused(lambda: vp.report(ds, tmp_path / "a.html", ["pair"]), "must be pairs")  # type: ignore[list-item]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.html"]


def test_a_disk_that_does_not_take_it_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = vp.report(dataset("lens"), tmp_path / "lens.html")
    old = made.path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(lambda: vp.report(dataset("heads"), made.path), "No space left on device", "lens.html")
    assert [path.name for path in tmp_path.iterdir()] == ["lens.html"]
    assert made.path.read_bytes() == old


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """`vlm-patching report` in this process: exit code and what it says."""
    monkeypatch.setattr(sys, "argv", ["vlm-patching", "report", *map(str, arguments)])
    code: Any = 0
    try:
        cli.main()
    except SystemExit as done:
        code = done.code or 0
    said = capsys.readouterr()
    return code, said.out + said.err


def test_the_command_makes_the_pairs_anew_or_says_why_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = nasty_pairs(tmp_path / "pairs")
    spec = {"name": "from a folder", "model": {"name": "shapes-llava"}, "lens": {"positions": ["last"]}}
    spec["pairs"] = {"dataset": "folder", "path": str(copied), "keep": "all"}
    store = tmp_path / "lens.zarr"
    vp.run(vp.Experiment.from_dict(spec), store=store, progress=False)
    code, said = command(capsys, monkeypatch, store)
    assert code == 0 and said.startswith(f"{tmp_path / 'lens.html'}: 1.")
    assert len(Page((tmp_path / "lens.html").read_text()).data["pictures"]) == 2
    Image.new("RGB", (64, 64), "green").save(copied / "0.png")
    code, said = command(capsys, monkeypatch, store, "-o", tmp_path / "changed.html")
    assert code == 0 and "without pictures: the pairs could not be made anew. The results are of other pairs" in said
    shutil.rmtree(copied)
    before = (tmp_path / "lens.html").read_bytes()
    code, said = command(capsys, monkeypatch, store)
    assert code == 2 and "there already" in said and (tmp_path / "lens.html").read_bytes() == before
    code, said = command(capsys, monkeypatch, store, "-o", tmp_path / "gone.html")
    assert code == 0 and "pairs.jsonl does not exist" in said
    found = Page((tmp_path / "gone.html").read_text())
    assert "pairs.jsonl does not exist" in found.text and found.data["pictures"] == []
    code, said = command(capsys, monkeypatch, store, "-o", tmp_path / "plain.html", "--no-pictures")
    assert code == 0 and "--no-pictures" in said
    code, said = command(capsys, monkeypatch, tmp_path / "no.zarr")
    assert code == 2 and "does not exist" in said
