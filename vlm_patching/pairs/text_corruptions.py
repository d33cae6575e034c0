"""Corrupted texts that are made from the pairs' own: words of spans are exchanged for those of other pairs.

Two ways: both answer options for two others of as many tokens (symmetric token replacement), or a constraint for
another phrase of any length. Images, answers and foils stay.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from vlm_patching.errors import SpecError, nearest
from vlm_patching.pairs.collection import Pairs
from vlm_patching.pairs.english import article
from vlm_patching.pairs.pair import Pair, Prompt, Span

OPTIONS = ("answer_option", "foil_option")
"""The spans whose words symmetric token replacement exchanges."""
_NOTHING_FITS = "error: no two other words of as many tokens for its answer options"


def replace_spans(text: str, spans: Mapping[str, Span], new: Mapping[str, str]) -> tuple[str, dict[str, Span]]:
    """A text with the words of some spans exchanged, and where the spans are in it.

    Parameters
    ----------
    text, spans
        A text and its spans.
    new
        Name of a span → what stands there instead. These spans do not overlap each other.

    Returns
    -------
    tuple of str and dict
        The new text, and its spans: those of `new` (and others of the same range) cover the new words, those clear of
        them are shifted. A span that overlaps one of `new` without being equal to it is left out: which of the new
        words are its own, nothing says.

    Examples
    --------
    >>> replace_spans("red or blue?", {"first": (0, 3), "second": (7, 11)}, {"first": "green"})
    ('green or blue?', {'first': (0, 5), 'second': (9, 13)})
    """
    cuts = sorted((*spans[name], words) for name, words in new.items())
    replaced, end = "", 0
    for start, stop, words in cuts:
        replaced += text[end:start] + words
        end = stop
    moved = {}
    for name, (start, stop) in spans.items():
        touched = [cut for cut in cuts if cut[0] < stop and start < cut[1]]
        if any(cut[:2] != (start, stop) for cut in touched):
            continue
        first = start + sum(len(words) - (b - a) for a, b, words in cuts if b <= start)
        moved[name] = (first, first + (len(touched[0][2]) if touched else stop - start))
    return replaced + text[end:], moved


def replace_options(pairs: Sequence[Pair], count_tokens: Callable[[str], int], seed: int = 0) -> Pairs:
    """Symmetric token replacement: both answer options become two other words of their role.

    Where the pairs' dataset tells its words by their role (all adjectives of MIT-States, all verbs of SVO-Probes), the
    new words are drawn from them, never ones that mean nearly the same as the pair's own or each other. Of other pairs
    they are drawn from the options of those that ask the same question, that is, whose texts are equal once all spans
    are cut out of them; from those of all pairs where no two of them fit.

    The new words are never the pair's own answer, foil or options (case does not count), differ from each other, agree
    with an article in front of them, and have as many tokens as the words whose place they take: alone, and as the
    whole text counts them.

    Parameters
    ----------
    pairs
        Each with the spans `answer_option` and `foil_option`. Those of `load_pairs` know their dataset's words; a plain
        list of them does not.
    count_tokens
        How many tokens a text has, without special tokens.
    seed
        Same seed and same words to draw from, same replacement; the order of the pairs does not matter.

    Returns
    -------
    Pairs
        With another corrupted text and `spans_corrupted` (see `replace_spans`); all else stays. Where the pairs skip
        errors, one for which no two words fit is dropped and counted.

    Raises
    ------
    SpecError
        A pair without the two spans, or for which no two words fit.

    Examples
    --------
    >>> from vlm_patching.pairs import load_pairs
    >>> pairs = replace_options(load_pairs("shapes", n=8), lambda text: len(text.split()))

    References
    ----------
    Golovanevsky et al. 2024, NOTICE (symmetric token replacement).
    """
    pairs = Pairs.of(pairs)
    for pair in pairs:
        _check_options(pair)
    count, vocabulary = cache(count_tokens), pairs.vocabulary
    everywhere = _distinct(word for pair in pairs for word in _options(pair))
    of_frame: dict[str, list[str]] = {}
    for pair in pairs:
        of_frame.setdefault(_frame(pair), []).extend(_options(pair))
    of_frame = {frame: _distinct(words) for frame, words in of_frame.items()}
    made = []
    for pair in pairs:
        rng = random.Random(f"{seed}/symmetric_token_replacement/{pair.id}")
        own = (pair.answer.strip(), pair.foil.strip(), *_options(pair))
        of_role = vocabulary.of(pair.id)
        near = partial(vocabulary.near, pair.id) if of_role else _same_word
        for words in (of_frame[_frame(pair)], everywhere) if of_role is None else (of_role,):
            others = [word for word in words if not near(word, own)]
            new = _draw_options(pair, others, count, near, rng)
            if new:
                made.append(_with_text(pair, new))
                break
        else:
            if not pairs.skips:
                raise SpecError(_nothing_fits(pair, others, count))
    left_out = len(pairs) - len(made)
    return pairs.holding(made, {_NOTHING_FITS: left_out} if left_out else {})


def replace_constraint(
    pairs: Sequence[Pair], span: str = "constraint", phrase: str | None = None, seed: int = 0
) -> list[Pair]:
    """Constraint replacement: a span's words become another phrase, so that they fit the picture no longer.

    Parameters
    ----------
    pairs
        Each with the span.
    span
        Whose words are replaced: in the dataset shapes `constraint`, `constraint_1` or `constraint_2`.
    phrase
        What stands there instead, of any number of tokens. Where not given, it is the same span of another pair: one
        whose words differ and do not stand in the pair's own text (case does not count), each phrase equally likely.
    seed
        Of what is drawn: same seed and same phrases to draw from, same replacement. Not used with `phrase`.

    Returns
    -------
    list of Pair
        With another corrupted text and `spans_corrupted` (see `replace_spans`: a span that overlaps the replaced one
        without being equal to it is left out); all else stays.

    Raises
    ------
    SpecError
        A pair without the span, a phrase that is empty or the pair's own, or nothing to draw.

    Examples
    --------
    >>> from vlm_patching.pairs import load_pairs
    >>> pairs = replace_constraint(load_pairs("shapes", n=8, constraints=2), "constraint_1")
    >>> pairs = replace_constraint(pairs, phrase="paris city")

    References
    ----------
    Basu et al. 2024, Understanding Information Storage and Transfer in Multi-modal Large Language Models.
    """
    if phrase is not None and not phrase.strip():
        raise SpecError(f"The phrase that replaces span {span!r} is {phrase!r}: it needs a word.")
    for pair in pairs:
        if span not in pair.spans:
            raise SpecError(
                f"Pair {pair.id!r} has no span {span!r}, whose words are to be replaced."
                f"{nearest(span, pair.spans)} It has: {_names(pair)}."
            )
    phrases = _distinct(_said(pair, span) for pair in pairs)
    made = []
    for pair in pairs:
        if phrase is None:
            text = pair.clean.text.casefold()
            others = [words for words in phrases if words.casefold() not in text]
            if not others:
                raise SpecError(
                    f"Pair {pair.id!r}: nothing can replace span {span!r}, which says {_said(pair, span)!r}: in none "
                    f"of the {len(pairs)} pairs does it say something that {pair.clean.text!r} does not hold. Give the "
                    "phrase, or more pairs."
                )
            words = random.Random(f"{seed}/constraint_replacement/{pair.id}").choice(others)
        elif phrase.strip().casefold() == _said(pair, span).strip().casefold():
            raise SpecError(f"Pair {pair.id!r}: span {span!r} says {phrase!r} already; another phrase must replace it.")
        else:
            words = phrase
        made.append(_with_text(pair, {span: words}))
    return made


def _with_text(pair: Pair, new: Mapping[str, str]) -> Pair:
    text, spans = replace_spans(pair.clean.text, pair.spans, new)
    return replace(pair, corrupted=Prompt(pair.corrupted.image, text), spans_corrupted=spans)


def _said(pair: Pair, span: str) -> str:
    return pair.clean.text[slice(*pair.spans[span])]


def _options(pair: Pair) -> tuple[str, ...]:
    return tuple(_said(pair, span) for span in OPTIONS)


def _names(pair: Pair) -> str:
    return ", ".join(pair.spans) or "none"


def _distinct(words: Iterable[str]) -> list[str]:
    """Words in an order of their own, one spelling of each."""
    return list({word.casefold(): word for word in sorted(words)}.values())


def _frame(pair: Pair) -> str:
    """The text with a mark in the place of its spans: what pairs that ask the same question share."""
    frame, end = "", 0
    for start, stop in sorted(pair.spans.values()):
        if start >= end:
            frame += pair.clean.text[end:start] + "\0"
        end = max(end, stop)
    return (frame + pair.clean.text[end:]).casefold()


def _check_options(pair: Pair) -> None:
    missing = [span for span in OPTIONS if span not in pair.spans]
    if missing:
        raise SpecError(
            f"Pair {pair.id!r} has no span {' and no span '.join(map(repr, missing))}, which symmetric token "
            f"replacement needs to find the words it replaces.{nearest(missing[0], pair.spans)} It has: {_names(pair)}."
        )
    first, second = sorted(pair.spans[span] for span in OPTIONS)
    if second[0] < first[1]:
        raise SpecError(
            f"Pair {pair.id!r}: the spans {' and '.join(map(repr, OPTIONS))}, {list(pair.spans[OPTIONS[0]])} and "
            f"{list(pair.spans[OPTIONS[1]])}, overlap in {pair.clean.text!r}, so their words cannot both be replaced."
        )


def _same_word(word: str, others: Iterable[str]) -> bool:
    return word.casefold() in map(str.casefold, others)


def _draw_options(
    pair: Pair,
    words: Sequence[str],
    count: Callable[[str], int],
    near: Callable[[str, Iterable[str]], bool],
    rng: random.Random,
) -> dict[str, str] | None:
    """Two of the words that keep the number of tokens, each by itself and both together; None where there are none."""

    def keeps_length(new: Mapping[str, str]) -> bool:
        text, _ = replace_spans(pair.clean.text, pair.spans, new)
        return count(text) == count(pair.clean.text)

    @cache
    def fits(span: str, word: str) -> bool:
        ahead = pair.clean.text[: pair.spans[span][0]].split()[-1:]
        agrees = not ahead or ahead[0].lower() not in ("a", "an") or ahead[0].lower() == article(word)
        return agrees and count(word) == count(_said(pair, span)) and keeps_length({span: word})

    for answer in rng.sample(words, len(words)):
        if not fits(OPTIONS[0], answer):
            continue
        for foil in rng.sample(words, len(words)):
            new = dict(zip(OPTIONS, (answer, foil), strict=True))
            if fits(OPTIONS[1], foil) and not near(foil, [answer]) and keeps_length(new):
                return new
    return None


def _nothing_fits(pair: Pair, words: Sequence[str], count: Callable[[str], int]) -> str:
    old = " and ".join(f"{span} {_said(pair, span)!r} ({_tokens(count(_said(pair, span)))})" for span in OPTIONS)
    lengths = sorted(Counter(count(word) for word in words).items())
    found = ", ".join(f"{number} of {_tokens(length)}" for length, number in lengths)
    return (
        f"Pair {pair.id!r}: symmetric token replacement found no two words for {old} in {pair.clean.text!r}. It looked "
        f"at {len(words)} words that are options of other pairs and not (nearly) this pair's own"
        f"{': ' if found else ''}{found}. Each must have as many tokens as the word it replaces, and leave the text as "
        "long as it is. "
        "pairs.on_error: skip leaves such pairs of a dataset in files out, and counts them."
    )


def _tokens(number: int) -> str:
    return f"{number} token{'s' * (number != 1)}"
