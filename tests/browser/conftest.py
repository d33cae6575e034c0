"""A headless Chromium that the tests share, and reports of both bundled models; without one they are skipped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import xarray as xr
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

import vlm_patching as vp
from vlm_patching.analysis import metrics_of
from vlm_patching.models import Model

FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)
NASTY = "is <script>window.hit=1</script> red or blue &amp; <b>bold</b></script>"


class Made(NamedTuple):
    """A report and what it is of."""

    ds: xr.Dataset
    pairs: list[vp.Pair]
    report: vp.Report


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Chromium, which tells what it logs and what it asks the network for."""
    program = os.environ.get("VLM_PATCHING_CHROMIUM")
    if not program:
        pytest.skip("needs Chromium, named by VLM_PATCHING_CHROMIUM: `make test-report` finds or installs one")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="session")
def reports(loaded: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Presets of every kind of map, on four pairs each; and texts that try to be more than text."""
    folder = tmp_path_factory.mktemp("reports")
    presets = {
        "heads": ("notice2024_blip_heads", {}),
        "modules": ("notice2024_blip_modules", {}),
        "tokens": ("notice2024_llava_modules", {"patch.positions": ["each:text", "each:image"]}),
        "knockout": ("zhang2024_flow_llava", {}),
        "lens": ("lens_llava", {}),
        "noise": ("palit2023", {"corruption.draws": 2}),
        "attention": ("notice2024_llava_head_functions", {}),
        "positions": ("notice2024_llava_heads", {"patch.positions": ["answer_option", "last"]}),
    }
    found = {}
    for name, (preset, changes) in presets.items():
        small = {"pairs.n": 4, "pairs.keep": "all", **changes}
        found[name] = _made(vp.Experiment.from_spec(preset, small), loaded, folder / f"{name}.html")
    found["nasty"] = _made(_nasty(tmp_path_factory.mktemp("nasty")), loaded, folder / "nasty.html")
    return found


def _made(experiment: vp.Experiment, loaded: Mapping[str, Model], path: Path) -> Made:
    ds = vp.run(experiment, model=loaded[experiment.model.name], progress=False)
    pairs = vp.rebuild_pairs(ds)
    metric = "probability" if "probability" in metrics_of(ds) else None  # whatever the preset's figures show
    return Made(ds, pairs, vp.report(ds, path, pairs, metric=metric))


def _nasty(folder: Path) -> vp.Experiment:
    lines = []
    for i, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(folder / f"{i}.png")
        prompt = {"image": f"{i}.png", "text": NASTY}
        span = NASTY.index("<b>")
        words = {"id": f"<img src=x onerror=window.hit=1>{i}", "answer": "red", "foil": "blue"}
        lines.append({**words, "clean": prompt, "corrupted": prompt, "spans": {"subject": [span, span + 11]}})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    spec: dict[str, Any] = {"name": "<script>window.hit=1</script>", "model": {"name": "shapes-llava"}}
    spec["pairs"] = {"dataset": "folder", "path": str(folder), "keep": "all"}
    return vp.Experiment.from_dict({**spec, "lens": {"positions": ["each:question"]}, "metrics": ["probability"]})
