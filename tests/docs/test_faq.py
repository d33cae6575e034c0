"""Every error that the FAQ quotes is what the package says, and every one that is provoked here is explained there."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from huggingface_hub import constants

import vlm_patching as vp
from docs.tools.pages import DOCS
from tests.docs.provoked import PROVOKED

ENTRY = re.compile(r"^### .+ \{#([\w-]+)\}\n\n((?:> .*\n)+)\n(.+)$", re.MULTILINE)
FAQ = (DOCS / "faq.md").read_text(encoding="utf-8")
QUOTED = {
    anchor: " ".join(html.unescape(re.sub("^> ", "", said, flags=re.MULTILINE)).split())
    for anchor, said, _ in ENTRY.findall(FAQ)
}


def test_every_section_quotes_an_error_and_says_what_to_do() -> None:
    headings = re.findall(r"^### .*\{#([\w-]+)\}$", FAQ, re.MULTILINE)
    assert headings == list(QUOTED) and len(headings) == FAQ.count("\n### ")
    assert all(len(advice) > 20 for _, _, advice in ENTRY.findall(FAQ))
    assert "<" not in re.sub(r"\[start, end\)\s+(> )?with 0 <= start < end <= 24", "", FAQ), "Markdown would drop a tag"


def test_what_is_quoted_is_provoked_and_what_is_provoked_is_quoted() -> None:
    assert set(QUOTED) == set(PROVOKED)
    assert len(QUOTED) >= 25


@pytest.mark.parametrize("anchor", QUOTED)
def test_the_error_says_what_the_faq_quotes(anchor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises((vp.SpecError, vp.RunError)) as caught:
        PROVOKED[anchor]()
    said = " ".join(str(caught.value).split())
    pattern = ".*".join(re.escape(part.strip()) for part in re.split(r"(?<!\w)\.\.\.(?=[,) ]|$)", QUOTED[anchor]))
    assert re.search(pattern, said), f"the error says\n{said}\nand the FAQ\n{QUOTED[anchor]}"
