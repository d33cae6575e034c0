"""A bundle holds what was run, gives the same digest every time, and its replay gives the same numbers or says which
are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

import vlm_patching as vp
from tests.bundles import METHODS, STACK, SWEEP, experiment_of, remade
from tests.conftest import BUNDLED
from tests.refusals import refusal, says
from tests.test_cli import Command, command  # noqa: F401 - a fixture
from vlm_patching.bundle.records import SCHEMAS, schema
from vlm_patching.models import Model

ROOT = Path(__file__).parents[1]


def run(what: Any, model: Model, **options: Any) -> xr.Dataset:
    return vp.run(what, model=model, progress=False, threads=1, **options)


@pytest.fixture(scope="module")
def patched(loaded: dict[str, Model]) -> tuple[vp.Experiment, xr.Dataset]:
    experiment = experiment_of("shapes-llava", "patch with an image pair")
    return experiment, run(experiment, loaded["shapes-llava"])


@pytest.fixture(scope="module")
def bundle(patched: tuple[vp.Experiment, xr.Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vp.bundle.save(*patched, tmp_path_factory.mktemp("bundles") / "patched.vlmp.zip")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BUNDLED)
def test_a_replay_gives_the_same_numbers(name: str, method: str, loaded: dict[str, Model], tmp_path: Path) -> None:
    experiment = experiment_of(name, method)
    ds = run(experiment, loaded[name])
    path = vp.bundle.save(experiment, ds, tmp_path / "b.vlmp.zip", figures={})
    found = vp.bundle.replay(path, model=loaded[name], progress=False)
    assert found.ok, str(found)
    assert {one.name for one in found.comparisons} == set(ds.data_vars)
    assert {one.name: one.cells for one in found.comparisons} == {m: int(ds[m].notnull().sum()) for m in ds.data_vars}
    assert found.environment == {}


def test_a_replay_loads_the_bundled_model_by_itself(bundle: Path) -> None:
    found = vp.bundle.replay(bundle, progress=False)
    assert found.ok and not found.other_weights
    json.dumps(found.to_dict())


@pytest.mark.parametrize("name", BUNDLED)
def test_vectors_of_a_file_travel_with_the_bundle(name: str, loaded: dict[str, Model], tmp_path: Path) -> None:
    file = tmp_path / "vectors.safetensors"
    hidden = loaded[name].description.config.get_text_config().hidden_size
    save_file({"vector": torch.randn(hidden, generator=torch.Generator().manual_seed(0))}, file)
    experiment = vp.Experiment.from_dict(
        {
            "name": "steered",
            "model": {"name": name},
            "pairs": {"dataset": "shapes", "n": 2, "keep": "all"},
            "steer": {"sites": [f"{STACK[name]}.resid_post"], "vector": str(file), "on": "clean", **SWEEP},
        }
    )
    ds = run(experiment, loaded[name])
    path = vp.bundle.save(experiment, ds, tmp_path / "b.vlmp.zip")
    file.unlink()
    found = vp.bundle.replay(path, model=loaded[name], progress=False)
    assert found.ok, str(found)
    assert "steered" in vp.bundle.show(path)
    says(refusal(lambda: vp.bundle.save(experiment, ds, tmp_path / "c.vlmp.zip")), "does not exist any more")


def test_a_graph_written_by_hand_is_bundled_with_its_pairs(loaded: dict[str, Model], tmp_path: Path) -> None:
    model, pairs = loaded["shapes-blip"], vp.load_pairs("shapes", n=2, seed=5)
    graph = replace(experiment_of("shapes-blip", "patch with an image pair").graph(), name="by hand")
    ds = run(graph, model, inputs=pairs)
    path = vp.bundle.save(graph, ds, tmp_path / "b.vlmp.zip", inputs=pairs)
    with zipfile.ZipFile(path) as archive:
        assert "experiment.yaml" not in archive.namelist()
        assert vp.InterventionGraph.from_json(archive.read("graph.json").decode()) == graph
    assert vp.bundle.replay(path, model=model, progress=False).ok
    says(refusal(lambda: vp.bundle.save(graph, ds, tmp_path / "c.vlmp.zip")), "inputs=pairs")


def test_the_pairs_in_a_bundle_are_those_that_were_run(bundle: Path, patched: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path)
    found = vp.load_pairs("folder", path=str(tmp_path / "inputs"))
    wanted = vp.load_pairs("shapes", n=2)
    assert [pair.id for pair in found] == [pair.id for pair in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert (a.answer, a.foil, a.spans, a.regions, a.task) == (b.answer, b.foil, b.spans, b.regions, b.task)
        for mine, theirs in ((a.clean, b.clean), (a.corrupted, b.corrupted)):
            assert mine.text == theirs.text
            assert mine.picture().tobytes() == theirs.picture().tobytes()


def test_any_zarr_reader_opens_the_results_of_a_bundle(bundle: Path, patched: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path)
    xr.testing.assert_identical(vp.load_results(tmp_path / "results.zarr"), patched[1])


def test_the_same_results_give_the_same_bytes(patched: Any, tmp_path: Path) -> None:
    once = vp.bundle.save(*patched, tmp_path / "once.vlmp.zip").read_bytes()
    assert vp.bundle.save(*patched, tmp_path / "again.vlmp.zip").read_bytes() == once


def test_results_of_a_store_give_the_bundle_that_results_in_memory_give(patched: Any, tmp_path: Path) -> None:
    experiment, ds = patched
    ds.to_zarr(tmp_path / "s.zarr", zarr_format=3, consolidated=False)
    stored = vp.load_results(tmp_path / "s.zarr")
    digests = {
        vp.bundle.verify(vp.bundle.save(experiment, given, tmp_path / f"{i}.vlmp.zip")).digest
        for i, given in enumerate((ds, stored))
    }
    assert len(digests) == 1


def test_a_bundle_says_what_is_in_it_on_one_screen(bundle: Path) -> None:
    shown = vp.bundle.show(bundle)
    says(shown, "patch with an image pair", "shapes-llava", "language.resid_post", "2, 2 kept", "heatmap.png", "torch")
    assert len(shown.splitlines()) < 30
    summary = vp.bundle.verify(bundle)
    assert summary.agrees is True and summary.pairs == 2
    json.dumps(summary.to_dict())


def test_numbers_that_were_changed_are_named(bundle: Path, loaded: dict[str, Model], tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = "results.zarr/logit_difference/c/0/0/0/0"
        values = np.frombuffer(files[name], "<f4").copy()
        values[1] += 0.01
        files[name] = values.tobytes()

    found = vp.bundle.replay(remade(bundle, tmp_path / "b.zip", change), model=loaded["shapes-llava"], progress=False)
    assert not found.ok
    assert [one.name for one in found.comparisons if not one.within] == ["logit_difference"]
    says(str(found), "NOT within tolerance", "logit_difference", "0.01")


def test_a_cell_that_was_taken_out_is_named(bundle: Path, loaded: dict[str, Model], tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = "results.zarr/probability/c/0/0/0/0"
        files[name] = np.float32(np.nan).tobytes() + files[name][4:]

    found = vp.bundle.replay(remade(bundle, tmp_path / "b.zip", change), model=loaded["shapes-llava"], progress=False)
    assert [one.name for one in found.comparisons if not one.same_cells] == ["probability"]
    assert not found.ok


def test_other_labels_of_what_was_kept_are_a_problem(bundle: Path, loaded: dict[str, Model], tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        files["results.zarr/kept/c/0"] = files["results.zarr/kept/c/0"].replace(b"kept", b"lost", 1)

    found = vp.bundle.replay(remade(bundle, tmp_path / "b.zip", change), model=loaded["shapes-llava"], progress=False)
    assert not found.ok
    says(" ".join(found.problems), "kept", "shapes-0-0")


def test_what_differs_in_the_environment_is_reported(bundle: Path, loaded: dict[str, Model], tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        group = json.loads(files["results.zarr/zarr.json"])
        made = json.loads(files["environment.json"])
        made["versions"]["torch"] = "1.0"
        made["weights_sha256"] = made["weights_sha256"][::-1]
        group["attributes"]["versions"] = json.dumps(made["versions"])
        group["attributes"]["weights_sha256"] = made["weights_sha256"]
        files["results.zarr/zarr.json"] = json.dumps(group).encode()
        files["environment.json"] = json.dumps(made).encode()

    found = vp.bundle.replay(remade(bundle, tmp_path / "b.zip", change), model=loaded["shapes-llava"], progress=False)
    assert found.ok and found.other_weights
    assert found.environment["torch"] == ("1.0", torch.__version__)
    says(str(found), "OTHER WEIGHTS", "torch: 1.0 then")


def test_another_model_is_not_within_tolerance(
    bundle: Path, loaded: dict[str, Model], model_folders: dict[str, str]
) -> None:
    found = vp.bundle.replay(bundle, model=model_folders["random-llava"], progress=False)
    assert not found.ok and found.other_weights
    assert found.environment["model"] == ("shapes-llava", model_folders["random-llava"])


def test_an_experiment_that_was_run_on_another_model_is_bundled_with_that_models_name(
    model_folders: dict[str, str], loaded: dict[str, Model], tmp_path: Path
) -> None:
    experiment = experiment_of("shapes-llava", "replaced words")
    ds = run(experiment, loaded["random-llava"])
    path = vp.bundle.save(experiment, ds, tmp_path / "b.vlmp.zip")
    assert vp.bundle.verify(path).environment.model == model_folders["random-llava"]
    says(refusal(lambda: vp.bundle.replay(path)), "a folder", "--model")
    assert vp.bundle.replay(path, model=model_folders["random-llava"], progress=False).ok


def test_half_precision_has_a_wider_tolerance_and_says_so(tmp_path: Path) -> None:
    experiment = experiment_of(
        "shapes-llava", "patch with an image pair", model={"name": "shapes-llava", "dtype": "bfloat16"}
    )
    path = vp.bundle.save(experiment, vp.run(experiment, progress=False), tmp_path / "b.vlmp.zip")
    found = vp.bundle.replay(path, progress=False)
    assert found.ok
    assert {one.tolerance for one in found.comparisons} == {5e-2, 5e-1}
    says(str(found), "bfloat16")


def test_the_new_results_go_into_a_store(bundle: Path, loaded: dict[str, Model], tmp_path: Path) -> None:
    found = vp.bundle.replay(bundle, model=loaded["shapes-llava"], store=tmp_path / "new.zarr", progress=False)
    assert found.ok
    assert vp.load_results(tmp_path / "new.zarr").sizes["example"] == 2


def test_results_that_do_not_belong_to_the_experiment_are_refused(patched: Any, tmp_path: Path) -> None:
    experiment, ds = patched
    path = tmp_path / "b.vlmp.zip"
    other = experiment_of("shapes-llava", "patch with an image pair", seed=1)
    says(refusal(lambda: vp.bundle.save(other, ds, path)), "another experiment", experiment.id, other.id)
    pairs = vp.load_pairs("shapes", n=2, seed=9)
    says(refusal(lambda: vp.bundle.save(experiment, ds, path, inputs=pairs)), "other pairs")
    says(refusal(lambda: vp.bundle.save(experiment.graph(), ds, path)), "another experiment")
    unfinished = ds.copy()
    del unfinished.attrs["examples_kept"]
    says(refusal(lambda: vp.bundle.save(experiment, unfinished, path)), "not finished")
    says(refusal(lambda: vp.bundle.save(experiment, xr.Dataset(), path)), "not one that a run gave")
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_overwritten_unless_asked(patched: Any, tmp_path: Path) -> None:
    path = tmp_path / "b.vlmp.zip"
    path.write_text("mine")
    says(refusal(lambda: vp.bundle.save(*patched, path)), "exists already", "--force")
    assert path.read_text() == "mine"
    vp.bundle.save(*patched, path, overwrite=True)
    assert vp.bundle.verify(path).pairs == 2
    assert [file.name for file in tmp_path.iterdir()] == ["b.vlmp.zip"]


def test_figures_can_be_given_or_left_out(patched: Any, tmp_path: Path) -> None:
    figure = plt.figure(figsize=(1, 1))
    given = vp.bundle.save(*patched, tmp_path / "a.vlmp.zip", figures={"my figure/../1": figure})
    plt.close(figure)
    assert vp.bundle.verify(given).figures == ("my_figure____1.png",)
    assert vp.bundle.verify(vp.bundle.save(*patched, tmp_path / "b.vlmp.zip", figures={})).figures == ()


def test_a_figure_that_cannot_be_drawn_is_named(loaded: dict[str, Model], tmp_path: Path) -> None:
    data = json.loads(experiment_of("shapes-llava", "patch with an image pair").to_json())
    data["figures"] = [{"figure": "heatmap"}, {"figure": "windows"}]
    experiment = vp.Experiment.from_dict(data)
    ds = run(experiment, loaded["shapes-llava"])
    with pytest.warns(UserWarning, match="The bundle lacks figures. Not drawn: windows. "):
        path = vp.bundle.save(experiment, ds, tmp_path / "b.vlmp.zip")
    assert vp.bundle.verify(path).figures == ("heatmap.png",)


def test_the_command_line_saves_shows_verifies_and_replays(
    patched: Any,
    command: Command,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    vp.run(patched[0], store="heads.zarr", progress=False)
    assert command("bundle", "save", "heads.zarr").code == 0
    assert command("bundle", "save", "heads.zarr").code == 2
    assert command("bundle", "save", "heads.zarr", "--force", "--no-figures", "-o", "heads.vlmp.zip").code == 0
    shown = command("bundle", "show", "heads.vlmp.zip")
    says(shown.out, "shapes-llava", "replace language.resid_post", "figures  none")
    assert json.loads(command("bundle", "show", "heads.vlmp.zip", "--json").out)["pairs"] == 2
    verified = command("bundle", "verify", "heads.vlmp.zip")
    says(verified.out, vp.bundle.verify("heads.vlmp.zip").digest)
    for replay in (("bundle", "replay"), ("replay",)):
        done = command(*replay, "heads.vlmp.zip")
        assert done.code == 0, done
        says(done.out, "within tolerance")
    assert json.loads(command("replay", "heads.vlmp.zip", "--json", "-o", "new.zarr").out)["ok"]


def test_a_replay_that_is_not_within_tolerance_exits_with_1_and_a_bad_bundle_with_2(
    bundle: Path,
    command: Command,  # noqa: F811
    tmp_path: Path,
) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = "results.zarr/probability/c/0/0/0/0"
        files[name] = np.full(len(files[name]) // 4, 0.5, "<f4").tobytes()

    done = command("replay", remade(bundle, tmp_path / "b.zip", change))
    assert done.code == 1
    says(done.out, "NOT within tolerance", "probability")
    (tmp_path / "c.zip").write_bytes(bundle.read_bytes()[:-1])
    for name in ("show", "verify", "replay"):
        done = command("bundle", name, tmp_path / "c.zip")
        assert done.code == 2
        says(done.err, "error: Bundle c.zip:")


def test_the_same_experiment_gives_the_same_graph_in_processes_that_hash_otherwise() -> None:
    script = (
        "import vlm_patching as vp\n"
        "from vlm_patching.graph.lower import lower\n"
        "models = {name: vp.describe_model(name).architecture for name in vp.bundled_models()}\n"
        "for name in vp.presets():\n"
        "    experiment = vp.Experiment.from_spec(name)\n"
        "    graph = lower(experiment, models[experiment.model.name])\n"
        "    print(name, experiment.id, graph.id, graph.to_json())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "4242")
    }
    assert len(found) == 1
    assert found.pop().count(b'"version": 1') == len(vp.presets())


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_json_schemas_are_up_to_date(name: str) -> None:
    written = ROOT / "docs" / "schema" / f"{name}.json"
    assert written.read_text(encoding="utf-8") == schema(name), (
        "make them anew: python -c 'from pathlib import Path; from vlm_patching.bundle.records import write_schemas; "
        'write_schemas(Path("docs/schema"))\''
    )


@pytest.mark.parametrize("preset", vp.presets())
def test_every_preset_and_its_graph_come_back_from_their_json(preset: str) -> None:
    experiment = vp.Experiment.from_spec(preset)
    assert vp.Experiment.from_json(experiment.to_json()) == experiment
    graph = experiment.graph()
    assert vp.InterventionGraph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_a_graph_of_another_version_is_refused(version: Any) -> None:
    data = experiment_of("shapes-llava", "knockout").graph().to_dict() | {"version": version}
    says(refusal(lambda: vp.InterventionGraph.from_json(json.dumps(data))), "version", repr(version))
    del data["version"]
    says(refusal(lambda: vp.InterventionGraph.from_json(json.dumps(data))), "version")
