"""The little English that questions need."""

from __future__ import annotations

import pytest

from vlm_patching.pairs import english
from vlm_patching.pairs.vocabulary import exclusions


@pytest.mark.parametrize(
    ("verb", "form"),
    [
        *(("sit", "sitting"), ("run", "running"), ("swim", "swimming"), ("jog", "jogging"), ("quit", "quitting")),
        *(("stand", "standing"), ("walk", "walking"), ("read", "reading"), ("eat", "eating"), ("fix", "fixing")),
        *(("play", "playing"), ("carry", "carrying"), ("show", "showing"), ("ski", "skiing"), ("hug", "hugging")),
        *(("ride", "riding"), ("lie", "lying"), ("see", "seeing"), ("dye", "dyeing"), ("be", "being")),
        *(("visit", "visiting"), ("open", "opening"), ("begin", "beginning"), ("picnic", "picnicking")),
        *(("look at", "looking at"), ("climb", "climbing"), ("use", "using"), ("tie", "tying")),
    ],
)
def test_the_participle_of_a_verb(verb: str, form: str) -> None:
    assert english.participle(verb) == form
    assert form.split()[0] in english.verb_forms(verb.split()[0])


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("sit", {"sit", "sits", "sat", "sitting"}),
        ("carry", {"carry", "carries", "carried", "carrying"}),
        ("watch", {"watch", "watches", "watched", "watching"}),
        ("ride", {"ride", "rides", "rode", "ridden", "riding"}),
        ("jog", {"jog", "jogs", "jogged", "jogging"}),
        ("play", {"play", "plays", "played", "playing"}),
    ],
)
def test_the_forms_of_a_verb(verb: str, forms: set[str]) -> None:
    assert forms <= english.verb_forms(verb)


@pytest.mark.parametrize(
    ("noun", "form"),
    [
        *(("dog", "dogs"), ("box", "boxes"), ("beach", "beaches"), ("baby", "babies"), ("boy", "boys")),
        *(("man", "men"), ("woman", "women"), ("child", "children"), ("person", "people"), ("people", "people")),
        *(
            ("sheep", "sheep"),
            ("fish", "fish"),
            ("pants", "pants"),
            ("knife", "knives"),
            ("tennis ball", "tennis balls"),
        ),
    ],
)
def test_the_plural_of_a_noun(noun: str, form: str) -> None:
    assert english.plural(noun) == form
    assert english.is_plural(form) == (form not in ("sheep", "fish"))
    assert english.is_plural(noun) == (noun in ("people", "pants"))


@pytest.mark.parametrize("noun", ["glass", "bus", "brass", "lens", "canvas", "tennis", "chess"])
def test_a_noun_that_ends_as_a_plural_does_is_none(noun: str) -> None:
    assert not english.is_plural(noun)


@pytest.mark.parametrize(
    ("word", "article"),
    [
        ("apple", "an"),
        ("bench", "a"),
        ("hour", "an"),
        ("unicorn", "a"),
        ("umbrella", "an"),
        ("Orange", "an"),
        ("", "a"),
    ],
)
def test_the_article_of_a_word(word: str, article: str) -> None:
    assert english.article(word) == article


@pytest.mark.parametrize("name", ["english", "svo_probes", "mit_states", "coco"])
def test_lists_of_words_hold_words(name: str) -> None:
    """YAML takes a bare `on` or `no` for a truth value."""
    if name == "english":
        for kind in ("determiners", "links", "mass", "plural_only", "unchanged", "doubled", "a", "an"):
            assert all(isinstance(word, str) and word for word in english.words_of(kind)), kind
        assert {"a", "an", "the"} <= english.words_of("determiners") and {"on", "off"} <= english.words_of("links")
    else:
        assert all(len(pair) == 2 for pair in exclusions(name).pairs)


def test_near_words_are_near_both_ways_and_to_themselves() -> None:
    near = exclusions("svo_probes").near
    assert near("person", "woman") and near("Woman", "person") and near("x", "X")
    assert near("bike", "bicycle") and not near("man", "woman") and not near("dog", "cat")


@pytest.mark.parametrize(
    ("noun", "said"), [("cup", "a cup"), ("orange", "an orange"), ("scissors", "scissors"), ("broccoli", "broccoli")]
)
def test_the_article_of_a_noun_that_is_not_known_yet(noun: str, said: str) -> None:
    assert english.indefinite(noun) + noun == said
