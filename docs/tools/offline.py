"""Whether a built site fetches anything: `python -m docs.tools.offline FOLDER` names what it would, and fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
_FOREIGN = re.compile(r"^(https?:)?//")
_IN_STYLE = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)")


class _Page(HTMLParser):
    """What a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        self.fetched.append(given.get(_FETCHED.get(tag, "")) or "")


def foreign(site: Path) -> Iterator[str]:
    """What pages and style sheets of a site fetch from elsewhere, a line each."""
    for path in sorted(site.rglob("*.html")):
        page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
        yield from (f"{path.relative_to(site)}: {url}" for url in page.fetched if _FOREIGN.match(url))
    for path in sorted(site.rglob("*.css")):
        for found in _IN_STYLE.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: {''.join(found)}"


if __name__ == "__main__":
    found = list(foreign(Path(sys.argv[1])))
    sys.exit("The site would fetch:\n" + "\n".join(found) if found else 0)
