"""The drawn world: reproducible, minimal pairs, right answers, and questions whose words give nothing away."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlm_patching as vp
from vlm_patching.pairs import pairs_digest
from vlm_patching.pairs.shapes import KINDS, Scene, Thing, kinds, render, sample, sample_scene

KINDS_OF_PAIRS = [kind for kind in KINDS if kind != "count"]
COLORS = ["red", "green", "blue", "yellow", "purple", "orange", "cyan", "black"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart"]
SIZES = ["small", "large"]
SIDES = ["left", "right", "top", "bottom", "above", "below"]
CHANCE = {"color": 1 / 8, "shape": 1 / 8, "count": None}
Drawn = tuple[Any, Scene, Any]


def answer_to(text: str, scene: Scene) -> str:
    """The right answer, from the words of the question and the things of the scene alone."""
    words = text.rstrip("?").split()
    if words[:2] == ["how", "many"]:
        return str(len([t for t in scene.things if fits(t, words[2 : words.index("are")])]))
    if words[0] == "what":
        return str(getattr(the(words[words.index("the") + 1 :], scene), words[1]))
    subject, options = [], []
    for word in words[2:]:
        if options or (word in (*SIDES, "on", "at", "to", "a", "or")):
            break
        subject.append(word)
    rest = words[2 + len(subject) :]
    if "or" in rest and not set(rest) & set(SIDES):
        if rest[0] != "a":  # the first option of "is the red star small or large" was taken for a word of the name
            subject, rest = subject[:-1], [subject[-1], *rest]
        options = [word for word in rest if word not in ("a", "or")]
        thing = the(subject, scene)
        return next(word for word in options if word in (thing.shape, thing.color, thing.size))
    thing = the(subject, scene)
    options = [word for word in rest if word in SIDES]
    vertical = options[0] not in ("left", "right")
    here = thing.row if vertical else thing.col
    if "the" in rest[2:] and rest[-1] not in SIDES:
        other = the(rest[len(rest) - rest[::-1].index("the") :], scene)
        before = here < (other.row if vertical else other.col)
        assert here != (other.row if vertical else other.col)
    else:
        before = here < 2
    return next(word for word in options if (word in ("left", "top", "above")) == before)


def fits(thing: Thing, words: list[str]) -> bool:
    singular = [word if word in (*COLORS, *SHAPES, *SIZES) else re.sub(r"(?<=ss)es$|s$", "", word) for word in words]
    return all(word == "object" or word in (thing.shape, thing.color, thing.size) for word in singular)


def the(words: list[str], scene: Scene) -> Thing:
    found = [thing for thing in scene.things if fits(thing, words)]
    assert len(found) == 1, f"{words} names {len(found)} things"
    return found[0]


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Drawn]]:
    """Kind of question → pairs with the scene and question that each was made from."""
    last: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "sample", lambda rng, kind: last.append(sample(rng, kind)) or last[-1])
        found: dict[str, list[Drawn]] = defaultdict(list)
        for kind in KINDS_OF_PAIRS:
            for aligned in (True, False):
                for seed in range(25):
                    pair = vp.load_pairs("shapes", n=1, seed=seed, questions=[kind], aligned=aligned)[0]
                    found[kind].append((pair, *last[-1]))
    assert all(len(found[kind]) == 50 for kind in KINDS_OF_PAIRS)
    return found


def pixels(prompt: vp.Prompt) -> np.ndarray:
    return np.asarray(prompt.picture()).astype(int)


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others() -> None:
    def content(seed: int) -> list[Any]:
        pairs = vp.load_pairs("shapes", n=9, seed=seed, questions=KINDS_OF_PAIRS)
        return [
            (p.id, p.clean.text, p.corrupted.text, p.clean.image.tobytes(), p.corrupted.image.tobytes()) for p in pairs
        ]

    assert content(3) == content(3)
    assert not {row[3] for row in content(3)} & {row[3] for row in content(4)}


def test_the_first_m_of_n_pairs_are_those_that_m_gives() -> None:
    many = vp.load_pairs("shapes", n=7, seed=2, questions=["place", "color_choice"])
    few = vp.load_pairs("shapes", n=3, seed=2, questions=["place", "color_choice"])
    for one, other in zip(few, many, strict=False):
        assert (one.id, one.clean.text, one.answer, one.spans) == (
            other.id,
            other.clean.text,
            other.answer,
            other.spans,
        )
        assert (pixels(one.clean) == pixels(other.clean)).all() and (
            pixels(one.corrupted) == pixels(other.corrupted)
        ).all()
    assert len({pair.id for pair in many}) == 7
    assert len(vp.load_pairs("shapes")) == 64


@pytest.mark.parametrize("kind", KINDS_OF_PAIRS)
def test_a_semantic_pair_differs_only_inside_the_boxes_of_the_asked_about_thing(
    drawn: dict[str, list[Drawn]], kind: str
) -> None:
    for pair, scene, question in drawn[kind]:
        changed = scene.with_thing(question.target, **question.counterfactual)
        old, new = scene.things[question.target], changed.things[question.target]
        differing = {f for f in ("shape", "color", "size", "cell", "dx", "dy") if getattr(old, f) != getattr(new, f)}
        wanted = "cell" if kind in ("place", "relation") else kind.removesuffix("_choice")
        assert differing == {wanted}
        assert pair.regions == {"object": old.box}
        clean, corrupted = pixels(pair.clean), pixels(pair.corrupted)
        assert (clean == np.asarray(render(scene))).all() and (corrupted == np.asarray(render(changed))).all()
        outside = np.ones(clean.shape[:2], dtype=bool)
        for x0, y0, x1, y1 in (old.box, new.box):
            outside[y0:y1, x0:x1] = False
        assert (clean == corrupted)[outside].all()
        assert not (clean == corrupted)[~outside].all()
        others = [t for i, t in enumerate(scene.things) if i != question.target]
        assert not [t for t in others for b in (old.box, new.box) if overlap(t.box, b)], "a thing is drawn over another"


def overlap(a: Any, b: Any) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


@pytest.mark.parametrize("kind", KINDS_OF_PAIRS)
def test_the_answer_is_right_and_the_foil_is_right_in_the_counterfactual_scene(
    drawn: dict[str, list[Drawn]], kind: str
) -> None:
    for pair, scene, question in drawn[kind]:
        changed = scene.with_thing(question.target, **question.counterfactual)
        assert pair.clean.text == question.text
        assert answer_to(pair.clean.text, scene) == pair.answer
        assert answer_to(pair.clean.text, changed) == pair.foil


def test_a_count_is_right() -> None:
    rng, answers = random.Random(0), Counter()
    for _ in range(300):
        scene, question = sample(rng, "count")
        assert answer_to(question.text, scene) == question.answer != question.foil
        answers[question.answer] += 1
    assert set(answers) >= {"0", "1", "2", "3", "4"}
    assert max(answers.values()) < 0.45 * 300


@pytest.mark.parametrize("kind", KINDS_OF_PAIRS)
def test_a_phrase_names_exactly_one_thing_and_the_spans_cover_the_right_words(
    drawn: dict[str, list[Drawn]], kind: str
) -> None:
    for pair, scene, question in drawn[kind]:

        def word(name: str, pair: vp.Pair = pair) -> str:
            return pair.clean.text[slice(*pair.spans[name])]

        assert the(word("subject").split(), scene) == scene.things[question.target]
        assert pair.clean.text.startswith(("is the ", "what color is the ", "what shape is the ", "what size is the "))
        assert pair.clean.text.split(" the ", 1)[1].startswith(word("subject"))
        choice = kind.endswith("_choice") or kind in ("place", "relation")
        assert set(pair.spans) == {"subject"} | ({"answer_option", "foil_option"} if choice else set()) | (
            {"landmark"} if kind == "relation" else set()
        )
        if choice:
            assert (word("answer_option"), word("foil_option")) == (pair.answer, pair.foil)
        if kind == "relation":
            assert the(word("landmark").split(), scene) != scene.things[question.target]


@pytest.mark.parametrize("kind", KINDS_OF_PAIRS)
def test_a_corrupted_text_has_other_options_of_the_same_role_at_the_same_places(
    drawn: dict[str, list[Drawn]], kind: str
) -> None:
    roles = [set(COLORS), set(SHAPES), {"left", "right", "top", "bottom"}]
    for pair, _, _ in drawn[kind]:
        clean, corrupted = pair.clean.text.split(), pair.corrupted.text.split()
        assert len(clean) == len(corrupted)
        assert set(pair.spans_corrupted) == set(pair.spans)
        if kind not in ("color_choice", "shape_choice", "place"):
            assert clean == corrupted and pair.spans_corrupted == pair.spans
            continue
        changed = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
        old, new = ({words[i].strip("?") for i in changed} for words in (clean, corrupted))
        assert old == {pair.answer, pair.foil} and len(new) == 2 and not old & new
        assert any(old | new <= role for role in roles)
        for name, (start, end) in pair.spans_corrupted.items():
            place = pair.clean.text[: pair.spans[name][0]].count(" ")
            said = pair.corrupted.text[start:end]
            assert pair.corrupted.text[:start].count(" ") == place
            assert said.split() == [w.strip("?") for w in corrupted[place : place + len(said.split())]]
            if name in ("subject", "landmark"):
                assert said == pair.clean.text[slice(*pair.spans[name])]


@pytest.mark.parametrize("kind", KINDS_OF_PAIRS)
def test_answers_are_balanced_so_that_the_words_alone_give_near_chance(kind: str) -> None:
    rng = random.Random(f"balance of {kind}")
    number = 1200
    questions = [sample(rng, kind)[1] for _ in range(number)]
    chance = CHANCE.get(kind, 1 / 2)
    assert chance is not None
    answers = Counter(q.answer for q in questions)
    if kind in CHANCE or kind == "size":
        expected = number * chance
        statistic = sum((count - expected) ** 2 / expected for count in answers.values())
        assert len(answers) == round(1 / chance)
        assert statistic < 27, f"{answers}"  # chi-square with 7 degrees of freedom: 1 in 3000
    bound = chance + 4 * (chance * (1 - chance) / (number / 2)) ** 0.5
    for name, feature in TEXT_FEATURES.items():
        assert guessed(questions, feature) <= bound, f"{name} gives the answer away"


def options_of(question: Any) -> tuple[str, ...]:
    spans = [question.spans[n] for n in ("answer_option", "foil_option") if n in question.spans]
    return tuple(question.text[slice(*span)] for span in sorted(spans))


TEXT_FEATURES = {
    "the order of the options": lambda q: "",
    "the subject": lambda q: q.text[slice(*q.spans["subject"])],
    "the options": options_of,
    "the number of words": lambda q: len(q.text.split()),
}


def guessed(questions: list[Any], feature: Any) -> float:
    """Share of right guesses on the second half, by what was most often right for the same feature on the first."""
    half = len(questions) // 2

    def outcome(question: Any) -> Any:
        options = options_of(question)
        return options.index(question.answer) if options else question.answer

    seen: dict[Any, Counter] = defaultdict(Counter)
    for question in questions[:half]:
        seen[feature(question)][outcome(question)] += 1
    overall = Counter(map(outcome, questions[:half])).most_common(1)[0][0]
    guesses = [seen[feature(q)].most_common(1)[0][0] if feature(q) in seen else overall for q in questions[half:]]
    return sum(g == outcome(q) for g, q in zip(guesses, questions[half:], strict=True)) / half


def test_aligned_questions_of_a_kind_have_the_same_number_of_words() -> None:
    for kind in KINDS_OF_PAIRS:
        lengths = {len(p.clean.text.split()) for p in vp.load_pairs("shapes", n=12, seed=1, questions=[kind])}
        assert len(lengths) == 1, f"{kind}: {lengths}"


CONSTRAINED = {
    "color": {1: [["shape"]], 2: [["size", "shape"]]},
    "shape": {1: [["color"]], 2: [["size", "color"]]},
    "size": {1: [["shape"], ["color"]], 2: [["color", "shape"]]},
}
ATTRIBUTES = {"color": COLORS, "shape": SHAPES, "size": SIZES}


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kind", [kind for kind in KINDS_OF_PAIRS if kind not in ("place", "relation")])
def test_a_thing_is_named_by_as_many_constraints_as_asked_for_and_spans_say_which(
    kind: str, number: int, aligned: bool
) -> None:
    pairs = vp.load_pairs("shapes", n=40, seed=4, questions=[kind], constraints=number, aligned=aligned)
    named = CONSTRAINED[kind.removesuffix("_choice")][number]
    found = []
    for pair in pairs:
        for text, spans in ((pair.clean.text, pair.spans), (pair.corrupted.text, pair.spans_corrupted)):
            assert spans["constraint"] == spans["subject"] == pair.spans["subject"]
            words = text[slice(*spans["constraint"])].removesuffix("object").split()
            apart = [text[slice(*spans[f"constraint_{i + 1}"])] for i in range(2) if f"constraint_{i + 1}" in spans]
            assert apart == (words if number == 2 else [])
            found.append([next(a for a, values in ATTRIBUTES.items() if word in values) for word in words])
    assert all(attributes in named for attributes in found)
    lengths = {len(pair.clean.text.split()) for pair in pairs}
    assert len(lengths) == 1 or not aligned
    if not aligned:
        assert all(attributes in found for attributes in named)


def test_with_two_constraints_aligned_pairs_are_those_of_the_longest_name() -> None:
    for kind in ("color", "shape", "size"):
        two = vp.load_pairs("shapes", n=12, seed=1, questions=[kind], constraints=2)
        drawn = vp.load_pairs("shapes", n=40, seed=1, questions=[kind], aligned=False)
        assert {len(p.clean.text.split()) for p in two} == {max(len(p.clean.text.split()) for p in drawn)}


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ({}, "ec47f572e976ef7ce03a907da723201d745aa888f19f769d119e4244ee28ee73"),
        (
            {"n": 48, "seed": 3, "questions": KINDS_OF_PAIRS},
            "876a3582211e08268a20b73dd7942b8d60838a70443ca60f1cbb17e3ab756265",
        ),
        (
            {"n": 48, "seed": 3, "questions": KINDS_OF_PAIRS, "aligned": False},
            "148190430405b4f00360968d6cc10ab6399696e51ce9475b9fd7c44f0208200d",
        ),
        (
            {"n": 24, "seed": 7, "questions": ["size", "size_choice"], "aligned": False},
            "d5bf68de1b5de35283faa59585c67aa00580e1b6f55732c963715197a24638bd",
        ),
    ],
)
def test_the_pairs_of_a_seed_stay_what_they_were(options: dict[str, Any], digest: str) -> None:
    """Without their pictures: those depend on the version of pillow."""
    blank = Image.new("RGB", (1, 1))
    pairs = [
        replace(p, clean=vp.Prompt(blank, p.clean.text), corrupted=vp.Prompt(blank, p.corrupted.text))
        for p in vp.load_pairs("shapes", **options)
    ]
    assert pairs_digest(pairs) == digest


def test_a_scene_is_drawn_inside_its_boxes_on_a_plain_ground() -> None:
    for seed in range(20):
        scene = sample_scene(random.Random(seed))
        image = np.asarray(render(scene))
        assert image.shape == (96, 96, 3)
        ground = np.ones((96, 96), dtype=bool)
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            cell = (thing.col * 24, thing.row * 24, thing.col * 24 + 24, thing.row * 24 + 24)
            assert cell[0] <= x0 < x1 <= cell[2] and cell[1] <= y0 < y1 <= cell[3]
            assert (image[y0:y1, x0:x1] != scene.background).any()
            ground[y0:y1, x0:x1] = False
        assert (image[ground] == scene.background).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"questions": ["colour"]}, "color"),
        ({"questions": ["counting"]}, "count"),
        ({"questions": []}, "empty"),
        ({"question": ["color"]}, "questions"),
        ({"n": 0}, "n must be at least 1"),
        ({"constraints": 3}, "constraints must be at most 2, not 3"),
        ({"constraints": True}, "constraints must be a whole number, not True"),
        ({"constraints": 2, "questions": ["color", "place"]}, "'place' cannot .* color, shape, size, color_choice"),
        ({"constraint": 2}, "constraints"),
    ],
)
def test_a_wrong_option_is_refused_and_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(vp.SpecError, match=named):
        vp.load_pairs("shapes", **options)
