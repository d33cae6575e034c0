"""The site as plain text for language models: llms.txt, a list of pages, and llms-full.txt, all of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.tools import api, pages, tutorials
from docs.tools.blocks import without_blocks


def write(site: Path, nav: list[Any], name: str) -> None:
    """Write both files, and every page's Markdown beside it."""
    known = texts()
    lines = [f"# {name}", "", f"> {_about(known['index.md'])}", "", "All pages in one text: llms-full.txt."]
    whole = []
    for title, path in listed(nav):
        if path is None:
            lines += ["", f"## {title}", ""]
            continue
        heading = title or _title(known[path])
        lines.append(f"- [{heading}]({path}): {_about(known[path])}")
        whole.append(known[path].strip())
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(known[path], encoding="utf-8")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (site / "llms-full.txt").write_text("\n\n---\n\n".join(whole) + "\n", encoding="utf-8")


def texts() -> dict[str, str]:
    """Path → Markdown of every page, the API's with docstrings in the place of directives."""
    found = {**pages.made(), **pages.written()}
    run = {f"tutorials/{source.stem}.md": tutorials.tutorial(source).text for source in tutorials.sources()}
    return found | {path: _api(found[path], path) for path in api.pages()} | run


def _api(page: str, path: str) -> str:
    room = path.removeprefix("reference/api").removeprefix("-").removesuffix(".md")
    parts = [page.split("\n:::")[0].split("\n## ")[0].strip()]
    for name, value in api.public().items():
        if room == (name.split(".")[1] if name.count(".") == 2 and name.startswith("vp.") else ""):
            parts.append(f"## {name}")
            if callable(value):
                parts.append(f"```python\n{name.rpartition('.')[2]}{_signature(value)}\n```")
            parts.append(inspect.getdoc(value) or "")
    return "\n\n".join(parts) + "\n"


def _signature(value: Any) -> str:
    try:
        return str(inspect.signature(value)).replace("'", "")
    except ValueError:
        return "(...)"


def listed(nav: list[Any] | Mapping[str, Any], title: str = "") -> Iterator[tuple[str, str | None]]:
    """Title and path of every page, and the sections' titles before theirs, without a path."""
    for item in nav:
        if isinstance(item, str):
            yield title, item
            continue
        for name, inside in item.items():
            if isinstance(inside, str):
                yield name, inside
            else:
                yield name, None
                yield from listed(inside)


def _title(markdown: str) -> str:
    return next(line.removeprefix("# ") for line in markdown.splitlines() if line.startswith("# "))


def _about(markdown: str) -> str:
    """The first paragraph of prose."""
    for paragraph in without_blocks(markdown).split("\n\n"):
        text = " ".join(paragraph.split())
        if text and not text.startswith(("#", "<", "!", "|", "-", ":::")):
            return text
    return ""
