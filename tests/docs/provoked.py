"""What users do that the FAQ explains: anchor of its section → something that raises the error.

Each works in an empty folder, and takes no model's weights where the error comes before them.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlm_patching as vp
from tests.refusals import BLIP, LLAVA, MISSING, RECORD, changed, folder_of, second, spec_of
from vlm_patching.backends.local import LocalBackend


def run(spec: dict[str, Any], **changes: Any) -> None:
    vp.run(
        vp.Experiment.from_dict(changed(spec, {k.replace("__", "."): v for k, v in changes.items()})), progress=False
    )


def on_pairs(spec: dict[str, Any], *records: dict[str, Any], **changes: Any) -> None:
    run(spec_of(folder_of(Path("mypairs"), *records), spec), **changes)


def on_pictures(size: tuple[int, int], other: tuple[int, int], region: list[int], **changes: Any) -> None:
    record = changed(RECORD, {"regions": {"object": region}})
    folder = folder_of(Path("mypairs"), record)
    Image.new("RGB", size, "red").save(folder / "red.png")
    Image.new("RGB", other, "blue").save(folder / "blue.png")
    run(spec_of(folder, LLAVA), **changes)


def copied(name: str) -> Path:
    return Path(shutil.copytree(vp.bundled_models()[name], "mymodel"))


def unknown_family() -> None:
    folder = copied("shapes-llava")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert", "architectures": ["BertModel"]}))
    vp.load_model("mymodel")


def cut_weights() -> None:
    folder = copied("shapes-blip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(changed(config, {"text_config.num_hidden_layers": 8})))
    run(BLIP, model__name="mymodel")


def other_store() -> None:
    vp.run(vp.Experiment.from_dict(BLIP), store="run.zarr", progress=False)
    vp.run(vp.Experiment.from_dict(changed(BLIP, {"patch.window": 3})), store="run.zarr", progress=False)


def other_pairs() -> None:
    spec = vp.Experiment.from_dict(BLIP)
    vp.run(spec, store="run.zarr", progress=False)
    vp.run(spec, store="run.zarr", inputs=vp.load_pairs("shapes", n=2, seed=1), progress=False)


def no_store() -> None:
    Path("notes").mkdir()
    Path("notes/thesis.txt").write_text("years of work")
    vp.run(vp.Experiment.from_dict(BLIP), store="notes", progress=False)


def failed_check() -> None:
    real = LocalBackend.execute

    def off(backend: LocalBackend, programs: Any) -> Any:
        results = real(backend, programs)
        for found in results:
            if "patched.probability" in found and len(found["patched.probability"]) > 9:
                found["patched.probability"] += 0.1
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalBackend, "execute", off)
        run(BLIP, patch__positions="all")


def no_kept_pairs() -> None:
    record = changed(RECORD, {"answer": "ring", "foil": "blue"})
    folder = folder_of(Path("mypairs"), record, record | {"id": "1"})
    spec = changed(spec_of(folder, LLAVA), {"pairs.keep": "clean_correct"})
    ds = vp.run(vp.Experiment.from_dict(spec), progress=False)
    vp.analysis.bootstrap(vp.effect(ds))


def broken_spec() -> None:
    Path("mine.yaml").write_text("name: mine\nmodel: {name: shapes-llava}\npairs:\n\tdataset: shapes\n")
    vp.Experiment.from_yaml("mine.yaml")


def bad_line() -> None:
    folder = folder_of(Path("mypairs"), RECORD)
    with (folder / "pairs.jsonl").open("a") as file:
        file.write('\n{"id": "1", "clean": {"image": "red.png" "text": "?"}}\n')
    run(spec_of(folder))


def changed_bundle() -> None:
    experiment = vp.Experiment.from_dict(changed(BLIP, {"patch.layers": [0]}))
    vp.bundle.save(experiment, vp.run(experiment, progress=False), "mine.vlmp.zip", figures={})
    with zipfile.ZipFile("mine.vlmp.zip") as old:
        files = {info: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile("mine.vlmp.zip", "w") as new:
        for info, data in files.items():
            new.writestr(info, data.replace(b"bad-input", b"bed-input") if info.filename == "graph.json" else data)
    vp.bundle.verify("mine.vlmp.zip")


HEADS = {"sites": ["language.attn_head"], "positions": ["last"]}
LENGTHS = changed(
    RECORD, {"clean.text": "what color is the circle?", "corrupted.text": "what color is the small ring?"}
)
LENGTHS["spans"] = {}
PLAIN = {key: value for key, value in LLAVA.items() if key not in ("patch", "corruption")}

PROVOKED: dict[str, Callable[[], object]] = {
    "no-such-preset": lambda: vp.run("palit2032"),
    "unknown-key": lambda: run(BLIP, patch__site=["question_encoder.resid_post"]),
    "unknown-name": lambda: run(BLIP, metrics=["probabilty"]),
    "not-yaml": broken_spec,
    "no-method": lambda: run(PLAIN),
    "no-corruption": lambda: run(LLAVA, corruption=MISSING),
    "no-such-site": lambda: run(LLAVA, patch__sites=["language.cross_attn_head"]),
    "no-such-stack": lambda: run(LLAVA, patch__sites=["question_encoder.resid_post"]),
    "layer-out-of-range": lambda: run(BLIP, patch__layers=[6]),
    "window-too-wide": lambda: run(BLIP, patch__window=7),
    "no-heads": lambda: run(BLIP, patch__heads=[0]),
    "no-such-position": lambda: run(LLAVA, patch__positions=["subject_middle"]),
    "index-in-two-stacks": lambda: run(
        BLIP, patch__sites=["vision.resid_post", "question_encoder.resid_post"], patch__positions=[3]
    ),
    "region-cut-off": lambda: on_pictures((200, 137), (200, 137), [0, 20, 20, 137], patch__positions=["image:object"]),
    "same-picture": lambda: on_pairs(BLIP, RECORD, second({"corrupted.image": "red.png"})),
    "same-first-token": lambda: on_pairs(BLIP, second({"answer": "red ring", "foil": "red square"})),
    "not-in-the-vocabulary": lambda: on_pairs(LLAVA, second({"answer": "zebra"})),
    "not-aligned": lambda: on_pairs(LLAVA, LENGTHS, corruption__kind="symmetric_token_replacement"),
    "span-not-in-the-text": lambda: on_pairs(BLIP, second({"spans.answer_option": [12, 99]})),
    "no-pairs-file": lambda: run({**BLIP, "pairs": {"dataset": "folder", "path": "mypairs"}}),
    "bad-line": bad_line,
    "no-such-image": lambda: on_pairs(BLIP, second({"clean.image": "none.png"})),
    "image-mark": lambda: on_pairs(LLAVA, second({"clean.text": "<image> red or blue?", "spans": {}})),
    "unknown-model": lambda: run(BLIP, model__name="shapes-blp"),
    "not-downloaded": lambda: run(BLIP, model__name="someone/some-vlm"),
    "unknown-family": unknown_family,
    "other-weights": cut_weights,
    "no-mask": lambda: run(
        PLAIN | {"model": {"name": "shapes-blip"}},
        knockout={"edges": ["image -> image"], "sites": ["vision.attn_pattern"]},
    ),
    "no-gradient": lambda: run(LLAVA, patch=HEADS | {"method": "attribution"}, metrics=["answer_rank"]),
    "lens-of-a-group": lambda: run(PLAIN, lens={"positions": ["question"]}),
    "other-experiment": other_store,
    "other-pairs": other_pairs,
    "no-store": no_store,
    "check-failed": failed_check,
    "no-kept-pairs": no_kept_pairs,
    "no-server": lambda: vp.run(
        "notice2024_llava_heads", backend="ndif", remote=vp.Remote("http://127.0.0.1:9", patience=0.1), progress=False
    ),
    "changed-bundle": changed_bundle,
}
"""Anchor of a section → what provokes its error."""
