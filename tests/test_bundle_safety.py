"""A stranger's zip: whatever is in it, it is refused in plain words or read as data, and leaves nothing behind."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlm_patching as vp
from tests.bundles import (
    CHUNK,
    edited,
    entry,
    experiment_of,
    manifest_changed,
    patched_directory,
    put,
    refused,
    remade,
    rezipped,
    saved,
    watched,
)
from tests.mutants import Watch, nested
from tests.refusals import refusal, says
from vlm_patching import pipeline
from vlm_patching.bundle import archive, comparison
from vlm_patching.models import Model


@pytest.fixture(scope="module")
def bundle(loaded: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(loaded["shapes-llava"], tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Watch:
    return watched(tmp_path, monkeypatch, bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "inputs/../../evil",
        "/etc/cron.d/evil",
        "C:/evil",
        "c:evil",
        "inputs\\..\\evil",
        "inputs/..",
        "\\\\host\\share",
    ],
)
def test_paths_that_lead_out_of_the_folder(name: str, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    refused(rezipped(bundle, tmp_path / "b.zip", entry(name)), watch, "could lead out")


@pytest.mark.parametrize(
    "name",
    ["run.py", "inputs/x.pkl", "figures/", "results.zarr/a/b/c/0", "inputs/./x.png", "figures/a.svg", "", "~/x", "CON"],
)
def test_files_that_no_bundle_has(name: str, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    refused(rezipped(bundle, tmp_path / "b.zip", entry(name)), watch, "no file of a bundle")


def test_a_name_with_a_null_byte(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    path = rezipped(bundle, tmp_path / "b.zip", entry("figures/aXb.png"))
    path.write_bytes(path.read_bytes().replace(b"figures/aXb.png", b"figures/a\0b.png"))
    refused(path, watch, "could lead out")


@pytest.mark.parametrize("name", ["graph.json", "figures/heatmap.png"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_are_there_twice(name: str, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    refused(rezipped(bundle, tmp_path / "b.zip", entry(name)), watch, "twice")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_special_files(kind: int, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    path = rezipped(bundle, tmp_path / "b.zip", entry("figures/a.png", b"/etc/passwd", kind | 0o777))
    refused(path, watch, "not a plain file")


def test_encrypted_files(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(patched_directory(bundle.read_bytes(), "graph.json", 8, "<H", 1))
    refused(path, watch, "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(method: int, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    path = rezipped(
        bundle, tmp_path / "b.zip", lambda opened: opened.writestr("figures/a.png", b"x", compress_type=method)
    )
    refused(path, watch, "compressed by method")


def test_more_files_than_are_read(bundle: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 20)
    refused(bundle, watch, "at most 20")


def test_a_directory_longer_than_is_read(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    content = bytearray(bundle.read_bytes())
    content[-22 + 12 : -22 + 16] = struct.pack("<I", 2**31)
    (tmp_path / "b.zip").write_bytes(content)
    refused(tmp_path / "b.zip", watch)


def test_a_bomb_by_its_ratio(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    path = rezipped(
        bundle,
        tmp_path / "b.zip",
        lambda opened: opened.writestr("figures/a.png", bytes(50_000_000), zipfile.ZIP_DEFLATED),
    )
    assert path.stat().st_size < 200_000
    refused(path, watch, "times smaller")


def test_files_that_say_they_are_too_large(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(patched_directory(bundle.read_bytes(), "graph.json", 24, "<I", 2**31 + 5))
    refused(path, watch, "graph.json says that it has 2147483653 bytes")


def test_files_that_are_too_large_together(
    bundle: Path, tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_TOTAL", 10_000)
    refused(bundle, watch, "together")


def test_a_bomb_that_says_it_is_small_is_not_unpacked(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    name, deflate = "figures/bomb.png", zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = (deflate.compress(bytes(10**7)) + deflate.flush(zlib.Z_FULL_FLUSH)) * 200  # 2 GB in 2 MB
    path = remade(bundle, tmp_path / "b.zip", put(name, packed))
    path = manifest_changed(path, path, lambda data: data["files"][name].update(size=1000))
    content = patched_directory(path.read_bytes(), name, 10, "<H", zipfile.ZIP_DEFLATED)
    path.write_bytes(patched_directory(content, name, 24, "<I", 1000))
    assert path.stat().st_size < 3_000_000
    refused(path, watch, "CRC")


def test_entries_that_share_their_bytes(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    path = tmp_path / "b.zip"
    content = bundle.read_bytes()
    with zipfile.ZipFile(bundle) as opened:
        place = opened.getinfo("experiment.yaml").header_offset
    path.write_bytes(patched_directory(content, "graph.json", 42, "<I", place))
    refused(path, watch, "overlaps")


@pytest.mark.parametrize("change", ["comment", "something behind", "cut", "empty", "no zip", "zip64"])
def test_what_is_no_zip_or_has_more_than_one(change: str, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    content = bundle.read_bytes()
    changed = {
        "comment": content[:-2] + b"\5\0hello",
        "something behind": content + b"\0",
        "cut": content[: len(content) // 2],
        "empty": b"",
        "no zip": b"vlmp" * 1000,
        "zip64": content[:-22] + b"PK\6\7" + bytes(16) + content[-22:],
    }
    (tmp_path / "b.zip").write_bytes(changed[change])
    refused(tmp_path / "b.zip", watch)


def test_a_file_that_was_changed(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    with zipfile.ZipFile(bundle) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    files[CHUNK] = files[CHUNK][:-1] + bytes([files[CHUNK][-1] ^ 1])
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    refused(tmp_path / "b.zip", watch, CHUNK, "sha256")


def test_a_file_that_the_manifest_does_not_list(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    refused(rezipped(bundle, tmp_path / "b.zip", entry("figures/more.png")), watch, "does not list", "more.png")


def test_a_file_that_the_zip_lacks(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    with zipfile.ZipFile(bundle) as opened:
        files = {name: opened.read(name) for name in opened.namelist() if name != "environment.json"}
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    refused(tmp_path / "b.zip", watch, "lacks", "environment.json")


@pytest.mark.parametrize("name", ["graph.json", "environment.json", "inputs/pairs.jsonl", "results.zarr/zarr.json"])
def test_a_part_that_every_bundle_has(name: str, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    refused(remade(bundle, tmp_path / "b.zip", lambda files: files.pop(name)), watch, name)


@pytest.mark.parametrize("version", [0, 2, "1", None, 1.0, True, 10**30])
def test_another_version(version: Any, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    path = manifest_changed(bundle, tmp_path / "b.zip", lambda data: data.update(version=version))
    refused(path, watch, "version", "version 1 is the one")


def test_unknown_keys_of_the_manifest(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    path = manifest_changed(bundle, tmp_path / "b.zip", lambda data: data.update(trust_remote_code=True))
    refused(path, watch, "Unknown key 'trust_remote_code'")


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("environment.json", {"trust_remote_code": True}, ["Unknown key 'trust_remote_code'"]),
        ("environment.json", {"dtype": "int8"}, ["dtype"]),
        ("graph.json", {"trust_remote_code": True}, ["Unknown key 'trust_remote_code'"]),
        ("graph.json", {"version": 2}, ["version 1 is the one"]),
        ("graph.json", {"seed": float("inf")}, ["Infinity"]),
        ("graph.json", {"seed": float("nan")}, ["NaN"]),
        ("graph.json", {"name": "\ud800"}, ["surrogate"]),
        ("graph.json", {"metrics": nested(400, True)}, ["graph: Invalid JSON: recursion"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_that_is_not_as_it_must_be(
    name: str, change: dict[str, Any], parts: list[str], bundle: Path, tmp_path: Path, watch: Watch
) -> None:
    refused(remade(bundle, tmp_path / "b.zip", edited(name, lambda data: data.update(change))), watch, *parts)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: {name: shapes-llava, trust_remote_code: true}", "trust_remote_code"),
        ("trust_remote_code: true", "trust_remote_code"),
        ("seed: .inf", "seed"),
        ("name: !!python/object/apply:os.system [id]", "tags"),
        ("a: &a [1]\nb: [*a, *a]", "anchors"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_an_experiment_that_is_more_than_data(text: str, part: str, bundle: Path, tmp_path: Path, watch: Watch) -> None:
    refused(remade(bundle, tmp_path / "b.zip", put("experiment.yaml", text.encode())), watch, part)


def test_an_experiment_that_is_not_the_one_of_the_results(bundle: Path, tmp_path: Path, watch: Watch) -> None:
    other = experiment_of("shapes-llava", "patch with an image pair", seed=3).to_yaml()
    refused(remade(bundle, tmp_path / "b.zip", put("experiment.yaml", other.encode())), watch, "experiment_id")


def test_an_experiment_that_says_other_than_the_graph_is_pointed_out(bundle: Path, tmp_path: Path) -> None:
    other = experiment_of("shapes-llava", "patch with an image pair", metrics=["probability"])

    def change(files: dict[str, bytes]) -> None:
        files["experiment.yaml"] = other.to_yaml().encode()
        edited("results.zarr/zarr.json", lambda data: data["attributes"].update(experiment_id=other.id))(files)

    says(vp.bundle.show(remade(bundle, tmp_path / "b.zip", change)), "does not give this graph")


def named(bundle: Path, target: Path, model: str) -> Path:
    """A bundle of another model's name."""

    def change(files: dict[str, bytes]) -> None:
        del files["experiment.yaml"]
        edited("environment.json", lambda data: data.update(model=model))(files)

        def attributes(data: Any) -> None:
            data["attributes"].update(model=model, experiment_id=data["attributes"]["graph_id"])
            data["attributes"].pop("experiment")

        edited("results.zarr/zarr.json", attributes)(files)

    return remade(bundle, target, change)


@pytest.mark.parametrize("name", ["/etc", "./models/x", "~/model", "../model", "models", "a/b/c", "-x/y", "."])
def test_a_folder_that_a_bundle_names_is_not_loaded(
    name: str, bundle: Path, tmp_path: Path, weights_stay_where_they_are: None
) -> None:
    path = named(bundle, tmp_path / "b.zip", name)
    for allowed in (False, True):
        says(refusal(lambda allowed=allowed: vp.bundle.replay(path, allow_download=allowed)), repr(name), "--model")


def test_a_hub_model_that_a_bundle_names_is_loaded_only_when_allowed(
    bundle: Path, loaded: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = named(bundle, tmp_path / "b.zip", "someone/model")
    says(refusal(lambda: vp.bundle.replay(path)), "someone/model", "--allow-download")
    asked: list[str] = []
    monkeypatch.setattr(vp.models, "describe_model", lambda name, **options: asked.append(name), raising=False)
    monkeypatch.setattr(vp.models, "load_model", lambda *args, **options: loaded["shapes-llava"], raising=False)
    assert vp.bundle.replay(path, allow_download=True, progress=False).ok
    assert asked == ["someone/model"]


def test_a_folder_here_is_not_taken_for_the_hub_model_of_its_name(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = named(bundle, tmp_path / "b.zip", "someone/model")
    (tmp_path / "someone" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    says(refusal(lambda: vp.bundle.replay(path, allow_download=True)), "a folder", "--model")


def test_what_is_shown_cannot_drive_the_terminal(bundle: Path, tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        graph = vp.InterventionGraph.from_json(files["graph.json"].decode())
        files["graph.json"] = replace(graph, name="\x1b[2J\u202egnp").to_json().encode()
        edited("results.zarr/zarr.json", lambda data: data["attributes"].update(name="\x1b[2J\u202egnp"))(files)

    path = remade(bundle, tmp_path / "b.zip", change)
    path = manifest_changed(path, tmp_path / "c.zip", lambda data: data.update(name="\x1b[2J\u202egnp"))
    shown = vp.bundle.show(path)
    assert all(character.isprintable() or character == "\n" for character in shown)
    says(shown, "\\x1b[2J")
    message = refusal(lambda: vp.bundle.show(rezipped(bundle, tmp_path / "d.zip", entry("\x1b]0;x"))))
    assert message.isprintable()


def test_nothing_is_left_or_written_elsewhere_when_a_bundle_is_read(bundle: Path, watch: Watch) -> None:
    with watch.running():
        vp.bundle.show(bundle)


def test_a_failed_save_leaves_nothing(
    bundle: Path, loaded: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = experiment_of("shapes-llava", "patch with an image pair")
    ds = vp.run(experiment, model=loaded["shapes-llava"], progress=False)
    place = tmp_path / "bundles"
    place.mkdir()
    monkeypatch.setattr(archive, "MAX_TOTAL", 10_000)
    says(refusal(lambda: vp.bundle.save(experiment, ds, place / "b.zip")), "together")
    assert not list(place.iterdir())


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    says(refusal(lambda: vp.bundle.show(tmp_path / "none.zip")), "does not exist")
    says(refusal(lambda: vp.bundle.show(tmp_path)), "does not exist")


def test_only_names_of_the_hub_pass_for_hub_names() -> None:
    environment = {"model_revision": "", "weights_sha256": "", "image_processor": "", "dtype": "float32"}
    environment |= {"device": "cpu", "backend": "local", "versions": {}}
    for name in ("a/b\n", "a/b ", "a/../b", "é/b", "a//b", "/b", "a/"):
        made = vp.bundle.records.Environment.model_validate({"model": name, **environment})
        says(refusal(lambda made=made: comparison.model_to_load(made, True)), "--model")


def test_the_pipeline_is_what_replays(bundle: Path, loaded: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Host and backend are handed on as they are given."""
    given: dict[str, Any] = {}

    def run(graph: Any, **options: Any) -> Any:
        given.update(options)
        raise vp.RunError("stopped here")

    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(vp.RunError, match="stopped here"):
        vp.bundle.replay(bundle, backend="ndif", host="http://localhost:1")
    assert (given["backend"], given["host"], given["model"].name) == ("ndif", "http://localhost:1", "shapes-llava")
