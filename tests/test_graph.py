"""The intervention graph: pure data that survives JSON, fits a screen, gives the same numbers when written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from vlm_patching.backends.cells import window
from vlm_patching.graph import Dimension, Edit, InterventionGraph, Place, Read, Run

PRESETS = list(vp.presets())


def experiment(**changes: Any) -> vp.Experiment:
    data = {
        "name": "by-hand",
        "model": {"name": "shapes-llava"},
        "pairs": {"dataset": "shapes", "n": 2, "seed": 3, "keep": "all"},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": ["language.resid_post"], "layers": [1, 3], "positions": ["answer_option", "last"]},
        "metrics": ["probability", "logit_difference"],
        "seed": 5,
    }
    return vp.Experiment.from_dict(data | changes)


def by_hand(site: str = "language.resid_post", **changes: Any) -> InterventionGraph:
    """What `experiment()` asks, written out."""
    place = Place(site, layer="layer", position="position")
    given: dict[str, Any] = {
        "name": "mine",
        "runs": (
            Run("clean", "clean", reads=(Read("z", place),)),
            Run("corrupted", "corrupted_image"),
            Run("patched", "corrupted_image", ("layer", "position"), (Edit("replace", place, source="clean.z"),)),
        ),
        "dimensions": (Dimension("layer", (1, 3)), Dimension("position", ("answer_option", "last"))),
        "metrics": ("probability", "logit_difference"),
        "keep": "all",
        "seed": 5,
    }
    return InterventionGraph(**(given | changes))


@pytest.fixture(scope="module")
def graphs() -> dict[str, InterventionGraph]:
    return {name: vp.Experiment.from_spec(name).graph() for name in PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_a_graph_survives_json(graphs: dict[str, InterventionGraph], name: str) -> None:
    graph = graphs[name]
    again = InterventionGraph.from_json(graph.to_json())
    assert again == graph and again.id == graph.id and again.to_json() == graph.to_json()
    assert isinstance(hash(again), int)
    shuffled = json.dumps(json.loads(graph.to_json()), sort_keys=True)
    assert InterventionGraph.from_json(shuffled) == graph


@pytest.mark.parametrize("name", PRESETS)
def test_a_printed_graph_fits_a_screen(graphs: dict[str, InterventionGraph], name: str) -> None:
    lines = str(graphs[name]).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", PRESETS)
def test_a_printed_graph_names_its_runs_sites_ranges_and_metrics(
    graphs: dict[str, InterventionGraph], name: str
) -> None:
    graph, spec = graphs[name], vp.Experiment.from_spec(name)
    printed = " ".join(str(graph).split())
    for run in graph.runs:
        assert f"run {run.name}" in printed and f"on {run.on}" in printed
    section = getattr(spec, spec.method)
    told = [*(section.sites or ()), *map(str, getattr(section, "positions", ())), *getattr(section, "edges", ())]
    for word in (*told, *(spec.metrics if spec.method != "attention" else ()), graph.keep, graph.id[:8], spec.name):
        assert word in printed
    assert "layer in 0..5" in printed
    by_head = any(site.endswith("head") for site in section.sites or ()) or spec.method == "attention"
    assert ("head in 0..3" in printed) == by_head
    noisy = spec.corruption is not None and spec.corruption.kind == "gaussian_noise"
    assert ("draw in 0..9" in printed) == noisy
    widths = getattr(section, "window", (1,))
    if len(widths) > 1:
        assert "window(layer, window)" in printed and f"window in {{{', '.join(map(str, widths))}}}" in printed
    else:
        assert (f"window(layer, {widths[0]})" in printed) == (widths[0] > 1)


@pytest.mark.parametrize("name", PRESETS)
def test_mermaid_has_a_node_a_run_and_an_edge_a_replace(graphs: dict[str, InterventionGraph], name: str) -> None:
    graph = graphs[name]
    lines = [line.strip() for line in graph.to_mermaid().splitlines()]
    assert lines[0].startswith(("flowchart", "graph"))
    for run in graph.runs:
        assert len([line for line in lines if line.startswith(f"{run.name}[")]) == 1
        for edit in run.edits:
            arrows = [line for line in lines if line.endswith(f"--> {run.name}")]
            if edit.kind == "replace":
                assert edit.source and [line for line in arrows if line.startswith(edit.source.split(".")[0])]
    assert all(line.count('"') % 2 == 0 for line in lines)


def test_the_hash_follows_the_content_and_not_the_name() -> None:
    graph = experiment().graph()
    assert len(graph.id) == 16 and graph.id == experiment().graph().id
    assert replace(graph, name="other").id == graph.id
    for other in (
        replace(graph, seed=6),
        replace(graph, keep="clean_correct"),
        replace(graph, metrics=("probability",)),
        replace(graph, dimensions=(graph.dimensions[0], Dimension("layer", (1, 2)), graph.dimensions[2])),
        experiment(corruption={"kind": "gaussian_noise"}).graph(),
    ):
        assert other.id != graph.id


def test_the_hash_is_the_same_in_another_process() -> None:
    code = "import vlm_patching as vp; print(vp.Experiment.from_spec('palit2023').graph().id)"
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1]
    assert there == vp.Experiment.from_spec("palit2023").graph().id


@pytest.mark.parametrize(
    "module", ["vlm_patching", "experiment", "graph", "graph.ir", "graph.draw", "graph.lower", "pairs", "catalog"]
)
def test_what_is_pure_data_imports_neither_torch_nor_nnsight(module: str) -> None:
    name = module if module == "vlm_patching" else f"vlm_patching.{module}"
    code = f"import sys, {name}; print([m for m in ('torch', 'nnsight', 'transformers') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert found == "[]"


def test_a_window_is_symmetric_where_odd_reaches_down_where_even_and_is_cut_off_at_the_edges() -> None:
    assert window(20, 10, 40) == tuple(range(15, 25))
    assert window(20, 9, 40) == tuple(range(16, 25))
    assert window(3, 1, 6) == (3,)
    assert window(0, 3, 6) == (0, 1)
    assert window(5, 3, 6) == (4, 5)
    assert window(0, 2, 6) == (0,)
    assert window(5, 10, 6) == (0, 1, 2, 3, 4, 5)
    for layers in (1, 2, 7, 12):
        for width in range(1, 14):
            for layer in range(layers):
                wanted = range(max(0, layer - width // 2), min(layers, layer - (-width // 2)))
                assert window(layer, width, layers) == tuple(wanted)
                assert layer in window(layer, width, layers)


@pytest.fixture(scope="module")
def llava() -> Any:
    return vp.load_model("shapes-llava")


@pytest.fixture(scope="module")
def pairs() -> list[vp.Pair]:
    return vp.load_pairs("shapes", n=2, seed=3)


def test_a_graph_written_by_hand_gives_the_numbers_of_the_experiment(llava: Any, pairs: list[vp.Pair]) -> None:
    spec = experiment()
    wanted = vp.run(spec, model=llava, progress=False)
    for graph in (spec.graph(), InterventionGraph.from_json(spec.graph().to_json()), by_hand()):
        found = vp.run(graph, model=llava, inputs=pairs, progress=False)
        assert list(found["example"].values) == list(wanted["example"].values)
        assert found["logit_difference"].dims == ("example", "site", "layer", "position")
        for name in wanted.data_vars:
            np.testing.assert_allclose(found[name].values, wanted[name].values, rtol=0, atol=1e-6)
            assert np.isfinite(found[name].values).all()
        assert found.attrs["graph_id"] == graph.id
    assert float(wanted["logit_difference"].std("layer").max()) > 1e-4, "all cells are alike, so nothing was shown"


def test_a_graph_with_a_number_in_place_of_a_dimension_runs_that_cell(llava: Any, pairs: list[vp.Pair]) -> None:
    wanted = vp.run(experiment(), model=llava, progress=False).sel(layer=[3], position=["last"])
    place = Place("language.resid_post", layer=3, position="last")
    graph = by_hand(
        runs=(
            Run("clean", "clean", reads=(Read("z", place),)),
            Run("corrupted", "corrupted_image"),
            Run("patched", "corrupted_image", (), (Edit("replace", place, source="clean.z"),)),
        ),
        dimensions=(),
    )
    found = vp.run(graph, model=llava, inputs=pairs, progress=False)
    assert found.sizes["layer"] == found.sizes["position"] == 1
    for name in wanted.data_vars:
        tolerance = 1e-6 if "probability" in str(name) else 1e-5  # float32 rounding of a logit
        np.testing.assert_allclose(found[name].values, wanted[name].values, rtol=0, atol=tolerance)


def test_position_0_written_into_a_place_is_one_position(llava: Any, pairs: list[vp.Pair]) -> None:
    place = Place("language.resid_post", layer=3, position=0)
    graph = by_hand(
        runs=(
            Run("clean", "clean", reads=(Read("z", place),)),
            Run("corrupted", "corrupted_image"),
            Run("patched", "corrupted_image", (), (Edit("replace", place, source="clean.z"),)),
        ),
        dimensions=(),
    )
    found = vp.run(graph, model=llava, inputs=pairs[:1], progress=False)
    assert found["position"].values.tolist() == ["0"]


PLACE = Place("language.resid_post", layer="layer", position="position")
READ, PUT = (Read("z", PLACE),), Edit("replace", PLACE, source="clean.z")
NOISE = Edit("add_noise", Place("image_embeds"), std=1.0)
CLEAN, CORRUPTED = Run("clean", "clean", reads=READ), Run("corrupted", "corrupted_image")
SWEPT = Run("patched", "corrupted_image", ("layer", "position"), (PUT,))
ELSEWHERE = Read("z", Place("language.resid_post", layer=0, position="last"))


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param((replace(CLEAN, reads=(ELSEWHERE,)), CORRUPTED, SWEPT), id="reads one place, replaces another"),
        pytest.param((CLEAN, replace(CORRUPTED, edits=(PUT,)), SWEPT), id="replaces in the corrupted run"),
        pytest.param((CLEAN, CORRUPTED, replace(SWEPT, edits=(NOISE, PUT))), id="noise in the swept run alone"),
        pytest.param((CLEAN, CORRUPTED, replace(SWEPT, over=("layer",))), id="a place that no sweep gives a value"),
    ],
)
def test_a_graph_is_refused_where_it_says_what_would_not_be_done(
    llava: Any, pairs: list[vp.Pair], runs: tuple[Run, ...]
) -> None:
    with pytest.raises(vp.SpecError):
        vp.run(by_hand(runs=runs), model=llava, inputs=pairs[:1], progress=False, checks=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: by_hand(metrics=("accuracy",)),
        lambda: by_hand(keep="sometimes"),
        lambda: by_hand(site="language.resid_pots"),
        lambda: by_hand(dimensions=(Dimension("layer", (1, 99)), Dimension("position", ("last",)))),
        lambda: by_hand(dimensions=(Dimension("layer", (1,)), Dimension("position", ("nowhere",)))),
        lambda: by_hand(runs=(CLEAN, CORRUPTED)),
        lambda: by_hand(runs=(replace(CLEAN, reads=()), CORRUPTED, SWEPT)),
        lambda: by_hand(runs=(CLEAN, CORRUPTED, replace(SWEPT, on="clean"))),
        lambda: by_hand(direction="sideways"),
    ],
    ids=["metric", "keep", "site", "layer", "position", "runs", "source", "input", "direction"],
)
def test_a_wrong_graph_is_refused_with_a_spec_error(
    llava: Any, pairs: list[vp.Pair], make: Callable[[], InterventionGraph]
) -> None:
    with pytest.raises(vp.SpecError):
        vp.run(make(), model=llava, inputs=pairs[:1], progress=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        '{"runs": 5}',
        '{"nmae": "x"}',
        '{"name": "x", "runs": [], "dimensions": [{"name": "layer"}], "metrics": []}',
        '{"name": "x", "runs": [{"name": "clean", "on": "clean", "edits": [{"kind": "replace", "at": 3}]}]}',
    ],
    ids=["nothing", "a list", "half", "empty", "runs", "key", "missing", "place"],
)
def test_json_that_is_no_graph_is_refused_with_a_spec_error(text: str) -> None:
    with pytest.raises(vp.SpecError):
        InterventionGraph.from_json(text)


@pytest.mark.parametrize(
    "change",
    [{"metrics": "probability"}, {"seed": "5"}, {"name": 3}, {"dimensions": [{"name": "layer", "values": "all"}]}],
    ids=lambda change: next(iter(change)),
)
def test_json_with_a_value_of_another_type_is_refused_with_a_spec_error(change: dict[str, Any]) -> None:
    with pytest.raises(vp.SpecError, match=next(iter(change))):
        InterventionGraph.from_json(json.dumps(by_hand().to_dict() | change))


def test_a_graph_without_a_model_or_pairs_is_refused() -> None:
    with pytest.raises(vp.SpecError, match="model"):
        vp.run(by_hand(), progress=False)
