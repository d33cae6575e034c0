"""MIT-States: the same noun in another state, of which a picture can tell."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import vlm_patching as vp
from tests.datasets.kit import mit_states
from tests.refusals import refusal, says
from vlm_patching.pairs.vocabulary import exclusions

COUNTS = {
    "old car": 3,
    "new car": 2,
    "ancient car": 2,
    "rusty car": 2,
    "dirty shoes": 2,
    "clean shoes": 2,
    "ripe banana": 4,
    "adj car": 3,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return mit_states(tmp_path, COUNTS)


def test_every_photograph_is_asked_about_once_with_another_state_of_its_noun(folder: Path) -> None:
    pairs = vp.load_pairs("mit_states", path=folder)
    assert len(pairs) == 13 and pairs.considered == 17
    assert pairs.dropped == {"its noun has no other state that can be told from its own": 4}
    assert {pair.clean.image for pair in pairs} == {
        folder / "images" / name / f"{i}.jpg"
        for name, count in COUNTS.items()
        if name not in ("ripe banana", "adj car")
        for i in range(count)
    }
    near = exclusions("mit_states").near
    for pair in pairs:
        noun = pair.clean.text[slice(*pair.spans["subject"])]
        assert pair.clean.image.parent.name == f"{pair.answer} {noun}"
        assert pair.corrupted.image.parent.name == f"{pair.foil} {noun}"
        assert not near(pair.answer, pair.foil)
        options = {pair.clean.text[slice(*pair.spans[span])] for span in ("answer_option", "foil_option")}
        assert options == {pair.answer, pair.foil}
        verb = "Are these shoes" if noun == "shoes" else "Is this car"
        assert pair.clean.text in [
            f"{verb} {a} or {b}?" for a, b in ((pair.answer, pair.foil), (pair.foil, pair.answer))
        ]


def test_states_that_mean_nearly_the_same_are_never_held_against_each_other(folder: Path) -> None:
    foils = Counter(
        (pair.answer, pair.foil) for seed in range(20) for pair in vp.load_pairs("mit_states", path=folder, seed=seed)
    )
    assert ("old", "new") in foils and ("rusty", "new") in foils
    assert not {("old", "ancient"), ("ancient", "old"), ("old", "rusty"), ("rusty", "old")} & set(foils)


def test_what_is_drawn_for_a_photograph_depends_on_no_other(folder: Path) -> None:
    before = {pair.id: (pair.foil, pair.corrupted.image) for pair in vp.load_pairs("mit_states", path=folder)}
    mit_states(folder, {"dirty floor": 3, "clean floor": 1})
    after = {pair.id: (pair.foil, pair.corrupted.image) for pair in vp.load_pairs("mit_states", path=folder)}
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 4


def test_folders_with_underscores_are_read_as_those_with_spaces(tmp_path: Path) -> None:
    (pair, _) = vp.load_pairs("mit_states", path=mit_states(tmp_path, {"old_car": 1, "new_car": 1}))
    assert pair.clean.text in ("Is this car old or new?", "Is this car new or old?")


def test_only_the_adjectives_that_are_asked_for_are_taken(folder: Path) -> None:
    pairs = vp.load_pairs("mit_states", path=folder, adjectives=["old", "new"])
    assert {pair.answer for pair in pairs} == {"old", "new"} and len(pairs) == 5
    message = refusal(lambda: vp.load_pairs("mit_states", path=folder, adjectives=["old", "nwe"]))
    says(message, "pairs.adjectives", "'nwe'", "Did you mean 'new'?")


def test_antonyms_are_those_of_the_archive(folder: Path) -> None:
    (folder / "adj_ants.csv").write_text("old,new,young,\nnew,old,,\nclean,dirty\nrusty\n")
    pairs = vp.load_pairs("mit_states", path=folder, foils="antonyms")
    assert {(pair.answer, pair.foil) for pair in pairs} == {("old", "new"), ("new", "old"), ("clean", "dirty")}


def test_a_folder_that_is_no_mit_states_is_refused(tmp_path: Path) -> None:
    says(refusal(lambda: vp.load_pairs("mit_states", path=tmp_path)), str(tmp_path / "images"), "does not exist")
    mit_states(tmp_path, {"car": 1, "adj car": 2, "empty car": 0})
    says(refusal(lambda: vp.load_pairs("mit_states", path=tmp_path)), "'ADJECTIVE NOUN'", str(tmp_path / "images"))
    mit_states(tmp_path, {"old car": 2})
    says(refusal(lambda: vp.load_pairs("mit_states", path=tmp_path)), "no pair left", "no other state", "(2)")
    with pytest.raises(vp.SpecError, match=r"pairs\.foils.*'antonym'.*Did you mean 'antonyms'"):
        vp.load_pairs("mit_states", path=tmp_path, foils="antonym")


def test_a_broken_photograph_is_named(folder: Path) -> None:
    path = folder / "images" / "dirty shoes" / "1.jpg"
    path.write_bytes(path.read_bytes()[:200])
    says(refusal(lambda: vp.load_pairs("mit_states", path=folder)), str(path), "cannot be read as a picture")
    assert sum(vp.load_pairs("mit_states", path=folder, on_error="skip").dropped.values()) > 4
