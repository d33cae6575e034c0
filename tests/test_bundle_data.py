"""The parts of a stranger's bundle are data: arrays, pictures, pairs and vectors are checked before they are read."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vlm_patching as vp
from tests.bundles import (
    ARRAY,
    CHUNK,
    edited,
    put,
    refused,
    remade,
    saved,
    watched,
)
from tests.mutants import Watch
from vlm_patching.bundle import inputs
from vlm_patching.models import Model


@pytest.fixture(scope="module")
def bundle(loaded: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(loaded["shapes-llava"], tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Watch:
    return watched(tmp_path, monkeypatch, bundle)


@pytest.fixture(scope="module")
def steered(loaded: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with vectors of a file, and beside it the file."""
    place = tmp_path_factory.mktemp("steered")
    width = loaded["shapes-llava"].description.config.get_text_config().hidden_size
    save_file({"vector": torch.linspace(-1, 1, width)}, place / "v.safetensors")
    steer = {"sites": ["language.resid_post"], "layers": [1], "vector": str(place / "v.safetensors"), "on": "clean"}
    spec = {"name": "steered", "model": {"name": "shapes-llava"}, "pairs": {"dataset": "shapes", "n": 1, "keep": "all"}}
    experiment = vp.Experiment.from_dict({**spec, "steer": steer})
    ds = vp.run(experiment, model=loaded["shapes-llava"], progress=False)
    return vp.bundle.save(experiment, ds, place / "b.vlmp.zip")


class Evil:
    def __reduce__(self) -> Any:
        return (Path("/tmp/vlmp-was-here").touch, ())


def test_pickles_stay_bytes(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    evil = pickle.dumps(Evil())
    array = io.BytesIO()
    np.save(array, np.array([Evil()], dtype=object), allow_pickle=True)
    for name in (CHUNK, "results.zarr/kept/c/0", "inputs/pairs.jsonl", "graph.json"):
        for content in (evil, array.getvalue()):
            refused(remade(bundle, tmp_path / "b.zip", put(name, content)), watch)
    assert not Path("/tmp/vlmp-was-here").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
        {"codecs": [{"name": "vlen-utf8"}, {"name": "numcodecs.pickle", "configuration": {"protocol": 5}}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd", "configuration": {}}]},
        {"codecs": [{"name": "sharding_indexed", "configuration": {}}]},
        {"codecs": []},
        {"data_type": "object"},
        {"data_type": {"name": "numpy.datetime64", "configuration": {}}},
        {"data_type": "string"},
        {"data_type": "float64"},
        {"shape": [2, 1, 2, 10**12]},
        {"shape": [2, 1, 2, -1]},
        {"shape": [2, 1, 2, 0]},
        {"shape": [2, 1, 2, 2**63]},
        {"shape": [2, 1, 2, 2**39]},
        {"shape": [2, 1, 2, 1.0]},
        {"shape": [2, 1, 2, True]},
        {"shape": [4]},
        {"shape": None},
        {"shape": [1] * 100},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1, 1, 1]}}},
        {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}},
        {"dimension_names": ["example", "site", "site", "position"]},
        {"dimension_names": ["example", "site", "layer", "../x"]},
        {"dimension_names": None},
        {"dimension_names": [[], {}, 1, None]},
        {"fill_value": {"a": 1}},
        {"fill_value": []},
        {"attributes": {"units": "days since 1900-01-01"}},
        {"attributes": {"coordinates": 3}},
        {"storage_transformers": [{"name": "x"}]},
        {"zarr_format": 2},
        {"node_type": "group"},
        {"more": 1},
    ],
    ids=str,
)
def test_metadata_of_arrays_that_are_no_plain_arrays(
    change: dict[str, Any], bundle: Path, tmp_path: Path, watch: Watch
) -> None:
    path = remade(bundle, tmp_path / "b.zip", edited(ARRAY, lambda data: data.update(change)))
    refused(path, watch, "results.zarr/probability")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(consolidated_metadata={"metadata": {}}),
        lambda data: data["attributes"].update(x=[1]),
        lambda data: data["attributes"].update(x=float("nan")),
        lambda data: data["attributes"].update(experiment_id="0" * 16),
        lambda data: data["attributes"].update(pairs_sha256="0" * 64),
        lambda data: data["attributes"].update(versions="[" * 100_000),
        lambda data: data["attributes"].update(weights_sha256="0" * 64),
        lambda data: data["attributes"].pop("graph_id"),
        lambda data: data["attributes"].pop("dtype"),
        lambda data: data.update(attributes=None),
        lambda data: [],
    ],
)
def test_attributes_that_do_not_belong_to_the_bundle(change: Any, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    refused(remade(bundle, tmp_path / "b.zip", edited("results.zarr/zarr.json", change)), watch)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<I", 2**32 - 1),
        struct.pack("<III", 2, 2**32 - 1, 0),
        struct.pack("<I", 3) + bytes(12),
        b"\xff",
    ],
)
def test_texts_that_say_they_are_more_than_they_are(content: bytes, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    refused(remade(bundle, tmp_path / "b.zip", put("results.zarr/kept/c/0", content)), watch, "results.zarr/kept")


@pytest.mark.parametrize("name", ["results.zarr/probability/c/0", "results.zarr/extra/zarr.json"])
def test_chunks_that_no_array_has(name: str, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    refused(remade(bundle, tmp_path / "b.zip", put(name, b"{}")), watch, "results.zarr")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, pixels: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (png(100_000, 100_000), "100000 × 100000"),
        (png(2**31 - 1, 2**31 - 1), "pixels"),
        (png(0, 5), "pixels"),
        (png(7000, 7000), "too few bytes"),
        (png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7)))), "alone"),
        (png(4, 4, chunk(b"eXIf", b"MM\0*")), "alone"),
        (png(4, 4, pixels=bytes(3)), "picture"),
        (png(4, 4)[:-5], "PNG"),
        (b"GIF89a" + bytes(100), "no PNG"),
        (b"", "no PNG"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_that_are_bombs_or_no_pictures(
    content: bytes, part: str, bundle: Path, tmp_path: Path, watch: Watch
) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = min(name for name in files if name.startswith("inputs/") and name.endswith(".png"))
        files[name] = content

    refused(remade(bundle, tmp_path / "b.zip", change), watch, part)


def test_pictures_that_are_too_many_pixels_together(
    bundle: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MAX_PIXELS_TOTAL", 3 * 96 * 96)
    refused(bundle, watch, "counted for every pair")


def test_other_pictures_of_the_same_name(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    def change(files: dict[str, bytes]) -> None:
        name = min(name for name in files if name.startswith("inputs/") and name.endswith(".png"))
        picture = io.BytesIO()
        Image.new("RGB", Image.open(io.BytesIO(files[name])).size, "red").save(picture, "PNG")
        files[name] = picture.getvalue()

    refused(remade(bundle, tmp_path / "b.zip", change), watch, "pairs_sha256")


@pytest.mark.parametrize("image", ["/etc/passwd", "../../x.png", "x.png", "0" * 64 + ".png", 3, None])
def test_pairs_whose_pictures_are_not_in_the_bundle(image: Any, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    def change(files: dict[str, bytes]) -> None:
        first, rest = files["inputs/pairs.jsonl"].split(b"\n", 1)
        record = json.loads(first)
        record["clean"]["image"] = image
        files["inputs/pairs.jsonl"] = json.dumps(record).encode() + b"\n" + rest

    refused(remade(bundle, tmp_path / "b.zip", change), watch, "inputs/pairs.jsonl")


def tensor_file(header: Any, size: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


@pytest.mark.parametrize(
    "content",
    [
        tensor_file({}, size=2**63),
        tensor_file({"vector": {"dtype": "F32", "shape": [10**18], "data_offsets": [0, 4 * 10**18]}}),
        tensor_file({"vector": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}),
        tensor_file({"vector": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        tensor_file({"vector": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}),
        pickle.dumps(Evil()),
        b"",
    ],
)
def test_vectors_that_are_no_vectors(content: bytes, steered: Path, tmp_path: Path, watch: Watch) -> None:
    refused(remade(steered, tmp_path / "b.zip", put("inputs/vectors.safetensors", content)), watch, "vectors")


def test_vectors_that_the_graph_does_not_use_or_lacks(
    bundle: Path, steered: Path, tmp_path: Path, watch: Watch
) -> None:
    def take(files: dict[str, bytes]) -> None:
        del files["inputs/vectors.safetensors"]

    refused(remade(steered, tmp_path / "b.zip", take), watch, "do not agree")
    refused(remade(bundle, tmp_path / "b.zip", put("inputs/vectors.safetensors", b"x")), watch, "do not agree")


def test_a_replay_steers_by_the_bundles_vectors_and_does_not_read_the_path_it_names(
    steered: Path, loaded: dict[str, Model]
) -> None:
    file = steered.with_name("v.safetensors")
    assert str(file) in vp.bundle.show(steered)
    width = loaded["shapes-llava"].description.config.get_text_config().hidden_size
    save_file({"vector": torch.full((width,), 100.0)}, file)
    assert vp.bundle.replay(steered, model=loaded["shapes-llava"], progress=False).ok
