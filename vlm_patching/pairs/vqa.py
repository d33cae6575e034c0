"""Annotations of VQA, and of what has its format: what several people answered to a question."""

from __future__ import annotations

from collections import Counter

from vlm_patching.errors import shown
from vlm_patching.pairs.reading.rows import BadRow, Row


def answers_of(row: Row) -> Counter[str]:
    """How many people gave each answer; `BadRow` where `answers` is no list of objects with an answer."""
    try:
        given = Counter(said["answer"] for said in row.value("answers"))
    except (TypeError, KeyError) as error:
        raise no_answers(row) from error
    return Counter({str(answer): count for answer, count in given.items()})


def no_answers(row: Row) -> BadRow:
    """The error of a row whose `answers` cannot be used."""
    said = f": a list of objects with an answer is expected, not {shown(row.value('answers'))}"
    return row.bad("'answers' are no answers", said)
