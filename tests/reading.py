"""What a report holds, read as a browser would: elements, texts, the embedded data, its packed numbers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np


class Page(HTMLParser):
    """Elements with their attributes, and the texts in them.

    Attributes
    ----------
    elements
        (name, attributes), in order.
    scripts
        What stands in script elements: (attributes, content).
    text
        All other text but styles, white space made one blank.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._texts: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif not self._inside:
            self._texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._texts).split())

    @property
    def data(self) -> Any:
        """What the page's scripts draw."""
        (content,) = [content for attributes, content in self.scripts if attributes.get("id") == "data"]
        return json.loads(content)

    def named(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def shaped(drawn: Any, block: int, text: str) -> np.ndarray:
    """A block's numbers as the page's scripts index them: selectors, layer, column."""
    chosen = [len(selector["labels"]) for selector in drawn["selectors"]]
    part = drawn["blocks"][block]
    return unpacked(text).reshape(*chosen, len(part["layers"]), len(part["columns"]))
