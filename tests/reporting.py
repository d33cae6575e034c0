"""Small datasets of every method and their reports, each made once; and how what a report holds is looked up."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image, ImageFilter

import vlm_patching as vp
from tests.reading import Page

PAIRS = {"dataset": "shapes", "n": 4, "seed": 3, "keep": "all"}
SEMANTIC = {"kind": "semantic_image_pair"}
NASTY = "is it red or blue </script><script>document.title='hit'</script> \u2028 <!-- <b>&amp; or \"cyan'?"
_ATTENTION = {"sites": ["language.attn_pattern"], "positions": ["answer_option", "last"]}
METHODS: dict[str, dict[str, Any]] = {
    "noise": {
        "model": {"name": "shapes-blip"},
        "corruption": {"kind": "gaussian_noise", "std": 1.0, "draws": 3},
        "patch": {"sites": ["question_encoder.resid_post", "answer_decoder.resid_post"], "positions": "all"},
    },
    "heads": {"patch": {"sites": ["language.attn_head"], "positions": ["answer_option", "last"], "placebo": True}},
    "estimated": {"patch": {"sites": ["language.attn_head"], "method": "attribution", "verify": 3}},
    "windows": {"patch": {"sites": ["language.mlp_out"], "positions": ["image:object"], "window": [1, 3]}},
    "patches": {"patch": {"sites": ["language.resid_post"], "positions": ["each:image", "last"]}},
    "knockout": {"knockout": {"edges": ["image:object -> question", "question -> last"], "window": [1, 3]}},
    "ablate": {"ablate": {"sites": ["language.mlp_out"], "positions": ["last"]}},
    "steer": {"steer": {"sites": ["language.resid_post"], "positions": ["last"], "strengths": [-1, 2]}},
    "lens": {"lens": {"positions": ["last", "subject_last"]}, "metrics": ["probability", "answer_rank"]},
    "attention": {"attention": {**_ATTENTION, "keys": "image"}, "metrics": ["probability"]},
    "attention to text": {"attention": {**_ATTENTION, "keys": "text"}, "metrics": ["probability"]},
}
"""Name → what is special in its spec: one a method, and what maps of it have of their own."""


def run(**changes: Any) -> xr.Dataset:
    """What an experiment gives whose spec says this; the corruption is that of pairs where the method has one."""
    spec = {"name": "my report", "model": {"name": "shapes-llava"}, "pairs": PAIRS, "corruption": SEMANTIC, **changes}
    if not {"patch", "path", "steer"} & set(spec):
        del spec["corruption"]
    return vp.run(vp.Experiment.from_dict(spec), progress=False)


@cache
def dataset(name: str) -> xr.Dataset:
    """The dataset of a name out of `METHODS`."""
    return run(**METHODS[name])


@cache
def page_of(name: str) -> Page:
    """Its report."""
    with tempfile.TemporaryDirectory() as folder:
        made = vp.report(dataset(name), Path(folder) / "report.html", vp.rebuild_pairs(dataset(name)))
        assert made.path.read_text(encoding="utf-8") == made.html
        return Page(made.html)


def quantity(drawn: Any, kind: str, metric: str = "probability") -> Any:
    (found,) = [one for one in drawn["quantities"] if (one["kind"], one["metric"]) == (kind, metric)]
    return found


def cut(drawn: Any, block: int, values: xr.DataArray) -> np.ndarray:
    """The same numbers out of the dataset, looked up by their labels, one by one."""
    part, across = drawn["blocks"][block], drawn["across"]
    columns = [drawn["columns"][i] for i in part["columns"]]
    axes = {**{one["dim"]: one["labels"] for one in drawn["selectors"]}, "layer": part["layers"], across: columns}
    known = {
        name: [f"{v:g}" if isinstance(v, float) else str(v) for v in values[name].values.tolist()] for name in axes
    }
    values = values.isel(site=values["site"].values.tolist().index(part["site"]))
    found = np.empty([len(labels) for labels in axes.values()])
    for place in product(*map(range, found.shape)):
        chosen = {name: known[name].index(str(axes[name][i])) for name, i in zip(axes, place, strict=True)}
        found[place] = values.isel(chosen).item()
    return found


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted.astype(np.float32), rtol=1e-6, atol=0)
    assert np.isfinite(found).any()


def decoded(link: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).convert("RGB")


def photo(seed: int) -> Image.Image:
    """As detailed as a photograph, to an encoder."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    grain = Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
    return Image.blend(coarse, grain, 0.25)


def nasty_pairs(folder: Path) -> Path:
    """Make a folder of pairs that try to be more than text."""
    folder.mkdir()
    lines = []
    for i, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(folder / f"{i}.png")
        Image.new("RGB", (64, 64), "gray").save(folder / f"gray-{i}.png")
        sides = {
            side: {"image": name, "text": NASTY}
            for side, name in (("clean", f"{i}.png"), ("corrupted", f"gray-{i}.png"))
        }
        spans = {"subject": [9, 12], "answer_option": [16, 20]}
        lines.append(
            {"id": f"</script><img src=x onerror=alert({i})>", **sides, "answer": "red", "foil": "blue", "spans": spans}
        )
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return folder
