"""Every code block of every page is typed in, in order: none is left out without a reason that stands over it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from docs.tools import pages
from docs.tools.blocks import Block, blocks
from tests.docs.reader import INSTANCE, Reader, assert_shows, few_pairs, is_python, is_yaml

REASONS = {
    "Needs a model of the hub",
    "Needs an NDIF server",
    "Needs a GPU",
    "Needs the network",
    "Needs a shell of your own",
}
"""What a block may need that a test does not have; it stands over the block, for readers too."""
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md")


@cache
def every_page() -> dict[str, list[Block]]:
    found = {name: (pages.ROOT / name).read_text(encoding="utf-8") for name in ROOT_PAGES}
    found |= {f"docs/{path}": text for path, text in pages.written().items()}
    return {name: blocks(name, text) for name, text in found.items()}


PAGES = [name for name, found in every_page().items() if found]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs_and_shows_what_it_prints(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    reader = Reader(tmp_path)
    with few_pairs():
        for block in every_page()[page]:
            if not block.needs:
                reader.read(block)


def test_a_block_that_is_not_run_says_what_it_needs() -> None:
    left_out = [block for found in every_page().values() for block in found if block.needs]
    assert {block.needs for block in left_out} <= REASONS
    for block in left_out:
        assert block.language in ("sh", "python", "yaml"), f"{block} shows something; leave it out"
        assert block.language != "python" or is_python(block.text), f"{block} is not Python"
        assert block.language != "yaml" or is_yaml(block.text), f"{block} is not YAML"


def test_no_block_is_overlooked() -> None:
    """Every fence of every page is one of a block, so that none is skipped for how it is written."""
    written = {f"docs/{path}": text for path, text in pages.written().items()}
    for page, found in every_page().items():
        text = written[page] if page in written else (pages.ROOT / page).read_text(encoding="utf-8")
        fences = [line for line in text.splitlines() if line.lstrip().startswith("```")]
        assert len(fences) == 2 * len(found), page
        assert "~~~" not in text and "<pre" not in text, page


def test_an_output_that_is_not_what_was_printed_is_noticed() -> None:
    def shows(text: str, printed: str, title: str = "") -> bool:
        try:
            assert_shows(Block("page", 1, "text", title, text), printed)
        except AssertionError:
            return False
        return True

    assert shows("a\nb", "a\nb\n") and shows("b", "a\nb\nc") and shows("a\n...\nc", "a\nx\ny\nc") and shows("...", "")
    assert shows("graph ... of 3", "graph 5c1e of 3") and shows("a...", "a...")
    assert shows("  12.5 of 1,204", "  7 of 3", INSTANCE) and not shows("12 of 3", "7 in 3", INSTANCE)
    assert not shows("12 of 3", "7 of 3")
    assert not shows("a\nc", "a\nb\nc") and not shows("graph ... of 3", "graph 5c1e of 4") and not shows("a.b", "acb")
    assert not shows("b", "abc") and not shows("a", "")
