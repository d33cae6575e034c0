"""What goes wrong on the way to an NDIF server and back costs no result: the run ends with the right numbers, or with
one clear error and a store that the same command completes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import vlm_patching as vp
from tests.unreliable import (
    BOOM,
    MANY,
    OUT_OF_MEMORY,
    PREEMPTED,
    SECRET,
    TOO_LONG,
    Client,
    FakeNdif,
    assert_equal,
    experiment,
    ran,
)
from vlm_patching.backends import flights, ndif
from vlm_patching.backends.wire import Refused, Server
from vlm_patching.errors import RunError, SpecError

pytest_plugins = "tests.unreliable"
pytestmark = pytest.mark.usefixtures("as_new")

Fault = dict[str, Any]


# What passes: nothing is run twice


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "/response", "do": "500", "times": 3},
        {"path": "/response", "do": "502", "times": 3},
        {"path": "/response", "do": "429", "times": 2, "headers": {"Retry-After": "0.1"}},
        {"path": "/response", "do": "drop", "times": 3},
        {"path": "/response", "do": "reset", "times": 3},
        {"path": "/response", "do": "hang"},
        {"path": "/response", "do": "404", "skip": 1},
        {"path": "/request", "do": "503", "times": 2},
        {"path": "/request", "do": "429", "times": 2, "headers": {"Retry-After": "soon"}},
        {"path": "/request", "do": "drop", "times": 2},
        {"path": "/request", "do": "reset"},
        {"path": "/request", "do": "answer lost", "times": 3},
        {"path": "/result", "do": "500"},
        {"path": "/result", "do": "drop"},
        {"path": "/result", "do": "reset"},
        {"path": "/result", "do": "hang"},
        {"path": "/result", "do": "403", "times": 2},
        {"path": "/result", "do": "404"},
        {"path": "/result", "do": "corrupt"},
        {"path": "/result", "do": "truncate"},
        {"path": "/result", "do": "html"},
        {"path": "/ping", "do": "503"},
        {"path": "/env", "do": "502"},
        {"path": "/status", "do": "drop"},
    ],
    ids=lambda fault: f"{fault['do']} to {fault['path']}",
)
def test_what_passes_costs_no_job(client: Client, fake: FakeNdif, right: Any, fault: Fault) -> None:
    fake.control(fault)
    assert_equal(client.run(2), right(2))
    assert ran(fake) == {0: 1, 1: 1}
    assert client.noted() == 0


def test_a_server_that_names_jobs_itself_is_understood(client: Client, fake: FakeNdif, right: Any) -> None:
    fake.control(ids=False)
    assert_equal(client.run(2), right(2))
    assert ran(fake) == {0: 1, 1: 1}


# What is lost is sent again, and only that


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "/result", "do": "403", "times": 3},
        {"path": "/result", "do": "truncate", "times": 3},
        {"path": "job", "do": "error", "text": PREEMPTED},
        {"path": "job", "do": "error", "text": "Error starting model. Please try again later."},
        {"path": "job", "do": "lose"},
        {"path": "job", "do": "stay"},
    ],
    ids=["link expired", "result broken", "preempted", "not started", "forgotten", "left in the queue"],
)
def test_a_lost_job_is_sent_again(client: Client, fake: FakeNdif, right: Any, fault: Fault) -> None:
    fake.control(fault)
    assert_equal(client.run(jobs=1 if fault["path"] == "/result" else 4), right(3))
    assert ran(fake) == {0: 2, 1: 1, 2: 1}
    assert client.noted() == 0


def test_a_job_without_a_result_by_its_deadline_is_sent_again(client: Client, fake: FakeNdif, right: Any) -> None:
    fake.control({"path": "job", "do": "stay"})
    assert_equal(client.run(2, jobs=1, deadline=0.8), right(2))
    assert ran(fake) == {0: 2, 1: 1}


def test_a_queue_that_was_forgotten_is_sent_once_more(
    client: Client, fake: FakeNdif, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.control(hold=True)
    client.interrupted(monkeypatch, 2)
    fake.restart()
    fake.control(hold=False)
    monkeypatch.setattr(flights, "STALLED_SECONDS", 0.2)
    assert_equal(client.run(2), right(2))
    assert ran(fake) == {0: 1, 1: 1}
    assert client.noted() == 0


def test_a_job_that_only_waits_for_long_is_still_the_one_that_counts(
    client: Client, fake: FakeNdif, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.control(hold=True)
    client.interrupted(monkeypatch, 2)
    monkeypatch.setattr(flights, "STALLED_SECONDS", 0.2)
    real, sent = ndif.NdifBackend._sent, []

    def released(self: Any, chunk: Any) -> Any:
        sent.append(real(self, chunk))
        fake.control(hold=False)
        return sent[-1]

    monkeypatch.setattr(ndif.NdifBackend, "_sent", released)
    assert_equal(client.run(2), right(2))
    assert sent and client.noted() == 0


# What does not pass ends in one clear error, and the store goes on


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ({"path": "/response", "do": "500"}, RunError, "has not answered for 0.5 s .status 500, Something went wrong"),
        ({"path": "/response", "do": "drop"}, RunError, "has not answered for 0.5 s .RemoteProtocolError"),
        ({"path": "/response", "do": "hang"}, RunError, "has not answered for 0.5 s .ReadTimeout"),
        ({"path": "/response", "do": "401", "text": "Bad key KEY"}, SpecError, "not accept the API key .*: Bad key <k"),
        ({"path": "/response", "do": "403"}, SpecError, "does not accept the API key in NDIF_API_KEY"),
        ({"path": "/response", "do": "400", "text": "What?"}, RunError, "status 400 to /response/.*, What?"),
        ({"path": "/response", "do": "html"}, RunError, "does not answer /response/.* as an NDIF server does: <html>"),
        ({"path": "/result", "do": "500"}, RunError, "has not answered for 0.5 s"),
        ({"path": "/result", "do": "reset"}, RunError, "has not answered for 0.5 s"),
    ],
    ids=lambda value: f"{value['do']} to {value['path']}" if isinstance(value, dict) else "",
)
def test_jobs_outlive_an_error(
    client: Client, fake: FakeNdif, right: Any, fault: Fault, kind: type[Exception], says: str
) -> None:
    fake.control({**fault, "times": MANY})
    client.error(kind, says, 2, patience=0.5)
    assert client.noted() == 2
    fake.reset_faults()
    assert_equal(client.run(2), right(2))
    assert ran(fake) == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ({"path": "/request", "do": "500"}, RunError, "has not answered for 0.5 s"),
        ({"path": "/request", "do": "401"}, SpecError, "does not accept the API key in NDIF_API_KEY"),
        ({"path": "/request", "do": "403"}, SpecError, "does not accept the API key in NDIF_API_KEY"),
        ({"path": "/request", "do": "400", "text": "Bad: 'KEY'"}, RunError, "did not take a job: Bad: '<key>'"),
        ({"path": "/request", "do": "413"}, RunError, "Pair 'shapes-0-0' failed: its job is larger .*2 of 2 pairs"),
        ({"path": "/request", "do": "html"}, RunError, "does not answer /request as an NDIF server does"),
        ({"path": "/result", "do": "403"}, RunError, "does not get on: .* sent 4 times, and lost .*status 403"),
        ({"path": "job", "do": "stay"}, RunError, "sent 4 times, and lost .no result within 0.3 s; .* QUEUED"),
        ({"path": "job", "do": "error", "text": PREEMPTED}, RunError, "sent 4 times .* lost: Your job was cancelled"),
        (
            {"path": "job", "do": "error", "text": BOOM},
            RunError,
            "'shapes-0-0' failed: RuntimeError: boom 2 of 2 pairs",
        ),
        (
            {"path": "job", "do": "error", "text": OUT_OF_MEMORY},
            RunError,
            "Memory does not suffice, .*OutOfMemoryError",
        ),
        ({"path": "job", "do": "error", "text": TOO_LONG}, RunError, "Time does not suffice.*execution timeout of 30s"),
        (
            {"path": "job", "do": "odd", "status": "PAUSED"},
            RunError,
            "calls its status 'PAUSED', which this client does",
        ),
    ],
    ids=lambda value: f"{value['do']} to {value['path']}" if isinstance(value, dict) else "",
)
def test_a_store_goes_on_after_an_error(
    client: Client, fake: FakeNdif, right: Any, fault: Fault, kind: type[Exception], says: str
) -> None:
    fake.control({**fault, "times": MANY})
    hasty = fault["do"] == "stay"
    client.error(kind, says, 2, patience=0.5, deadline=0.3 if hasty else 20)
    fake.reset()
    assert_equal(client.run(2), right(2))
    assert ran(fake) == {0: 1, 1: 1}
    assert client.noted() == 0


def test_a_result_that_runs_code_is_not_opened(client: Client, fake: FakeNdif, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    fake.control({"path": "/result", "do": "poison", "text": str(marker), "times": MANY})
    client.error(RunError, "something other than tensors, numbers and texts; it was not opened")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"env": {"python_version": "3.12", "packages": {"nnsight": "0.7.9"}}},
            r"has nnsight 0\.7\.9, and here is .*pip install 'nnsight==0\.7\.9'",
        ),
        ({"status": {"deployments": {}}}, "has not deployed 'shapes-llava'.* It has: no model at all"),
        ({"state": "UNHEALTHY"}, "has 'shapes-llava', but it is UNHEALTHY"),
        ({"fault": {"path": "/ping", "do": "html"}}, "answers, but not as an NDIF server does"),
        ({"fault": {"path": "/ping", "do": "404"}}, "answers, but not as an NDIF server does: status 404"),
        ({"fault": {"path": "/ping", "do": "drop"}}, "No NDIF server answers at .*RemoteProtocolError"),
        ({"fault": {"path": "/ping", "do": "hang"}}, "No NDIF server answers at .*ReadTimeout"),
        ({"fault": {"path": "/env", "do": "html"}}, "does not answer /env as an NDIF server does"),
        ({"fault": {"path": "/status", "do": "404"}}, "status 404 to /status"),
    ],
    ids=["nnsight", "absent", "unhealthy", "no NDIF", "a 404", "drops", "hangs", "no /env", "no /status"],
)
def test_a_server_that_cannot_be_used_is_found_out_before_anything_is_sent(
    client: Client, fake: FakeNdif, settings: dict[str, Any], says: str
) -> None:
    if "state" in settings:
        name = f"abcde:ModelActor:{fake.record()['key']}"
        settings = {"status": {"deployments": {name: {"application_state": settings["state"]}}}}
    fault = settings.get("fault")
    if fault:
        fake.control({**fault, "times": MANY})
    else:
        fake.control(**settings)
    client.error(RunError, says)
    assert not [request for request in fake.record()["requests"] if request["path"] == "/request"]


def test_no_server_at_the_address(client: Client) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        free = one.getsockname()[1]
    client.error(RunError, "No NDIF server answers at .*Is the address right", host=f"http://127.0.0.1:{free}")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:80", "http://", "http://[::1", "http://x:99999", "ftp://x", "http://x?a=b"]
)
def test_an_address_that_is_none(host: str) -> None:
    with pytest.raises(SpecError, match="is no address of a server"):
        vp.Remote(host)


def test_an_address_with_a_password_is_not_repeated() -> None:
    with pytest.raises(SpecError, match="a name or a password") as caught:
        vp.Remote(f"http://me:{SECRET}@server")
    assert SECRET not in str(caught.value)


# Sizes: of chunks, of pieces, of requests


@pytest.mark.parametrize("text", [OUT_OF_MEMORY, TOO_LONG], ids=["memory", "time"])
def test_too_many_examples_at_once_are_halved(client: Client, fake: FakeNdif, right: Any, text: str) -> None:
    fake.control({"path": "job", "do": "error", "text": text, "more_examples": 1, "times": MANY})
    assert_equal(client.run(4, jobs=1), right(4))
    done = [job["examples"] for job in fake.record()["jobs"] if "fault" not in job]
    assert sorted(done) == [[0], [1], [2], [3]]
    assert [1, 2, 3] in [job["examples"] for job in fake.record()["jobs"]]


def test_a_job_that_is_too_large_is_halved(client: Client, fake: FakeNdif, right: Any) -> None:
    fake.control({"path": "/request", "do": "413", "skip": 1})
    assert_equal(client.run(4, jobs=1), right(4))
    assert ran(fake) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert max(len(job["examples"]) for job in fake.record()["jobs"]) == 2


@pytest.mark.parametrize("text", [OUT_OF_MEMORY, TOO_LONG], ids=["memory", "time"])
def test_too_many_cells_of_an_example_are_run_in_parts(client: Client, fake: FakeNdif, right: Any, text: str) -> None:
    fake.control({"path": "job", "do": "error", "text": text, "more_cells": 3, "times": MANY})
    assert_equal(client.run(2), right(2), tolerance=2e-5)
    done = [sum(job["cells"]) for job in fake.record()["jobs"] if "fault" not in job]
    assert sum(done) == 16 and max(done) <= 3


def test_an_example_that_fails_does_not_take_others_of_its_job_with_it(
    client: Client, fake: FakeNdif, right: Any
) -> None:
    fake.control({"path": "job", "do": "error", "text": BOOM, "example": 2, "times": MANY})
    message = client.error(RunError, "Pair 'shapes-0-.' failed: RuntimeError: boom 1 of 4 pairs failed", 4, jobs=1)
    assert "the others are done" in message
    jobs = fake.record()["jobs"]
    assert [1, 2, 3] in [job["examples"] for job in jobs]
    assert sorted(example for job in jobs if "fault" not in job for example in job["examples"]) == [0, 1, 3]
    done = vp.load_results(client.store)["kept"].values.tolist()
    assert [bool(kept) for kept in done] == [True, True, False, True]
    fake.reset()
    assert_equal(client.run(4), right(4))
    assert ran(fake) == {0: 1}


def test_no_more_jobs_are_under_way_than_was_asked_for(client: Client, fake: FakeNdif, right: Any) -> None:
    fake.control({"path": "job", "do": "error", "text": OUT_OF_MEMORY, "more_examples": 1, "times": MANY}, delay=0.3)
    assert_equal(client.run(4, jobs=2), right(4))
    assert fake.record()["most"] == 2


def test_a_sweep_of_many_heads_is_a_small_request(
    client: Client, fake: FakeNdif, record_property: Callable[[str, object], None]
) -> None:
    patch = {"sites": ["language.attn_head"], "positions": ["each:all"]}
    client.run(spec=experiment(1, patch=patch, corruption={"kind": "gaussian_noise", "std": 0.5, "draws": 2}))
    (job,) = fake.record()["jobs"]
    record_property("cells", job["cells"][0])
    record_property("bytes", job["bytes"])
    assert job["cells"][0] >= 1152
    assert job["bytes"] < 100_000


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "job", "do": "error", "text": OUT_OF_MEMORY, "more_examples": 1, "times": MANY},
        {"path": "job", "do": "error", "text": PREEMPTED},
        {"path": "/request", "do": "413"},
    ],
    ids=["memory", "preempted", "413"],
)
def test_what_is_of_all_examples_together_is_halved_or_sent_again(client: Client, fake: FakeNdif, fault: Fault) -> None:
    spec = experiment(3, corruption={"kind": "gaussian_noise", "draws": 1})  # its scale is that of all pairs
    wanted = vp.run(spec, model=client.model, progress=False, checks=False)
    fake.control(fault)
    assert_equal(client.run(spec=spec), wanted, tolerance=2e-5)
    assert max(len(job["examples"]) for job in fake.record()["jobs"]) == (2 if fault["do"] == "413" else 3)
    assert client.noted() == 0


@pytest.mark.parametrize(("size", "code"), [(2_000_000, 413), (1_000, 400)])
def test_a_server_that_cannot_parse_what_is_over_a_megabyte_takes_smaller_jobs(size: int, code: int) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"detail": "There was an error parsing the body"})

    server = Server(vp.Remote("http://127.0.0.1:1"))
    server._client = httpx.Client(transport=httpx.MockTransport(answer))
    with pytest.raises(Refused) as refused:
        server.submit("key", bytes(size), "job")
    assert refused.value.code == code and ("anyio 4.15" in str(refused.value)) == (code == 413)
