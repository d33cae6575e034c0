"""The shell completes names out of the package's tables, and without loading torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vlm_patching as vp
from vlm_patching.commands import completion
from vlm_patching.figures import FIGURES, FigureSpec
from vlm_patching.metrics import METRICS
from vlm_patching.pairs import CORRUPTED_INPUT, DATASETS
from vlm_patching.pipeline import BACKENDS
from vlm_patching.sweeps import METHOD_SECTIONS


def offered(line: str, cwd: Path) -> list[str]:
    """What bash is given for a line; a line that ends in a space begins a new word."""
    words = len(line.split()) - (not line.endswith(" "))
    asked = {"_VLM_PATCHING_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(words)}
    program = Path(sys.executable).parent / "vlm-patching"
    done = subprocess.run([program], cwd=cwd, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("vlm-patching ini", ["init"]),
        ("vlm-patching run notice2024_llava_mod", ["notice2024_llava_modules", "notice2024_llava_modules_text"]),
        ("vlm-patching run palit2023 --backend ", ["local", "ndif"]),
        ("vlm-patching init --model ", list(vp.bundled_models())),
        ("vlm-patching init --dataset fol", ["folder"]),
        ("vlm-patching init --method ", list(METHOD_SECTIONS)),
        ("vlm-patching plan palit2023 --set patch.pos", ["patch.positions="]),
        ("vlm-patching plot run.zarr --figure hea", ["heatmap", "heads", "head_function"]),
        ("vlm-patching plot run.zarr --metric logit", ["logit_difference"]),
        ("vlm-patching plot run.zarr --set lay", ["layer=", "layers="]),
        ("vlm-patching pairs show factors_", ["factors_blip", "factors_llava"]),
    ],
)
def test_names_are_completed_in_a_shell(tmp_path: Path, line: str, wanted: list[str]) -> None:
    assert offered(line, tmp_path) == wanted


def test_spec_files_and_folders_are_offered_beside_the_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "palette.yaml").touch()
    (tmp_path / "specs" / "inner").mkdir(parents=True)
    (tmp_path / "specs" / "one.yaml").touch()
    (tmp_path / "specs" / "notes.txt").touch()
    assert completion.specs("pal") == ["palit2023", "palit2023_blocks", "palette.yaml"]
    assert completion.specs("spe") == ["specs/"]
    assert sorted(completion.specs("specs/")) == ["specs/inner/", "specs/one.yaml"]
    assert completion.specs("none/") == []
    assert completion.specs(f"{tmp_path}/pal") == [f"{tmp_path}/palette.yaml"]


def test_everything_in_the_tables_is_offered() -> None:
    assert completion.backends("") == list(BACKENDS)
    assert completion.datasets("") == list(DATASETS)
    assert completion.methods("") == list(METHOD_SECTIONS)
    assert completion.metrics("") == list(METRICS)
    assert completion.corruptions("") == list(CORRUPTED_INPUT)
    assert completion.figures("") == list(FIGURES)
    assert completion.models("") == list(vp.bundled_models())
    assert set(vp.presets()) <= set(completion.specs(""))


def test_every_key_that_is_offered_can_be_set() -> None:
    spec = vp.Experiment.from_spec("steering_llava").to_dict()
    for key in completion.changes(""):
        assert key.endswith("=")
        section, _, name = key.rstrip("=").partition(".")
        if section in spec and name in (spec[section] if name else ()):
            changes = {f"{section}.{name}": spec[section][name]}
            assert vp.Experiment.from_spec("steering_llava", changes).id == vp.Experiment.from_spec("steering_llava").id
    assert {"pairs.n=", "seed=", "patch.layers=", "corruption.k=", "model.name=", "steer.on="} <= set(
        completion.changes("")
    )


def test_every_argument_of_a_figure_that_is_offered_is_one_of_some_figure() -> None:
    offered = [key.rstrip("=") for key in completion.figure_arguments("")]
    taken = {name for kind in FIGURES.values() for name in kind.arguments}
    assert set(offered) <= taken and set(offered) <= set(FigureSpec.model_fields)
    assert taken - set(offered) == {"metric", "site", "position", "normalize"}, "these have an option of their own"


def test_a_completion_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from vlm_patching import cli; from vlm_patching.commands import completion as c; "
        "[f('') for f in (c.specs, c.models, c.datasets, c.backends, c.methods, c.metrics, c.figures, c.corruptions, "
        "c.figure_arguments, c.changes)]; "
        "print([m for m in ('torch', 'transformers', 'nnsight', 'xarray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_script_for_bash_is_one(tmp_path: Path) -> None:
    asked = {**os.environ, "_VLM_PATCHING_COMPLETE": "source_bash"}
    program = Path(sys.executable).parent / "vlm-patching"
    script = subprocess.run([program], env=asked, capture_output=True, text=True, check=True).stdout
    assert "complete -o default -F" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
