"""What to cite, as BibTeX: the package, nnsight, and exactly the papers that are named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import vlm_patching as vp
from vlm_patching.citations import citations

RECORD = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8"))
ALWAYS = ["vlm_patching", "fiottokaufman2025nnsight"]


def keys(source: str) -> list[str]:
    found = re.findall(r"^@\w+\{([^,]+),$", citations(source), flags=re.MULTILINE)
    assert found[0] == "vlm_patching" and "fiottokaufman2025nnsight" in found
    return [key for key in found if key not in ALWAYS]


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("", []),
        ("Ours: heads.", []),
        ("Palit et al. (2023)", ["palit2023towards"]),
        ("attribution patching (Nanda 2023; Syed, Rager, Conmy 2023)", ["nanda2023attribution", "syed2023attribution"]),
        (
            "Zhang, Nanda 2023, Towards Best Practices of Activation Patching in Language Models: metrics and methods",
            ["zhang2023towards"],
        ),
        ("Zhang, Yadav, Han, Shutova (2024)", ["zhang2024crossmodal"]),
        ("after Wang et al. 2021", []),
        ("after Wang et al. 2022", ["wang2022interpretability"]),
        ("Somebody and Nanda 2023; Smith, Nanda 2023; X & Nanda (2023)", []),
        ("logit lens (nostalgebraist 2020)", ["nostalgebraist2020interpreting"]),
    ],
)
def test_a_paper_is_cited_where_it_is_named(source: str, named: list[str]) -> None:
    assert keys(source) == named


@pytest.mark.parametrize("name", list(vp.presets()))
def test_every_preset_that_follows_a_paper_cites_it(name: str) -> None:
    source = vp.Experiment.from_spec(name).source
    assert source is not None
    of_a_paper = re.search(r"\(?(19|20)\d\d\b", source) is not None
    assert bool(keys(source)) == of_a_paper


def test_entries_are_bibtex() -> None:
    every = citations(". ".join(reference["title"] for reference in RECORD["references"]))
    entries = every.split("\n\n")
    assert len(entries) == 1 + len(RECORD["references"])
    for entry in entries:
        assert re.fullmatch(
            r"@(misc|article|inproceedings)\{[a-z0-9_]+,\n(  \w+ = \{.*\},\n)*  \w+ = \{.*\}\n\}", entry
        )
        bare = re.sub(r"\\[&%$#_{}]", "", entry)
        assert bare.count("{") == bare.count("}")
        assert "_" not in re.sub(r"^@.*$", "", bare, flags=re.MULTILINE), "LaTeX reads it as an index"
    meng = next(entry for entry in entries if "meng2022locating" in entry)
    assert "author = {Meng, Kevin and Bau, David and Andonian, Alex and Belinkov, Yonatan}" in meng
    assert (
        "eprint = {2202.05262}" in meng and "booktitle = {Advances in Neural Information Processing Systems 35}" in meng
    )
