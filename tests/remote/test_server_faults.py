"""A real server and its clients are killed in the middle of a run: it ends with the right numbers all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import yaml

import vlm_patching as vp
from tests.remote.test_presets import assert_equal
from vlm_patching.serving import Loopback, services
from vlm_patching.serving.processes import free_ports, members

PAIRS = 24
SPEC: dict[str, Any] = {
    "name": "killed",
    "model": {"name": "shapes-llava"},
    "pairs": {"dataset": "shapes", "n": PAIRS, "keep": "all"},
    "corruption": {"kind": "semantic_image_pair"},
    "patch": {"sites": ["language.mlp_out", "language.attn_out"], "positions": ["each:all"]},
}


@pytest.fixture(scope="module")
def wanted() -> xr.Dataset:
    return vp.run(vp.Experiment.from_dict(SPEC), progress=False, checks=False)


@pytest.fixture(scope="module")
def fragile(environment: Path) -> Iterator[Loopback]:
    """A server that may be killed, and comes back at the same port."""
    (port,) = free_ports(1)
    with Loopback(["shapes-llava"], environment=environment, port=port, deadline=600) as loopback:
        yield loopback


class Run:
    """`vlm-patching run` on a server, as a process."""

    def __init__(self, host: str, folder: Path) -> None:
        self.store, spec = folder / "store.zarr", folder / "spec.yaml"
        spec.write_text(yaml.safe_dump(SPEC))
        options = ["--backend", "ndif", "--host", host, "--jobs", "2", "--no-checks", "--patience", "120"]
        line = [sys.executable, "-m", "vlm_patching.cli", "run", str(spec), "-o", str(self.store), *options]
        environment = {**os.environ, "NDIF_API_KEY": ""}
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def begun(self) -> None:
        """Wait until the first examples are in the store, and not yet the last."""
        until(lambda: self.store.exists() and 0 < self.done() < PAIRS)
        assert self.process.poll() is None, "it was done before anything could go wrong"

    def done(self) -> int:
        return int((vp.load_results(self.store)["kept"] != "").sum())

    def ends_well(self, wanted: xr.Dataset) -> None:
        said, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, said
        assert_equal(vp.load_results(self.store), wanted)


def until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def kill(process_ids: list[int]) -> None:
    for pid in process_ids:
        os.kill(pid, signal.SIGKILL)


def test_a_client_that_is_killed_goes_on_where_it_stopped(server: Loopback, tmp_path: Path, wanted: xr.Dataset) -> None:
    first = Run(server.host, tmp_path)
    first.begun()
    first.process.kill()
    first.process.communicate()
    before = first.done()
    assert 0 < before < PAIRS
    again = Run(server.host, tmp_path)
    again.ends_well(wanted)


@pytest.mark.slow
def test_an_api_that_is_killed_and_comes_back_costs_nothing(
    fragile: Loopback, tmp_path: Path, wanted: xr.Dataset
) -> None:
    run = Run(fragile.host, tmp_path)
    run.begun()
    (api,) = [service for service in fragile.services if service.name == "api"]
    kill(members([api.pid]))
    fragile._processes["api"].wait()
    fragile.services.remove(api)
    time.sleep(2)
    settings = fragile._settings
    assert settings is not None
    fragile._launch("api", settings, services.api_command(settings))
    run.ends_well(wanted)


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_costs_nothing(
    fragile: Loopback, tmp_path: Path, wanted: xr.Dataset
) -> None:
    run = Run(fragile.host, tmp_path)
    run.begun()
    kill(members(service.pid for service in fragile.services))
    fragile.stop()
    fragile.start()
    run.ends_well(wanted)
