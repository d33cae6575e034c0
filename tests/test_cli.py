"""The command line: what it prints, what it leaves behind, and its exit codes: 0 done, 1 a failed run, 2 a bad spec."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

import vlm_patching as vp
from vlm_patching import cli, pipeline, sweep
from vlm_patching.backends import local
from vlm_patching.backends.local import LocalBackend
from vlm_patching.backends.plan import Settings
from vlm_patching.pairs import DATASETS

TINY = ["--set", "pairs.n=2", "--set", "pairs.keep=all", "--set", "patch.layers=[0, 5]"]
HEADS = ["notice2024_blip_heads", *TINY]
STORE = Path("results") / "notice2024_blip_heads.zarr"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`vlm-patching` in this process; an error that would be a traceback fails the test."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["vlm-patching", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as done:
            code = done.code or 0
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


def shell(*arguments: object, cwd: Path) -> Outcome:
    """`vlm-patching` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "vlm_patching.cli", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A working directory in which `run` has run, and what it said."""
    place = tmp_path_factory.mktemp("cli")
    return place, shell("run", *HEADS, "--threads", 1, cwd=place)


@pytest.fixture
def here(finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of `finished`."""
    monkeypatch.chdir(finished[0])
    return finished[0]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **kwargs: object) -> None:
        pytest.fail("the weights were loaded before the input was refused")

    monkeypatch.setattr(pipeline, "load_model", load)


def is_one_paragraph(err: str) -> bool:
    return err.startswith("error: ") and "Traceback" not in err and len(err.strip().splitlines()) == 1


def colors(image: Path) -> int:
    with Image.open(image) as picture:
        return len(picture.convert("RGB").getcolors(maxcolors=2**24) or [])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Each command once, as a process of its own


def test_run_makes_a_store_named_after_the_experiment_and_says_how_many_pairs_it_holds(
    finished: tuple[Path, Outcome],
) -> None:
    place, said = finished
    assert said.code == 0, said.err
    assert str(STORE) in said.out and "2 of 2 pairs kept" in said.out
    ds = vp.load_results(place / STORE)
    assert dict(ds.sizes) == {"example": 2, "site": 2, "layer": 2, "head": 4, "position": 1}
    assert ds["layer"].values.tolist() == [0, 5]
    assert bool(ds["probability"].notnull().all())


def test_plot_draws_every_figure_that_the_spec_names_next_to_the_store(finished: tuple[Path, Outcome]) -> None:
    place, _ = finished
    said = shell("plot", STORE, cwd=place)
    assert said.code == 0, said.err
    written = [str(STORE.with_name(f"{STORE.stem}_{name}.png")) for name in ("heads", "distribution")]
    assert said.out.split() == written
    for name in written:
        assert colors(place / name) > 100
        with Image.open(place / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300


def test_graph_prints_the_graph_on_one_screen(tmp_path: Path) -> None:
    said = shell("graph", "palit2023", cwd=tmp_path)
    assert said.code == 0, said.err
    assert said.out.startswith("InterventionGraph ") and said.out.count("\n") <= 24
    for word in ("run clean", "run corrupted", "run patched", "replace", "add_noise", "measure"):
        assert word in said.out


def test_presets_prints_every_preset(tmp_path: Path) -> None:
    said = shell("presets", cwd=tmp_path)
    assert said.code == 0, said.err
    assert all(name in said.out for name in vp.presets())


def test_models_prints_every_bundled_model(tmp_path: Path) -> None:
    said = shell("models", cwd=tmp_path)
    assert said.code == 0, said.err
    assert all(name in said.out for name in vp.bundled_models())
    assert "question_encoder" in said.out and "language" in said.out


def test_datasets_prints_every_dataset(tmp_path: Path) -> None:
    said = shell("datasets", cwd=tmp_path)
    assert said.code == 0, said.err
    assert all(name in said.out for name in DATASETS)
    assert "svo_probes.csv" in said.out


def test_debug_shows_the_traceback_and_without_it_there_is_one_paragraph(tmp_path: Path) -> None:
    with_it = shell("--debug", "graph", "palit2032", cwd=tmp_path)
    assert with_it.code != 0 and "Traceback" in with_it.err and "SpecError" in with_it.err
    without = shell("graph", "palit2032", cwd=tmp_path)
    assert without.code == 2 and is_one_paragraph(without.err) and "Did you mean 'palit2023'?" in without.err


# JSON


def test_presets_as_json(command: Command) -> None:
    rows = json.loads(command("presets", "--json").out)
    assert [row["name"] for row in rows] == list(vp.presets())
    assert {"model", "corruption", "sites", "source"} <= set(rows[0])


def test_models_as_json(command: Command) -> None:
    rows = json.loads(command("models", "--json").out)["models"]
    assert {row["name"]: row["family"] for row in rows} == {"shapes-blip": "blip_vqa", "shapes-llava": "llava"}
    assert all("vision.resid_post" in row["sites"] for row in rows)


def test_datasets_as_json(command: Command) -> None:
    rows = json.loads(command("datasets", "--json").out)
    assert [row["name"] for row in rows] == list(DATASETS)
    assert all(row["files"] and row["about"] for row in rows)


@pytest.mark.parametrize("preset", sorted(vp.presets()))
def test_the_json_of_every_presets_graph_reads_back_as_that_graph(command: Command, preset: str) -> None:
    said = command("graph", preset, "--json")
    assert said.code == 0
    assert vp.InterventionGraph.from_json(said.out) == vp.Experiment.from_spec(preset).graph()


def test_graph_as_mermaid_is_a_flow_chart_of_its_runs(command: Command) -> None:
    said = command("graph", "notice2024_llava_modules", "--mermaid")
    assert said.code == 0
    assert said.out.startswith("flowchart ")
    assert all(f"{run}[" in said.out for run in ("clean", "corrupted", "patched"))


# Exit code 0


def test_a_run_that_is_repeated_does_nothing(command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(*args: object) -> None:
        pytest.fail("a finished run was run again")

    monkeypatch.setattr(LocalBackend, "execute", execute)
    before = contents(here / STORE)
    said = command("run", *HEADS)
    assert said.code == 0 and "2 of 2 pairs kept" in said.out
    after = contents(here / STORE)
    attributes = "zarr.json"
    assert {k: v for k, v in after.items() if k != attributes} == {k: v for k, v in before.items() if k != attributes}


def test_a_spec_file_runs_like_a_preset_and_output_names_the_store(
    command: Command, here: Path, tmp_path: Path
) -> None:
    changes = {"pairs.n": 2, "pairs.keep": "all", "patch.layers": [0, 5]}
    spec = tmp_path / "mine.yaml"
    spec.write_text(vp.Experiment.from_spec("notice2024_blip_heads", changes).to_yaml(), encoding="utf-8")
    said = command("run", spec, "-o", tmp_path / "new" / "mine.zarr")
    assert said.code == 0
    mine, preset = vp.load_results(tmp_path / "new" / "mine.zarr"), vp.load_results(here / STORE)
    assert mine.attrs["experiment_id"] == preset.attrs["experiment_id"]
    assert bool((abs(mine["probability"] - preset["probability"]) < 1e-6).all())


def test_a_heatmap_of_positions_is_drawn_too(command: Command, tmp_path: Path) -> None:
    store, figure = tmp_path / "positions.zarr", tmp_path / "figures" / "positions.png"
    assert command("run", "notice2024_llava_modules", *TINY, "-o", store).code == 0
    chosen = ["--figure", "heatmap", "--set", "layers=x"]
    assert command("plot", store, "-o", figure.parent, *chosen, "--format", "svg").code == 0
    assert sorted(path.name for path in figure.parent.iterdir()) == ["heatmap.svg", "heatmap_2.svg"]
    plain = command("plot", store, "--figure", "lines", "--position", "last", "-o", figure)
    assert plain.code == 2 and "Unknown position" in plain.err
    assert command("plot", store, "--figure", "distribution", "--metric", "logit_difference", "-o", figure).code == 0
    assert colors(figure) > 20


def test_plot_of_one_site_and_metric_differs_from_that_of_another(command: Command, here: Path, tmp_path: Path) -> None:
    figures = []
    for i, site in enumerate(("question_encoder.attn_head", "question_encoder.cross_attn_head")):
        figures.append(tmp_path / f"{i}.png")
        chosen = ["--figure", "heads", "--site", site, "--position", "answer_option"]
        assert command("plot", STORE, *chosen, "-o", figures[-1]).code == 0
    assert figures[0].read_bytes() != figures[1].read_bytes()


@pytest.mark.parametrize(("suffix", "start"), [(".pdf", b"%PDF"), (".svg", b"<?xml"), (".jpg", b"\xff\xd8")])
def test_plot_draws_what_the_outputs_ending_says(
    command: Command, here: Path, tmp_path: Path, suffix: str, start: bytes
) -> None:
    figure = (tmp_path / "figure").with_suffix(suffix)
    assert command("plot", STORE, "--figure", "heads", "--width", "single", "--no-title", "-o", figure).code == 0
    assert figure.read_bytes().startswith(start)


def test_a_store_is_compared_with_another(command: Command, here: Path, tmp_path: Path) -> None:
    figure = tmp_path / "compared.png"
    assert command("plot", STORE, "--other", STORE, "--metric", "logit_difference", "-o", figure).code == 0
    assert colors(figure) > 100


def test_a_figure_over_pictures_is_drawn_from_a_store_whose_pairs_can_be_made_anew(
    command: Command, tmp_path: Path
) -> None:
    store = tmp_path / "looks.zarr"
    few = ["--set", "pairs.n=2", "--set", "attention.layers=[2, 5]"]
    assert command("run", "notice2024_llava_head_functions", *few, "-o", store).code == 0
    said = command("plot", store, "-o", tmp_path / "looks")
    assert said.code == 0, said.err
    assert {path.name for path in (tmp_path / "looks").iterdir()} == {
        "attention.png",
        "head_function.png",
        "head_function_2.png",
    }
    assert colors(tmp_path / "looks" / "attention.png") > 50


def test_figures_are_listed_with_what_they_take(command: Command) -> None:
    rows = {row["name"]: row for row in json.loads(command("figures", "--json").out)}
    assert "normalize" in rows["heatmap"]["arguments"] and rows["knockout"]["of"] == "knockout"
    assert all(name in command("figures").out for name in rows)


def test_a_diagnosis_is_drawn_where_output_says(command: Command, tmp_path: Path) -> None:
    figure = tmp_path / "corruptions.png"
    said = command("diagnose", "notice2024_llava_heads", "--set", "pairs.n=3", "-o", figure)
    assert said.code == 0 and said.out.strip().endswith(str(figure)) and colors(figure) > 20
    assert command("diagnose", "notice2024_llava_heads", "-o", tmp_path / "corruptions.txt").code == 2


def test_set_replaces_a_value_of_the_spec_and_may_be_repeated(command: Command) -> None:
    said = command("graph", "palit2023", "--set", "patch.layers=[1, 4]", "--set", "corruption.draws=3", "--json")
    dimensions = {d["name"]: d["values"] for d in json.loads(said.out)["dimensions"]}
    assert dimensions["layer"] == [1, 4] and dimensions["draw"] == [0, 1, 2]


def test_set_takes_a_range_as_the_help_and_the_errors_write_it(command: Command) -> None:
    said = command("graph", "palit2023", "--set", "patch.layers=3:6", "--json")
    assert said.code == 0, said.err
    assert {d["name"]: d["values"] for d in json.loads(said.out)["dimensions"]}["layer"] == [3, 4, 5]


def test_a_run_is_checked_unless_checks_are_left_out(command: Command, here: Path, tmp_path: Path) -> None:
    assert command("run", *HEADS, "--no-checks", "-o", tmp_path / "unchecked.zarr").code == 0
    assert "checks" in vp.load_results(here / STORE).attrs
    assert "checks" not in vp.load_results(tmp_path / "unchecked.zarr").attrs


def test_threads_are_those_asked_for_and_left_as_they_were(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []
    real = LocalBackend.execute
    monkeypatch.setattr(LocalBackend, "execute", lambda *a: seen.append(torch.get_num_threads()) or real(*a))
    assert command("run", *HEADS, "-o", "two.zarr", "--threads", 2).code == 0
    assert command("run", *HEADS, "-o", "one.zarr").code == 0
    assert (seen[0], seen[-1]) == (2, 1)
    assert torch.get_num_threads() == before


# Exit code 1


def test_a_store_that_cannot_be_made_is_a_failed_run(command: Command, tmp_path: Path, no_weights: None) -> None:
    (tmp_path / "file").write_text("no folder")
    said = command("run", *HEADS, "-o", tmp_path / "file" / "x.zarr")
    assert said.code == 1 and is_one_paragraph(said.err) and str(tmp_path / "file" / "x.zarr") in said.err


def test_a_run_that_fails_on_its_way_is_a_failed_run_and_keeps_what_is_done(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, calls = LocalBackend.execute, []

    def fails_at_the_second(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:  # two are checks of the first
            raise vp.RunError("the device is gone.")
        return execute(*args)

    monkeypatch.setattr(LocalBackend, "execute", fails_at_the_second)
    monkeypatch.setattr(local, "settings_on", lambda *_: Settings(join=False))
    said = command("run", *HEADS, "-o", tmp_path / "x.zarr")
    assert said.code == 1 and "error: the device is gone." in said.err and "Traceback" not in said.err
    assert vp.load_results(tmp_path / "x.zarr")["kept"].values.tolist() == ["kept", ""]


def test_a_check_that_does_not_hold_is_a_failed_run(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise vp.CheckError("Trust check failed: these numbers must not be used.")

    monkeypatch.setattr(sweep, "check_example", fails)
    said = command("run", *HEADS, "-o", tmp_path / "x.zarr")
    assert said.code == 1 and "error: Trust check failed" in said.err and "Traceback" not in said.err
    assert vp.load_results(tmp_path / "x.zarr")["kept"].values.tolist() == ["", ""]


# Exit code 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["palit2032"], ["'palit2032'", "Did you mean 'palit2023'?", "notice2024_blip_heads"]),
        (["none.yaml"], ["'none.yaml'", "neither a file nor a preset"]),
        (["."], ["'.'", "neither a file nor a preset"]),
        (["x" * 300], ["neither a file nor a preset"]),
        (["palit2023", "--backend", "lokal"], ["backend", "'lokal'", "Did you mean 'local'?"]),
        (["palit2023", "--set", "model.name=shapes-blp"], ["'shapes-blp'", "Did you mean 'shapes-blip'?"]),
        (["palit2023", "--set", "patch.site=x"], ["'patch.site'", "Did you mean 'sites'?"]),
        (["palit2023", "--set", "metrics=[probabilty]"], ["metrics", "Did you mean 'probability'?"]),
        (["palit2023", "--set", "pairs.n=many"], ["pairs.n", "'many'"]),
        (["palit2023", "--set", "pairs.questions=[colour]"], ["pairs.questions", "Did you mean 'color'?"]),
        (["palit2023", "--set", "patch.positions=[anser]"], ["question_encoder", "'anser'", "last"]),
        (["palit2023", "--set", "pairs.n"], ["--set", "'pairs.n'", "KEY.PATH=VALUE"]),
        (["palit2023", "--set", "pairs.n:2"], ["--set", "'pairs.n:2'", "KEY.PATH=VALUE"]),
        (["palit2023", "--set", "=3"], ["--set", "'=3'", "KEY.PATH=VALUE"]),
        (["palit2023", "--set", "pairs..n=2"], ["--set", "'pairs..n=2'", "KEY.PATH=VALUE"]),
        (["palit2023", "--set", "pairs.n=["], ["--set", "'pairs.n=['", "not YAML"]),
        (["palit2023", "--set", "pairs.n.x=2"], ["pairs.n.x", "not a mapping"]),
        (["palit2023", "--set", "pairs=3"], ["pairs", "3"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_bad_spec_is_one_paragraph_and_exit_code_2(
    command: Command, tmp_path: Path, no_weights: None, arguments: list[str], parts: list[str]
) -> None:
    said = command("run", *arguments, "-o", tmp_path / "x.zarr")
    assert said.code == 2 and is_one_paragraph(said.err), said
    assert [part for part in parts if part not in said.err] == []
    assert said.out == "" and not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize(
    "content",
    [b"name: [oops\nmodel: }", b"- a\n- b", b"", b"name: caf\xe9", b"!!python/object/apply:os.system ['true']"],
)
def test_a_broken_spec_file_is_one_paragraph_and_exit_code_2(
    command: Command, tmp_path: Path, no_weights: None, content: bytes
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_bytes(content)
    said = command("run", spec, "-o", tmp_path / "x.zarr")
    assert said.code == 2 and is_one_paragraph(said.err) and str(spec) in said.err


def test_a_store_of_another_experiment_is_exit_code_2_and_left_as_it_is(
    command: Command, here: Path, no_weights: None
) -> None:
    before = contents(here / STORE)
    said = command("run", *HEADS, "--set", "patch.window=3")
    assert said.code == 2 and is_one_paragraph(said.err), said
    assert str(STORE) in said.err and "patch.window" in said.err
    assert contents(here / STORE) == before


def test_an_output_that_is_no_store_is_exit_code_2_and_left_as_it_is(
    command: Command, tmp_path: Path, no_weights: None
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for output in (tmp_path, tmp_path / "thesis.txt"):
        said = command("run", *HEADS, "-o", output)
        assert said.code == 2 and is_one_paragraph(said.err) and str(output) in said.err
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_name_with_dots_and_slashes_does_not_lead_out_of_the_folder_of_results(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise vp.RunError("stopped")

    monkeypatch.setattr(pipeline, "load_model", load)
    (tmp_path / "in" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "here")
    assert command("run", *HEADS, "--set", "name=../../outside").code in (1, 2)
    assert {p.name for p in tmp_path.iterdir()} == {"in"}
    assert {p.name for p in (tmp_path / "in").iterdir()} == {"here"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["none.zarr"], ["none.zarr", "does not exist"]),
        (["."], ["."]),
        (["/"], ["/"]),
        ([STORE, "-o", "figure.txt"], ["'.txt'", ".png", ".pdf"]),
        ([STORE, "-o", "figure.png"], ["heads, distribution", "--figure", "folder"]),
        ([STORE, "--figure", "heatmaps"], ["Unknown figure", "Did you mean 'heatmap'?"]),
        ([STORE, "--figure", "heatmap"], ["plot.heads draws it"]),
        ([STORE, "--figure", "knockout"], ["method is patch", "plot.heads"]),
        ([STORE, "--figure", "compare"], ["another dataset, or another metric"]),
        ([STORE, "--set", "patches=rows"], ["takes patches", "heatmap"]),
        ([STORE, "--set", "limits=1"], ["Unknown argument", "Did you mean 'limit'?"]),
        ([STORE, "--set", "limit=-1"], ["figures: limit", "0", "-1"]),
        ([STORE, "--set", "limit=1e308"], ["figures: limit", "1e+308"]),
        ([STORE, "--set", "layers"], ["KEY.PATH=VALUE", "--set layers=x"]),
        ([STORE, "--figure", "heads", "-o", f"{'x' * 300}.png"], ["could not be written", "xxx.png"]),
        ([STORE, "--figure", "heads", "-o", STORE], ["inside the store", "outside of it"]),
        ([STORE, "--figure", "heads", "-o", f"{STORE}/heads.png"], ["inside the store", "outside of it"]),
        ([STORE, "--figure", "heads", "--format", "svg", "-o", "figure.png"], ["do not agree"]),
        ([STORE, "--metric", "probabilty"], ["metric", "'probabilty'", "Did you mean 'probability'?"]),
        ([STORE, "--metric", "answer_rank"], ["Unknown metric in this dataset"]),
        ([STORE, "--site", "question_encoder.atn_head"], ["site", "Did you mean 'question_encoder.attn_head'?"]),
        ([STORE, "--position", "anser_option"], ["position", "Did you mean 'answer_option'?"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_plot_that_cannot_be_drawn_is_one_paragraph_and_exit_code_2(
    command: Command, here: Path, arguments: list[object], parts: list[str]
) -> None:
    said = command("plot", *arguments)
    assert said.code == 2 and is_one_paragraph(said.err), said
    assert [part for part in parts if part not in said.err] == []


def test_a_figure_that_cannot_be_written_is_one_paragraph(command: Command, here: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for figure in (tmp_path / "file" / "figure.png", tmp_path / "file" / "figures"):
        said = command("plot", STORE, "--figure", "heads", "-o", figure)
        assert said.code in (1, 2) and is_one_paragraph(said.err) and str(figure) in said.err


@pytest.mark.parametrize(
    "arguments",
    [["rnu"], ["run"], ["run", "palit2023", "--bakend", "local"], ["run", "palit2023", "--threads", "0"], ["plot"]],
    ids=" ".join,
)
def test_a_wrong_command_line_is_exit_code_2_with_help(command: Command, arguments: list[str]) -> None:
    said = command(*arguments)
    assert said.code == 2 and "Usage:" in said.err and "Traceback" not in said.err


def test_help_is_given_for_the_whole_and_for_every_command(command: Command) -> None:
    for name in ("run", "graph", "plot", "figures", "presets", "models", "datasets"):
        assert name in command("--help").out
        said = command(name, "--help")
        assert said.code == 0 and "Usage:" in said.out


def test_an_interrupted_run_says_where_its_results_are_and_how_to_go_on(
    command: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = LocalBackend.execute, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:  # the first example and its checks
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(LocalBackend, "execute", interrupted)
    monkeypatch.setattr(local, "settings_on", lambda *_: Settings(join=False))
    said = command("run", *HEADS, "-o", "cut.zarr")
    assert said.code == 130
    assert "Stopped. What is done is in cut.zarr; the same command goes on from there." in said.err
    assert (vp.load_results("cut.zarr")["kept"].values != "").tolist() == [True, False]
