"""What to cite, as BibTeX: the software, what it stands on, and the papers that an experiment's `source` names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

_ALWAYS = "nnsight"
"""Begins the title of the paper that every run stands on."""
_ENTRIES = {"conference-paper": ("inproceedings", "booktitle"), "article": ("article", "journal")}
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}"})


def citations(*sources: str) -> str:
    """BibTeX of the package, of nnsight, and of every paper in CITATION.cff that a text names.

    Parameters
    ----------
    *sources
        Texts, as an experiment's `source`. A paper is named by its title, or by its first author and year, as in "Wang
        et al. 2022".

    Returns
    -------
    str
        One entry a paragraph; the package's comes first.

    Examples
    --------
    >>> "eprint = {2304.14997}" in citations("Conmy et al. 2023")
    False
    >>> "eprint = {2211.00593}" in citations("path patching (Wang et al. 2022)")
    True
    """
    record = _record()
    named = [one for one in record["references"] if any(_is_named(one, source) for source in ("", *sources))]
    entries = {_bibtex(reference): None for reference in [record, *named]}
    return "\n\n".join(entries)


@cache
def _record() -> dict[str, Any]:
    """CITATION.cff: inside an installed package, or at the top of a checkout."""
    package = Path(str(resources.files("vlm_patching")))
    inside = package / "CITATION.cff"
    path = inside if inside.is_file() else package.parent / "CITATION.cff"
    record: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return record


def _is_named(reference: Mapping[str, Any], source: str) -> bool:
    title = _letters(reference["title"])
    if title.startswith(_ALWAYS) or title in _letters(source):
        return True
    others = [one["title"] for one in _record()["references"] if _letters(one["title"]) in _letters(source)]
    if others:  # "Zhang, Nanda (2023). Towards ..." is not Nanda (2023)
        return False
    first = re.escape(_family_name(reference["authors"][0]))
    return bool(
        re.search(rf"(?<!, )(?<!and )(?<!& )\b{first}\b(?: et al\.|(?:, [\w-]+)*)?,? \(?{reference['year']}\b", source)
    )


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def _family_name(author: Mapping[str, str]) -> str:
    return author.get("family-names") or author["name"]


def _bibtex(reference: Mapping[str, Any]) -> str:
    kind, venue = _ENTRIES.get(reference["type"], ("misc", "howpublished"))
    arxiv = [str(one["value"]) for one in reference.get("identifiers", ()) if str(one["value"]).startswith("arXiv:")]
    fields = {
        "title": "{" + _tex(reference["title"]) + "}",
        "author": " and ".join(map(_author, reference["authors"])),
        "year": str(reference.get("year", "")),
        venue: _tex(reference.get("collection-title", f"arXiv preprint {arxiv[0]}" if arxiv else "")),
        "eprint": arxiv[0].removeprefix("arXiv:") if arxiv else "",
        "archivePrefix": "arXiv" if arxiv else "",
        "version": str(reference.get("version", "")),
        "url": reference.get("url", ""),
        "note": _tex(reference.get("notes", "")),
    }
    given = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
    return f"@{kind}{{{_key(reference)},\n" + ",\n".join(given) + "\n}"


def _author(author: Mapping[str, str]) -> str:
    if "family-names" in author:
        return _tex(f"{author['family-names']}, {author['given-names']}")
    return "{" + _tex(author["name"]) + "}"


def _key(reference: Mapping[str, Any]) -> str:
    """As in "golovanevsky2024what"; the software's own is its name."""
    if "version" in reference:
        return re.split(r"[^\w]", reference["title"])[0]
    plain = unicodedata.normalize("NFKD", _family_name(reference["authors"][0]))
    return re.sub(r"[^a-z0-9]", "", f"{plain}{reference['year']}{reference['title'].split()[0]}".lower())


def _tex(text: str) -> str:
    return text.translate(_SPECIAL)
