"""What the tests of an unreliable NDIF server share: the server, as a process, and a client that is in a hurry."""

from __future__ import annotations

import functools
import inspect
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from nnsight import CONFIG

import vlm_patching as vp
from vlm_patching.backends import flights, local, ndif, wire
from vlm_patching.backends.jobs import Ledger
from vlm_patching.backends.plan import Settings
from vlm_patching.models import Model
from vlm_patching.results.store import StoreAttributes

SOURCES = functools.cache(inspect.getsourcelines)
SERVER = str(Path(__file__).with_name("fake_ndif.py"))
SECRET = "3c9d1f60-sesame-street"
SPEC: dict[str, Any] = {
    "name": "faults",
    "model": {"name": "shapes-llava"},
    "pairs": {"dataset": "shapes", "n": 3, "keep": "all"},
    "corruption": {"kind": "semantic_image_pair"},
    "patch": {"sites": ["language.attn_head"], "positions": ["last"], "layers": [0, 5]},
}
MANY = 10_000
OUT_OF_MEMORY = (
    "Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB."
)
TOO_LONG = "Your job exceeded the execution timeout of 30s."
PREEMPTED = "Your job was cancelled or preempted by the server."
BOOM = 'Traceback (most recent call last):\n  File "x.py", line 3, in f\nRuntimeError: boom'


class FakeNdif:
    """The client's side: starts the process, sets faults, reads the record."""

    def __init__(self, folder: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, SERVER, folder], stdout=subprocess.PIPE, text=True, cwd="/", start_new_session=True
        )
        assert self._process.stdout is not None
        self.host = self._process.stdout.readline().strip()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def control(self, *faults: dict[str, Any], **settings: Any) -> None:
        """Set faults and settings, beside those that are.

        `hold`: start no job; `delay`: seconds that each takes longer; `ids`: whether clients may name jobs; `status`,
        `env`, `whoami`: what is answered there.
        """
        self._call("/control", json.dumps({"faults": faults, **settings}).encode())

    def reset(self) -> None:
        """Forget all jobs, faults and what was recorded."""
        self._call("/control", json.dumps({"reset": True}).encode())

    def reset_faults(self) -> None:
        """From here on all goes well."""
        self._call("/control", json.dumps({"well": True}).encode())

    def restart(self) -> None:
        """As a server that lost its queue: what waits is never run, and its state never changes."""
        self._call("/control", json.dumps({"restart": True}).encode())

    def record(self) -> dict[str, Any]:
        """`requests`, `jobs` in the order in which they ran, `most` under way at a time."""
        found: dict[str, Any] = json.loads(self._call("/record"))
        return found

    def _call(self, path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(self.host + path, body, timeout=60) as response:
            content: bytes = response.read()
        return content


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeNdif]:
    server = FakeNdif(str(vp.bundled_models()["shapes-llava"]))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def model() -> Model:
    return vp.load_model("shapes-llava")


@pytest.fixture(scope="module")
def right(model: Model) -> Callable[[int], xr.Dataset]:
    """The numbers of a local run, by the number of pairs; to the bit, as its pairs run one by one here too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "settings_on", lambda *_: Settings(join=False))
        whole = vp.run(experiment(4), model=model, progress=False, checks=False)
    return lambda n: whole.isel(example=slice(n))


@pytest.fixture
def as_new(fake: FakeNdif, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without faults, and a client that does not wait for long."""
    fake.reset()
    monkeypatch.setattr(CONFIG.API, "APIKEY", SECRET)
    monkeypatch.setattr(inspect, "getsourcelines", SOURCES)  # nnsight reads all that travels anew for every job
    monkeypatch.setattr(wire, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(wire, "READ_SECONDS", 0.5)
    monkeypatch.setattr(ndif, "PAUSES", (0.02, 0.02, 0.02))
    monkeypatch.setattr(flights, "UNKNOWN_SECONDS", 0.3)


def experiment(n: int = 3, **changes: Any) -> vp.Experiment:
    return vp.Experiment.from_dict({**SPEC, "pairs": {**SPEC["pairs"], "n": n}, **changes})


class Client:
    """Runs the experiment on the server of faults."""

    def __init__(self, fake: FakeNdif, model: Model, store: Path) -> None:
        self.fake, self.model, self.store = fake, model, store

    def run(self, n: int = 3, *, host: str = "", spec: vp.Experiment | None = None, **remote: Any) -> xr.Dataset:
        options = vp.Remote(host or self.fake.host, **{"patience": 20, "deadline": 20, **remote})
        return vp.run(
            spec or experiment(n),
            model=self.model,
            backend="ndif",
            remote=options,
            store=self.store,
            progress=False,
            checks=False,
        )

    def error(self, kind: type[Exception], says: str, n: int = 3, **options: Any) -> str:
        """One readable paragraph, in which the key is not."""
        with pytest.raises(kind, match=says) as caught:
            self.run(n, **options)
        message = str(caught.value)
        assert "\n" not in message and "Traceback" not in message and SECRET not in message
        return message

    def interrupted(self, monkeypatch: pytest.MonkeyPatch, n: int = 3, **remote: Any) -> None:
        """A run that is stopped as soon as its jobs are sent."""

        def stop(flights: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(ndif, "_summary", stop)
            with pytest.raises(KeyboardInterrupt):
                self.run(n, **remote)

    def noted(self) -> int:
        """How many jobs the store waits for."""
        return len(Ledger(StoreAttributes(self.store)).jobs())


@pytest.fixture
def client(fake: FakeNdif, model: Model, tmp_path: Path) -> Client:
    return Client(fake, model, tmp_path / "store.zarr")


def assert_equal(found: xr.Dataset, wanted: xr.Dataset, tolerance: float = 0.0) -> None:
    assert set(found.data_vars) == set(wanted.data_vars)
    for name in wanted.data_vars:
        left, right = found[name].values, wanted[name].values
        if tolerance:
            np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)
        else:
            assert left.tobytes() == right.tobytes(), name
    assert (found["kept"].values == wanted["kept"].values).all()


def ran(fake: FakeNdif) -> Counter[int]:
    """How often each example was run, failures included."""
    return Counter(example for job in fake.record()["jobs"] for example in job["examples"])
