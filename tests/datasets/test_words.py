"""Spans are the words they are named after under any kind of tokenizer; replaced words are of the same role, as long as
the old ones, and never near them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import vlm_patching as vp
from tests.datasets.kit import mit_states, svo_probes, svo_row
from tests.families import all_known
from tests.refusals import refusal, says
from vlm_patching.encoding import Encoding
from vlm_patching.models import ModelDescription
from vlm_patching.pairs import Pairs, replace_options
from vlm_patching.pairs.candidates import Choice, filled
from vlm_patching.pairs.vocabulary import exclusions

KINDS = {"word pieces": "git", "byte pairs": "qwen2_vl", "sentence pieces": "llava"}
"""Kind of tokenizer → a family that has it."""
PICTURE, OTHER = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
OPTIONS = ("answer_option", "foil_option")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelDescription]:
    """Kind of tokenizer → a small model with one of it, built in code."""
    known = all_known()
    folders = {kind: tmp_path_factory.mktemp(name) for kind, name in KINDS.items()}
    for kind, folder in folders.items():
        known[KINDS[kind]].build(folder)
    return {kind: vp.describe_model(str(folder)) for kind, folder in folders.items()}


def count_of(description: ModelDescription) -> Any:
    return lambda text: len(description.tokenizer(text, add_special_tokens=False)["input_ids"])


letters = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyzäöéß0123456789"), min_size=1, max_size=9)
phrases = st.lists(letters, min_size=1, max_size=3).map(" ".join) | st.tuples(letters, letters).map("-".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(phrases, phrases, phrases, st.sampled_from(["", "a ", "the "]), st.booleans())
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_a_span_are_those_of_its_words_and_of_no_other(
    described: dict[str, ModelDescription], kind: str, noun: str, one: str, other: str, before: str, first: bool
) -> None:
    assume(one != other)
    choice = Choice(
        id="0",
        question="Is the {subject} on {first} or {second}?",
        answer=one,
        foil=other,
        clean=PICTURE,
        corrupted=OTHER,
        words={"subject": noun},
        before=(before, before),
    )
    pair = choice.pair(answer_first=first)
    wanted = {"subject": noun, "answer_option": one, "foil_option": other}
    assert {name: pair.clean.text[slice(*span)] for name, span in pair.spans.items()} == wanted
    encoding = Encoding(pair.clean, described[kind])
    tokens = {name: encoding.covering(*span) for name, span in pair.spans.items()}
    for name, (start, end) in pair.spans.items():
        places = [encoding.offsets[i] for i in tokens[name]]
        covered = encoding.text[places[0][0] : places[-1][1]]
        assert encoding.text[start + encoding.start : end + encoding.start] == wanted[name]
        assert covered.strip(" ▁?") == wanted[name], covered  # a token may hold the space before, or the mark behind
        assert list(tokens[name]) == list(range(tokens[name][0], tokens[name][-1] + 1))
    taken = [i for indices in tokens.values() for i in indices]
    assert len(taken) == len(set(taken))


@given(st.dictionaries(st.sampled_from("abc"), st.text("x{}y ", max_size=5)), st.text("uv ", max_size=4))
def test_filled_templates_hold_the_words_where_they_say(words: dict[str, str], between: str) -> None:
    text, spans = filled(between.join(f"{{{name}}}" for name in words), words)
    assert {name: text[slice(*span)] for name, span in spans.items()} == words
    assert text == between.join(words.values())


# Symmetric token replacement with the words of a dataset


@pytest.fixture(scope="module")
def svo(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Questions about objects, singular and plural, and about verbs."""
    things = ["apple", "orange", "umbrella", "guitar", "cake", "bike", "bicycle", "hat", "ball", "kite", "box", "cup"]
    verbs = ["hold", "carry", "throw", "push", "kick", "paint", "wash", "lift"]
    rows = []
    for i, thing in enumerate(things):
        other, article = things[(i + 1) % 12], "an" if thing[0] in "aou" else "a"
        rows.append(
            svo_row(len(rows), f"A man holds {article} {thing}.", f"man,hold,{thing}", f"man,hold,{other}", "object")
        )
        rows.append(svo_row(len(rows), f"A man holds {thing}s.", f"man,hold,{thing}", f"man,hold,{other}", "object"))
    for i, verb in enumerate(verbs):
        rows.append(svo_row(len(rows), f"A man {verb}s the box.", f"man,{verb},box", f"man,{verbs[i - 1]},box", "verb"))
    return vp.load_pairs("svo_probes", path=svo_probes(tmp_path_factory.mktemp("svo"), rows), on_error="skip")


def new_words(pair: vp.Pair) -> list[str]:
    return [pair.corrupted.text[slice(*pair.spans_corrupted[span])] for span in OPTIONS]


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_words_are_of_the_same_role_and_form_and_as_long_in_tokens(
    described: dict[str, ModelDescription], kind: str, svo: Pairs
) -> None:
    count, near = count_of(described[kind]), exclusions("svo_probes").near
    made = replace_options(svo, count, seed=3)
    assert len(made) >= 5
    by_id = {pair.id: pair for pair in svo}
    for pair in made:
        old, new = by_id[pair.id], new_words(pair)
        words = svo.vocabulary.words[svo.vocabulary.roles[pair.id]]
        assert set(new) <= set(words) and len(set(new)) == 2
        for word in new:
            assert not any(near(words[word], words[own]) for own in (old.answer, old.foil))
        assert not near(words[new[0]], words[new[1]])
        assert [count(word) for word in new] == [count(old.answer), count(old.foil)]
        assert count(pair.corrupted.text) == count(old.clean.text)
        text = f" {pair.corrupted.text} "
        assert " a apple" not in text and " an guitar" not in text and " an hat" not in text
        Encoding(pair.corrupted, described[kind])
    assert made.dropped.get("error: no two other words of as many tokens for its answer options", 0) == len(svo) - len(
        made
    )


def test_what_replaces_a_pair_s_words_does_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    names = ["old", "new", "wet", "dry", "rusty", "clean", "broken", "painted", "bright", "dark"]
    folder = mit_states(tmp_path, {f"{name} car": 2 for name in names})
    few, many = (vp.load_pairs("mit_states", path=folder, n=n) for n in (3, 20))
    assert few.vocabulary.words == many.vocabulary.words == {"adjective": {name: name for name in sorted(names)}}
    count = lambda text: len(text.split())  # noqa: E731
    assert replace_options(few, count) == replace_options(many, count)[:3]


def test_every_adjective_of_the_dataset_is_drawn_from_and_none_that_is_near(tmp_path: Path) -> None:
    folder = mit_states(
        tmp_path, {"old car": 1, "new car": 1, "ancient door": 1, "wet door": 1, "dark hat": 1, "tiny hat": 1}
    )
    (pair,) = [p for p in vp.load_pairs("mit_states", path=folder) if p.answer == "old"]
    pairs = vp.load_pairs("mit_states", path=folder)
    drawn = set()
    for seed in range(40):
        made = replace_options(pairs, lambda text: len(text.split()), seed)
        drawn |= set(new_words(next(p for p in made if p.id == pair.id)))
    assert drawn == {"wet", "dark", "tiny"}


def test_where_no_words_fit_the_pair_is_named(tmp_path: Path) -> None:
    pairs = vp.load_pairs("mit_states", path=mit_states(tmp_path, {"old car": 1, "new car": 1, "wet car": 1}))
    message = refusal(lambda: replace_options(pairs, lambda text: len(text.split())))
    says(message, "symmetric token replacement", "looked at 1 words", "on_error: skip")
