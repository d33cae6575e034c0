"""What the site is made of: its navigation, links, texts for language models; and that nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import vlm_patching as vp
from docs.tools import api, hooks, llms, offline, pages, tables

NAV = pages.expanded(yaml.safe_load((pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
ALL = pages.paths()


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return llms.texts()


def test_every_page_stands_in_the_navigation_once() -> None:
    listed = [path for _, path in llms.listed(NAV) if path is not None]
    assert sorted(listed) == ALL
    assert sorted({**pages.made(), **pages.written()}) == ALL


@pytest.mark.parametrize("path", ALL)
def test_a_page_has_one_title_and_begins_with_it(texts: dict[str, str], path: str) -> None:
    text = texts[path]
    assert text.startswith("# ")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1


def test_names_of_the_api_become_links_and_others_stay_as_they_are() -> None:
    def linked(html: str) -> str:
        return hooks._NAME.sub(lambda found: f"[{found[1]}]", html)

    assert linked("<code>vp.run</code>") == "[vp.run]"
    assert linked("<code>vp.analysis.bootstrap(effect)</code>") == "[vp.analysis.bootstrap]"
    assert linked("<pre><code>vp.run</code></pre>") == "<pre><code>vp.run</code></pre>"
    assert linked("<code>vlm-patching run</code>") == "<code>vlm-patching run</code>"


def test_every_public_name_that_pages_mention_is_there() -> None:
    known = set(api.public())
    for path, text in pages.written().items():
        for name in re.findall(r"`(vp(?:\.\w+)+)(?:\([^`]*\))?`", text):
            owner, _, member = name.rpartition(".")
            there = name in known or name.removeprefix("vp.") in ("analysis", "plot", "bundle", "report")
            there = there or (owner in known and hasattr(api.public()[owner], member))
            assert there, f"{path} mentions {name}, which is not public"


def test_an_unknown_table_or_preset_is_an_error() -> None:
    with pytest.raises(ValueError, match="no table 'nonsense'; there are spec"):
        tables.filled("<!-- table: nonsense -->")
    with pytest.raises(ValueError, match="no preset 'palit2032'"):
        tables.filled("<!-- preset: palit2032 -->")
    assert "palit2023.yaml" in tables.filled("before\n<!-- preset: palit2023 -->\nafter")


def test_a_cell_of_a_table_may_hold_a_bar() -> None:
    assert tables.rows(("a",), [("KL(p || q)",)]).splitlines()[-1] == r"| KL(p \|\| q) |"


def test_links_of_a_file_of_the_repository_lead_to_pages_of_the_site() -> None:
    moved = pages._moved(
        "[a](docs/tour.md#x) [b](CHANGELOG.md) [c](https://x.org) [d](LICENSE) [e](none)", "CONTRIBUTING.md"
    )
    assert moved == "[a](tour.md#x) [b](changelog.md) [c](https://x.org) d (`LICENSE`) e"


def test_the_texts_for_language_models_have_every_page(tmp_path: Path) -> None:
    llms.write(tmp_path, NAV, "vlm_patching")
    listing, whole = ((tmp_path / name).read_text(encoding="utf-8") for name in ("llms.txt", "llms-full.txt"))
    assert listing.startswith("# vlm_patching\n\n> Say where to intervene")
    for path in ALL:
        assert f"]({path})" in listing and (tmp_path / path).is_file()
    assert "<!-- table" not in whole and ":::" not in whole
    assert whole.count("\n\n---\n\n# ") >= len(ALL) - 1
    assert all(name in whole for name in ("run(what: ", "semantic_image_pair", *vp.presets()))


def test_what_a_page_or_style_fetches_from_elsewhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.html").write_text('<link rel="canonical" href="https://x.org"><a href="https://x.org">x</a>')
    assert list(offline.foreign(tmp_path)) == []
    (tmp_path / "bad.html").write_text('<script src="//cdn.org/a.js"></script><img src="https://x.org/i.png">')
    (tmp_path / "bad.css").write_text("@import 'https://fonts.org/f.css'; a {background: url(http://x.org/b.png)}")
    assert sorted(offline.foreign(tmp_path)) == [
        "bad.css: http://x.org/b.png",
        "bad.css: https://fonts.org/f.css",
        "bad.html: //cdn.org/a.js",
        "bad.html: https://x.org/i.png",
    ]
