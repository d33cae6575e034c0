"""Twenty thousand specs, graphs and bundles with something wrong in them: each works, or is refused in plain words."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vlm_patching as vp
from tests.mutants import MEMORY, Watch, as_json, broken, edited, flipped, nested
from tests.refusals import LLAVA, changed
from vlm_patching import models
from vlm_patching.graph.check import check_graph
from vlm_patching.graph.lower import lower
from vlm_patching.models import Architecture
from vlm_patching.validation import parse_yaml

SPECS, YAML_SPECS, GRAPHS, BUNDLES, ZIPS = 11_000, 1_000, 7_000, 1_100, 400
assert SPECS + YAML_SPECS + GRAPHS + BUNDLES + ZIPS >= 20_000
MORE_SPECS: tuple[dict[str, Any], ...] = (
    {
        "corruption": {"kind": "gaussian_noise", "site": "token_embeds", "span": "subject", "std": 0.5, "draws": 2},
        "patch": {"sites": ["language.mlp_out"], "window": [1, 3], "sever": "mlp_out", "verify": 0},
    },
    {
        "corruption": {"kind": "gaussian_noise", "multiplicative": {"mean": 1.0, "std": 0.1}},
        "patch": {"sites": ["language.attn_out", "language.mlp_out"], "direction": "noise", "placebo": True},
    },
    {
        "corruption": {"kind": "masked_region", "region": "object"},
        "path": {
            "sites": ["language.attn_head"],
            "receiver": {"site": "language.attn_head", "layer": 5, "head": 1, "position": "last"},
        },
    },
    {"corruption": {"kind": "blank_image", "color": [1, 2, 3]}, "steer": {"sites": ["language.resid_post"]}},
    {"steer": {"sites": ["language.resid_post"], "vector": "v.safetensors", "strengths": [-1.0, 2.0], "on": "clean"}},
    {"ablate": {"sites": ["language.attn_head"], "kind": "scale", "factor": 0.5, "heads": "0:2", "layers": [0, 1]}},
    {"ablate": {"sites": ["image_embeds"], "kind": "resample", "positions": ["all", 3]}},
)


@pytest.fixture(scope="module")
def architectures() -> dict[str, Architecture]:
    return {name: vp.describe_model(name).architecture for name in vp.bundled_models()}


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Temporary folders are made in the only folder that may be written to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Watch(tmp_path).running() as made:
        yield made
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY, f"memory grew by {grown / 2**20:.0f} MiB"


def specs() -> list[dict[str, Any]]:
    base = {"name": "more", "model": {"name": "shapes-llava"}, "pairs": {"dataset": "shapes", "n": 2}}
    return [vp.Experiment.from_spec(name).to_dict() for name in vp.presets()] + [
        {**base, **more} for more in MORE_SPECS
    ]


def accept_spec(architectures: dict[str, Architecture], text: str, yaml: bool = False) -> None:
    """All that is done with a spec before its model is loaded."""
    experiment = vp.Experiment.from_dict(parse_yaml(text, "spec")) if yaml else vp.Experiment.from_json(text)
    assert vp.Experiment.from_json(experiment.to_json()).id == experiment.id
    graph = lower(experiment, architectures.get(experiment.model.name, architectures["shapes-llava"]))
    accept_graph(architectures, graph.to_json())


def accept_graph(architectures: dict[str, Architecture], text: str) -> None:
    """All that is done with a graph before its model is loaded; it must suit one of the models."""
    graph = vp.InterventionGraph.from_json(text)
    assert vp.InterventionGraph.from_json(graph.to_json()).id == graph.id
    assert str(graph) and graph.to_mermaid()
    refusals = []
    for architecture in architectures.values():
        try:
            check_graph(graph, architecture)
        except vp.SpecError as error:
            refusals.append(error)
    if len(refusals) == len(architectures):
        raise refusals[0]


def test_specs(watch: Watch, architectures: dict[str, Architecture]) -> None:
    rng, originals = random.Random(1), specs()
    for spec in originals:
        accept_spec(architectures, json.dumps(spec))
    for _ in range(SPECS):
        text = as_json(edited(rng.choice(originals), rng))
        if rng.random() < 0.1:
            text = flipped(text, rng)
        watch.put(text, partial(accept_spec, architectures))
    assert watch.refused > 0.6 * SPECS and watch.accepted > 0.05 * SPECS


def test_specs_in_yaml(watch: Watch, architectures: dict[str, Architecture]) -> None:
    rng = random.Random(2)
    originals = [vp.Experiment.from_dict(spec).to_yaml() for spec in specs()]
    for _ in range(YAML_SPECS):
        text = flipped(rng.choice(originals), rng)
        watch.put(text, partial(accept_spec, architectures, yaml=True))
    assert watch.refused > 0.4 * YAML_SPECS and watch.accepted > 0.05 * YAML_SPECS


def test_graphs(watch: Watch, architectures: dict[str, Architecture]) -> None:
    rng = random.Random(3)
    experiments = [vp.Experiment.from_dict(spec) for spec in specs()]
    originals = [lower(e, architectures[e.model.name]).to_dict() for e in experiments]
    for graph in originals:
        accept_graph(architectures, json.dumps(graph))
    for _ in range(GRAPHS):
        text = as_json(edited(rng.choice(originals), rng))
        if rng.random() < 0.1:
            text = flipped(text, rng)
        watch.put(text, partial(accept_graph, architectures))
    assert watch.refused > 0.8 * GRAPHS and watch.accepted > 0.01 * GRAPHS


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "a: &x [1]\nb: *x",
        "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]",
        "- " * 50_000,
        "seed: 089",
        "x: 2001-99-99",
        "x: !!bool maybe",
        "x: !!timestamp no",
        "x: !!python/object/apply:os.system [ls]",
        "? [a, b]\n: 1",
        "x: " + "9" * 5000,
        '{"x": ' + "9" * 5000 + "}",
        as_json(nested(900, True)),
        "{" + ",".join(f'"k{i}": 1' for i in range(40_000)) + "}",
        "x: 1\n" * 200_000,
        "",
        "null",
        "[]",
        "3",
    ],
    ids=lambda text: text[:20].replace("\n", " "),
)
def test_texts_that_are_no_spec_and_no_graph(text: str, watch: Watch, architectures: dict[str, Architecture]) -> None:
    watch.put(text, partial(accept_spec, architectures, yaml=True))
    watch.put(text, partial(accept_spec, architectures))
    watch.put(text, partial(accept_graph, architectures))
    assert watch.accepted == 0


@pytest.mark.parametrize(
    "change",
    [
        {"patch.layers": "0:999999999999"},
        {"patch.heads": "3:99999999999999999999", "patch.sites": ["language.attn_head"]},
        {"patch.layers": "0:" + "9" * 3000},
        {"patch.layers": list(range(300_000))},
        {"patch.window": list(range(1, 300_000))},
        {"patch.sites": ["language.resid_post"] * 100_000},
        {"patch.sites": ["+".join(["language.mlp_out"] * 100_000)]},
        {"corruption": {"kind": "gaussian_noise", "draws": 10**12}},
        {"corruption": {"kind": "gaussian_noise", "draws": 20_000}},
        {"corruption": {"kind": "blank_image", "color": [0] * 100_000}},
        {"name": "x" * 1_000_000},
        {f"key{i}": i for i in range(20_000)},
    ],
    ids=lambda change: str(change)[:60],
)
def test_specs_that_ask_for_too_much(
    change: dict[str, Any], watch: Watch, architectures: dict[str, Architecture]
) -> None:
    watch.put(as_json(changed(LLAVA, change)), partial(accept_spec, architectures))
    assert watch.refused == 1


def test_a_graph_with_more_edits_than_a_method_has(watch: Watch, architectures: dict[str, Architecture]) -> None:
    graph = lower(vp.Experiment.from_spec("heads_llava_paths"), architectures["shapes-llava"]).to_dict()
    run = next(run for run in graph["runs"] if any(edit["kind"] == "hold" for edit in run["edits"]))
    run["edits"] = run["edits"] * 5000
    watch.put(as_json(graph), partial(accept_graph, architectures))
    assert watch.refused == 1


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """Name → bytes of the files of small bundles: of a patch, and of vectors out of a file."""
    place = tmp_path_factory.mktemp("bundles")
    model = vp.load_model("shapes-llava")
    width = model.description.config.get_text_config().hidden_size
    save_file({"vector": torch.linspace(-1, 1, width)}, place / "v.safetensors")
    base: dict[str, Any] = {
        "name": "mutated",
        "model": {"name": "shapes-llava"},
        "pairs": {"dataset": "shapes", "n": 1, "keep": "all"},
        "metrics": ["probability"],
    }
    sites = {"sites": ["language.resid_post"], "layers": [0, 1]}
    made = []
    for i, more in enumerate(
        (
            {"corruption": {"kind": "semantic_image_pair"}, "patch": sites},
            {"steer": {**sites, "vector": str(place / "v.safetensors"), "on": "clean"}},
        )
    ):
        experiment = vp.Experiment.from_dict({**base, **more})
        ds = vp.run(experiment, model=model, progress=False)
        path = vp.bundle.save(experiment, ds, place / f"{i}.vlmp.zip", figures={})
        with zipfile.ZipFile(path) as archive:
            made.append({name: archive.read(name) for name in archive.namelist()})
    return made


@pytest.fixture
def known_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptions of models are read once, to save time."""
    described = {name: vp.describe_model(name) for name in vp.bundled_models()}
    monkeypatch.setattr(models, "describe_model", lambda name, revision=None: described[name], raising=False)


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A bundle of files, whose manifest is their last one where they have none."""
    whole = BytesIO()
    with zipfile.ZipFile(whole, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return whole.getvalue()


def listed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with a manifest that agrees with them."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in files.items()
        if name != "manifest.json"
    }
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def with_a_changed_file(files: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """Files one of which is another, or is called otherwise, or is not there."""
    files = dict(files)
    small = [name for name in files if not name.startswith("results.zarr/") or rng.random() < 0.2]
    name = rng.choice(small)
    kind = rng.randrange(10)
    if kind == 0:
        del files[name]
    elif kind == 1:
        other = flipped(name, rng).encode(errors="replace").decode()
        files[rng.choice((other, "../x", "inputs/x.pkl", "results.zarr/a/zarr.json"))] = files.pop(name)
    elif name.endswith("pairs.jsonl"):
        files[name] = as_json(edited(json.loads(files[name]), rng)).encode()
    elif name.endswith(".yaml"):
        files[name] = as_json(edited(parse_yaml(files[name].decode(), name), rng)).encode()
    elif name.endswith(".json") and kind < 9:
        files[name] = as_json(edited(json.loads(files[name]), rng)).encode()
    else:
        files[name] = broken(files[name], rng)
    return files


def listed_or_not(files: dict[str, bytes]) -> dict[str, bytes]:
    """`listed`, where the manifest itself is whole enough for it."""
    try:
        return listed(files)
    except (ValueError, TypeError):
        return files


def show(watch: Watch, content: bytes) -> None:
    """All that is done with a bundle before it is run again; nothing of it is left."""
    path = watch.folder / "b.zip"
    path.write_bytes(content)
    try:
        vp.bundle.show(path)
    finally:
        path.unlink()
    assert not list(watch.folder.iterdir()), "something was left behind"


def test_bundles(watch: Watch, bundles: list[dict[str, bytes]], known_models: None) -> None:
    rng = random.Random(4)
    for files in bundles:
        show(watch, zipped(files))
    for _ in range(BUNDLES):
        files = with_a_changed_file(rng.choice(bundles), rng)
        if "manifest.json" in files and rng.random() < 0.9:
            files = listed_or_not(files)
        watch.put(zipped(files), partial(show, watch))
    assert watch.refused > 0.7 * BUNDLES and watch.accepted > 0.005 * BUNDLES


def test_zips(watch: Watch, bundles: list[dict[str, bytes]], known_models: None) -> None:
    rng = random.Random(5)
    whole = [zipped(files, kind) for files in bundles for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    for content in whole:
        show(watch, content)
    for _ in range(ZIPS):
        content = rng.choice(whole)
        directory = content.index(b"PK\1\2")
        head, tail = content[:directory], content[directory:]
        content = broken(head, rng) + tail if rng.random() < 0.3 else head + broken(tail, rng)
        watch.put(content, partial(show, watch))
    assert watch.refused > 0.7 * ZIPS
