"""The template, styles and scripts → one page, which may run nothing but the scripts it was made with."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vlm_patching.reports.packing import embedded, shown

ASSETS = Path(__file__).parent / "assets"
LIBRARY = "plotly-cartesian.min.js"
"""plotly.js 4.1.1, the partial bundle of the npm package plotly.js-cartesian-dist-min, as it is there. The PyPI package
plotly has only the whole library, three times as large, which every report would carry."""
SCRIPTS = ("base.js", "grid.js", "picture.js", "inspector.js", "drawing.js", "explorer.js", "pairs.js", "start.js")
"""In this order they are one script."""


def page(parts: Mapping[str, Any]) -> str:
    """The page of what `content` gathered. Everything is escaped but the drawings, which escape their own texts."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    scripts = [_read(LIBRARY), "(() => {\n" + "\n".join(map(_read, SCRIPTS)) + "})();\n"]
    return environment.get_template("report.html.jinja").render(
        {
            **parts,
            "style": _read("report.css"),
            "scripts": scripts,
            "policy": _policy(scripts),
            "json": embedded(parts["data"]),
        }
    )


def _policy(scripts: list[str]) -> str:
    """What a browser lets the page do: no request at all, and no script but these."""
    allowed = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def _read(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
