"""A question between two words: its text, its corrupted text, and where its words stand in both."""

from __future__ import annotations

from pathlib import Path

from vlm_patching.pairs.candidates import Choice, literal

A, B, C = Path("a.png"), Path("b.png"), Path("c.png")


def test_words_that_are_others_in_the_corrupted_text_have_their_spans_in_both() -> None:
    choice = Choice(
        id="0",
        question=literal("In {this} picture, ") + "is a {subject} {constraint}, {first} or {second}?",
        answer="yes",
        foil="no",
        clean=A,
        corrupted=A,
        words={"subject": "cat", "constraint": "on a mat"},
        corrupted_words={"constraint": "under an old mat"},
        named="truth",
    )
    pair = choice.pair(answer_first=False)
    assert pair.clean.text == "In {this} picture, is a cat on a mat, no or yes?"
    assert pair.corrupted.text == "In {this} picture, is a cat under an old mat, no or yes?"
    for text, spans in ((pair.clean.text, pair.spans), (pair.corrupted.text, pair.spans_corrupted)):
        words = {name: text[slice(*span)] for name, span in spans.items()}
        phrase = "on a mat" if text == pair.clean.text else "under an old mat"
        options = {"truth": "yes", "answer_option": "yes", "foil_option": "no"}
        assert words == {"subject": "cat", "constraint": phrase, **options}


def test_a_question_may_be_about_several_pictures() -> None:
    pair = Choice("0", "Is it {first} or {second}?", "that", "this", (A, B, C), (A, C, B)).pair(answer_first=True)
    assert pair.clean.images == (A, B, C) and pair.corrupted.images == (A, C, B)
    assert pair.spans_corrupted == {}
