"""A run that is cut off, in whatever way, loses nothing it has written and ends with the same numbers."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import vlm_patching as vp
from tests.refusals import refusal, says

SPEC = {
    "name": "resume",
    "model": {"name": "shapes-llava"},
    "pairs": {"dataset": "shapes", "n": 96, "keep": "all"},
    "corruption": {"kind": "gaussian_noise", "draws": 2},
    "patch": {"sites": ["language.resid_post"], "positions": ["each:text"]},
}
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
import vlm_patching as vp
import vlm_patching.pipeline  # imported once: each child below starts from here

torch.set_num_threads(1)
experiment = vp.Experiment.from_dict(json.loads(sys.argv[1]))
whole, broken = Path(sys.argv[2]), Path(sys.argv[3])

def child(store):
    pid = os.fork()
    if pid == 0:
        vp.run(experiment, store=store, progress=False)
        os._exit(0)
    return pid

def written():
    return sum(1 for path in (broken / "kept").rglob("*") if path.is_file() and path.name != "zarr.json")

assert os.waitpid(child(whole), 0)[1] == 0
rng, done = random.Random(0), []
for target in [0, 0, *sorted(rng.sample(range(1, 38), 8))]:  # so many are written when the moment is drawn
    pid = child(broken)
    while written() < target:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    done.append(int((vp.load_results(broken)["kept"] != "").sum()) if broken.exists() else 0)
assert os.waitpid(child(broken), 0)[1] == 0
print(json.dumps(done))
"""


def _assert_bitwise_equal(found: xr.Dataset, wanted: xr.Dataset) -> None:
    assert set(found.variables) == set(wanted.variables)
    for name in wanted.variables:
        left, right = found[name].values, wanted[name].values
        assert left.dtype == right.dtype
        if left.dtype.kind == "f":
            assert left.tobytes() == right.tobytes(), name
        else:
            assert (left == right).all(), name


def test_a_run_killed_ten_times_at_random_moments_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.zarr", tmp_path / "broken.zarr"
    command = [sys.executable, "-c", KILLER, json.dumps(SPEC), str(whole), str(broken)]
    killed = subprocess.run(command, check=True, capture_output=True, text=True)
    done = json.loads(killed.stdout)
    assert done == sorted(done), f"a kill lost what was written: {done}"
    assert len({count for count in done if 0 < count < 96}) >= 3, f"too few kills fell into the sweep: {done}"
    _assert_bitwise_equal(vp.load_results(broken), vp.load_results(whole))


def _experiment(**changes: Any) -> vp.Experiment:
    spec = {**SPEC, **changes}
    spec["pairs"] = {**SPEC["pairs"], "n": 5}  # type: ignore[dict-item]
    return vp.Experiment.from_dict(spec)


def test_a_full_disk_loses_nothing_and_the_next_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, experiment = vp.load_model("shapes-llava"), _experiment()
    wanted = vp.run(experiment, model=model, store=tmp_path / "whole.zarr", progress=False)
    real, calls = zarr.Array.__setitem__, []

    def full(array: zarr.Array, where: Any, value: Any) -> None:
        calls.extend([array.name] if isinstance(where, int) else [])
        if len(calls) > 20:  # each example takes nine arrays
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(array, where, value)

    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(vp.RunError, match=r"No space left on device.*2 of 5 examples are in the store.*same command"):
        vp.run(experiment, model=model, store=tmp_path / "broken.zarr", progress=False)
    monkeypatch.setattr(zarr.Array, "__setitem__", real)
    halfway = vp.load_results(tmp_path / "broken.zarr")
    assert (halfway["kept"].values[:2] == "kept").all()
    assert np.isfinite(halfway["probability"].values[:2]).all()
    found = vp.run(experiment, model=model, store=tmp_path / "broken.zarr", progress=False)
    _assert_bitwise_equal(found, wanted)


@pytest.mark.parametrize("content", [b"", b"\x28\xb5\x2f\xfd broken"])
@pytest.mark.parametrize("array", ["probability", "kept"])
def test_a_broken_file_of_a_store_is_named_and_without_it_only_that_example_runs_again(
    tmp_path: Path, array: str, content: bytes
) -> None:
    model, experiment, store = vp.load_model("shapes-llava"), _experiment(), tmp_path / "s.zarr"
    wanted = vp.run(experiment, model=model, store=store, progress=False)
    chunk = store / array / "c" / "2"
    for file in [chunk] if chunk.is_file() else [path for path in chunk.rglob("*") if path.is_file()]:
        file.write_bytes(content)
    for call in (lambda: vp.load_results(store), lambda: vp.run(experiment, model=model, store=store, progress=False)):
        message = refusal(call)
        says(message, f"{array} of example 2 cannot be read", "the same run goes on with that example")
    named = re.search(r"Remove (\S+)(?: and (\S+))?, and", message)
    assert named is not None
    for name in filter(None, named.groups()):
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert (vp.load_results(store)["kept"].values != "").sum() == 4
    _assert_bitwise_equal(vp.run(experiment, model=model, store=store, progress=False), wanted)


@pytest.mark.parametrize("array", ["probability", "probability_corrupted", "said_clean", "kept"])
def test_an_example_that_has_lost_a_file_runs_again_and_is_missed_until_then(tmp_path: Path, array: str) -> None:
    spec = {**SPEC, "pairs": {**SPEC["pairs"], "n": 12, "keep": "clean_correct_corrupted_wrong"}}  # type: ignore[dict-item]
    spec["corruption"] = {"kind": "gaussian_noise", "k": 0.7, "draws": 2}
    model, experiment, store = vp.load_model("shapes-llava"), vp.Experiment.from_dict(spec), tmp_path / "s.zarr"
    wanted = vp.run(experiment, model=model, store=store, progress=False)
    kept, dropped = (np.flatnonzero((wanted["kept"] == "kept") == is_kept).tolist() for is_kept in (True, False))
    for number, index in enumerate((kept[0], dropped[0]), 1):
        (file,) = [path for path in [store / array / "c" / str(index)] if path.is_file()] or [
            path for path in (store / array / "c" / str(index)).rglob("*") if path.is_file()
        ]
        file.unlink()
        if array != "kept":
            message = refusal(lambda: vp.load_results(store))
            says(message, f"lost files of {number} of its 12", f"{array} of example", "The same run, on this store")
    _assert_bitwise_equal(vp.run(experiment, model=model, store=store, progress=False), wanted)
    _assert_bitwise_equal(vp.load_results(store), wanted)


def test_a_store_that_has_lost_an_array_is_refused(tmp_path: Path) -> None:
    experiment, store = _experiment(), tmp_path / "s.zarr"
    vp.run(experiment, store=store, progress=False)
    shutil.rmtree(store / "kept")
    says(refusal(lambda: vp.load_results(store)), "not whole", "its array kept")
    other = tmp_path / "t.zarr"
    vp.run(experiment, store=other, progress=False)
    shutil.rmtree(other / "probability")
    says(refusal(lambda: vp.run(experiment, store=other, progress=False)), "not whole", "its array probability")


def test_what_does_not_decide_the_numbers_is_no_difference_of_two_experiments(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    vp.run(_experiment(), store=store, progress=False)
    changed = _experiment(figures=[{"figure": "lines"}], metrics=["log_probability"])
    message = refusal(lambda: vp.run(changed, store=store, progress=False))
    says(message, "belongs to another experiment", "metrics is ['probability'")
    assert "figures" not in message


def test_a_finished_store_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, experiment = vp.load_model("shapes-llava"), _experiment()
    wanted = vp.run(experiment, model=model, store=tmp_path / "s.zarr", progress=False)

    def never(*_: Any) -> None:
        raise AssertionError("ran again")

    monkeypatch.setattr("vlm_patching.backends.local.LocalBackend.execute", never)
    _assert_bitwise_equal(vp.run(experiment, model=model, store=tmp_path / "s.zarr", progress=False), wanted)


def test_a_store_begun_with_other_weights_is_refused(tmp_path: Path) -> None:
    model, experiment = vp.load_model("shapes-llava"), _experiment()
    vp.run(experiment, model=model, store=tmp_path / "s.zarr", progress=False)
    other = vp.load_model("shapes-llava", dtype="bfloat16")
    with pytest.raises(vp.SpecError, match="begun with other weights"):
        vp.run(experiment, model=other, store=tmp_path / "s.zarr", progress=False)


def test_the_numbers_do_not_depend_on_how_many_pairs_ran_before(tmp_path: Path) -> None:
    model = vp.load_model("shapes-llava")
    changes = {"corruption": {"kind": "gaussian_noise", "std": 0.5, "draws": 2}}
    pairs = vp.load_pairs("shapes", n=5)
    together = vp.run(_experiment(**changes), model=model, inputs=pairs, progress=False)
    alone = vp.run(_experiment(**changes), model=model, inputs=pairs[3:4], progress=False)
    assert alone["probability"].values[0].tobytes() == together["probability"].values[3].tobytes()
