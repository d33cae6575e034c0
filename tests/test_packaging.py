"""The pins agree with one another, and the wheel works where the checkout is not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
import zarr
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "experiments").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
WORKING = ("dev", "docs")
"""Extras of those who change the package; all others are of those who use it."""
DEV = [Requirement(line) for extra in WORKING for line in PROJECT["optional-dependencies"][extra]]
EXTRAS = [
    Requirement(line)
    for name, lines in PROJECT["optional-dependencies"].items()
    if name not in WORKING
    for line in lines
]


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    pins = _constraints()
    for requirement in RUNTIME + DEV + EXTRAS:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{requirement} excludes the pin {pins[name]}"
    assert pins.keys() == {canonicalize_name(requirement.name) for requirement in RUNTIME + DEV}


def test_what_an_extra_needs_is_there_for_the_tests_as_well() -> None:
    assert {str(requirement) for requirement in EXTRAS} <= {str(requirement) for requirement in DEV}


def test_every_package_that_the_library_imports_is_a_declared_dependency() -> None:
    called = {"PIL": "pillow", "yaml": "pyyaml"}
    imported = set()
    for file in (ROOT / "vlm_patching").rglob("*.py"):
        if "extension" in file.parts:  # runs in an NDIF server's environment
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"vlm_patching"}
    declared = {canonicalize_name(requirement.name) for requirement in RUNTIME + EXTRAS}
    assert "torch" in foreign
    assert {canonicalize_name(called.get(name, name)) for name in foreign} <= declared


def test_environment_yml_has_the_runtime_pins_of_the_constraints() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip[-1] == "-e ."
    constraints = _constraints()
    names = {canonicalize_name(requirement.name) for requirement in RUNTIME}
    assert _pins(pip[:-1]) == {name: constraints[name] for name in names}


def test_environment_yml_asks_for_the_python_of_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


@pytest.mark.parametrize(("name", "bound"), [("nnsight", "0.9"), ("transformers", "6")])
def test_libraries_reached_into_are_bounded_above(name: str, bound: str) -> None:
    (requirement,) = (requirement for requirement in RUNTIME if requirement.name == name)
    assert not requirement.specifier.contains(bound)


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]


@pytest.mark.slow
def test_the_wheel_holds_every_preset_unchanged(wheel: Path) -> None:
    assert PRESETS
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("vlm_patching/presets/")]
        assert sorted(names) == [f"vlm_patching/presets/{preset.name}" for preset in PRESETS]
        for preset in PRESETS:
            assert archive.read(f"vlm_patching/presets/{preset.name}") == preset.read_bytes()


@pytest.mark.slow
def test_the_wheel_holds_the_bundled_models(wheel: Path) -> None:
    folder = ROOT / "vlm_patching" / "models" / "bundled"
    files = {path.relative_to(ROOT).as_posix() for path in folder.glob("*/*") if path.is_file()}
    assert any(name.endswith("/model.safetensors") for name in files)
    with zipfile.ZipFile(wheel) as archive:
        assert files <= set(archive.namelist())


@pytest.mark.slow
def test_the_wheel_holds_what_reports_are_made_of(wheel: Path) -> None:
    assets = [path for path in (ROOT / "vlm_patching" / "reports" / "assets").iterdir() if path.is_file()]
    assert any(path.suffix == ".jinja" for path in assets)
    with zipfile.ZipFile(wheel) as archive:
        for path in assets:
            assert archive.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()
        assert archive.read("vlm_patching/CITATION.cff") == (ROOT / "CITATION.cff").read_bytes()


@pytest.mark.slow
def test_the_wheel_holds_nothing_but_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"vlm_patching", f"vlm_patching-{PROJECT['version']}.dist-info"}


@pytest.mark.slow
def test_the_installed_wheel_is_imported_instead_of_the_checkout(installed: Installed) -> None:
    place = installed.run("python", "-c", "import vlm_patching; print(vlm_patching.__file__)").strip()
    assert Path(place).resolve().is_relative_to(installed.venv.resolve())


@pytest.mark.slow
def test_the_installed_wheel_lists_the_presets(installed: Installed) -> None:
    listing = installed.run("vlm-patching", "presets")
    assert PRESETS
    assert [preset.stem for preset in PRESETS if preset.stem not in listing] == []


@pytest.mark.slow
def test_the_installed_wheel_runs_and_reports_a_preset_far_from_the_checkout(installed: Installed) -> None:
    installed.run("vlm-patching", "run", "palit2023", "--set", "pairs.n=2", "-o", "out.zarr")
    installed.run("vlm-patching", "report", "out.zarr", "-o", "out.html")
    assert "@inproceedings{palit2023towards" in (installed.folder / "out.html").read_text(encoding="utf-8")
    store = zarr.open_group(installed.folder / "out.zarr", mode="r")
    assert any(isinstance(member, zarr.Array) for _, member in store.members(max_depth=None))


class Installed(NamedTuple):
    """A virtual environment that has the wheel, and an empty folder to run it in."""

    venv: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment in the folder, without the hub, and return what it prints."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"COLUMNS": "200", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "HF_HOME": str(self.folder)}
        return _run([self.venv / "bin" / program, *arguments], cwd=self.folder, env=environment)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT], cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, which borrows its dependencies from the running interpreter.

    Its own packages come before the borrowed ones, and Python reads no .pth file in a folder that a .pth file names,
    so an editable install of the checkout has no effect there.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv = folder / "venv"
    _run([sys.executable, "-m", "venv", "--without-pip", venv], cwd=folder)
    install = ["install", "--no-deps", "--no-index", wheel]
    _run([sys.executable, "-m", "pip", "--python", venv / "bin" / "python", *install], cwd=folder)
    (packages,) = venv.glob("lib/python*/site-packages")
    borrowed = [place for place in sys.path if Path(place).name in {"site-packages", "dist-packages"}]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Installed(venv, elsewhere)


def _run(command: list[str | Path], cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return _pins([line for line in lines if line and not line.startswith("#")])


def _pins(lines: list[str]) -> dict[str, str]:
    """Versions by name of lines like ``name==version``; any other line is an error."""
    pairs = [line.split("==") for line in lines]
    pins = {canonicalize_name(name): version for name, version in pairs}
    assert len(pins) == len(lines)
    return dict(pins)
