"""What each kind of pair of drawn scenes is about: sets that satisfy a concept, words in pictures, relatedness."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import ImageFont

import vlm_patching as vp
from tests.test_shapes import COLORS, SHAPES
from tests.test_shapes_factors import CONCEPTS, EXISTENCE, FACTORS, RELATEDNESS, contrasts, satisfies, singular
from vlm_patching.pairs.shapes import Scene, Thing, Word, draw_contrast, render


def concept_of(contrast: Any) -> str:
    return str(contrast.text[slice(*contrast.spans["subject"])])


@pytest.mark.parametrize("kind", CONCEPTS)
def test_one_thing_satisfies_a_concept_in_one_picture_and_none_in_the_other(kind: str) -> None:
    clean = []
    for contrast in contrasts(kind, 200):
        numbers = [
            sum(satisfies(concept_of(contrast), thing) for thing in scene.things)
            for scene in (contrast.clean, contrast.corrupted)
        ]
        assert sorted(numbers) == [0, 1]
        clean.append(numbers[0])
    assert 70 < sum(clean) < 130, "the clean picture should satisfy it as often as not"


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("and", {(True, False), (False, True), (False, False)}),
        ("or", {(False, False)}),
        ("xor", {(True, True), (False, False)}),
        ("not", {(True,)}),
    ],
)
def test_the_other_things_fail_a_concept_in_every_way_there_is(kind: str, ways: set[tuple[bool, ...]]) -> None:
    satisfied = set()
    for contrast in contrasts(kind, 200):
        words = [word for word in map(singular, concept_of(contrast).split()) if word not in ("and", "or", "not")]
        words = [word for word in words if word not in ("but", "both")]
        both = [
            [tuple(word in (t.shape, t.color, t.size) for word in words) for t in scene.things]
            for scene in (contrast.clean, contrast.corrupted)
        ]
        same = [a for a, b, t, u in zip(*both, contrast.clean.things, contrast.corrupted.things, strict=True) if t == u]
        assert set(same) == ways
        (changed,) = [
            {a, b} for a, b, t, u in zip(*both, contrast.clean.things, contrast.corrupted.things, strict=True) if t != u
        ]
        satisfied |= changed - ways
    every = {(a, b) for a in (True, False) for b in (True, False)} if kind != "not" else {(True,), (False,)}
    missing = {(True, True)} if kind == "or" else set()  # no single attribute's change makes it fail
    assert satisfied == every - ways - missing


@pytest.mark.parametrize("kind", ["and", "xor"])
def test_no_attribute_by_itself_tells_the_pictures_apart(kind: str) -> None:
    for contrast in contrasts(kind, 100):
        for part in ("constraint_1", "constraint_2"):
            word = singular(contrast.text[slice(*contrast.spans[part])])
            for scene in (contrast.clean, contrast.corrupted):
                assert any(word in (thing.shape, thing.color, thing.size) for thing in scene.things)


def test_levels_of_relatedness_share_the_clean_scene_and_say_how_many_things_share_the_new_shape() -> None:
    for seed in range(40):
        drawn = {kind: draw_contrast(random.Random(seed), kind, aligned=False) for kind in RELATEDNESS}
        assert len({(contrast.clean, contrast.text, contrast.answer) for contrast in drawn.values()}) == 1
        shared = {}
        for kind, contrast in drawn.items():
            ((old, new),) = [
                (a, b) for a, b in zip(contrast.clean.things, contrast.corrupted.things, strict=True) if a != b
            ]
            assert (old.shape, new.shape) == (contrast.answer, contrast.foil)
            shared[kind] = [thing.shape for thing in contrast.clean.things].count(new.shape)
            assert [thing.shape for thing in contrast.clean.things].count(old.shape) == 1
        assert list(shared.values()) == [0, 1, 3]


def test_levels_of_relatedness_loaded_by_themselves_are_of_the_same_scenes() -> None:
    low, middle, high = (vp.load_pairs("shapes", n=6, seed=5, questions=[kind]) for kind in RELATEDNESS)
    for pairs in zip(low, middle, high, strict=True):
        assert len({pair.clean.picture().tobytes() for pair in pairs}) == 1
        assert len({(pair.clean.text, pair.answer) for pair in pairs}) == 1
        assert len({pair.foil for pair in pairs}) == len({pair.corrupted.picture().tobytes() for pair in pairs}) == 3


def test_a_removed_thing_is_the_only_one_of_its_name() -> None:
    for number in (1, 2):
        pairs = vp.load_pairs("shapes", n=40, seed=2, questions=["removal"], constraints=number)
        assert {len(p.clean.text.split()) for p in pairs} == {4 + number}
        for pair in pairs:
            said = {name: pair.clean.text[slice(*span)] for name, span in pair.spans.items()}
            assert said["constraint"] == said["subject"]
            parts = [said[name] for name in ("constraint_1", "constraint_2") if name in said]
            assert parts == ([] if number == 1 else said["subject"].removesuffix(" objects").split())
        assert {p.answer for p in pairs} == {"0", "1"}


def test_the_word_lies_as_near_to_the_thing_as_it_can() -> None:
    for kind in ("stroop_word", "stroop_color"):
        for contrast in contrasts(kind, 40):
            scene, (word,) = contrast.clean, contrast.clean.words
            (thing,) = [thing for thing in scene.things if thing.box == contrast.regions["object"]]
            free = {(r, c) for r in range(4) for c in range(4)} - {t.cell for t in scene.things}
            places = [(r, c) for r in range(4) for c in range(3) if {(r, c), (r, c + 1)} <= free]
            assert (word.row, word.col) in places

            def distance(place: tuple[int, int], thing: Thing = thing) -> float:
                return (place[0] - thing.row) ** 2 + (place[1] + 0.5 - thing.col) ** 2

            assert distance((word.row, word.col)) == min(map(distance, places))


RED = [
    "..............###.",
    "...............##.",
    "##.###.###...####.",
    ".###.###.##.##.##.",
    ".##...#####.##.##.",
    ".##...##....##.##.",
    "####...####..#####",
]


def test_a_word_is_written_as_it_is_spelt_without_any_font_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_font(*arguments: Any, **named: Any) -> None:
        pytest.fail("a font was looked for on the machine")

    monkeypatch.setattr(ImageFont, "truetype", no_font)
    monkeypatch.setattr(ImageFont, "load_default", no_font)
    picture = np.asarray(render(Scene((), 230, (Word("red", 1, 1),)))).astype(int)
    ink = picture[..., 0] < 230
    x0, y0, x1, y1 = Word("red", 1, 1).box
    assert (x0, y0, x1, y1) == (24, 30, 72, 41)
    assert ink.sum() == ink[y0:y1, x0:x1].sum() > 30
    assert ["".join(".#"[i] for i in row) for row in ink[32:39, 39:57].astype(int)] == RED


def test_words_of_one_place_differ_only_in_its_box_and_each_looks_different() -> None:
    pictures = {}
    for text in (*COLORS, *SHAPES):
        word = Word(text, 2, 0)
        picture = np.asarray(render(Scene((), 230, (word,)))).astype(int)
        x0, y0, x1, y1 = word.box
        assert (x0, y0, x1, y1) == (0, 54, 48, 65)
        inside = np.zeros((96, 96), dtype=bool)
        inside[y0:y1, x0:x1] = True
        assert (picture[~inside] == 230).all()
        pictures[text] = picture.tobytes()
    assert len(set(pictures.values())) == 16


def experiment(model: str, **pairs: Any) -> vp.Experiment:
    site = {"shapes-blip": "question_encoder.resid_post", "shapes-llava": "language.resid_post"}[model]
    return vp.Experiment.from_dict(
        {
            "name": "kinds",
            "model": {"name": model},
            "pairs": {"dataset": "shapes", "keep": "all", **pairs},
            "corruption": {"kind": "semantic_image_pair"},
            "patch": {"sites": [site], "layers": [0], "positions": ["subject"]},
        }
    )


@pytest.mark.parametrize("model", ["shapes-blip", "shapes-llava"])
def test_every_kind_runs_on_the_bundled_models(model: str) -> None:
    ds = vp.run(experiment(model, n=len(FACTORS), questions=FACTORS), progress=False)
    assert list(ds["task"].values) == FACTORS
    assert not ds["logit_difference"].sel(position="subject").isnull().any()


@pytest.mark.parametrize("model", ["shapes-blip", "shapes-llava"])
def test_yes_and_no_are_refused_by_a_model_that_does_not_know_them(model: str) -> None:
    with pytest.raises(vp.SpecError, match=rf"the (answer|foil) '(yes|no)' is no token of '{model}'"):
        vp.run(experiment(model, n=2, questions=EXISTENCE, answers="yes_no"), progress=False)
