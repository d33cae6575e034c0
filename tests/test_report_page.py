"""A report as a page: it needs nothing beside it, runs nothing but its own, and texts stay texts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import vlm_patching as vp
from tests.reading import Page, unpacked
from tests.reporting import (
    METHODS,
    NASTY,
    dataset,
    nasty_pairs,
    page_of,
    run,
)
from vlm_patching.reports import page as pages
from vlm_patching.reports.packing import embedded, packed


def test_the_page_asks_for_nothing_and_runs_nothing_but_its_own_scripts() -> None:
    for found in map(page_of, METHODS):
        for name, attributes in found.elements:
            for link in ("src", "href", "data", "action", "srcset", "poster"):
                target = attributes.get(link)
                assert target is None or target.startswith(("#", "data:image/")), (name, link, target)
            assert not [key for key in attributes if key.startswith("on")]
        (policy,) = [meta["content"] for meta in found.named("meta") if meta.get("http-equiv")]
        assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
        run = [content for attributes, content in found.scripts if attributes.get("type") != "application/json"]
        hashes = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in run]
        assert re.findall(r"'sha256-([^']+)'", policy) == hashes
        assert len(hashes) == 2 and "unsafe" not in policy.partition("style-src")[0]


def test_parts_of_the_page_have_names_and_links_go_to_them() -> None:
    found = page_of("heads")
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name, attributes in found.elements:
        for reference in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(reference) is None or attributes[reference] in ids
        if name == "a":
            assert str(attributes["href"]).removeprefix("#") in ids
        if name == "img":
            assert attributes["alt"]
        if name == "section":
            assert attributes["aria-labelledby"]
    names = [name for name, _ in found.elements]
    assert [names.count(name) for name in ("h1", "main", "nav", "header", "footer")] == [1] * 5
    assert next(found.named("html")) == {"lang": "en"}


def test_the_library_is_the_one_that_npm_has() -> None:
    content = (pages.ASSETS / pages.LIBRARY).read_bytes()
    assert hashlib.sha256(content).hexdigest() == "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
    assert b"v4.1.1" in content[:200] and b"</script" not in content
    assert "MIT" in (pages.ASSETS / "plotly-LICENSE.txt").read_text()


def test_the_same_dataset_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("noise", "knockout"):
        pairs = vp.rebuild_pairs(dataset(name))
        one, other = (vp.report(dataset(name), tmp_path / f"{i}.html", pairs).html for i in range(2))
        assert one == other


def test_a_report_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    made = vp.report(dataset("lens"), tmp_path / "lens.html")
    frame = made._repr_html_()
    srcdoc = re.search(r' srcdoc="([^"]*)"', frame)
    assert srcdoc is not None and html.unescape(srcdoc[1]) == made.html
    assert 'sandbox="allow-scripts allow-popups allow-downloads"' in frame, "no access to the notebook itself"
    assert os.fspath(made) == str(tmp_path / "lens.html")
    assert repr(made) == f"Report(path={made.path!r})"


def test_texts_of_a_dataset_stay_texts(tmp_path: Path) -> None:
    pairs = {"dataset": "folder", "path": str(nasty_pairs(tmp_path / "pairs")), "keep": "all"}
    patch = {"sites": ["language.resid_post"], "positions": ["each:question"]}
    ds = run(patch=patch, pairs=pairs, name="<b>&x</b>")
    made = vp.report(ds, tmp_path / "nasty.html", vp.rebuild_pairs(ds))
    found = Page(made.html)
    assert len(found.scripts) == 3, "the data, the library and the page's own"
    assert not [attributes for attributes in found.named("img") if "onerror" in attributes]
    assert not list(found.named("b"))
    assert "<b>&x</b>" in found.text
    assert [record["id"] for record in found.data["pairs"]] == ds["example"].values.tolist()
    assert "".join(text for text, _ in found.data["pairs"][0]["prompts"][0]["parts"]) == NASTY
    source = next(content for attributes, content in found.scripts if attributes.get("id") == "data")
    assert not set(source) & set("<>&\u2028\u2029")


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_data_survives_and_ends_nothing(data: Any) -> None:
    text = embedded(data)
    assert json.loads(text) == data
    assert text.isascii() and not set(text) & set("<>&")


@given(st.lists(st.floats(width=32) | st.just(float("nan")), max_size=50))
def test_packed_numbers_survive(numbers: list[float]) -> None:
    np.testing.assert_array_equal(unpacked(packed(np.array(numbers, dtype=np.float32))), np.float32(numbers))
