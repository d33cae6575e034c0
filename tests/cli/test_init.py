"""`vlm-patching init` writes a spec that runs, and whose comments are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vlm_patching as vp
from tests.test_cli import Command
from vlm_patching.experiment import Experiment
from vlm_patching.manual import entries
from vlm_patching.pairs import DATASETS
from vlm_patching.sweeps import METHOD_SECTIONS
from vlm_patching.template import WIDTH, commented_spec
from vlm_patching.validation import parse_yaml

OTHERS = "# In the place of"


def spec(method: str, model: str) -> str:
    return commented_spec("mine", vp.describe_model(model).architecture, method=method, model=model)


@pytest.mark.parametrize("model", ["shapes-llava", "shapes-blip"])
@pytest.mark.parametrize("method", METHOD_SECTIONS)
def test_the_spec_of_every_method_loads_and_plans_as_it_is(tmp_path: Path, method: str, model: str) -> None:
    (tmp_path / "mine.yaml").write_text(spec(method, model), encoding="utf-8")
    experiment = vp.Experiment.from_spec(tmp_path / "mine.yaml", {"pairs.n": 2})
    assert (experiment.name, experiment.method, experiment.model.name) == ("mine", method, model)
    found = vp.plan(experiment)
    assert found.pairs == 2 and found.cells > 0


def test_the_spec_that_is_written_without_any_option_runs(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("init").code == 0
    said = command("run", "my-experiment.yaml", "--set", "pairs.n=2", "--set", "patch.layers=[0, 5]")
    assert said.code == 0, said.err
    ds = vp.load_results("results/my-experiment.zarr")
    assert ds["position"].values.tolist() == ["image", "question", "last"]
    assert bool(ds["probability"].notnull().any())


@pytest.mark.parametrize("method", METHOD_SECTIONS)
def test_every_option_that_is_off_shows_the_value_it_has(method: str) -> None:
    text = spec(method, "shapes-llava")
    main, _, _ = text.partition(OTHERS)
    on = re.sub(r"^( *)#(\w+: (?!null$).+)$", r"\1\2", main, flags=re.MULTILINE)
    assert on.count("\n#") < main.count("\n#")
    assert _read(on).id == _read(text).id
    on_with_nothing = re.sub(r"^( +)#(\w+: null)$", r"\1\2", on, flags=re.MULTILINE)
    assert _read(on_with_nothing).id == _read(text).id


@pytest.mark.parametrize("method", METHOD_SECTIONS)
def test_every_other_method_can_be_taken_in_its_place(method: str) -> None:
    text = spec("lens", "shapes-llava")
    if method == "lens":
        return
    _, mark, others = text.partition(OTHERS)
    (block,) = re.findall(rf"^#{method}:\n(?:#  .+\n)+", others, re.MULTILINE)
    taken = re.sub(r"^#", "", block, flags=re.MULTILINE)
    corruption = re.findall(r"^#corruption:\n(?:#  .+\n)+", text, re.MULTILINE)
    start = re.sub(r"^lens:\n(?:  .+\n)+", "", text.partition(mark)[0], flags=re.MULTILINE)
    if method in ("patch", "path", "steer"):
        start += re.sub(r"^#", "", corruption[0], flags=re.MULTILINE)
    assert _read(start + taken).method == method


@pytest.mark.parametrize("method", METHOD_SECTIONS)
def test_every_section_and_every_option_stands_in_it(method: str) -> None:
    text = spec(method, "shapes-llava")
    for entry in entries(Experiment):
        assert re.search(rf"^#?{entry.name}:", text, re.MULTILINE), entry.name
        for section in entry.sections if entry.name != "pairs" else ():
            for option in entries(section):
                assert re.search(rf"^#? +#?{option.name}:", text, re.MULTILINE), f"{entry.name}.{option.name}"


def test_lines_of_prose_fit_a_screen() -> None:
    assert max(len(line) for line in spec("patch", "shapes-blip").splitlines()) <= WIDTH


def test_a_dataset_that_needs_files_leaves_their_place_to_be_filled_in(command: Command, tmp_path: Path) -> None:
    said = command("init", "mine", "--dataset", "folder", "-o", tmp_path / "mine.yaml")
    assert said.code == 0, said.err
    experiment = vp.Experiment.from_yaml(tmp_path / "mine.yaml")
    assert experiment.pairs.dataset == "folder"
    assert "path: path/to/folder" in (tmp_path / "mine.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_spec_of_every_dataset_loads(command: Command, tmp_path: Path, dataset: str) -> None:
    assert command("init", "mine", "--dataset", dataset, "-o", tmp_path / "mine.yaml").code == 0
    assert vp.Experiment.from_yaml(tmp_path / "mine.yaml").pairs.dataset == dataset


def test_a_file_is_not_replaced_unless_that_is_asked_for(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("years of work", encoding="utf-8")
    said = command("init", "mine", "-o", path)
    assert said.code == 2 and f"{path} exists; --force replaces it" in said.err
    assert path.read_text(encoding="utf-8") == "years of work"
    assert command("init", "mine", "-o", path, "--force").code == 0
    assert vp.Experiment.from_yaml(path).name == "mine"


def test_the_spec_can_be_printed(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("init", "mine", "--method", "knockout", "-o", "-")
    assert said.code == 0 and _read(said.out).method == "knockout"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["mine", "--method", "knokout"], ["method", "'knokout'", "Did you mean 'knockout'?", "patch"]),
        (["mine", "--dataset", "shape"], ["dataset", "'shape'", "Did you mean 'shapes'?"]),
        (["mine", "--model", "shapes-lava"], ["'shapes-lava'", "Did you mean 'shapes-llava'?"]),
        (["../mine"], ["NAME", "'../mine'", "letters"]),
        (["mine", "-o", "file/mine.yaml"], ["file/mine.yaml", "could not be written"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_written_is_said_in_one_paragraph(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    said = command("init", *arguments)
    assert said.code == 2 and said.err.count("\n") == 1
    assert [part for part in parts if part not in said.err] == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _read(text: str) -> vp.Experiment:
    return vp.Experiment.from_dict(parse_yaml(text, "spec"))
