"""Every page of the site as Markdown: those under docs/ with their tables, and those made of something else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docs.tools import api, tables, tutorials

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ELSEWHERE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/RESULTS.md",
}
"""Page → the file of the repository that it shows."""


def paths() -> list[str]:
    """Of every page of the site, without making any."""
    files = [path.relative_to(DOCS).as_posix() for path in _files()]
    run = [f"tutorials/{source.stem}.md" for source in tutorials.sources()]
    return sorted([*files, *ELSEWHERE, *api.PATHS, *run])


def made() -> dict[str, str]:
    """Path below docs/ → Markdown, of the pages that are no file there."""
    shown = {page: _moved((ROOT / source).read_text(encoding="utf-8"), source) for page, source in ELSEWHERE.items()}
    run = {f"tutorials/{source.stem}.md": tutorials.tutorial(source).markdown for source in tutorials.sources()}
    return {**shown, **api.pages(), **run}


def written() -> dict[str, str]:
    """Path below docs/ → Markdown with its tables, of the pages that are a file there."""
    return {path.relative_to(DOCS).as_posix(): tables.filled(path.read_text(encoding="utf-8")) for path in _files()}


def _files() -> list[Path]:
    return sorted(path for path in DOCS.rglob("*.md") if "vendor" not in path.parts)


def expanded(nav: list[Any]) -> list[Any]:
    """The navigation, with the pages of a folder in the place of "FOLDER/*": its index first, then by name."""
    known = sorted(paths(), key=lambda path: (not path.endswith("index.md"), path))
    found: list[Any] = []
    for item in nav:
        if isinstance(item, str) and item.endswith("/*"):
            found += [path for path in known if path.startswith(item[:-1])]
        elif isinstance(item, dict):
            found.append({name: expanded(each) if isinstance(each, list) else each for name, each in item.items()})
        else:
            found.append(item)
    return found


def _moved(markdown: str, source: str) -> str:
    """A file of the repository, its links to pages of the site bent to where these are now."""
    pages = {file: page for page, file in ELSEWHERE.items()}
    pages |= {f"docs/tutorials/{source.name}": f"tutorials/{source.stem}.md" for source in tutorials.sources()}
    base = Path(source).parent

    def bent(match: re.Match[str]) -> str:
        text, target, anchor = match[1], (base / match[2]).as_posix(), match[3] or ""
        if target in pages:
            return f"[{text}]({pages[target]}{anchor})"
        if target.startswith("docs/"):
            return f"[{text}]({target.removeprefix('docs/')}{anchor})"
        return text if not (ROOT / target).exists() else f"{text} (`{target}`)"

    return re.sub(r"\[([^\]]+)\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)", bent, markdown)
