"""Every tutorial runs from its first cell to its last, and shows what it says it shows."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import pytest

from docs.tools import tutorials
from docs.tools.blocks import blocks


@pytest.mark.parametrize("source", tutorials.sources(), ids=lambda source: source.stem)
def test_a_tutorial_runs_and_shows_its_figures(source: Path) -> None:
    made = tutorials.tutorial(source)
    assert made.markdown.startswith("# ") and f"[As a notebook]({source.stem}.ipynb)" in made.markdown
    figures = {name: data for name, data in made.files.items() if name.endswith(".png")}
    assert len(figures) >= len(re.findall(r"^drawn = ", made.text, re.MULTILINE)) > 0
    assert all(data.startswith(b"\x89PNG") and len(data) > 3000 for data in figures.values())
    assert all(f"]({name})" in made.markdown and f"]({name})" in made.text for name in figures)
    assert "Traceback" not in made.text and "<div" not in made.text


@pytest.mark.parametrize("source", tutorials.sources(), ids=lambda source: source.stem)
def test_a_tutorial_has_a_number_in_the_order_of_reading(source: Path) -> None:
    assert int(source.stem.split("_")[0]) == tutorials.sources().index(source) + 1


def text_of(number: int) -> str:
    """What a tutorial says and what its cells gave."""
    return tutorials.tutorial(tutorials.sources()[number - 1]).text


def rows(text: str, after: str) -> dict[str, list[float]]:
    """The first table behind some words: its rows' numbers, by what each begins with."""
    table = re.split(r"```text\n", text[text.index(after) :])[1].split("```")[0]
    found = (re.fullmatch(r"(\S.*?)((?:\s+-?[\d.]+)+)", line) for line in table.splitlines())
    return {row[1]: [float(number) for number in row[2].split()] for row in found if row}


def test_the_first_tutorial_finds_what_it_tells_of() -> None:
    text = text_of(1)
    assert "is the ring black or cyan? -> cyan" in text
    assert "layer 5: [1.00, 1.00]  stands out: True" in text
    assert "layer 0: [0.00, 0.00]  stands out: False" in text


def test_of_the_users_own_pictures_nine_are_kept_and_the_answer_leaves_the_object_for_the_last_token() -> None:
    text = text_of(2)
    assert "Nine of twelve" in text and len(re.findall(r"^\d+ +kept", text, re.MULTILINE)) == 9
    assert len(re.findall(r"dropped: the clean run says '0'", text)) == 3
    shares = rows(text, "## The sweep")  # image:object, image:other, subject, last
    assert shares["0"] == pytest.approx([1, 0, 0, 0], abs=0.02) and shares["5"] == pytest.approx([0, 0, 0, 1], abs=0.02)
    assert all(abs(value) < 0.02 for share in shares.values() for value in share[1:3])


def test_one_head_gives_back_most_looks_at_the_object_and_is_universal_and_ablation_finds_another() -> None:
    text = text_of(3)
    assert "strongest: 2 3 0.31" in text
    ratios = rows(text, "What do they look at?")
    strongest = sorted(((ratio, f"L{row}.H{head}") for row in ratios for head, ratio in enumerate(ratios[row])))[-4:]
    assert {name for _, name in strongest} == {"L1.H1", "L2.H3", "L4.H0", "L4.H3"} and strongest[-1] == (15.8, "L2.H3")
    assert "universal [(2, 3)]" in text and "universal_tested [(2, 3)]" in text
    found = re.findall(r"^(L\d.H\d): gives back ([\d.]+) logits, costs ([\d.]+); on the picture (\d+)%", text, re.M)
    gives, costs, seen = ({name: float(row[at]) for name, *row in found} for at in range(3))
    assert max(gives, key=gives.__getitem__) == "L2.H3" and gives["L0.H1"] == 0 and seen["L0.H1"] == 0
    assert sorted(costs, key=costs.__getitem__)[-2:] == ["L2.H3", "L0.H1"] and min(costs.values()) > 0.5


def test_in_one_model_the_last_token_reads_the_question_first_and_in_the_other_the_question_reads_the_picture() -> None:
    text = text_of(4)
    change = rows(text, "There is no corrupted run")
    lowest = {edges: min(range(6), key=values.__getitem__) for edges, values in change.items()}
    assert lowest["question -> last"] == 1 and lowest["image -> last"] == lowest["image:object -> last"] == 3
    assert change["question -> last"][2:] == [0] * 4
    assert change["image -> question"] == change["image:other -> last"] == [0] * 6
    single = rows(text, "## One layer, or several?")
    assert single["image -> last"][0] > -10 and single["image -> last"][1] < -60
    blip = rows(text, "for site in sites")
    assert blip["image:object -> question"][2] < -20 and blip["image:other -> question"] == [0] * 6
    assert blip["all -> decoding"] == [0, 0, 0, 0, 0, -100]


def test_without_a_server_a_run_says_so_and_a_complete_store_needs_none() -> None:
    text = text_of(5)
    assert text.count("No NDIF server answers at http://127.0.0.1:9") == 2 and "exit code 1" in text
    (shown,) = re.findall(r"^InterventionGraph (\w+) ", text, re.MULTILINE)
    assert f"characters of JSON, hash {shown}" in text and "True local" in text


def test_what_a_tutorial_cannot_run_says_what_it_needs() -> None:
    for source in tutorials.sources():
        written = (cell.source for cell in jupytext.read(source).cells if cell.cell_type == "markdown")
        assert {block.needs for text in written for block in blocks(source.stem, text)} <= {"Needs an NDIF server"}


def test_a_bundle_replays_on_its_own_pairs_and_made_up_numbers_do_not() -> None:
    text = text_of(6)
    first, second = re.findall(r"^Replay of .*: (.*)\n((?:  .*\n)*)", text, re.MULTILINE)
    assert first[0] == "within tolerance" and "NOT" not in first[1]
    assert second[0] == "NOT within tolerance" and re.search(r"logit_difference +0.5 .*NOT WITHIN", second[1])
    heads = re.findall(r"^(restored|corrupted): (L2.H3) ([\d.]+) logits", text, re.MULTILINE)
    assert len(heads) == 2 and float(heads[1][2]) > float(heads[0][2])
    assert "experiment.yaml is not what manifest.json says" in text and "eprint = {2406.16320}" in text


def test_a_model_of_no_known_family_is_used_with_the_file_that_is_proposed_and_edited() -> None:
    text = text_of(7)
    assert "vision_config.model_type is 'dinov2'" in text and text.count("# UNCERTAIN") == 2
    assert "fits its map with --family dino.yaml: 18 sites are there" in text
    assert "./dino-llava can be used: 17 sites, 21 checks hold." in text
    effects = re.findall(r"^(\S+) +([\d.]+)  nothing 0e\+00, ", text, re.MULTILINE)
    assert len(effects) == 15 and all(float(effect) > 0.1 for _, effect in effects)
    assert "Did you mean 'hidden_state'?" in text
    assert [rows(text, "## Use it")[name] for name in ("image", "question", "last")] == [[0], [0], [1]]


def test_a_dataset_and_a_metric_are_known_by_their_names_and_the_metric_sees_what_the_other_does_not() -> None:
    text = text_of(8)
    assert "checkout/vlm_patching/__init__.py {'one of its lamps is off': 1}" in text
    found = re.findall(r"^(\w+) +(\w+) +clean +(-?[\d.]+)  corrupted +(-?[\d.]+)$", text, re.MULTILINE)
    corrupted = {(kind, metric): float(value) for kind, metric, _, value in found}
    assert (
        corrupted["semantic_image_pair", "logit_difference"] == corrupted["semantic_image_pair", "answer_margin"] < -10
    )
    assert corrupted["blank_image", "logit_difference"] > 0 > -5 > corrupted["blank_image", "answer_margin"]
    assert "  it says 5 5 5 5 5 5 5 5" in text
    assert "Did you mean 'answer_margin'?" in text and "Did you mean 'lamps'?" in text


def test_html_of_a_cell_gets_a_tree_of_its_own() -> None:
    made = tutorials.Tutorial(html=["<style>:root{color:red}</style><table></table>"])
    page = tutorials.placed(f"<p>before</p>{tutorials.PLACE.format(0)}<p>after</p>", made)
    assert '<template shadowrootmode="open">' in page and ":host{color:red}" in page and ":root" not in page


def test_a_cell_that_fails_fails_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tutorials, "RUN", tmp_path / "run")
    source = tmp_path / "09_wrong.py"
    source.write_text("# %% [markdown]\n# # Wrong\n\n# %%\n1 / 0\n", encoding="utf-8")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        tutorials.executed(source)
    assert not (tmp_path / "run").exists()
