"""A small HTTP server that speaks NDIF's protocol, runs its jobs for real, and goes wrong on demand.

It is a process of its own, as its clients are killed. What is to go wrong is sent to /control, what has happened is
read from /record. A fault is a dict: `path` begins the paths it is for ("job": for jobs that start), `do` says what
happens, `times` how often, `skip` how many it lets pass first.
"""

from __future__ import annotations

import hashlib
import io
import json
import linecache
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import Any

WAITING = ("RECEIVED", "QUEUED")


class Evil:
    """What a result must not hold: whoever unpickles it runs code."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.folder,)


class State:
    """Everything that the server knows; `lock` guards it."""

    def __init__(self, folder: str) -> None:
        self.lock = threading.RLock()
        self.key = (
            "nnsight.modeling.transformers.TransformersModel:"
            f'{{"repo_id": "{folder}", "revision": null, "task": "image-text-to-text"}}'
        )
        self.clear()

    def clear(self) -> None:
        self.todo: queue.Queue[str] = queue.Queue()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.faults: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.ran: list[dict[str, Any]] = []
        self.examples: list[str] = []
        self.most = 0
        self.hold = False
        self.delay = 0.0
        self.ids = True  # whether a client may name its jobs
        self.settings: dict[str, Any] = {
            "status": {"deployments": {f"abcde:ModelActor:{self.key}": {"application_state": "RUNNING"}}},
            "env": {
                "python_version": sys.version,
                "packages": {name: metadata.version(name) for name in ("nnsight", "torch", "transformers")},
            },
            "whoami": {"email": None, "tags": []},
        }

    def fault(self, path: str, **facts: Any) -> dict[str, Any] | None:
        """The first fault that is for this."""
        with self.lock:
            for fault in self.faults:
                if not path.startswith(fault["path"]) or fault.get("times", 1) <= 0:
                    continue
                if any(facts[name] <= fault["more_" + name] for name in facts if "more_" + name in fault):
                    continue
                if "example" in fault and fault["example"] not in facts.get("which", ()):
                    continue
                if fault.get("skip", 0) > 0:
                    fault["skip"] -= 1
                    continue
                fault["times"] = fault.get("times", 1) - 1
                return fault
        return None


class Runner(threading.Thread):
    """Runs jobs, one after the other, as an NDIF server does that trusts its users."""

    def __init__(self, state: State, folder: str) -> None:
        super().__init__(daemon=True)
        import torch
        from nnsight.modeling.transformers import TransformersModel
        from transformers import AutoProcessor

        torch.set_num_threads(1)
        self.state = state
        processor = AutoProcessor.from_pretrained(folder)
        self.model = TransformersModel(folder, task="image-text-to-text", processor=processor, dispatch=True)
        self.model._module.requires_grad_(False)
        sys.modules["vlm_patching"] = None  # type: ignore[assignment] # it has to come with the job

    def run(self) -> None:
        import traceback

        while True:
            time.sleep(0.005)
            with self.state.lock:
                if self.state.hold or self.state.todo.empty():
                    continue
                job = self.state.jobs[self.state.todo.get()]
            job["status"] = "RUNNING"
            time.sleep(self.state.delay)
            try:
                self.execute(job)
            except Exception:  # noqa: BLE001 - whatever a job raises is its client's
                job.update(status="ERROR", description=traceback.format_exc())

    def execute(self, job: dict[str, Any]) -> None:
        tracer = self.deserialized(job["blob"])
        programs = tracer.info.frame.f_locals["programs"]
        which = [self.number(program) for program in programs]
        cells = [self.cells(program) for program in programs]
        fault = self.state.fault("job", examples=len(set(which)), cells=sum(cells), which=which)
        ran = {"job": job["id"], "examples": which, "cells": cells, "bytes": len(job["blob"])}
        ran["pixels"] = sum(
            program["inputs"][on]["pixel_values"].nbytes for program in programs for on in program["inputs"]
        )
        if fault is not None:
            ran["fault"] = fault["do"]
        with self.state.lock:
            self.state.ran.append(ran)
        if fault is not None and fault["do"] == "stay":
            job.update(status="QUEUED")
            return
        if fault is not None and fault["do"] == "lose":
            with self.state.lock:
                del self.state.jobs[job["id"]]
            return
        if fault is not None:
            job.update(status=fault.get("status", "ERROR"), description=fault.get("text", ""))
            return
        started = time.monotonic()
        content = self.results(tracer)
        seconds = time.monotonic() - started
        link = f"/result/{job['id']}"
        job.update(content=content, description="Your job has been completed.", data=link, meta={"runtime": seconds})
        job["status"] = "COMPLETED"

    def deserialized(self, blob: bytes) -> Any:
        from nnsight.schema.request import RequestModel

        return RequestModel.deserialize(blob, self.model._remoteable_persistent_objects(), compress=True)

    def results(self, tracer: Any) -> bytes:
        import torch
        from nnsight.tracing.globals import BLOCKS, SOURCES
        from nnsight.tracing.tracer import _saves, dec, inc

        before = [(cache, dict(cache)) for cache in (linecache.cache, SOURCES, BLOCKS)]
        inc()
        try:
            tracer.execute(tracer.info.code)
            wanted = _saves()
            saved = {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in wanted}
        finally:
            dec()
            for cache, content in before:
                cache.clear()
                cache.update(content)
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        return packed(buffer.getvalue())

    def number(self, program: dict[str, Any]) -> int:
        """Which example it is: they are counted as they come."""
        content = pickle.dumps([program["inputs"]["clean"]["pixel_values"].tolist(), program["answer"]])
        name = hashlib.sha256(content).hexdigest()
        if name not in self.state.examples:
            self.state.examples.append(name)
        return self.state.examples.index(name)

    def cells(self, program: dict[str, Any]) -> int:
        return len({cell for trace in program["sweeps"] for cell in trace.get("cells", [])})


def packed(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(content)


def poisoned(folder: str) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"results": [{"kept": True, "clean.probability": Evil(folder)}]}, buffer)
    return packed(buffer.getvalue())


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_one()

    def do_POST(self) -> None:
        self.handle_one()

    def handle_one(self) -> None:
        state = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path in ("/control", "/record"):
            self.answer(200, self.controlled(body) if self.path == "/control" else self.recorded())
            return
        key = self.headers.get("ndif-api-key", "")
        with state.lock:
            state.requests.append({"path": self.path, "key": key, "bytes": len(body), "time": time.time()})
        fault = state.fault(self.path)
        do = "" if fault is None else fault["do"]
        if do == "hang":
            time.sleep(fault.get("seconds", 3600) if fault else 0)
            return
        if do == "drop":
            self.cut_off()
        elif do == "answer lost":
            self.routed(body)
            self.cut_off()
        elif do == "html":
            self.answer(200, b"<html>Welcome to the hotel's network. Please log in.</html>", kind="text/html")
        elif do == "reset":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "')
            self.wfile.flush()
            self.cut_off(hard=True)
        elif do.isdigit():
            detail = (fault or {}).get("text", "Something went wrong.").replace("KEY", key)
            self.answer(int(do), {"detail": detail}, more=(fault or {}).get("headers", {}))
        else:
            self.answer(*self.routed(body, do, (fault or {}).get("text", "")))

    def routed(self, body: bytes, do: str = "", text: str = "") -> tuple[int, Any]:
        state, (_, path, *rest) = self.server.state, self.path.split("/")
        if path == "ping":
            return 200, "pong"
        if path in state.settings:
            return 200, state.settings[path]
        if path == "request":
            return 200, self.taken(body)
        job = state.jobs.get(rest[0]) if rest else None
        if job is None:
            return 404, {"detail": "No response for this request."}
        if path == "result":
            content = bytes(job["content"])
            return 200, {
                "corrupt": content[:40] + bytes(255 - byte for byte in content[40:80]) + content[80:],
                "truncate": content[: len(content) // 2],
                "poison": poisoned(text) if do == "poison" else b"",
            }.get(do, content)
        told = {name: job[name] for name in ("id", "status", "description", "data", "meta")}
        if told["data"]:
            told["data"] = f"http://{self.headers['Host']}{told['data']}"
        return 200, told

    def taken(self, body: bytes) -> dict[str, Any]:
        state, form = self.server.state, parsed(self.headers["Content-Type"], body)
        envelope = json.loads(form["data"])
        name = envelope["id"] if state.ids and "id" in envelope else uuid.uuid4().hex
        job = {
            "id": name,
            "status": "QUEUED",
            "description": "Added to Queue at position 1.",
            "data": None,
            "meta": None,
        }
        with state.lock:
            state.jobs[name] = {**job, "blob": form["blob"], "trusted": envelope.get("trusted", True)}
            state.todo.put(name)
            under_way = [one for one in state.jobs.values() if one["status"] in (*WAITING, "RUNNING")]
            state.most = max(state.most, len(under_way))
        return {"id": name, "status": "RECEIVED", "description": "Your job has been received."}

    def controlled(self, body: bytes) -> dict[str, Any]:
        state, wanted = self.server.state, json.loads(body)
        with state.lock:
            if wanted.pop("reset", False):
                state.clear()
            if wanted.pop("well", False):
                state.faults = []
            if wanted.pop("restart", False):
                state.todo = queue.Queue()
            state.faults += wanted.pop("faults", [])
            for name in ("hold", "ids", "delay"):
                setattr(state, name, wanted.pop(name, getattr(state, name)))
            state.settings |= wanted
        return {}

    def recorded(self) -> dict[str, Any]:
        state = self.server.state
        with state.lock:
            waiting = [job["id"] for job in state.jobs.values() if job["status"] in WAITING]
            trusted = [job["trusted"] for job in state.jobs.values()]
            return {
                "requests": state.requests,
                "jobs": state.ran,
                "most": state.most,
                "waiting": waiting,
                "trusted": trusted,
                "key": state.key,
            }

    def answer(
        self, code: int, content: Any, kind: str = "application/json", more: dict[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def cut_off(self, hard: bool = False) -> None:
        if hard:  # a reset instead of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR) if not hard else self.connection.close()


def parsed(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts of a multipart form."""
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    assert isinstance(message, Message)
    found = {}
    for part in message.get_payload():
        assert isinstance(part, Message)
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        found[str(part.get_param("name", header="content-disposition"))] = payload
    return found


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: State) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.state = state


def main(folder: str) -> None:
    state = State(folder)
    Runner(state, folder).start()
    server = Server(state)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
