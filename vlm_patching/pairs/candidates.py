"""What the reader of a dataset gives, row by row: a pair, a question between two words, or why there is none.

A dataset reads all of its rows and keeps none; which of them become pairs is chosen elsewhere (`pairs.loading`).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from vlm_patching.errors import SpecError
from vlm_patching.pairs.pair import Box, Pair, Prompt, Span
from vlm_patching.pairs.pictures import Picture
from vlm_patching.pairs.reading.rows import BadRow, Row
from vlm_patching.pairs.text_corruptions import OPTIONS

ASKED = "asked"
"""The span of the question alone, where something stands behind it."""


@dataclass(frozen=True)
class Dropped:
    """A row that the pair rule leaves out: counted by its reason, and no error."""

    reason: str


@dataclass(frozen=True)
class Choice:
    """A question between two words about an image, and another image of which the other word is true.

    Which of the words comes first is decided when the pairs are chosen, so that it is even among them. Both words go
    into the dataset's vocabulary of their role, which symmetric token replacement draws from.

    Attributes
    ----------
    id
        Unique within the dataset, and the same whatever other rows there are.
    question
        The text, with {first} and {second} in the place of the words and names of `words` in the place of others:
        ``"Is this {subject} {first} or {second}?"``.
    answer, foil
        The words.
    clean, corrupted
        The picture (or the pictures) of which the answer is true, and that of which the foil is; the clean one again
        where there is none.
    words
        Name → what stands in its place; the names become spans.
    corrupted_words
        Name → what stands in its place in the corrupted text, where that is something else.
    before
        What stands in front of answer and foil each, outside of their spans: articles, mostly.
    role
        What kind of word they are: words of one role and form can stand in one another's place.
    lemmas
        Of answer and foil, where these are inflected: what exclusion lists know them by.
    named
        Another name for the span of the answer.
    regions, task
        As a `Pair` has them.
    suffix
        What stands behind the question.
    """

    id: str
    question: str
    answer: str
    foil: str
    clean: Picture | tuple[Picture, ...]
    corrupted: Picture | tuple[Picture, ...]
    words: Mapping[str, str] = field(default_factory=dict)
    corrupted_words: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, str] = ("", "")
    role: str = "option"
    lemmas: tuple[str, str] | None = None
    named: str | None = None
    regions: Mapping[str, Box] = field(default_factory=dict)
    task: str = ""
    suffix: str = ""

    @property
    def meanings(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Answer and foil, each with its lemma."""
        lemmas = self.lemmas or (self.answer, self.foil)
        return (self.answer, lemmas[0]), (self.foil, lemmas[1])

    def pair(self, answer_first: bool) -> Pair:
        """The pair that asks for the two words in this order."""
        sides = [(OPTIONS[0], self.answer, self.before[0]), (OPTIONS[1], self.foil, self.before[1])]
        (first, one, before), (second, other, ahead) = sides if answer_first else sides[::-1]
        question = self.question.replace("{first}", f"{literal(before)}{{{first}}}")
        question = question.replace("{second}", f"{literal(ahead)}{{{second}}}")
        words = {**self.words, first: one, second: other}
        text, spans = filled(question, words)
        corrupted, moved = filled(question, {**words, **self.corrupted_words})
        if self.named is not None:
            spans[self.named], moved[self.named] = spans[OPTIONS[0]], moved[OPTIONS[0]]
        text, spans = with_suffix(text, spans, self.suffix)
        corrupted, moved = with_suffix(corrupted, moved, self.suffix)
        return Pair(
            self.id,
            Prompt(self.clean, text),
            Prompt(self.corrupted, corrupted),
            self.answer,
            self.foil,
            spans,
            moved if self.corrupted_words else {},
            dict(self.regions),
            self.task,
        )


Candidate = Pair | Choice | Dropped
Made = TypeVar("Made")


@dataclass(frozen=True)
class Found:
    """What a row gave.

    Attributes
    ----------
    where
        Its file and line, for errors that are found later.
    what
        The candidate; or the error, which is counted or raised as the spec says.
    """

    where: str
    what: Candidate | BadRow


def each(rows: Iterable[Row | BadRow], make: Callable[[Row], Candidate]) -> Iterator[Found]:
    """What a function makes of every row; an error of one row is what was found there."""
    for row in rows:
        if isinstance(row, BadRow):
            yield Found(row.where, row)
        else:
            yield Found(row.where, attempt(partial(make, row), row.where))


def attempt(make: Callable[[], Made], where: str) -> Made | BadRow:
    """What a function makes, or the error of the row that it is about."""
    try:
        return make()
    except BadRow as error:
        return error
    except SpecError as error:
        return BadRow(where, "no pair can be made of it", error)


def filled(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, Span]]:
    """A template with words in the places that are named after them, and where each of them stands.

    Examples
    --------
    >>> filled("Is this {subject} red?", {"subject": "{ring}"})
    ('Is this {ring} red?', {'subject': (8, 14)})
    """
    text, spans = "", {}
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            spans[name] = (len(text), len(text) + len(words[name]))
            text += words[name]
    return text, spans


def with_suffix(text: str, spans: Mapping[str, Span], suffix: str) -> tuple[str, dict[str, Span]]:
    """A question with something behind it, and its spans, the question itself among them as `asked`."""
    return (text + suffix, {**spans, ASKED: (0, len(text))}) if suffix else (text, dict(spans))


def literal(words: str) -> str:
    """Words as a template has them that are to stand as they are."""
    return words.replace("{", "{{").replace("}", "}}")
