"""What the tests of bad input share: specs that are right, and ways to make them wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlm_patching as vp

BLIP: dict[str, Any] = {
    "name": "bad-input",
    "model": {"name": "shapes-blip"},
    "pairs": {"dataset": "shapes", "n": 2, "keep": "all"},
    "corruption": {"kind": "semantic_image_pair"},
    "patch": {"sites": ["question_encoder.resid_post"], "positions": ["last"]},
}
LLAVA = {**BLIP, "model": {"name": "shapes-llava"}, "patch": {"sites": ["language.resid_post"], "positions": ["last"]}}
TEXT_PAIR = {"corruption.kind": "symmetric_token_replacement"}
HEADS = {"patch.sites": ["question_encoder.attn_head"]}
RECORD: dict[str, Any] = {
    "id": "0",
    "clean": {"image": "red.png", "text": "is the ring red or blue?"},
    "corrupted": {"image": "blue.png", "text": "is the ring green or yellow?"},
    "answer": "red",
    "foil": "blue",
    "spans": {"answer_option": [12, 15]},
    "regions": {"object": [1, 1, 30, 30]},
}
MISSING = object()


def changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with values at dotted paths replaced, or left out where they are MISSING."""
    copy: dict[str, Any] = json.loads(json.dumps(data))
    for path, value in changes.items():
        *sections, key = path.split(".")
        inside: Any = copy
        for section in sections:
            inside = inside[int(section) if isinstance(inside, list) else section]
        place = int(key) if isinstance(inside, list) else key
        if value is MISSING:
            del inside[place]
        else:
            inside[place] = value
    return copy


def refusal(attempt: Callable[[], object]) -> str:
    with pytest.raises(vp.SpecError) as caught:
        attempt()
    message = str(caught.value)
    assert message.strip() and "\n" not in message, f"not one paragraph: {message!r}"
    return message


def refused(spec: Mapping[str, Any], **options: Any) -> str:
    return refusal(lambda: vp.run(vp.Experiment.from_dict(spec), progress=False, **options))


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


def shown(value: object) -> str:
    """How a case is called: its changes."""
    if not isinstance(value, dict):
        return ""
    return ", ".join(f"{path}={'missing' if change is MISSING else change!r}" for path, change in value.items())


def folder_of(path: Path, *records: Mapping[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    for color in ("red", "blue"):
        Image.new("RGB", (96, 96), color).save(path / f"{color}.png")
    (path / "pairs.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def spec_of(folder: Path | str, spec: Mapping[str, Any] = BLIP) -> dict[str, Any]:
    return {**spec, "pairs": {"dataset": "folder", "path": str(folder), "keep": "all"}}


def second(changes: Mapping[str, Any]) -> dict[str, Any]:
    return changed(RECORD, {"id": "1", **changes})
