"""As much English as questions need: articles, plurals and the forms of verbs. Irregular ones are in english.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from vlm_patching.validation import parse_yaml

_VOWELS = "aeiou"


@cache
def _known() -> Mapping[str, Any]:
    file = resources.files("vlm_patching.pairs") / "words" / "english.yaml"
    data: Mapping[str, Any] = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    return data


@cache
def words_of(kind: str) -> frozenset[str]:
    """A list of english.yaml: `determiners`, `links` (prepositions and particles), `mass` (nouns without article)."""
    return frozenset(_known()[kind])


def article(word: str) -> str:
    """ "a" or "an", as the word sounds.

    Examples
    --------
    >>> [article(word) for word in ("apple", "bench", "hour", "uniform")]
    ['an', 'a', 'an', 'a']
    """
    first = re.split(r"[\s-]", word.casefold())[0]
    if first in words_of("a") or first in words_of("an"):
        return "a" if first in words_of("a") else "an"
    return "an" if first[:1] in tuple(_VOWELS) else "a"


def indefinite(noun: str) -> str:
    """ "a " or "an ", as it stands before a noun; nothing before one that has no article: "people", "rice".

    Examples
    --------
    >>> [f"{indefinite(noun)}{noun}" for noun in ("cup", "orange", "scissors", "rice")]
    ['a cup', 'an orange', 'scissors', 'rice']
    """
    return "" if noun in words_of("mass") or is_plural(noun) else f"{article(noun)} "


@cache
def plural(noun: str) -> str:
    """The plural of a noun; of several words, the last one's.

    Examples
    --------
    >>> [plural(noun) for noun in ("dog", "bench", "baby", "woman", "ice cream", "sheep")]
    ['dogs', 'benches', 'babies', 'women', 'ice creams', 'sheep']
    """
    before, space, last = noun.rpartition(" ")
    known = _known()["plurals"]
    if is_plural(last) or last in words_of("unchanged"):
        return noun
    if last in known:
        return before + space + known[last]
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if last.endswith("y") and last[-2:-1] not in tuple(_VOWELS):
        return f"{noun[:-1]}ies"
    return f"{noun}s"


@cache
def is_plural(noun: str) -> bool:
    """Whether a noun stands in the plural, as far as it shows.

    Examples
    --------
    >>> [is_plural(noun) for noun in ("people", "shoes", "pants", "glass", "bus", "sheep")]
    [True, True, True, False, False, False]
    """
    last = noun.rpartition(" ")[2]
    if last in words_of("plural_only") or last in _known()["plurals"].values():
        return True
    return last.endswith("s") and not last.endswith(("ss", "us", "is", "as")) and last not in words_of("singular")


@cache
def participle(verb: str) -> str:
    """The present participle of a verb; of several words, the first one's.

    Examples
    --------
    >>> [participle(verb) for verb in ("sit", "lie", "ride", "see", "carry", "visit", "begin", "look at")]
    ['sitting', 'lying', 'riding', 'seeing', 'carrying', 'visiting', 'beginning', 'looking at']
    """
    first, space, rest = verb.partition(" ")
    if first.endswith("ie"):
        stem = f"{first[:-2]}y"
    elif first.endswith("e") and not first.endswith(("ee", "oe", "ye")) and first != "be":
        stem = first[:-1]
    else:
        stem = _doubled(first)
    return f"{stem}ing{space}{rest}"


@cache
def verb_forms(verb: str) -> frozenset[str]:
    """Every form in which a verb of one word may stand in a sentence, its own among them."""
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        third = f"{verb}es"
    elif verb.endswith("y") and verb[-2:-1] not in tuple(_VOWELS):
        third = f"{verb[:-1]}ies"
    else:
        third = f"{verb}s"
    past = f"{verb}d" if verb.endswith("e") else f"{_doubled(verb)}ed"
    if verb.endswith("y") and verb[-2:-1] not in tuple(_VOWELS):
        past = f"{verb[:-1]}ied"
    return frozenset((verb, third, past, participle(verb), *_known()["verbs"].get(verb, ())))


def _doubled(verb: str) -> str:
    """A verb as it stands before -ing and -ed: sit → sitt, mimic → mimick."""
    if verb.endswith("ic"):
        return f"{verb}k"
    sounds = verb.replace("qu", "q")
    short = len(re.findall(r"[aeiouy]+", sounds)) == 1 and re.search(r"[^aeiou][aeiou][^aeiouwxy]$", f"-{sounds}")
    return verb + verb[-1] if short or verb in words_of("doubled") else verb
