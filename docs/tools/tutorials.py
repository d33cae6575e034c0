"""Tutorials: notebooks that are kept as text (``docs/tutorials/NN_name.py``, percent format), and run to be shown.

A notebook that has run stays in ``build/tutorials`` until it, or the package, changes: a test and the site run it once.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
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
_COLORED = re.compile(r"\x1b\[[0-9;]*m")


def sources() -> list[Path]:
    """The tutorials, in reading order."""
    return sorted(FOLDER.glob("*.py"))


def executed(source: Path) -> nbformat.NotebookNode:
    """A tutorial with its outputs; an error where a cell fails."""
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
        old.unlink()
    nbformat.write(notebook, kept)
    return notebook


def page(source: Path) -> tuple[str, dict[str, bytes]]:
    """A tutorial as Markdown, and the files that go with it: its figures, and the notebook itself, with outputs."""
    notebook, name = executed(source), source.stem
    files = {f"{name}.ipynb": nbformat.writes(notebook).encode()}
    parts: list[str] = []
    about = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            about = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [about])[-1]
            continue
        parts.append(f"```python\n{cell.source}\n```")
        parts += [_shown(output, name, files, about) for output in cell.outputs]
    first, *rest = [part for part in parts if part]
    title, _, below = first.partition("\n")
    return "\n\n".join([title, f"[As a notebook]({name}.ipynb)", below.strip(), *rest]) + "\n", files


def _shown(output: Any, name: str, files: dict[str, bytes], about: str) -> str:
    """One output; a figure becomes a file, described by the heading it stands under."""
    if output.output_type == "stream":
        return f"```text\n{_COLORED.sub('', output.text).rstrip()}\n```" if output.name == "stdout" else ""
    data = output.get("data", {})
    if "image/png" in data:
        path = f"{name}_{len(files)}.png"
        files[path] = base64.b64decode(data["image/png"])
        return f"![{about}]({path})"
    if "text/html" in data:
        return f'<div class="output">{data["text/html"]}</div>'
    return f"```text\n{data['text/plain']}\n```" if "text/plain" in data else ""


def _digest(source: Path) -> str:
    """Of a tutorial and of everything it runs on."""
    digest = hashlib.sha256(source.read_bytes())
    package = ROOT / "vlm_patching"
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.yaml"), *package.rglob("*.safetensors")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
