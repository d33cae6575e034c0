"""Texts corrupted in place: only the replaced words change, the spans follow them, and token by token they align."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vlm_patching as vp
from tests.conftest import BUNDLED
from tests.refusals import refusal, says
from vlm_patching.pairs.text_corruptions import OPTIONS, replace_constraint, replace_options, replace_spans

ROLES = {
    "color_choice": ["red", "green", "blue", "yellow", "purple", "orange", "cyan", "black"],
    "shape_choice": ["circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart"],
    "place": ["left", "right", "top", "bottom"],
}
PICTURE, OTHER_PICTURE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")


def tokens_of(name: str) -> Callable[[str], int]:
    tokenizer = vp.describe_model(name).processor.tokenizer
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def words(text: str) -> int:
    return len(text.replace("?", " ?").split())


def said(pair: vp.Pair, span: str) -> str:
    return pair.clean.text[slice(*pair.spans[span])]


def new(pair: vp.Pair, span: str) -> str:
    return pair.corrupted.text[slice(*pair.spans_corrupted[span])]


def cut(text: str, spans: Mapping[str, tuple[int, int]], *names: str) -> list[str]:
    """What is left of a text without some of its spans."""
    pieces, end = [], 0
    for start, stop in sorted(spans[name] for name in names):
        pieces.append(text[end:start])
        end = stop
    return [*pieces, text[end:]]


def asked(
    name: str, text: str, answer: str = "", foil: str = "", subject: str = "", spans: Mapping[str, Any] | None = None
) -> vp.Pair:
    """A pair with the spans that its answer, foil and subject have in the text (case does not count)."""
    named = {"answer_option": answer, "foil_option": foil, "subject": subject}
    starts = {span: text.lower().index(word.lower()) for span, word in named.items() if word}
    found = {span: (start, start + len(named[span])) for span, start in starts.items()}
    both = vp.Prompt(PICTURE, text), vp.Prompt(OTHER_PICTURE, text)
    return vp.Pair(name, *both, answer or "yes", foil or "no", found if spans is None else spans)


def choices(*options: str, template: str = "is the ring {} or {}?") -> list[vp.Pair]:
    """Pairs named 0, 1, ...; "red/blue" asks for red or blue and means red."""
    return [
        asked(str(i), template.format(*option.split("/")), *option.split("/"), "ring")
        for i, option in enumerate(options)
    ]


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[vp.Pair]]:
    """Kind → pairs, whose things are named by one word and by two; `mixed`: of colours and of shapes."""
    kinds = {kind: [kind] for kind in ROLES} | {"mixed": ["color_choice", "shape_choice"]}
    return {name: vp.load_pairs("shapes", n=60, seed=2, questions=q, aligned=False) for name, q in kinds.items()}


@pytest.fixture(scope="module")
def mixed(drawn: dict[str, list[vp.Pair]]) -> list[vp.Pair]:
    return drawn["mixed"]


@pytest.fixture(scope="module")
def constrained() -> list[vp.Pair]:
    return vp.load_pairs("shapes", n=60, seed=2, questions=["color", "shape", "color_choice"], constraints=2)


# --- replace_spans


@given(st.data())
def test_replaced_spans_say_the_new_words_and_all_others_what_they_said(data: st.DataObject) -> None:
    text = data.draw(st.text("ab c", min_size=1, max_size=12))
    span = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).filter(lambda s: s[0] < s[1])
    spans = {str(i): s for i, s in enumerate(data.draw(st.lists(span, max_size=6)))}
    new: dict[str, str] = {}
    for name in data.draw(st.permutations(list(spans))):
        if not any(spans[name][0] < spans[o][1] and spans[o][0] < spans[name][1] for o in new) and data.draw(
            st.booleans()
        ):
            new[name] = data.draw(st.text("xy", min_size=1, max_size=4))
    made, moved = replace_spans(text, spans, new)
    assert set(new) <= set(moved)
    assert cut(made, moved, *new) == cut(text, spans, *new)
    for name, (start, stop) in spans.items():
        same = [n for n in new if spans[n] == (start, stop)]
        overlapping = [n for n in new if spans[n][0] < stop and start < spans[n][1]]
        assert (name in moved) == (overlapping == same)
        if name in moved:
            assert made[slice(*moved[name])] == (new[same[0]] if same else text[start:stop])
    clear = [name for name in moved if name not in new]
    for one, other in combinations(clear, 2):
        assert (spans[one] < spans[other]) == (moved[one] < moved[other]) or spans[one][0] == spans[other][0]


# --- symmetric token replacement


@pytest.mark.parametrize("kind", [*ROLES, "mixed"])
@pytest.mark.parametrize("name", BUNDLED)
def test_two_other_words_of_the_role_stand_in_the_place_of_the_options_and_nothing_else_changes(
    drawn: dict[str, list[vp.Pair]], name: str, kind: str
) -> None:
    count, pairs = tokens_of(name), drawn[kind]
    for old, made in zip(pairs, replace_options(pairs, count), strict=True):
        own, found = {said(old, s) for s in OPTIONS}, {new(made, s) for s in OPTIONS}
        assert own == {old.answer, old.foil} and len(found) == 2 and not own & found
        assert any(own | found <= set(role) for role in ROLES.values())
        assert cut(made.corrupted.text, made.spans_corrupted, *OPTIONS) == cut(old.clean.text, old.spans, *OPTIONS)
        assert set(made.spans_corrupted) == set(old.spans)
        assert new(made, "subject") == said(old, "subject")
        assert count(made.corrupted.text) == count(made.clean.text)
        assert replace(made, corrupted=old.corrupted, spans_corrupted=old.spans_corrupted) == old
        assert made.corrupted.image is old.corrupted.image


def test_every_other_word_of_the_role_is_drawn_for_both_options(drawn: dict[str, list[vp.Pair]]) -> None:
    made = replace_options(drawn["color_choice"], words)
    for span in OPTIONS:
        assert {new(pair, span) for pair in made} == set(ROLES["color_choice"])


def test_options_depend_on_the_seed_and_not_on_the_order_of_the_pairs(mixed: list[vp.Pair]) -> None:
    def texts(pairs: list[vp.Pair], seed: int) -> dict[str, str]:
        return {pair.id: pair.corrupted.text for pair in replace_options(pairs, words, seed)}

    first = texts(mixed, 1)
    assert first == texts(mixed, 1) == texts(mixed[::-1], 1) != texts(mixed, 2)
    assert first.items() <= texts([*mixed, replace(mixed[0], id="one more of the same words")], 1).items()


def test_an_earlier_replacement_makes_no_difference(mixed: list[vp.Pair]) -> None:
    assert replace_options(replace_options(mixed, words, 1), words, 2) == replace_options(mixed, words, 2)


def test_words_of_the_same_question_come_first_and_those_of_all_pairs_where_they_do_not_fit() -> None:
    asks_color = choices("red/blue", "cyan/black", "pink/grey")
    asks_side = [
        asked("s0", "does it lie up or down?", "up", "down"),
        asked("s1", "does it lie far or near?", "far", "near"),
    ]
    alone = asked("alone", "what is this, tea or milk?", "tea", "milk")
    drawn = set()
    for seed in range(40):
        made = replace_options([*asks_color, *asks_side, alone], words, seed)
        found = {pair.id: {new(pair, span) for span in OPTIONS} for pair in made}
        assert found["0"] <= {"cyan", "black", "pink", "grey"} and found["s0"] == {"far", "near"}
        drawn |= found["alone"]
    assert drawn == {"red", "blue", "cyan", "black", "pink", "grey", "up", "down", "far", "near"}


def test_pairs_ask_the_same_question_whatever_their_subject_the_order_of_their_options_and_case() -> None:
    pairs = [
        asked("0", "is the small ring red or blue?", "blue", "red", "the small ring"),
        asked("1", "Is the STAR cyan or black?", "cyan", "black", "the star"),
        asked("2", "does the star lie up or down?", "up", "down", "star"),
    ]
    pairs[0] = replace(pairs[0], spans=pairs[0].spans | {"constraint_1": (7, 12)})
    for seed in range(10):
        made = replace_options(pairs, words, seed)
        assert {new(made[0], s) for s in OPTIONS} == {"cyan", "black"}
        assert {new(made[1], s) for s in OPTIONS} == {"red", "blue"}


def test_case_does_not_make_a_word_another() -> None:
    pairs = choices("red/blue", "RED/Blue", "Green/Cyan", "green/cyan")
    for seed in range(10):
        for old, made in zip(pairs, replace_options(pairs, words, seed), strict=True):
            found = {new(made, s).lower() for s in OPTIONS}
            assert len(found) == 2 and not found & {old.answer.lower(), old.foil.lower()}


def test_the_answer_and_the_foil_are_not_drawn_where_other_words_stand_for_them() -> None:
    pairs = choices("red/blue", "CYAN/pink", "yes/no", "black/grey")
    pairs[0] = replace(pairs[0], answer="Cyan", foil=" yes")
    drawn = {new(replace_options(pairs, words, seed)[0], s) for seed in range(40) for s in OPTIONS}
    assert drawn == {"pink", "no", "black", "grey"}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_word_is_replaced_by_one_of_as_many_tokens(name: str) -> None:
    count = tokens_of(name)
    pairs = choices("red/small blue", "large cyan/black", "green/left black", "top red/cyan")
    for seed in range(20):
        for old, made in zip(pairs, replace_options(pairs, count, seed), strict=True):
            assert sorted(count(said(old, s)) for s in OPTIONS) == [1, 2]
            assert [count(new(made, s)) for s in OPTIONS] == [count(said(old, s)) for s in OPTIONS]
            assert count(made.corrupted.text) == count(old.clean.text)


def test_an_only_fit_is_found_whichever_is_drawn_first() -> None:
    pairs = choices("no/maybe", "yes/surely", "xx/often")  # by letters: 2 and 5; 3 and 6; 2 and 5
    for seed in range(10):
        made = replace_options(pairs[::2], len, seed)
        assert [new(p, s) for p in made for s in OPTIONS] == ["xx", "often", "no", "maybe"]


def test_words_that_only_together_keep_the_number_of_tokens_are_not_taken() -> None:
    """Alone each has one token; in a text `long` has one more and `short` one less, and shifts what stands between."""

    def count(text: str) -> int:
        return words(text) + (words(text) > 1) * (text.count("long") - text.count("short"))

    pairs = choices("red/blue", "long/short")
    assert count(pairs[0].clean.text) == count(pairs[1].clean.text)
    says(refusal(lambda: replace_options(pairs, count)), "'0'", "2 words", "2 of 1 token")
    for seed in range(10):
        pairs = choices("red/blue", "long/short", "cyan/black", "longish/shortish")
        made = replace_options(pairs, count, seed)
        assert {new(made[0], s) for s in OPTIONS} == {"cyan", "black"}


def test_words_that_become_one_token_only_together_are_not_taken() -> None:
    def count(text: str) -> int:
        return words(text) - ("cyan or black" in text or "black or cyan" in text)

    pairs = choices("red/blue", "cyan/pink", "black/grey")
    for seed in range(20):
        assert {new(replace_options(pairs, count, seed)[0], s) for s in OPTIONS} != {"cyan", "black"}


def test_a_word_of_another_number_of_tokens_by_itself_is_not_taken_even_if_the_text_keeps_its_own() -> None:
    def count(text: str) -> int:
        return 2 if text in ("cyan", "black") else words(text)

    pairs = choices("red/blue", "cyan/black", "pink/grey")
    says(refusal(lambda: replace_options(pairs, count)), "'1'", "'cyan' (2 tokens)", "4 of 1 token")


@pytest.mark.parametrize(
    ("pair", "parts"),
    [
        (asked("7", "is it red or blue?"), ("'7'", "'answer_option' and no span 'foil_option'", "It has: none")),
        (
            asked("7", "is it red or blue?", "red", "blue", spans={"answer_option": (6, 9), "foil_opton": (13, 17)}),
            ("'7'", "no span 'foil_option'", "Did you mean 'foil_opton'?", "It has: answer_option, foil_opton"),
        ),
        (
            asked("7", "is it dark red?", "dark red", "red", spans={"answer_option": (6, 14), "foil_option": (11, 14)}),
            ("'7'", "[6, 14]", "[11, 14]", "overlap", "is it dark red?"),
        ),
        (
            asked("7", "is the ring dark red or light blue?", "dark red", "light blue"),
            (
                "'7'",
                "answer_option 'dark red' (2 tokens)",
                "foil_option 'light blue' (2 tokens)",
                "4 of 1 token, 1 of 2",
            ),
        ),
    ],
)
def test_options_that_cannot_be_replaced_are_refused(pair: vp.Pair, parts: tuple[str, ...]) -> None:
    others = choices("red/blue", "cyan/black", "cyan/dark green")
    says(refusal(lambda: replace_options([*others[1:], others[0], pair], words)), *parts)


def test_a_pair_by_itself_has_no_words_to_draw() -> None:
    says(refusal(lambda: replace_options(choices("red/blue"), words)), "'0'", "looked at 0 words", "'red' (1 token)")


# --- constraint replacement


@pytest.mark.parametrize("span", ["constraint", "constraint_1", "constraint_2", "subject"])
def test_another_pairs_words_stand_in_the_place_of_a_constraint(constrained: list[vp.Pair], span: str) -> None:
    known = {said(pair, span) for pair in constrained}
    for old, made in zip(constrained, replace_constraint(constrained, span), strict=True):
        assert new(made, span) in known
        assert new(made, span) not in old.clean.text
        assert cut(made.corrupted.text, made.spans_corrupted, span) == cut(old.clean.text, old.spans, span)
        assert replace(made, corrupted=old.corrupted, spans_corrupted=old.spans_corrupted) == old
        assert made.corrupted.image is old.corrupted.image


@pytest.mark.parametrize(
    ("span", "lost"),
    [
        ("constraint", {"constraint_1", "constraint_2"}),
        ("constraint_1", {"constraint", "subject"}),
        ("constraint_2", {"constraint", "subject"}),
    ],
)
@pytest.mark.parametrize("phrase", [None, "paris city of light"])
def test_spans_that_overlap_the_replaced_one_are_left_out_and_the_others_follow(
    constrained: list[vp.Pair], span: str, lost: set[str], phrase: str | None
) -> None:
    for old, made in zip(constrained, replace_constraint(constrained, span, phrase), strict=True):
        assert set(old.spans) - set(made.spans_corrupted) == lost
        for name in made.spans_corrupted:
            same = old.spans[name] == old.spans[span]
            assert new(made, name) == (new(made, span) if same else said(old, name))


def test_a_phrase_stands_in_every_text_whatever_the_other_pairs_and_the_seed(constrained: list[vp.Pair]) -> None:
    made = replace_constraint(constrained, phrase="paris city")
    assert all(new(pair, "constraint") == "paris city" for pair in made)
    assert made[3:4] == replace_constraint(constrained[3:4], phrase="paris city", seed=9)


def test_a_constraint_depends_on_the_seed_and_not_on_the_order_of_the_pairs(constrained: list[vp.Pair]) -> None:
    def texts(pairs: list[vp.Pair], seed: int) -> dict[str, str]:
        return {pair.id: pair.corrupted.text for pair in replace_constraint(pairs, seed=seed)}

    assert texts(constrained, 1) == texts(constrained, 1) == texts(constrained[::-1], 1) != texts(constrained, 2)


def test_what_stands_in_the_pairs_own_text_is_not_drawn_whatever_its_case() -> None:
    pairs = [
        asked("0", "is the Red ring by a star?", subject="red ring"),
        asked("1", "is the RING by a star?", subject="ring"),
        asked("2", "is the Star by a ring?", subject="star"),
        asked("3", "is the big cross by a star?", subject="big cross"),
    ]
    for seed in range(10):
        made = replace_constraint(pairs, "subject", seed=seed)
        assert new(made[0], "subject") == "big cross"
        assert new(made[2], "subject") in {"Red ring", "big cross"}
        assert made[0].corrupted.text == "is the big cross by a star?"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ("'0'", "no span 'constraint'", "It has: answer_option, foil_option, subject")),
        ({"span": "subjct"}, ("'0'", "'subjct'", "Did you mean 'subject'?")),
        ({"span": "subject"}, ("'0'", "'subject'", "'ring'", "none of the 2 pairs", "is the ring red or blue?")),
        ({"span": "subject", "phrase": "Ring"}, ("'0'", "'subject'", "'Ring' already")),
        ({"span": "subject", "phrase": " "}, ("'subject'", "' '", "needs a word")),
    ],
)
def test_a_constraint_that_cannot_be_replaced_is_refused(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    says(refusal(lambda: replace_constraint(choices("red/blue", "cyan/black"), **options)), *parts)
