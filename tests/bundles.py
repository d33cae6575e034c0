"""Ways to change a bundle, and what the tests of bad bundles share."""

from __future__ import annotations

import hashlib
import json
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vlm_patching as vp
from tests.mutants import Watch
from tests.refusals import refusal, says
from vlm_patching.models import Model

Change = Callable[[dict[str, bytes]], None]
ARRAY = "results.zarr/probability/zarr.json"
CHUNK = "results.zarr/probability/c/0/0/0/0"


STACK = {"shapes-blip": "question_encoder", "shapes-llava": "language"}
SWEEP: dict[str, Any] = {"layers": [0, 2], "positions": ["last"]}
METHODS: dict[str, Callable[[str], dict[str, Any]]] = {
    "patch with an image pair": lambda stack: {
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": [f"{stack}.resid_post"], **SWEEP},
    },
    "patch under noise": lambda stack: {
        "corruption": {"kind": "gaussian_noise", "draws": 2},
        "patch": {"sites": [f"{stack}.mlp_out"], "direction": "noise", **SWEEP},
    },
    "patch heads under a made corruption": lambda stack: {
        "corruption": {"kind": "shuffled_image"},
        "patch": {"sites": [f"{stack}.attn_head"], **SWEEP},
        "metrics": ["logit_difference", "answer_rank"],
    },
    "replaced words": lambda stack: {
        "corruption": {"kind": "symmetric_token_replacement", "automatic": True},
        "patch": {"sites": [f"{stack}.resid_post"], **SWEEP},
    },
    "knockout": lambda stack: {"knockout": {"sites": [f"{stack}.attn_pattern"], "edges": ["question -> last"]}},
    "attention": lambda stack: {"attention": {"sites": [f"{stack}.attn_pattern"], **SWEEP}},
}


def experiment_of(name: str, method: str, **changes: Any) -> vp.Experiment:
    spec = {"name": method, "model": {"name": name}, "pairs": {"dataset": "shapes", "n": 2, "keep": "all"}}
    return vp.Experiment.from_dict({**spec, **METHODS[method](STACK[name]), **changes})


def remade(bundle: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A bundle whose files are changed, and whose manifest says so."""
    with zipfile.ZipFile(bundle) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(files.pop("manifest.json"))
    change(files)
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} for name, content in files.items()
    }
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in {"manifest.json": json.dumps(manifest).encode(), **files}.items():
            archive.writestr(name, content)
    return target


def saved(model: Model, folder: Path) -> Path:
    """A bundle of a small sweep."""
    experiment = experiment_of("shapes-llava", "patch with an image pair")
    return vp.bundle.save(experiment, vp.run(experiment, model=model, progress=False), folder / "whole.vlmp.zip")


def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Watch:
    """Nothing is written but below a folder, which is empty in the end; nothing is unpickled or started."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    vp.bundle.show(bundle)  # imports what it needs
    return Watch(place)


def refused(path: Path, watch: Watch, *parts: str) -> None:
    """A bundle that `show`, `verify` and `replay` refuse, each leaving nothing behind."""

    def check(attempt: Callable[[Path], object]) -> None:
        says(refusal(lambda: attempt(path)), f"Bundle {path.name}:", *parts)
        assert not list(watch.folder.iterdir())

    with watch.running():
        for attempt in (vp.bundle.show, vp.bundle.verify, vp.bundle.replay):
            watch.put(attempt, check)


def edited(name: str, change: Callable[[Any], Any]) -> Change:
    """A change of one JSON file: in place, or to what is returned."""

    def apply(files: dict[str, bytes]) -> None:
        data = json.loads(files[name])
        other = change(data)
        files[name] = json.dumps(data if other is None else other).encode()

    return apply


def put(name: str, content: bytes) -> Change:
    return lambda files: files.update({name: content})


def rezipped(bundle: Path, target: Path, change: Callable[[zipfile.ZipFile], None]) -> Path:
    """A bundle with entries appended."""
    target.write_bytes(bundle.read_bytes())
    with zipfile.ZipFile(target, "a") as opened:
        change(opened)
    return target


def entry(name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Callable[[zipfile.ZipFile], None]:
    def add(opened: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        opened.writestr(info, content)

    return add


def patched_directory(content: bytes, name: str, offset: int, form: str, value: int) -> bytes:
    """A zip whose central directory says something else about a file."""
    at = content.rindex(name.encode()) - 46
    assert content[at : at + 4] == b"PK\1\2"
    return content[: at + offset] + struct.pack(form, value) + content[at + offset + struct.calcsize(form) :]


def manifest_changed(bundle: Path, target: Path, change: Callable[[Any], None]) -> Path:
    with zipfile.ZipFile(bundle) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    edited("manifest.json", change)(files)
    with zipfile.ZipFile(target, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return target
