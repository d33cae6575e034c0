"""Examples that share passes have the numbers that they have alone, whatever is swept, kept, or runs out on the way."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

import vlm_patching as vp
from tests.conftest import BUNDLED, RANDOM
from tests.test_engine import SIP, TEXT, differences, drawn, run
from vlm_patching.backends import kernels, local
from vlm_patching.backends.plan import NAIVE, Settings, groups_of
from vlm_patching.models import Model
from vlm_patching.results.store import ZarrStore

APART = Settings(join=False)


def spec_of(name: str, **sections: Any) -> vp.Experiment:
    """Modules of the text stack at a few positions, but for what is said otherwise."""
    stack = TEXT[name.split("-")[1]]
    patch = {"sites": [f"{stack}.resid_post", f"{stack}.mlp_out"], "positions": ["subject", "last"]}
    head = {"name": "joined", "model": {"name": name}, "pairs": {"dataset": "shapes", "keep": "all"}}
    return vp.Experiment.from_dict(head | {"corruption": SIP, "patch": patch} | sections)


def pairs_of_two_lengths(count: int, seed: int) -> list[vp.Pair]:
    """Pairs of two questions in turn, whose prompts have different lengths."""
    return vp.load_pairs("shapes", n=2 * count, seed=seed, questions=["color_choice", "shape_choice"])


@pytest.fixture(scope="module")
def exact(model_folders: dict[str, str]) -> dict[str, Model]:
    """The test models in float64, where the order in which a larger product of matrices is summed up hardly matters."""
    models = {name: vp.load_model(folder) for name, folder in model_folders.items()}
    for model in models.values():
        model.envoy._module.double()
    return models


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples were in each pass that was run."""
    counts: list[int] = []
    real = kernels.run_trace

    def counted(model: Any, programs: Any, trace: dict[str, Any], *more: Any) -> None:
        counts.append(len(trace["parts"]))
        real(model, programs, trace, *more)

    monkeypatch.setattr(kernels, "run_trace", counted)
    return counts


def under(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "settings_on", lambda *_: settings)


def assert_same(found: xr.Dataset, wanted: xr.Dataset, where: object = "") -> None:
    for name, difference in differences(found, wanted).items():
        assert difference <= 1e-6 * max(1.0, float(abs(wanted[name]).max())), f"{name} {difference:.2g} {where}"


@pytest.mark.parametrize("draw", range(12))
@pytest.mark.parametrize("name", [*BUNDLED, *RANDOM])
def test_a_drawn_sweep_of_examples_together_is_that_of_each_alone(
    name: str, draw: int, exact: dict[str, Model], monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    rng, model = random.Random(f"joined/{name}/{draw}"), exact[name]
    pairs = pairs_of_two_lengths(3, draw)
    keep = rng.choice(["all", "all", "clean_correct"])
    head = {"name": "drawn", "model": {"name": name}, "pairs": {"dataset": "shapes", "keep": keep}}
    settings = Settings(rows=rng.choice([None, None, 5, 40]), tokens=rng.choice([128, 1000]), pack=rng.random() < 0.7)
    wanted = None
    while wanted is None:
        spec = vp.Experiment.from_dict(head | drawn(rng, name, model.description.architecture.sites()))
        under(replace(settings, join=False), monkeypatch)
        try:
            wanted = run(spec, model, pairs)
        except vp.SpecError:  # positions that these sites have not got, windows too wide: draw again
            continue
    assert set(passes) == {1}
    under(settings, monkeypatch)
    assert_same(run(spec, model, pairs), wanted, f"{settings}: {spec.to_yaml()}")
    assert max(passes) > 1


@pytest.mark.parametrize("kept", [(), (2,), (0, 1, 3), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("name", BUNDLED)
def test_only_examples_that_are_kept_are_swept(
    name: str, kept: tuple[int, ...], exact: dict[str, Model], monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    pairs = vp.load_pairs("shapes", n=5, seed=2)
    pairs = [pair if i in kept else replace(pair, answer=pair.foil, foil=pair.answer) for i, pair in enumerate(pairs)]
    spec = spec_of(name, pairs={"dataset": "shapes", "keep": "clean_correct"})
    under(APART, monkeypatch)
    wanted = run(spec, exact[name], pairs)
    assert [str(label) == "kept" for label in wanted["kept"].values] == [i in kept for i in range(5)]
    apart = len(passes)
    passes.clear()
    under(Settings(), monkeypatch)
    found = run(spec, exact[name], pairs)
    assert_same(found, wanted)
    assert (found["kept"] == wanted["kept"]).all()
    assert passes[:2] == [5, 5] and max(passes[2:], default=0) <= len(kept)
    assert len(passes) < apart or not kept


@pytest.mark.parametrize("name", BUNDLED)
def test_what_is_asked_to_run_alone_does(name: str, exact: dict[str, Model], passes: list[int]) -> None:
    pairs, spec = vp.load_pairs("shapes", n=3), spec_of(name)
    run(spec, exact[name], pairs, batch_rows=1)
    run(spec, exact[name], pairs, engine="naive")
    assert set(passes) == {1}


def test_no_pass_has_more_than_the_settings_allow(exact: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = kernels.run_trace

    def counted(model: Any, programs: Any, trace: dict[str, Any], *more: Any) -> None:
        queries = len(trace["pack"]["positions"]) if "pack" in trace else 0
        seen.append((trace["rows"], trace["rows"] * queries))
        real(model, programs, trace, *more)

    monkeypatch.setattr(kernels, "run_trace", counted)
    pairs = vp.load_pairs("shapes", n=8)
    for name, rows, tokens in itertools.product(BUNDLED, (2, 7, 33), (40, 200)):
        under(Settings(rows=rows, tokens=tokens), monkeypatch)
        run(spec_of(name), exact[name], pairs)
        assert max(count for count, _ in seen) <= rows and max(queries for _, queries in seen) <= tokens
        assert max(count for count, _ in seen) > 1
        seen.clear()


def test_a_large_example_is_never_joined(exact: dict[str, Model]) -> None:
    pairs = vp.load_pairs("shapes", n=4)
    spec, model = spec_of("shapes-llava"), exact["shapes-llava"].description
    prepared = vp.preparation.prepare(vp.graph.lower.lower(spec, model.architecture), model, pairs)
    positions = len(prepared.encoded[0].positions["language"].positions)
    for tokens, size in ((128, 4), (positions // 2, 4), (positions // 4, 2), (positions // 8, 1)):
        groups = groups_of(prepared.graph, prepared.description.architecture, prepared.encoded, Settings(tokens=tokens))
        assert max(map(len, groups)) == size and sorted(number for group in groups for number in group) == [0, 1, 2, 3]
    assert groups_of(prepared.graph, prepared.description.architecture, prepared.encoded, NAIVE) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("name", BUNDLED)
def test_running_out_of_memory_together_splits_examples_apart(
    name: str, at: int, exact: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From some pass on, memory suffices for the rows of one example alone."""
    pairs, spec = vp.load_pairs("shapes", n=4), spec_of(name)
    under(APART, monkeypatch)
    wanted = run(spec, exact[name], pairs)
    under(Settings(), monkeypatch)
    started: list[int] = []
    real = kernels.run_trace

    def runs_out(model: Any, programs: Any, trace: dict[str, Any], *more: Any) -> None:
        started.append(len(trace["parts"]))
        if len(started) > at and len(trace["parts"]) > 1:
            raise torch.OutOfMemoryError("simulated")
        real(model, programs, trace, *more)

    monkeypatch.setattr(kernels, "run_trace", runs_out)
    assert_same(run(spec, exact[name], pairs), wanted)
    assert max(started[: at + 1]) == 4 and 1 in started


@pytest.mark.parametrize("name", BUNDLED)
def test_one_example_that_is_too_much_costs_the_others_nothing(
    name: str, exact: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, spec = vp.load_pairs("shapes", n=4), spec_of(name)
    under(APART, monkeypatch)
    wanted = run(spec, exact[name], pairs)
    under(Settings(tokens=1000), monkeypatch)
    real = kernels.run_trace
    swept: list[int] = []

    def runs_out(model: Any, programs: Any, trace: dict[str, Any], *more: Any) -> None:
        if "cells" in trace and len(programs) > 1 and 2 in [number for number, _ in trace["parts"]]:
            raise torch.OutOfMemoryError("simulated")
        real(model, programs, trace, *more)
        swept.append(len(trace["parts"]) if "cells" in trace else 0)

    monkeypatch.setattr(kernels, "run_trace", runs_out)
    assert_same(run(spec, exact[name], pairs), wanted)
    assert max(swept) > 1


@pytest.mark.parametrize("name", BUNDLED)
def test_a_run_that_stops_within_a_group_ends_bit_for_bit_the_same(
    name: str, exact: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    pairs, spec, model = pairs_of_two_lengths(5, 1), spec_of(name), exact[name]
    wanted = run(spec, model, pairs, store=tmp_path / "whole.zarr")
    real = ZarrStore.write
    left = 0

    def stops(store: ZarrStore, *more: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(store, *more)

    for stop in (1, 6, 7):
        path, left = tmp_path / f"{stop}.zarr", stop
        monkeypatch.setattr(ZarrStore, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            run(spec, model, pairs, store=path)
        monkeypatch.setattr(ZarrStore, "write", real)
        assert int((vp.load_results(path)["kept"] != "").sum()) == stop
        found = run(spec, model, pairs, store=path)
        for metric in wanted.data_vars:
            assert found[metric].values.tobytes() == wanted[metric].values.tobytes(), metric
    assert max(passes) == 5


@pytest.mark.parametrize("name", BUNDLED)
def test_a_plan_counts_passes_of_several_pairs(name: str, exact: dict[str, Model], passes: list[int]) -> None:
    pairs = pairs_of_two_lengths(9, 4)
    patch = {
        "sites": [f"{TEXT[name.split('-')[1]]}.resid_post", "vision.resid_post"],
        "positions": ["image:object", "last"],
    }
    sections = [{}, {"patch": patch}, {"metrics": ["probability", "answer_log_odds"]}]
    for section in sections:
        spec = spec_of(name, **section)
        plan = vp.plan(spec, inputs=pairs, model=exact[name])
        passes.clear()
        run(spec, exact[name], pairs)
        assert len(passes) == plan.engine.forward_passes and "several pairs" in str(plan)
