"""Tutorials: notebooks that are kept as text (``docs/tutorials/NN_name.py``, percent format), and run to be shown.

A notebook that has run stays in ``build/tutorials`` until it, or the package, changes: a test and the site run it once.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tutorials"
RUN = ROOT / "build" / "tutorials"
SECONDS = 600
"""That one cell may take."""
PLACE = '<div class="output" id="output-{}"></div>'
"""Where HTML goes that a cell has given, once the page around it is made: Markdown would not leave it as it is."""
_LOOKS = "<style>table{border-collapse:collapse;font-size:.8em}th,td{padding:.15em .8em;text-align:right}</style>"
_COLORED = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Tutorial:
    """A tutorial that has run.

    Attributes
    ----------
    markdown
        Its page, with `PLACE` for HTML.
    text
        The same with what HTML says as text.
    files
        Name → what goes with the page: figures, and the notebook with its outputs.
    html
        What goes into the places, in order.
    """

    markdown: str = ""
    text: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    html: list[str] = field(default_factory=list)


def sources() -> list[Path]:
    """The tutorials, in reading order."""
    return sorted(FOLDER.glob("*.py"))


def executed(source: Path) -> nbformat.NotebookNode:
    """A tutorial's notebook with its outputs; an error where a cell fails."""
    kept = RUN / f"{source.stem}-{_digest(source)}.ipynb"
    if kept.is_file():
        return nbformat.read(kept, as_version=4)
    notebook = jupytext.read(source)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            startup_timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)
    RUN.mkdir(parents=True, exist_ok=True)
    for old in RUN.glob(f"{source.stem}-*.ipynb"):
        old.unlink(missing_ok=True)
    written = kept.with_suffix(f".{os.getpid()}")  # another process may be here, too
    nbformat.write(notebook, written)
    written.replace(kept)
    return notebook


def tutorial(source: Path) -> Tutorial:
    """A tutorial as a page."""
    notebook, name = executed(source), source.stem
    made = Tutorial(files={f"{name}.ipynb": nbformat.writes(notebook).encode()})
    parts: list[tuple[str, str]] = []  # on the page, and as text
    about = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append((cell.source, cell.source))
            about = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [about])[-1]
            continue
        code = f"```python\n{cell.source}\n```"
        parts.append((code, code))
        parts += [_shown(output, name, made, about) for output in cell.outputs]
    title, _, below = parts[0][0].partition("\n")
    parts[0] = (f"{title}\n\n[As a notebook]({name}.ipynb)\n{below}", parts[0][1])
    made.markdown, made.text = ("\n\n".join(filter(None, kind)) + "\n" for kind in zip(*parts, strict=True))
    return made


def placed(page: str, made: Tutorial) -> str:
    """A page's HTML with that of its cells, each in a tree of its own, where the site's looks do not reach it."""
    for number, html in enumerate(made.html):
        own = f'<template shadowrootmode="open">{_LOOKS}{html.replace(":root", ":host")}</template>'
        page = page.replace(PLACE.format(number), PLACE.format(number).replace("></div>", f">{own}</div>"))
    return page


def _shown(output: Any, name: str, made: Tutorial, about: str) -> tuple[str, str]:
    """One output; a figure becomes a file, described by the heading it stands under."""
    if output.output_type == "stream":
        said = f"```text\n{_COLORED.sub('', output.text).rstrip()}\n```" if output.name == "stdout" else ""
        return said, said
    data = output.get("data", {})
    text = f"```text\n{data['text/plain']}\n```" if "text/plain" in data else ""
    if "image/png" in data:
        path = f"{name}_{len(made.files)}.png"
        made.files[path] = base64.b64decode(data["image/png"])
        return f"![{about}]({path})", f"![{about}]({path})"
    if "text/html" in data:
        made.html.append(data["text/html"])
        return PLACE.format(len(made.html) - 1), text
    return text, text


def _digest(source: Path) -> str:
    """Of a tutorial and of everything it runs on."""
    digest = hashlib.sha256(source.read_bytes())
    package = ROOT / "vlm_patching"
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.yaml"), *package.rglob("*.safetensors")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
