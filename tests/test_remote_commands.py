"""The API key stays where it belongs, clients that die find their jobs again, and commands say what is under way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from nnsight import CONFIG

import vlm_patching as vp
from tests.test_cli import Command, command, is_one_paragraph  # noqa: F401 - a fixture
from tests.unreliable import MANY, SECRET, Client, FakeNdif, assert_equal, experiment, ran
from vlm_patching.errors import RunError, SpecError
from vlm_patching.results.store import StoreAttributes

pytest_plugins = "tests.unreliable"
pytestmark = pytest.mark.usefixtures("as_new")


def test_the_key_goes_to_the_server_and_nowhere_else(
    client: Client, fake: FakeNdif, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = f"Traceback (most recent call last):\nValueError: {SECRET} was given"
    fake.control({"path": "job", "do": "error", "text": told, "example": 1})
    options = {"model": client.model, "backend": "ndif", "remote": vp.Remote(fake.host), "store": client.store}
    with pytest.raises(RunError, match="ValueError: <key> was given") as caught:
        vp.run(experiment(2), **options)
    ds = vp.run(experiment(2), **options)
    bundle = vp.bundle.save(experiment(2), ds, tmp_path / "all.vlmp.zip", figures={})
    files = [path for path in client.store.rglob("*") if path.is_file()]
    assert files
    texts = [path.read_bytes() for path in files]
    with zipfile.ZipFile(bundle) as archive:
        texts += [archive.read(name) for name in archive.namelist()]
    texts += [str(caught.value).encode(), *(part.encode() for part in capfd.readouterr()), repr(ds.attrs).encode()]
    assert not [text for text in texts if SECRET.encode() in text]
    requests = fake.record()["requests"]
    assert {request["key"] for request in requests if request["path"] == "/request"} == {SECRET}
    assert {request["key"] for request in requests if request["path"].startswith("/result")} == {""}


@pytest.mark.parametrize("key", ["two\nlines-of-a-key", "schlüssel-für-alles"])
def test_what_can_be_no_key_is_refused_without_being_shown(
    client: Client, fake: FakeNdif, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(CONFIG.API, "APIKEY", key)
    message = client.error(SpecError, "NDIF_API_KEY holds what no API key has")
    assert key not in message and not fake.record()["requests"]


# Clients that die, and commands


def test_a_client_that_is_killed_finds_its_jobs_again(
    client: Client,
    fake: FakeNdif,
    right: Any,
    tmp_path: Path,
    command: Command,  # noqa: F811 - the fixture
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(experiment(3).to_dict()))
    line = ["run", spec, "-o", client.store, "--backend", "ndif", "--host", fake.host, "--jobs", 2, "--no-checks"]
    fake.control({"path": "job", "do": "none", "times": 0}, hold=True)
    environment = {**os.environ, "NDIF_API_KEY": SECRET}
    process = subprocess.Popen(
        [sys.executable, "-m", "vlm_patching.cli", *map(str, line)], env=environment, stderr=subprocess.PIPE, text=True
    )
    until(lambda: len(fake.record()["waiting"]) == 2)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL and SECRET not in said
    assert client.noted() == 2

    listed = command("jobs", client.store)
    assert listed.code == 0 and listed.out.count("QUEUED") == 2
    fake.control(hold=False)
    until(lambda: ran(fake) == {0: 1, 1: 1})
    waited = command("jobs", client.store, "--wait", "--json")
    assert waited.code == 0 and [job["status"] for job in yaml.safe_load(waited.out)] == ["COMPLETED"] * 2

    again = command(*line)
    assert again.code == 0, again.err
    assert_equal(vp.load_results(client.store), right(3))
    assert ran(fake) == {0: 1, 1: 1, 2: 1}
    assert command("jobs", client.store).out == f"{client.store} waits for no job.\n"
    assert SECRET not in again.out + again.err + listed.out + waited.out


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def test_jobs_that_are_cancelled_are_sent_anew(
    client: Client,
    fake: FakeNdif,
    right: Any,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,  # noqa: F811 - the fixture
) -> None:
    fake.control(hold=True)
    client.interrupted(monkeypatch, 2)
    refused = command("jobs", client.store, "--cancel", "--wait")
    assert refused.code == 2 and is_one_paragraph(refused.err) and client.noted() == 2
    cancelled = command("jobs", client.store, "--cancel")
    assert "2 jobs are forgotten; the same run command" in cancelled.out and client.noted() == 0
    fake.control(hold=False)
    assert_equal(client.run(2), right(2))


def test_jobs_are_cancelled_without_their_server(
    client: Client,
    fake: FakeNdif,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,  # noqa: F811 - the fixture
) -> None:
    fake.control(hold=True)
    client.interrupted(monkeypatch, 2)
    fake.control({"path": "/", "do": "drop", "times": MANY})
    assert command("jobs", client.store, "--cancel", "--json").code == 0 and client.noted() == 0


def test_only_the_users_own_server_sees_the_key_when_a_store_is_looked_at(
    client: Client,
    fake: FakeNdif,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,  # noqa: F811 - the fixture
) -> None:
    fake.control(hold=True)
    client.interrupted(monkeypatch, 2)
    before = len(fake.record()["requests"])
    assert command("jobs", client.store).code == 0
    monkeypatch.setenv("NDIF_HOST", fake.host)
    assert command("jobs", client.store).code == 0
    assert [request["key"] for request in fake.record()["requests"][before:]] == ["", "", SECRET, SECRET]


def test_doctor_says_what_a_server_has(fake: FakeNdif, command: Command) -> None:  # noqa: F811 - the fixture
    told = command("doctor", "--backend", "ndif", "--host", fake.host)
    assert told.code == 0 and "RUNNING" in told.out and "shapes-llava" in told.out and SECRET not in told.out
    found = yaml.safe_load(command("doctor", "--backend", "ndif", "--host", fake.host, "--json").out)
    assert found["API key"] == "set" and found["models"][0]["state"] == "RUNNING"
    fake.control(env={"python_version": "3.12", "packages": {"nnsight": "0.7.9"}})
    assert "another protocol" in command("doctor", "--backend", "ndif", "--host", fake.host).out
    fake.control({"path": "/ping", "do": "html"})
    refused = command("doctor", "--backend", "ndif", "--host", fake.host)
    assert refused.code == 1 and is_one_paragraph(refused.err)


def test_gradients_are_not_sent_into_a_sandbox(
    fake: FakeNdif,
    tmp_path: Path,
    command: Command,  # noqa: F811 - the fixture
) -> None:
    line = ["run", "heads_llava_attribution", "--backend", "ndif", "--host", fake.host, "-o", tmp_path / "store.zarr"]
    refused = command(*line, "--sandboxed", "--set", "pairs.n=2")
    assert refused.code == 2 and is_one_paragraph(refused.err) and "takes gradients" in refused.err
    assert not [request for request in fake.record()["requests"] if request["path"] == "/request"]


def test_a_sandbox_is_asked_for(client: Client, fake: FakeNdif, right: Any) -> None:
    assert_equal(client.run(2, sandboxed=True), right(2))
    assert fake.record()["trusted"] == [False, False]


def test_a_store_that_was_begun_here_is_not_continued_there(client: Client, fake: FakeNdif) -> None:
    vp.run(experiment(2), model=client.model, store=client.store, progress=False, checks=False)
    attributes = StoreAttributes(client.store)
    attributes.forget("examples_kept")  # as if it were not finished
    client.error(SpecError, "was begun on the backend 'local', this run is on 'ndif'", 2)
    assert not [request for request in fake.record()["requests"] if request["path"] == "/request"]


def test_another_experiments_jobs_are_not_taken_for_ones_own(
    client: Client, fake: FakeNdif, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.control(hold=True)
    client.interrupted(monkeypatch, 2)
    monkeypatch.setattr("vlm_patching.backends.jobs.code_digest", lambda: "another version of what travels")
    fake.control(hold=False)
    assert_equal(client.run(2), right(2))
    assert client.noted() == 0
