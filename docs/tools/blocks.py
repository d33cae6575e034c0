"""The code blocks of a page, with their language, title and place."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

_BLOCK = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
NEEDS = "Needs "


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes
    ----------
    page, line
        Where it begins.
    language
        The first word behind the fence; "" where there is none.
    title
        What stands over it: the name of a file that its text is in, or, beginning with "Needs ", why it cannot be run
        just anywhere.
    text
        What is in it.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def needs(self) -> str:
        """What it needs that is not everywhere; "" where it can be run."""
        return self.title if self.title.startswith(NEEDS) else ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, markdown: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(markdown):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]*)"', rest)
        line = markdown.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, language, title[1] if title else "", textwrap.dedent(match["body"])))
    return found


def without_blocks(markdown: str) -> str:
    """A page's prose alone."""
    return _BLOCK.sub("", markdown)
