"""Pairs of drawn scenes by one factor: nothing else changes, in scenes and in pixels, and the answers are right."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vlm_patching as vp
from tests.test_shapes import COLORS, SHAPES, SIZES, TEXT_FEATURES, answer_to, fits, guessed, overlap, pixels, the
from vlm_patching.pairs import pairs_digest
from vlm_patching.pairs.shapes import KINDS, PAIR_KINDS, Contrast, Scene, Thing, draw_contrast, render

CONCEPTS = ["and", "or", "xor", "not"]
EXISTENCE = ["agreement", "removal", *CONCEPTS]
RELATEDNESS = ["relatedness_low", "relatedness_middle", "relatedness_high"]
FACTORS = ["relation_swap", "agreement", "count", "removal", *CONCEPTS, "stroop_word", "stroop_color", *RELATEDNESS]
FIELDS = ("shape", "color", "size", "row", "col", "dx", "dy")


def contrasts(kind: str, number: int = 60, **options: Any) -> list[Contrast]:
    return [draw_contrast(random.Random(f"{kind} {i}"), kind, **options) for i in range(number)]


def changed_fields(clean: Scene, corrupted: Scene) -> dict[int, set[str]]:
    """Number of a thing → what of it differs, between scenes of as many things."""
    both = list(zip(clean.things, corrupted.things, strict=True))
    found = {i: {f for f in FIELDS if getattr(a, f) != getattr(b, f)} for i, (a, b) in enumerate(both)}
    return {i: fields for i, fields in found.items() if fields}


def one_more(clean: Scene, corrupted: Scene) -> Thing:
    """The thing that one of two scenes lacks; all others are the same and in the same order."""
    few, many = sorted((clean.things, corrupted.things), key=len)
    (index,) = [i for i in range(len(many)) if many[:i] + many[i + 1 :] == few]
    return many[index]


def check_factor(kind: str, contrast: Contrast) -> None:
    """That the kind's factor differs between the two scenes, and nothing else."""
    clean, corrupted = contrast.clean, contrast.corrupted
    assert clean.background == corrupted.background
    if kind == "stroop_word":
        assert clean.things == corrupted.things
        (before,), (after,) = clean.words, corrupted.words
        assert replace(before, text=after.text) == after != before
        return
    assert clean.words == corrupted.words
    if kind in ("count", "removal"):
        one_more(clean, corrupted)
        return
    fields = changed_fields(clean, corrupted)
    if kind == "relation_swap":
        assert len(fields) == 2 and all(changed <= {"row", "col"} for changed in fields.values())
        i, j = fields
        assert (clean.things[i].cell, clean.things[j].cell) == (corrupted.things[j].cell, corrupted.things[i].cell)
        return
    ((_, changed),) = fields.items()
    (field,) = changed
    if kind == "agreement":
        assert field == ("col" if re.search("left|right", contrast.text) else "row")
    elif kind in CONCEPTS:
        said = {singular(word) for word in contrast.text.strip("?").split()}
        ((i, _),) = fields.items()
        assert said & {getattr(scene.things[i], field) for scene in (clean, corrupted)}
    else:
        assert field == ("color" if kind == "stroop_color" else "shape")


def singular(word: str) -> str:
    return word if word in (*COLORS, *SHAPES, *SIZES, "object") else re.sub(r"(?<=ss)es$|s$", "", word)


def truth(text: str, scene: Scene) -> str:
    """The right answer, from the words of the question and the things of the scene alone."""
    if text.startswith("what ") or re.search(r"(above|below|left|right) or ", text):
        return answer_to(text, scene)
    relation = re.fullmatch(
        r"(?:is the|how many) (.+?)(?: are)? (?:to the )?(left|right|above|below)(?: of)? the (.+)\?", text
    )
    concept = re.fullmatch(r".+ objects (?:that )?are (?!there)(.+)\?", text)
    named = re.fullmatch(r"(?:how many|are there any) (.+?)(?: are there)?\?", text)
    if relation:
        landmark = the(relation[3].split(), scene)
        axis = "col" if relation[2] in ("left", "right") else "row"
        sign = -1 if relation[2] in ("left", "above") else 1
        here = [t for t in scene.things if fits(t, relation[1].split())]
        number = len([t for t in here if (getattr(t, axis) - getattr(landmark, axis)) * sign > 0])
    elif concept:
        number = len([thing for thing in scene.things if satisfies(concept[1], thing)])
    else:
        assert named
        number = len([thing for thing in scene.things if fits(thing, named[1].split())])
    if text.startswith("how many "):
        return str(number)
    return "yes" if number else "no"


def satisfies(concept: str, thing: Thing) -> bool:
    has = {
        singular(word): fits(thing, [word]) for word in concept.split() if singular(word) in (*COLORS, *SHAPES, *SIZES)
    }
    match [word for word in concept.split() if singular(word) not in has], list(has.values()):
        case ["not"], [only]:
            return not only
        case ["and"], [first, second]:
            return first and second
        case ["or"], [first, second]:
            return first or second
        case ["or", "but", "not", "both"], [first, second]:
            return first is not second
    raise AssertionError(concept)


def boxes_of_the_change(contrast: Contrast) -> list[tuple[int, int, int, int]]:
    parts = [set(scene.things) | set(scene.words) for scene in (contrast.clean, contrast.corrupted)]
    return [part.box for part in parts[0] ^ parts[1]]


@settings(deadline=None, max_examples=200)
@given(kind=st.sampled_from(FACTORS), seed=st.integers(0, 2**32), aligned=st.booleans(), yes_no=st.booleans())
def test_one_factor_changes_in_the_scene_and_only_its_boxes_in_the_picture(
    kind: str, seed: int, aligned: bool, yes_no: bool
) -> None:
    contrast = draw_contrast(random.Random(seed), kind, aligned, None, yes_no and kind in EXISTENCE)
    check_factor(kind, contrast)
    boxes = boxes_of_the_change(contrast)
    clean, corrupted = (np.asarray(render(s)).astype(int) for s in (contrast.clean, contrast.corrupted))
    differs = (clean != corrupted).any(-1)
    outside = np.ones(differs.shape, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        assert differs[y0:y1, x0:x1].any()
        outside[y0:y1, x0:x1] = False
    assert not differs[outside].any()
    for scene in (contrast.clean, contrast.corrupted):
        parts = [part.box for part in (*scene.things, *scene.words)]
        assert all(0 <= x0 < x1 <= 96 and 0 <= y0 < y1 <= 96 for x0, y0, x1, y1 in parts)
        assert not [(a, b) for i, a in enumerate(parts) for b in parts[:i] if overlap(a, b)], "drawn over another"
        assert 2 <= len(scene.things) <= 5


@settings(deadline=None, max_examples=200)
@given(kind=st.sampled_from(FACTORS), seed=st.integers(0, 2**32), aligned=st.booleans(), yes_no=st.booleans())
def test_the_answer_is_right_and_the_foil_is_right_in_the_other_scene(
    kind: str, seed: int, aligned: bool, yes_no: bool
) -> None:
    contrast = draw_contrast(random.Random(seed), kind, aligned, None, yes_no and kind in EXISTENCE)
    assert truth(contrast.text, contrast.clean) == contrast.answer != contrast.foil
    if kind == "stroop_word":
        assert truth(contrast.text, contrast.corrupted) == contrast.answer
        assert [word.text for word in contrast.clean.words] == [contrast.answer]
        assert [word.text for word in contrast.corrupted.words] == [contrast.foil]
    else:
        assert truth(contrast.text, contrast.corrupted) == contrast.foil
    if kind in EXISTENCE:
        assert {contrast.answer, contrast.foil} == ({"yes", "no"} if yes_no else {"1", "0"})
    if kind == "count":
        assert abs(int(contrast.answer) - int(contrast.foil)) == 1


SPANS = {
    "relation_swap": {"subject", "landmark", "answer_option", "foil_option"},
    "agreement": {"subject", "landmark", "relation"},
    **{kind: {"subject", "constraint", "constraint_1", "constraint_2", "operator"} for kind in ("and", "or", "xor")},
    "not": {"subject", "constraint", "operator"},
}
OTHER_REGION = {"relation_swap": "landmark", "agreement": "landmark", "stroop_word": "word", "stroop_color": "word"}
EVERY_WORDING = [(kind, yes_no) for kind in FACTORS for yes_no in (False, True)[: 1 + (kind in EXISTENCE)]]


@pytest.mark.parametrize(("kind", "yes_no"), EVERY_WORDING)
def test_spans_cover_the_right_words(kind: str, yes_no: bool) -> None:
    for contrast in contrasts(kind, aligned=False, yes_no=yes_no):
        said = {name: contrast.text[slice(*span)] for name, span in contrast.spans.items()}
        assert set(said) == SPANS.get(kind, {"subject"})
        if kind in CONCEPTS:
            assert said["operator"] == ("but not both" if kind == "xor" else kind)
            assert said["subject"] == contrast.text.rsplit(" are ")[-1].strip("?")
            assert said["constraint"] == said["subject"].removeprefix("not ")
            words = [said[part] for part in ("constraint_1", "constraint_2") if part in said] or [said["constraint"]]
            assert said["subject"].split()[-1 if kind == "not" else 0] == words[0]
            assert all(singular(word) in (*COLORS, *SHAPES, *SIZES) for word in words)
        else:
            start = r"(is the|what (color|shape) is the|how many|are there any) "
            assert re.match(start, contrast.text)[0] == contrast.text[: contrast.spans["subject"][0]]  # type: ignore[index]
        if kind == "relation_swap":
            assert (said["answer_option"], said["foil_option"]) == (contrast.answer, contrast.foil)
        if kind == "agreement":
            assert said["relation"] in ("above", "below", "to the left of", "to the right of")
            assert contrast.text.endswith(f" {said['relation']} the {said['landmark']}?")


@pytest.mark.parametrize(("kind", "yes_no"), EVERY_WORDING)
def test_regions_are_where_what_is_named_is_in_the_clean_picture(kind: str, yes_no: bool) -> None:
    for contrast in contrasts(kind, aligned=False, yes_no=yes_no):
        regions, changed = dict(contrast.regions), boxes_of_the_change(contrast)
        said = {name: contrast.text[slice(*span)] for name, span in contrast.spans.items()}
        others = {OTHER_REGION[kind]} if kind in OTHER_REGION else set()
        assert set(regions) == {"object"} | others
        if kind in ("count", "removal"):
            assert [regions["object"]] == changed
            assert fits(one_more(contrast.clean, contrast.corrupted), said["subject"].split())
        elif kind in CONCEPTS:
            assert regions["object"] in changed
        else:
            assert the([singular(word) for word in said["subject"].split()], contrast.clean).box == regions["object"]
        if "landmark" in regions:
            assert the(said["landmark"].split(), contrast.clean).box == regions["landmark"]
            assert {regions["object"], regions["landmark"]} & set(changed)
        if "word" in regions:
            assert regions["word"] == contrast.clean.words[0].box


@pytest.mark.parametrize("kind", FACTORS)
def test_pairs_are_what_was_drawn_and_the_first_m_of_n_are_those_that_m_gives(kind: str) -> None:
    other = "color_choice"
    many = vp.load_pairs("shapes", n=8, seed=11, questions=[kind, other])
    few = vp.load_pairs("shapes", n=3, seed=11, questions=[kind, other])
    assert pairs_digest(few) == pairs_digest(many[:3])
    assert pairs_digest(many) != pairs_digest(vp.load_pairs("shapes", n=8, seed=12, questions=[kind, other]))
    for i, pair in enumerate(many[::2]):
        contrast = draw_contrast(random.Random(f"11/{2 * i}"), kind)
        assert (pixels(pair.clean) == np.asarray(render(contrast.clean))).all()
        assert (pixels(pair.corrupted) == np.asarray(render(contrast.corrupted))).all()
        assert pair.clean.text == pair.corrupted.text == contrast.text
        assert pair.spans == pair.spans_corrupted == contrast.spans and pair.regions == contrast.regions
        assert (pair.answer, pair.foil, pair.task) == (contrast.answer, contrast.foil, kind)


@pytest.mark.parametrize(("kind", "yes_no"), EVERY_WORDING)
def test_aligned_questions_of_a_kind_have_the_same_number_of_words_and_are_its_shortest(
    kind: str, yes_no: bool
) -> None:
    aligned = {len(c.text.split()) for c in contrasts(kind, 30, yes_no=yes_no)}
    drawn = {len(c.text.split()) for c in contrasts(kind, 60, aligned=False, yes_no=yes_no)}
    assert aligned == {min(drawn)}


CHANCE = dict.fromkeys([*EXISTENCE, "relation_swap"], 1 / 2) | dict.fromkeys(
    ["stroop_word", "stroop_color", *RELATEDNESS], 1 / 8
)


@pytest.mark.parametrize("kind", CHANCE)
def test_answers_are_balanced_so_that_the_words_alone_give_near_chance(kind: str) -> None:
    number, chance = 800, CHANCE[kind]
    drawn = contrasts(kind, number, aligned=False)
    bound = chance + 4 * (chance * (1 - chance) / (number / 2)) ** 0.5
    for name, feature in TEXT_FEATURES.items():
        assert guessed(drawn, feature) <= bound, f"{name} gives the answer away"


def test_a_count_goes_up_as_often_as_down_and_from_every_number() -> None:
    drawn = contrasts("count", 400, aligned=False)
    answers = Counter(contrast.answer for contrast in drawn)
    up = sum(int(contrast.foil) > int(contrast.answer) for contrast in drawn)
    assert set(answers) >= {"0", "1", "2", "3", "4"} and max(answers.values()) < 0.4 * 400
    assert 120 < up < 280


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({"questions": FACTORS}, "71d6e310ef345c8039ae85e8a943c63f95721606e0b679aae5ac582ebb32b7fe"),
        ({"questions": FACTORS, "aligned": False}, "3fdbe859084353cf65751bbd486821235c5b06fa1b261f69e522147af2292e16"),
        (
            {"questions": EXISTENCE, "answers": "yes_no", "aligned": False},
            "9fd507634c3c5b788a238ca06497e498e78bce4d6ea901e7cb377b7e9752fa47",
        ),
        (
            {"questions": ["removal"], "constraints": 2},
            "42b375dea9169ed580ff471d6e6e1a721c75070ca0ae94b2b186510be4969101",
        ),
    ],
)
def test_the_pairs_of_a_seed_stay_what_they_were(options: dict[str, Any], digest: str) -> None:
    """Without their pictures: those depend on the version of pillow."""
    blank = Image.new("RGB", (1, 1))
    pairs = [
        replace(p, clean=vp.Prompt(blank, p.clean.text), corrupted=vp.Prompt(blank, p.corrupted.text))
        for p in vp.load_pairs("shapes", n=45, seed=3, **options)
    ]
    assert pairs_digest(pairs) == digest


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"questions": ["countt"]}, "Did you mean 'count'"),
        ({"questions": ["xorr"]}, "Did you mean 'xor'"),
        ({"answers": "yes"}, "answers.*'yes'.*number.*yes_no"),
        ({"answers": "yes_no"}, "'color_choice' cannot .* agreement, removal, and, or, xor, not"),
        ({"answers": "yes_no", "questions": ["and", "count"]}, "'count' cannot"),
        ({"constraints": 1, "questions": ["removal", "and"]}, "'and' cannot .* size_choice, removal"),
    ],
)
def test_a_wrong_option_is_refused_and_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(vp.SpecError, match=named):
        vp.load_pairs("shapes", **options)


def test_every_kind_is_tested_here_or_among_the_questions_that_models_are_trained_on() -> None:
    assert set(PAIR_KINDS) == set(FACTORS) | set(KINDS)
    assert {kind for kind, made in PAIR_KINDS.items() if made.fewest_words_yes_no} == set(EXISTENCE)
