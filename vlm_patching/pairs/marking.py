"""Spans of a text as pieces of it, and the colours that names of spans and regions are shown in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

from vlm_patching.pairs.pair import Pair, Span

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00", "#999999")
"""Okabe and Ito's, which readers who are colour-blind tell apart."""
_FIRST = ("answer_option", "foil_option", "subject", "object", "constraint")


def marked(text: str, spans: Mapping[str, Span]) -> list[tuple[str, tuple[str, ...]]]:
    """A text in pieces, each with the names of the spans that it is in, the shortest span first.

    Examples
    --------
    >>> marked("is it red?", {"answer_option": (6, 9), "question": (0, 10)})
    [('is it ', ('question',)), ('red', ('answer_option', 'question')), ('?', ('question',))]
    """
    edges = sorted({0, len(text), *(edge for span in spans.values() for edge in span)})
    by_length = sorted(spans, key=lambda name: spans[name][1] - spans[name][0])
    return [
        (text[start:end], tuple(name for name in by_length if spans[name][0] <= start and end <= spans[name][1]))
        for start, end in pairwise(edges)
    ]


def colors_of(pairs: Iterable[Pair]) -> dict[str, str]:
    """Name of a span or region → its colour: the same name, the same colour, in whatever order pairs have them."""
    names = {name for pair in pairs for part in (pair.spans, pair.spans_corrupted, pair.regions) for name in part}
    ordered = [*(name for name in _FIRST if name in names), *sorted(names - set(_FIRST))]
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(ordered)}
