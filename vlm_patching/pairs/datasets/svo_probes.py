"""SVO-Probes (Hendricks & Nematzadeh 2021): a sentence, a picture it is true of, and one that differs in one word.

Files: `svo_probes.csv`, as published at github.com/google-deepmind/svo_probes, with the columns sentence, pos_triplet,
neg_triplet, pos_image_id, neg_image_id, subj_neg, verb_neg, obj_neg (and two of addresses, which are not read); and
`images/ID.jpg` (or .png, .webp, ...), which everyone downloads from those addresses, many of which are dead by now:
`on_error: skip` goes on without their rows.

Pair rule (Golovanevsky et al. 2024, NOTICE): the clean image is the positive one, the corrupted one the negative, and
the question asks for the word in which their triplets differ: "Is a girl sitting on a bench or a chair?", "Is a girl
sitting or standing on a bench?", "Is a girl or a dog sitting on a bench?". Subject, verb and object are the triplet's;
their number and determiners, and what stands between verb and object, are taken out of the sentence. A row is left out
where more than one role differs, where the sentence does not say its triplet's words in their order, with nothing but
prepositions and a determiner between verb and object, and where a picture cannot tell the two words apart (a person may
be a woman).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import Field

from vlm_patching.pairs.candidates import Candidate, Choice, Dropped, Found, each
from vlm_patching.pairs.datasets.base import FilesSpec
from vlm_patching.pairs.english import indefinite, is_plural, participle, plural, verb_forms, words_of
from vlm_patching.pairs.reading.csv_files import read_csv
from vlm_patching.pairs.reading.folders import image_names
from vlm_patching.pairs.reading.rows import Row

ABOUT = "pictures that differ in the subject, the verb or the object of a sentence"
FILES = "svo_probes.csv (github.com/google-deepmind/svo_probes), images/ID.jpg from its addresses"
_FLAGS = {"subject": "subj_neg", "verb": "verb_neg", "object": "obj_neg"}
_COLUMNS = ("sentence", "pos_triplet", "neg_triplet", "pos_image_id", "neg_image_id", *_FLAGS.values())
Triplet = tuple[str, str, str]


class SvoProbes(FilesSpec):
    """SVO-Probes: pictures that differ in one word of a sentence.

    Attributes
    ----------
    path
        The folder with svo_probes.csv and images/.
    roles
        Which word the two pictures may differ in. It is the pair's `task`.
    """

    dataset: Literal["svo_probes"]
    roles: tuple[Literal["subject", "verb", "object"], ...] = Field(default=("subject", "verb", "object"), min_length=1)


def candidates(spec: SvoProbes) -> Iterator[Found]:
    """A question of every row of the table that the pair rule takes."""
    files = {name.rpartition(".")[0]: name for name in image_names(spec.folder / "images")}  # whatever their ending
    return each(read_csv(spec.folder / "svo_probes.csv", _COLUMNS), partial(_question, spec, files))


def _question(spec: SvoProbes, files: Mapping[str, str], row: Row) -> Candidate:
    differing = [role for role, column in _FLAGS.items() if row.flag(column)]
    if len(differing) != 1:
        return Dropped("not exactly one of subject, verb and object differs")
    (role,) = differing
    if role not in spec.roles:
        return Dropped("its role is not asked for")
    place = list(_FLAGS).index(role)
    both = product(*(_triplets(row.text(column)) for column in ("pos_triplet", "neg_triplet")))
    pair = next((p for p in both if [i for i in range(3) if p[0][i] != p[1][i]] == [place]), None)
    if pair is None:
        return Dropped("its triplets do not differ in the word of its role alone")
    sentence = row.text("sentence")
    said = _said(sentence, pair[0])
    if isinstance(said, Dropped):
        return said
    names = [row.text(f"{sign}_image_id") for sign in ("pos", "neg")]
    clean, corrupted = (spec.folder / "images" / files.get(name, f"{name}.jpg") for name in names)
    ending = hashlib.blake2b(sentence.encode(), digest_size=3).hexdigest()
    return said.choice(role, pair[0], pair[1], "-".join([role, *names, ending]), clean, corrupted)


def _triplets(text: str) -> list[Triplet]:
    """Those that a cell holds: "girl,sit,bench", or several in the form of a list, "['girl,sit,bench', ...]"."""
    cells = re.findall(r"'([^']*)'|\"([^\"]*)\"", text) if text.startswith("[") else [(text, "")]
    words = [tuple(word.strip().lower() for word in (one or other).split(",")) for one, other in cells]
    return [(three[0], three[1], three[2]) for three in words if len(three) == 3 and all(three)]


@dataclass(frozen=True)
class _Said:
    """How a sentence says its triplet.

    Attributes
    ----------
    plurals
        Whether subject and object are plural.
    determiners
        What stands before subject and object: "the", "a" for either article, or "".
    link
        What stands between verb and object besides: "in front of".
    """

    plurals: tuple[bool, bool]
    determiners: tuple[str, str]
    link: str

    def choice(self, role: str, own: Triplet, other: Triplet, name: str, clean: Path, corrupted: Path) -> Choice:
        """The question about the word of a role, in which two triplets differ."""
        place = list(_FLAGS).index(role)
        words = {"subject": self._noun(0, own[0]), "verb": participle(own[1]), "object": self._noun(1, own[2])}
        answer = words.pop(role)
        if role == "verb":
            foil, before, form = participle(other[1]), ("", ""), ""
        else:
            number = place // 2
            foil, form = self._noun(number, other[place]), ", plural" if self.plurals[number] else ""
            before = self._before(number, answer), self._before(number, foil)
        subject = self._before(0, own[0]) + "{subject}" if role != "subject" else "{first} or {second}"
        verb = "{verb}" if role != "verb" else "{first} or {second}"
        thing = self._before(1, own[2]) + "{object}" if role != "object" else "{first} or {second}"
        return Choice(
            id=name,
            question=f"{'Are' if self.plurals[0] else 'Is'} {subject} {verb} {self.link}{thing}?",
            answer=answer,
            foil=foil,
            clean=clean,
            corrupted=corrupted,
            words=words,
            before=before,
            role=role + form,
            lemmas=(own[place], other[place]),
            named=role,
            task=role,
        )

    def _noun(self, number: int, lemma: str) -> str:
        return plural(lemma) if self.plurals[number] else lemma

    def _before(self, number: int, noun: str) -> str:
        determiner = self.determiners[number]
        if determiner == "a":
            return "" if self.plurals[number] else indefinite(noun)
        return f"{determiner} " if determiner else ""


def _said(sentence: str, triplet: Triplet) -> _Said | Dropped:
    tokens = re.findall(r"[a-z]+(?:[-'][a-z]+)*", sentence.lower())
    subject, verb, thing = triplet
    subject_at = _at(tokens, 0, _nouns(subject))
    verb_at = None if subject_at is None else _at(tokens, subject_at[1], _verbs(verb))
    object_at = None if verb_at is None else _at(tokens, verb_at[1], _nouns(thing))
    if subject_at is None or verb_at is None or object_at is None:
        return Dropped("its sentence does not say subject, verb and object in this order")
    between = tokens[verb_at[1] : object_at[0]]
    determiner = between.pop() if between and between[-1] in words_of("determiners") else ""
    if not set(between) <= words_of("links"):
        return Dropped("other words stand between verb and object in its sentence")
    ahead = tokens[subject_at[0] - 1] if subject_at[0] else ""
    ahead = ahead if ahead in words_of("determiners") else "a"
    plurals = _is_plural(tokens, subject_at, subject), _is_plural(tokens, object_at, thing)
    return _Said(plurals, (_normal(ahead), _normal(determiner)), " ".join([*between, ""]))


def _normal(determiner: str) -> str:
    return "a" if determiner == "an" else determiner


def _nouns(lemma: str) -> set[tuple[str, ...]]:
    return {tuple(form.split()) for form in (lemma, plural(lemma))}


def _verbs(lemma: str) -> set[tuple[str, ...]]:
    first, *rest = lemma.split()
    return {(form, *rest) for form in verb_forms(first)}


def _at(tokens: list[str], start: int, phrases: set[tuple[str, ...]]) -> tuple[int, int] | None:
    """The first place from a token on at which one of the phrases stands."""
    places = ((i, i + len(phrase)) for i in range(start, len(tokens)) for phrase in phrases)
    return next(((a, b) for a, b in places if tuple(tokens[a:b]) in phrases), None)


def _is_plural(tokens: list[str], at: tuple[int, int], lemma: str) -> bool:
    return is_plural(lemma) or (plural(lemma) != lemma and " ".join(tokens[slice(*at)]) == plural(lemma))
