"""`serve-ndif` and `Loopback`: a real server comes up, several at once, and what was started is stopped."""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.modeling import huggingface
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel
from PIL import Image
from transformers import AutoProcessor

import vlm_patching as vp
from vlm_patching.errors import RunError, SpecError
from vlm_patching.serving import Loopback, stop_server
from vlm_patching.serving.processes import listens, members
from vlm_patching.serving.state import State, read_state

pytestmark = pytest.mark.filterwarnings("ignore:.*has a submodule named 'output'")

COMMAND = [sys.executable, "-m", "vlm_patching", "serve-ndif"]


def test_the_server_answers(server: Loopback) -> None:
    assert server.ping()
    assert server.get("/connected") == {"status": "connected"}
    assert server.get("/whoami") == {"email": None, "tags": []}


def test_it_says_which_models_run(server: Loopback) -> None:
    deployments = server.status()["deployments"]
    running = {name.split(":", 2)[2] for name, d in deployments.items() if d["application_state"] == "RUNNING"}
    assert running == set(server.model_keys.values())
    assert len(running) == 3


def test_its_environment_is_like_ours_and_lacks_us(server: Loopback) -> None:
    packages = server.get("/env", timeout=60)["packages"]
    for name in ("nnsight", "transformers"):
        assert packages[name] == importlib.import_module(name).__version__
    assert packages["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert not [name for name in packages if "vlm" in name.lower()]


def test_it_listens_on_this_machine_only(server: Loopback) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; says which address would be used
        except OSError:
            pytest.skip("this machine has no other address")
        address = probe.getsockname()[0]
    state = _state(server)
    for port in state.ports.values():
        with socket.socket() as one:
            one.settimeout(1.0)
            assert one.connect_ex((address, port)) != 0, port


@pytest.mark.parametrize("which", ["shapes-llava", "captioner"])
def test_a_request_gives_what_the_model_gives_here(server: Loopback, captioner: str, which: str) -> None:
    name = captioner if which == "captioner" else which
    model, inputs = _client_model(name)
    backend = RemoteBackend(server.model_keys[name], host=server.host)
    with torch.no_grad(), model.trace(inputs, backend=backend):
        remote = model.output.logits.save()
    with torch.no_grad():
        local = _local_module(name)(**inputs).logits
    assert model.to_model_key() == server.model_keys[name]
    torch.testing.assert_close(remote, local, rtol=0, atol=1e-6)


def test_blip_vqa_runs_with_its_wrapper(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(resources.files("vlm_patching.serving") / "wrappers"))
    folder = str(vp.bundled_models()["shapes-blip"])
    monkeypatch.setitem(huggingface._ID_CACHE, folder, folder)
    model = importlib.import_module("vlm_patching_blip").BlipVqaModel(folder)
    assert model.to_model_key() == server.model_keys["shapes-blip"]
    inputs = _inputs(folder, "what color is the circle ?")
    inputs["decoder_input_ids"] = inputs["input_ids"][:, :1]
    with model.trace(**inputs, backend=RemoteBackend(server.model_keys["shapes-blip"], host=server.host)):
        remote = model.text_decoder.output.logits.save()
    assert remote.shape[:2] == (1, 1)


def test_a_trusting_server_has_no_sandbox_to_offer(server: Loopback) -> None:
    model, inputs = _client_model("shapes-llava")
    backend = _UntrustedBackend(server.model_keys["shapes-llava"], host=server.host)
    with pytest.raises(RemoteError, match="start it with --sandboxed"), model.trace(inputs, backend=backend):
        model.output.logits.save()


@pytest.mark.slow
def test_a_sandboxed_server_keeps_weights_from_users(environment: Path) -> None:
    with Loopback(["shapes-llava"], environment=environment, sandboxed=True, deadline=600) as server:
        model, inputs = _client_model("shapes-llava")
        key = server.model_keys["shapes-llava"]
        with model.trace(inputs, backend=RemoteBackend(key, host=server.host)):
            logits = model.output.logits.save()
        assert logits.isfinite().all()
        with pytest.raises(RemoteError), model.trace(inputs, backend=RemoteBackend(key, host=server.host)):
            (model.lm_head.weight * 1.0).save()


@pytest.mark.slow
def test_two_at_once_and_a_parent_that_is_killed(server: Loopback, environment: Path, tmp_path: Path) -> None:
    arguments = ["shapes-llava", "--state", str(tmp_path / "state"), "--environment", str(environment)]
    second = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert second.stdout is not None
        lines = iter(second.stdout.readline, "")
        host = next(found[1] for line in lines if (found := re.search(r"NDIF server at (\S+),", line)))
        state = read_state(tmp_path / "state")
        assert state is not None and state.host == host != server.host
        assert not set(state.ports.values()) & set(_state(server).ports.values())
        with pytest.raises(SpecError, match="is that of a server that runs at"):
            Loopback([], environment=environment, state=tmp_path / "state").start()

        second.kill()
        second.communicate()
        assert all(service.alive for service in state.services)
        assert listens(state.ports["api"])
    finally:
        second.kill()
        stopped = subprocess.run([*COMMAND, "--stop", *arguments[1:3]], capture_output=True, text=True)

    assert stopped.stdout == f"Stopped {host}.\n"
    _assert_gone(state)
    again = subprocess.run([*COMMAND, "--stop", *arguments[1:3]], capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.startswith("No server runs in")
    assert server.ping()
    assert all(service.alive for service in server.services)
    assert server.status()["deployments"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_that_was_started(environment: Path, tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["shapes-llava", "--state", str(tmp_path), "--environment", str(environment)]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, text=True)
    state = _wait_for_service(tmp_path, "ray")
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output.endswith("Stopping.\n")
    _assert_gone(state)
    assert read_state(tmp_path) is None


def test_one_that_is_stopped_from_elsewhere_says_so(environment: Path, tmp_path: Path) -> None:
    loopback = Loopback([], environment=environment, state=tmp_path, deadline=600).start()
    try:
        state = _state(loopback)
        assert stop_server(tmp_path) == loopback.host
        loopback.wait()
        _assert_gone(state)
        assert stop_server(tmp_path) is None
    finally:
        loopback.stop()
        loopback.stop()


def test_what_does_not_come_up_is_shown_by_its_log(environment: Path, tmp_path: Path) -> None:
    redis = tmp_path / "redis-server"
    redis.write_text("#!/bin/sh\necho no memory for a queue\nexit 3\n")
    redis.chmod(0o755)
    with pytest.raises(RunError, match=r"redis of the NDIF server ended(.|\n)*no memory for a queue"):
        Loopback([], environment=environment, redis=redis, state=tmp_path / "state").start()
    assert read_state(tmp_path / "state") is None


def test_a_deadline_is_kept(environment: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match="was not up after 1 s"):
        Loopback([], environment=environment, state=tmp_path, deadline=1).start()
    assert time.monotonic() - started < 20
    assert read_state(tmp_path) is None


def test_a_model_that_does_not_exist_is_refused_first(nothing_starts: None, environment: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"Unknown model '.*nowhere'"):
        Loopback([str(tmp_path / "nowhere")], environment=environment).start()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match=r"config\.json could not be read"):
        Loopback([str(tmp_path / "empty")], environment=environment).start()


def test_blip_vqa_without_its_wrapper_is_refused_first(nothing_starts: None, environment: Path) -> None:
    with pytest.raises(SpecError, match=r"no pipeline task.*--with-wrappers"):
        Loopback(["shapes-blip"], environment=environment).start()


def test_without_redis_one_is_told_where_to_get_it(
    nothing_starts: None, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SpecError, match=r"redis-server was not found.*apt-get install redis-server.*--redis PATH"):
        Loopback(["shapes-llava"], environment=environment).start()


def test_a_port_in_use_is_refused_first(nothing_starts: None, environment: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match=f"Port {port} is in use"):
            Loopback(["shapes-llava"], environment=environment, port=port).start()


def test_a_folder_that_is_no_environment_is_refused_first(
    nothing_starts: None, environment: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="is not an environment with an NDIF server"):
        Loopback(["shapes-llava"], environment=tmp_path).start()


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which a process is started."""

    def start(*arguments: object, **options: object) -> None:
        pytest.fail("a process was started before the request was refused")

    monkeypatch.setattr(subprocess, "Popen", start)


class _UntrustedRequest(RequestModel):
    """A request that asks for the sandbox; a server without accounts believes it."""

    trusted: bool = False


class _UntrustedBackend(RemoteBackend):
    def _post(self, request: RequestModel, blob: bytes) -> ResponseModel:
        return super()._post(_UntrustedRequest(**request.model_dump()), blob)


def _client_model(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model without weights that requests are written on, and inputs for it."""
    folder = str(vp.bundled_models().get(name, name))
    huggingface._ID_CACHE[folder] = folder  # nnsight asks the hub how a model's name is spelt
    processor = AutoProcessor.from_pretrained(folder)
    text = "<image> what color is the circle ?" if name == "shapes-llava" else "a circle"
    return TransformersModel(folder, task="image-text-to-text", processor=processor), _inputs(folder, text)


def _inputs(folder: str, text: str) -> dict[str, torch.Tensor]:
    processor = AutoProcessor.from_pretrained(folder)
    return dict(processor(images=[Image.new("RGB", (64, 64), (255, 0, 0))], text=text, return_tensors="pt"))


def _local_module(name: str) -> torch.nn.Module:
    import transformers

    folder = str(vp.bundled_models().get(name, name))
    kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()


def _state(server: Loopback) -> State:
    assert server.state is not None
    state = read_state(server.state)
    assert state is not None
    return state


def _wait_for_service(folder: Path, name: str) -> State:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = read_state(folder)
        if state is not None and name in [service.name for service in state.services]:
            return state
        time.sleep(0.1)
    raise AssertionError(f"{name} was not started")


def _assert_gone(state: State) -> None:
    assert not members(service.pid for service in state.services)
    assert not [service.name for service in state.services if service.alive]
    assert not [name for name, port in state.ports.items() if listens(port)]
    assert not os.path.exists(state.ray_folder)
