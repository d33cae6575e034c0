"""A report: its numbers are the dataset's, its texts stay texts, it needs nothing beside it, and it stays small."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

import vlm_patching as vp
from tests.reading import Page, shaped, unpacked
from vlm_patching import cli
from vlm_patching.errors import SpecError
from vlm_patching.plots import mean_effect
from vlm_patching.reports import content as contents
from vlm_patching.reports import page as pages
from vlm_patching.reports.content import PICTURE_ROOM, VALUE_ROOM
from vlm_patching.reports.examples import marked
from vlm_patching.reports.packing import embedded, packed, packed_size
from vlm_patching.reports.pictures import Album
from vlm_patching.reports.places import _picture

PAIRS = {"dataset": "shapes", "n": 4, "seed": 3, "keep": "all"}
SEMANTIC = {"kind": "semantic_image_pair"}
NASTY = "is it red or blue </script><script>document.title='hit'</script> \u2028 <!-- <b>&amp; or \"cyan'?"


def run(method: Mapping[str, Any], model: str = "shapes-llava", **changes: Any) -> xr.Dataset:
    spec = {"name": "my report", "model": {"name": model}, "pairs": PAIRS, "corruption": SEMANTIC, **method, **changes}
    if not {"patch", "path", "steer"} & set(spec):
        del spec["corruption"]
    return vp.run(vp.Experiment.from_dict(spec), progress=False)


@pytest.fixture(scope="module")
def datasets() -> dict[str, xr.Dataset]:
    """One small dataset a method."""
    noise = {"kind": "gaussian_noise", "std": 1.0, "draws": 3}
    two_stacks = {"sites": ["question_encoder.resid_post", "answer_decoder.resid_post"], "positions": "all"}
    heads = {"sites": ["language.attn_head"], "positions": ["answer_option", "last"], "placebo": True}
    estimated = {"sites": ["language.attn_head"], "method": "attribution", "verify": 3}
    edges = ["image:object -> question", "question -> last"]
    found = {
        "noise": run({"patch": two_stacks}, "shapes-blip", corruption=noise),
        "heads": run({"patch": heads}),
        "estimated": run({"patch": estimated}),
        "windows": run({"patch": {"sites": ["language.mlp_out"], "positions": ["image:object"], "window": [1, 3]}}),
        "patches": run({"patch": {"sites": ["language.resid_post"], "positions": ["each:image", "last"]}}),
        "knockout": run({"knockout": {"edges": edges, "window": [1, 3]}}),
        "ablate": run({"ablate": {"sites": ["language.mlp_out"], "positions": ["last"]}}),
        "steer": run({"steer": {"sites": ["language.resid_post"], "positions": ["last"], "strengths": [-1, 2]}}),
        "lens": run({"lens": {"positions": ["last", "subject_last"]}}, metrics=["probability", "answer_rank"]),
    }
    attention = {"sites": ["language.attn_pattern"], "positions": ["answer_option", "last"], "keys": "image"}
    found["attention"] = run({"attention": attention}, metrics=["probability"])
    found["attention to text"] = run({"attention": {**attention, "keys": "text"}}, metrics=["probability"])
    return found


@pytest.fixture(scope="module")
def written(datasets: dict[str, xr.Dataset], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    folder = tmp_path_factory.mktemp("reports")
    found = {}
    for name, ds in datasets.items():
        made = vp.report(ds, folder / f"{name}.html", vp.rebuild_pairs(ds))
        assert made.path.read_text(encoding="utf-8") == made.html
        found[name] = Page(made.html)
    return found


def quantity(drawn: Any, kind: str, metric: str = "probability") -> Any:
    (found,) = [one for one in drawn["quantities"] if (one["kind"], one["metric"]) == (kind, metric)]
    return found


def cut(drawn: Any, block: int, values: xr.DataArray) -> np.ndarray:
    """The same numbers out of the dataset, looked up by their labels, one by one."""
    part, across = drawn["blocks"][block], drawn["across"]
    columns = [drawn["columns"][i] for i in part["columns"]]
    axes = {**{one["dim"]: one["labels"] for one in drawn["selectors"]}, "layer": part["layers"], across: columns}
    known = {
        name: [f"{v:g}" if isinstance(v, float) else str(v) for v in values[name].values.tolist()] for name in axes
    }
    values = values.isel(site=values["site"].values.tolist().index(part["site"]))
    found = np.empty([len(labels) for labels in axes.values()])
    for place in product(*map(range, found.shape)):
        chosen = {name: known[name].index(str(axes[name][i])) for name, i in zip(axes, place, strict=True)}
        found[place] = values.isel(chosen).item()
    return found


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted.astype(np.float32), rtol=1e-6, atol=0)
    assert np.isfinite(found).any()


EFFECTS = [
    ("noise", "effect", "logit_difference", lambda ds: vp.effect(ds, "logit_difference")),
    ("noise", "effect", "probability", lambda ds: vp.effect(ds, "probability")),
    ("heads", "effect", "probability", lambda ds: vp.effect(ds, "probability")),
    ("heads", "placebo", "probability", lambda ds: vp.effect(ds.assign(probability=ds["probability_placebo"]))),
    ("estimated", "exact", "probability", lambda ds: vp.effect(ds.assign(probability=ds["probability_exact"]))),
    ("windows", "effect", "probability", lambda ds: vp.effect(ds, "probability")),
    ("patches", "effect", "probability", lambda ds: vp.effect(ds, "probability")),
    ("knockout", "change", "probability", vp.analysis.knockout_change),
    ("knockout", "effect", "logit_difference", lambda ds: vp.effect(ds, "logit_difference")),
    ("ablate", "change", "probability", vp.analysis.knockout_change),
    ("steer", "effect", "probability", lambda ds: vp.effect(ds, "probability")),
    ("lens", "value", "answer_rank", lambda ds: ds["answer_rank"]),
    ("attention", "pointing_ratio", "", lambda ds: vp.analysis.head_functions(ds)["pointing_ratio"]),
    ("attention", "entropy", "", lambda ds: vp.analysis.head_functions(ds)["entropy"]),
    ("attention to text", "attention", "", lambda ds: ds["attention"]),
]


@pytest.mark.parametrize(("name", "kind", "metric", "values"), EFFECTS, ids=lambda one: one if type(one) is str else "")
def test_the_numbers_of_a_map_are_those_of_the_dataset(
    datasets: dict[str, xr.Dataset], written: dict[str, Page], name: str, kind: str, metric: str, values: Any
) -> None:
    drawn = written[name].data["map"]
    wanted = values(datasets[name])
    found = quantity(drawn, kind, metric)
    several = int(wanted.notnull().any([d for d in wanted.dims if d != "example"]).sum()) > 1
    assert several
    interval = vp.analysis.bootstrap(wanted)
    single = wanted.mean("draw") if "draw" in wanted.dims else wanted
    assert [part["site"] for part in drawn["blocks"]] == datasets[name]["site"].values.tolist()
    for block, part in enumerate(found["blocks"]):
        for end in ("mean", "low", "high"):
            same(shaped(drawn, block, part[end]), cut(drawn, block, interval[end]))
        assert list(part["pairs"]) == [str(i) for i in range(datasets[name].sizes["example"])]
        for pair, text in part["pairs"].items():
            own = shaped(drawn, block, text)
            np.testing.assert_allclose(own, cut(drawn, block, single.isel(example=int(pair))), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "metric"), [("noise", "probability"), ("heads", "logit_difference")])
def test_a_share_is_an_effect_over_the_total_effect(
    datasets: dict[str, xr.Dataset], written: dict[str, Page], name: str, metric: str
) -> None:
    ds, drawn = datasets[name], written[name].data["map"]
    share = quantity(drawn, "share", metric)
    effect = drawn["quantities"][share["of"]]
    assert (effect["kind"], effect["metric"]) == ("effect", metric)
    total = vp.total_effect(ds, metric)
    total = total.mean("draw") if "draw" in total.dims else total
    wanted = [None if abs(t) <= vp.analysis.effects.LEAST_TOTAL_EFFECT[metric] else t for t in total.values.tolist()]
    assert any(value is not None for value in wanted)
    assert share["totals"] == [value if value is None else pytest.approx(value, rel=1e-5) for value in wanted]
    for block, part in enumerate(share["blocks"]):
        mean = shaped(drawn, block, effect["blocks"][block]["mean"]) / shaped(drawn, block, part["total"])
        np.testing.assert_allclose(mean, cut(drawn, block, mean_effect(ds, metric, True)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["knockout", "ablate", "lens", "attention"])
def test_what_has_no_total_effect_has_no_share(written: dict[str, Page], name: str) -> None:
    assert "share" not in {one["kind"] for one in written[name].data["map"]["quantities"]}


def test_a_head_is_painted_with_its_attention_minus_the_mean_of_all_heads(
    datasets: dict[str, xr.Dataset], written: dict[str, Page]
) -> None:
    ds, drawn = datasets["attention"], written["attention"].data["map"]
    looks, wanted = drawn["looks"], vp.analysis.above_mean(ds)
    assert looks["keys"] == list(range(ds.sizes["key"]))
    assert len(looks["heads"]) == looks["all"] == ds.sizes["layer"] * ds.sizes["head"]
    for name, pairs in looks["heads"].items():
        site, layer, head = name.split("|")
        for pair, text in pairs.items():
            one = wanted.sel(site=site, layer=int(layer), head=int(head)).isel(example=int(pair))
            found = unpacked(text).reshape(ds.sizes["position"], ds.sizes["key"])
            np.testing.assert_allclose(found, one.transpose("position", "key"), rtol=1e-6, atol=1e-9)
    box = drawn["keys"]["box"]
    assert box["rows"][box["of"][0]] == ds["key_box"].isel(example=0).transpose("key", "corner").values.tolist()


def test_places_are_described_as_in_the_dataset(datasets: dict[str, xr.Dataset], written: dict[str, Page]) -> None:
    for name, dimension in (("patches", "position"), ("noise", "position"), ("attention to text", "key")):
        ds, places = datasets[name], written[name].data["map"]["places"]
        prefix = "key_" if dimension == "key" else ""
        assert places["labels"] == ds[dimension].values.tolist()
        for example in range(ds.sizes["example"]):
            for word in ("token", "role", "modality"):
                row = places[word]["rows"][places[word]["of"][example]]
                told = [places["strings"][i] for i in row]
                assert told == ds[f"{prefix}{word}"].isel(example=example).values.tolist()


def test_every_pair_is_there_with_prompts_spans_pictures_and_what_was_said(
    datasets: dict[str, xr.Dataset], written: dict[str, Page]
) -> None:
    ds, data = datasets["heads"], written["heads"].data
    pairs = vp.rebuild_pairs(ds)
    assert [record["id"] for record in data["pairs"]] == [pair.id for pair in pairs]
    for i, (record, pair) in enumerate(zip(data["pairs"], pairs, strict=True)):
        assert (record["answer"], record["foil"], record["kept"]) == (pair.answer, pair.foil, True)
        assert record["said_clean"] == ds["said_clean"].values[i]
        assert record["said_corrupted"] == ds["said_corrupted"].values[i]
        assert [one["metric"] for one in record["metrics"]] == ["probability", "logit_difference"]
        for one in record["metrics"]:
            for side in ("clean", "corrupted"):
                assert one[side] == pytest.approx(float(ds[f"{one['metric']}_{side}"][i]))
        clean, corrupted = record["prompts"]
        assert (clean["run"], corrupted["run"]) == ("clean", "corrupted")
        assert "".join(text for text, _ in clean["parts"]) == pair.clean.text
        assert "".join(text for text, _ in corrupted["parts"]) == pair.clean.text, "only the picture is exchanged"
        for name, (start, end) in pair.spans.items():
            assert "".join(text for text, names in clean["parts"] if name in names) == pair.clean.text[start:end]
        assert clean["regions"] == [["object", list(pair.regions["object"])]]
        for prompt, picture in ((clean, pair.clean.picture()), (corrupted, pair.corrupted.picture())):
            (number,) = prompt["pictures"]
            shown = data["pictures"][number]
            assert shown["size"] == list(picture.size)
            assert decoded(shown["link"]).tobytes() == picture.tobytes()


def decoded(link: str) -> Image.Image:
    import io

    return Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).convert("RGB")


def test_what_was_asked_is_on_the_page(datasets: dict[str, xr.Dataset], written: dict[str, Page]) -> None:
    for name, found in written.items():
        ds = datasets[name]
        graph = vp.InterventionGraph.from_json(ds.attrs["graph"])
        for words in (ds.attrs["experiment_yaml"], str(graph), ds.attrs["model"], *graph.metrics):
            assert " ".join(words.split()) in found.text, (name, words)
        for attribute, value in ds.attrs.items():
            assert attribute in found.text or attribute == "checks"
            if isinstance(value, str) and attribute.endswith("sha256"):
                assert value in found.text


def test_the_checks_and_the_way_to_run_it_again_are_on_the_page(
    datasets: dict[str, xr.Dataset], written: dict[str, Page]
) -> None:
    for name, found in written.items():
        checks = json.loads(datasets[name].attrs["checks"])
        assert all(check in found.text for check in checks if check not in ("tolerance", "passed", "cells"))
        assert "vlm-patching run my_report.yaml -o my_report.zarr" in found.text
        assert "@inproceedings{fiottokaufman2025nnsight" in found.text
        assert ("@misc{nanda2023attribution" in found.text) == (name == "estimated")
        assert ("@misc{nostalgebraist2020interpreting" in found.text) == (name == "lens")


def test_a_preset_is_run_again_by_its_name(tmp_path: Path) -> None:
    small = vp.Experiment.from_spec("lens_llava", {"pairs.n": 2})
    preset = vp.Experiment.from_spec("lens_llava")
    ds = vp.run(small, progress=False)
    text = Page(vp.report(ds, tmp_path / "a.html").html).text
    assert "vlm-patching run lens_llava.yaml" in text, "it is no longer the preset"
    ds.attrs |= {"experiment_id": preset.id, "experiment": preset.to_json()}
    text = Page(vp.report(ds, tmp_path / "b.html").html).text
    assert "vlm-patching run lens_llava -o" in text
    assert "@misc{nostalgebraist2020interpreting" in text


def test_the_page_asks_for_nothing_and_runs_nothing_but_its_own_scripts(written: dict[str, Page]) -> None:
    for found in written.values():
        for name, attributes in found.elements:
            for link in ("src", "href", "data", "action", "srcset", "poster"):
                target = attributes.get(link)
                assert target is None or target.startswith(("#", "data:image/")), (name, link, target)
            assert not [key for key in attributes if key.startswith("on")]
        (policy,) = [meta["content"] for meta in found.named("meta") if meta.get("http-equiv")]
        assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
        run = [content for attributes, content in found.scripts if attributes.get("type") != "application/json"]
        hashes = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in run]
        assert re.findall(r"'sha256-([^']+)'", policy) == hashes
        assert len(hashes) == 2 and "unsafe" not in policy.partition("style-src")[0]


def test_parts_of_the_page_have_names_and_links_go_to_them(written: dict[str, Page]) -> None:
    found = written["heads"]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name, attributes in found.elements:
        for reference in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(reference) is None or attributes[reference] in ids
        if name == "a":
            assert str(attributes["href"]).removeprefix("#") in ids
        if name == "img":
            assert attributes["alt"]
        if name == "section":
            assert attributes["aria-labelledby"]
    names = [name for name, _ in found.elements]
    assert [names.count(name) for name in ("h1", "main", "nav", "header", "footer")] == [1] * 5
    assert next(found.named("html")) == {"lang": "en"}


def test_the_library_is_the_one_that_npm_has() -> None:
    content = (pages.ASSETS / pages.LIBRARY).read_bytes()
    assert hashlib.sha256(content).hexdigest() == "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
    assert b"v4.1.1" in content[:200] and b"</script" not in content
    assert "MIT" in (pages.ASSETS / "plotly-LICENSE.txt").read_text()


def test_the_same_dataset_gives_the_same_bytes(datasets: dict[str, xr.Dataset], tmp_path: Path) -> None:
    for name in ("noise", "knockout"):
        pairs = vp.rebuild_pairs(datasets[name])
        one, other = (vp.report(datasets[name], tmp_path / f"{i}.html", pairs).html for i in range(2))
        assert one == other


def test_a_report_shows_itself_in_a_notebook(datasets: dict[str, xr.Dataset], tmp_path: Path) -> None:
    made = vp.report(datasets["lens"], tmp_path / "lens.html")
    frame = made._repr_html_()
    srcdoc = re.search(r' srcdoc="([^"]*)"', frame)
    assert srcdoc is not None and html.unescape(srcdoc[1]) == made.html
    assert 'sandbox="allow-scripts allow-popups allow-downloads"' in frame, "no access to the notebook itself"
    assert os.fspath(made) == str(tmp_path / "lens.html")
    assert repr(made) == f"Report(path={made.path!r})"


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pairs that try to be more than text."""
    folder = tmp_path_factory.mktemp("nasty")
    lines = []
    for i, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(folder / f"{i}.png")
        Image.new("RGB", (64, 64), "gray").save(folder / f"gray-{i}.png")
        sides = {
            side: {"image": name, "text": NASTY}
            for side, name in (("clean", f"{i}.png"), ("corrupted", f"gray-{i}.png"))
        }
        spans = {"subject": [9, 12], "answer_option": [16, 20]}
        lines.append(
            {"id": f"</script><img src=x onerror=alert({i})>", **sides, "answer": "red", "foil": "blue", "spans": spans}
        )
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return folder


def test_texts_of_a_dataset_stay_texts(nasty: Path, tmp_path: Path) -> None:
    pairs = {"dataset": "folder", "path": str(nasty), "keep": "all"}
    ds = run(
        {"patch": {"sites": ["language.resid_post"], "positions": ["each:question"]}}, pairs=pairs, name="<b>&x</b>"
    )
    made = vp.report(ds, tmp_path / "nasty.html", vp.rebuild_pairs(ds))
    found = Page(made.html)
    assert len(found.scripts) == 3, "the data, the library and the page's own"
    assert not [attributes for attributes in found.named("img") if "onerror" in attributes]
    assert not list(found.named("b"))
    assert "<b>&x</b>" in found.text
    assert [record["id"] for record in found.data["pairs"]] == ds["example"].values.tolist()
    assert "".join(text for text, _ in found.data["pairs"][0]["prompts"][0]["parts"]) == NASTY
    source = next(content for attributes, content in found.scripts if attributes.get("id") == "data")
    assert not set(source) & set("<>&\u2028\u2029")


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_data_survives_and_ends_nothing(data: Any) -> None:
    text = embedded(data)
    assert json.loads(text) == data
    assert text.isascii() and not set(text) & set("<>&")


@given(st.lists(st.floats(width=32) | st.just(float("nan")), max_size=50))
def test_packed_numbers_survive(numbers: list[float]) -> None:
    np.testing.assert_array_equal(unpacked(packed(np.array(numbers, dtype=np.float32))), np.float32(numbers))


@given(st.data(), st.text(min_size=1, max_size=30))
def test_a_marked_text_is_the_text_and_its_spans(data: st.DataObject, text: str) -> None:
    ends = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(sorted).filter(lambda e: e[0] < e[1])
    spans = {name: tuple(data.draw(ends)) for name in ("a", "b", "c")}
    parts = marked(text, spans)
    assert "".join(part for part, _ in parts) == text
    for name, (start, end) in spans.items():
        assert "".join(part for part, names in parts if name in names) == text[start:end]


def photo(seed: int) -> Image.Image:
    """As detailed as a photograph, to an encoder."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    grain = Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
    return Image.blend(coarse, grain, 0.25)


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
    datasets: dict[str, xr.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = datasets["heads"]
    cells = ds.sizes["layer"] * ds.sizes["head"] * ds.sizes["position"]
    room = 3 * packed_size(cells) + 2 * packed_size(cells)
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
    datasets: dict[str, xr.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = datasets["attention"]
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


def test_without_pairs_the_report_says_so_and_has_no_pictures(datasets: dict[str, xr.Dataset], tmp_path: Path) -> None:
    found = Page(vp.report(datasets["heads"], tmp_path / "a.html").html)
    assert "There are no pictures and no spans: this report was written without the pairs" in found.text
    assert found.data["pictures"] == []
    record = found.data["pairs"][0]
    assert record["prompts"] == [] and record["text"] == datasets["heads"]["text"].values[0]


def test_a_store_of_dropped_pairs_says_why_of_each(tmp_path: Path) -> None:
    ds = run({"lens": {"positions": ["last"]}}, pairs={**PAIRS, "keep": "clean_correct"})
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


@pytest.mark.parametrize(
    ("label", "picture"), [("r0c3", 0), ("i1t2r0c3", 1), ("i12r4c5", 12), ("image:object", 0), ("7", 0)]
)
def test_a_patch_says_which_of_several_pictures_it_is_of(label: str, picture: int) -> None:
    assert _picture(label) == picture


def test_of_one_pair_there_is_a_mean_without_an_interval(tmp_path: Path) -> None:
    ds = run({"lens": {"positions": ["last"]}}, pairs={**PAIRS, "n": 1})
    drawn = Page(vp.report(ds, tmp_path / "one.html").html).data["map"]
    part = quantity(drawn, "value")["blocks"][0]
    same(unpacked(part["mean"]), ds["probability"].values.ravel())
    assert np.isnan(unpacked(part["low"])).all()


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


def test_candidates_that_were_dropped_before_the_run_are_counted(nasty: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(nasty, tmp_path / "pairs")
    (folder / "1.png").write_text("no picture")
    pairs = {"dataset": "folder", "path": str(folder), "keep": "all", "on_error": "skip"}
    ds = run({"lens": {"positions": ["last"]}}, pairs=pairs)
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


def test_what_cannot_be_reported_is_refused_and_leaves_nothing(datasets: dict[str, xr.Dataset], tmp_path: Path) -> None:
    ds = datasets["heads"]
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


def test_a_disk_that_does_not_take_it_leaves_the_old_report(
    datasets: dict[str, xr.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = vp.report(datasets["lens"], tmp_path / "lens.html")
    old = made.path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(lambda: vp.report(datasets["heads"], made.path), "No space left on device", "lens.html")
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
    nasty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(nasty, tmp_path / "pairs")
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
    code, said = command(capsys, monkeypatch, store, "-o", tmp_path / "gone.html")
    assert code == 0 and "pairs.jsonl does not exist" in said
    found = Page((tmp_path / "gone.html").read_text())
    assert "pairs.jsonl does not exist" in found.text and found.data["pictures"] == []
    code, said = command(capsys, monkeypatch, store, "-o", tmp_path / "plain.html", "--no-pictures")
    assert code == 0 and "--no-pictures" in said
    code, said = command(capsys, monkeypatch, tmp_path / "no.zarr")
    assert code == 2 and "does not exist" in said
