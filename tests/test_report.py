"""What a report holds: its numbers are the dataset's, its words those of the experiment and the pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from tests.reading import Page, shaped, unpacked
from tests.reporting import (
    METHODS,
    cut,
    dataset,
    decoded,
    page_of,
    quantity,
    same,
)
from vlm_patching.plots import mean_effect
from vlm_patching.reports.places import places

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
def test_the_numbers_of_a_map_are_those_of_the_dataset(name: str, kind: str, metric: str, values: Any) -> None:
    drawn = page_of(name).data["map"]
    wanted = values(dataset(name))
    found = quantity(drawn, kind, metric)
    several = int(wanted.notnull().any([d for d in wanted.dims if d != "example"]).sum()) > 1
    assert several
    interval = vp.analysis.bootstrap(wanted)
    single = wanted.mean("draw") if "draw" in wanted.dims else wanted
    assert [part["site"] for part in drawn["blocks"]] == dataset(name)["site"].values.tolist()
    for block, part in enumerate(found["blocks"]):
        for end in ("mean", "low", "high"):
            same(shaped(drawn, block, part[end]), cut(drawn, block, interval[end]))
        assert list(part["pairs"]) == [str(i) for i in range(dataset(name).sizes["example"])]
        for pair, text in part["pairs"].items():
            own = shaped(drawn, block, text)
            np.testing.assert_allclose(own, cut(drawn, block, single.isel(example=int(pair))), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "metric"), [("noise", "probability"), ("heads", "logit_difference")])
def test_a_share_is_an_effect_over_the_total_effect(name: str, metric: str) -> None:
    ds, drawn = dataset(name), page_of(name).data["map"]
    share = quantity(drawn, "share", metric)
    effect = drawn["quantities"][share["of"]]
    assert (effect["kind"], effect["metric"]) == ("effect", metric)
    total = vp.total_effect(ds, metric)
    total = total.mean("draw") if "draw" in total.dims else total
    wanted = [None if abs(t) <= vp.analysis.effects.LEAST_TOTAL_EFFECT[metric] else t for t in total.values.tolist()]
    assert any(value is not None for value in wanted)
    assert share["totals"] == [value if value is None else pytest.approx(value, rel=1e-5) for value in wanted]
    interval = vp.analysis.bootstrap(vp.analysis.shares(ds, metric))
    for block, part in enumerate(share["blocks"]):
        mean = shaped(drawn, block, part["mean"])
        np.testing.assert_allclose(mean, cut(drawn, block, mean_effect(ds, metric, True)), rtol=1e-4, atol=1e-6)
        for end in ("low", "high"):
            same(shaped(drawn, block, part[end]), cut(drawn, block, interval[end]))


@pytest.mark.parametrize("name", ["knockout", "ablate", "lens", "attention"])
def test_what_has_no_total_effect_has_no_share(name: str) -> None:
    assert "share" not in {one["kind"] for one in page_of(name).data["map"]["quantities"]}


def test_a_head_is_painted_with_its_attention_minus_the_mean_of_all_heads() -> None:
    ds, drawn = dataset("attention"), page_of("attention").data["map"]
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


def test_places_are_described_as_in_the_dataset() -> None:
    for name, dimension in (("patches", "position"), ("noise", "position"), ("attention to text", "key")):
        ds, places = dataset(name), page_of(name).data["map"]["places"]
        prefix = "key_" if dimension == "key" else ""
        assert places["labels"] == ds[dimension].values.tolist()
        for example in range(ds.sizes["example"]):
            for word in ("token", "role", "modality"):
                row = places[word]["rows"][places[word]["of"][example]]
                told = [places["strings"][i] for i in row]
                assert told == ds[f"{prefix}{word}"].isel(example=example).values.tolist()


def test_every_pair_is_there_with_prompts_spans_pictures_and_what_was_said() -> None:
    ds, data = dataset("heads"), page_of("heads").data
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
        assert clean["regions"] == [["object", list(pair.regions["object"])]] and corrupted["regions"] == []
        for prompt, picture in ((clean, pair.clean.picture()), (corrupted, pair.corrupted.picture())):
            (number,) = prompt["pictures"]
            shown = data["pictures"][number]
            assert shown["size"] == list(picture.size)
            assert decoded(shown["link"]).tobytes() == picture.tobytes()


def test_what_was_asked_is_on_the_page() -> None:
    for name in METHODS:
        found = page_of(name)
        ds = dataset(name)
        graph = vp.InterventionGraph.from_json(ds.attrs["graph"])
        for words in (ds.attrs["experiment_yaml"], str(graph), ds.attrs["model"], *graph.metrics):
            assert " ".join(words.split()) in found.text, (name, words)
        for attribute, value in ds.attrs.items():
            assert attribute in found.text or attribute == "checks"
            if isinstance(value, str) and attribute.endswith("sha256"):
                assert value in found.text


def test_the_checks_and_the_way_to_run_it_again_are_on_the_page() -> None:
    for name in METHODS:
        found = page_of(name)
        checks = json.loads(dataset(name).attrs["checks"])
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


def test_a_patch_says_which_of_several_pictures_it_is_of() -> None:
    ds = dataset("patches").copy()
    numbers = np.arange(ds.sizes["position"]) % 3
    numbers[0] = -1  # a place that is of no picture
    ds["image"] = (("example", "position"), np.tile(numbers, (ds.sizes["example"], 1)))
    found = places(ds, "position")
    assert found is not None and found["picture"] == [0, *numbers[1:].tolist()] and len(set(found["picture"])) == 3
