"""mkdocs' hooks: pages that are made, tables, links from names to the API, and the texts for language models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from docs.tools import llms, pages, tables, tutorials

_NAME = re.compile(r"(?<!<pre>)<code>(vp\.[A-Za-z_.]+)((?:\([^<]*\))?)</code>")


def on_config(config: Any) -> Any:
    """Put the pages of whole folders into the navigation."""
    config.nav = pages.expanded(config.nav)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no file under docs/, and the tutorials with their figures."""
    for path, markdown in pages.made().items():
        files.append(File.generated(config, path, content=markdown))
    for source in tutorials.sources():
        for name, content in tutorials.tutorial(source).files.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put the tables in."""
    return tables.filled(markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Make a link of every public name that is written as `vp.NAME`; one that there is not is a warning, an error.

    And put into tutorials what their cells gave.
    """

    def link(match: re.Match[str]) -> str:
        identifier = match[1].replace("vp.", "vlm_patching.", 1).replace("vlm_patching.plot.", "vlm_patching.plots.")
        if identifier in ("vlm_patching.analysis", "vlm_patching.plot", "vlm_patching.bundle"):
            return match[0]
        return f'<autoref identifier="{identifier.rstrip(".")}">{match[0]}</autoref>'

    html = _NAME.sub(link, html)
    run = {f"tutorials/{source.stem}.md": source for source in tutorials.sources()}
    path = page.file.src_uri
    return tutorials.placed(html, tutorials.tutorial(run[path])) if path in run else html


def on_post_build(config: Any) -> None:
    """Write llms.txt and llms-full.txt."""
    llms.write(Path(config.site_dir), config.nav, config.site_name)
