"""Pairs as one HTML page by itself: pictures side by side, spans and boxes marked, and what was dropped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from PIL import Image

from vlm_patching.pairs.collection import Pairs
from vlm_patching.pairs.marking import colors_of, marked
from vlm_patching.pairs.pair import Box, Pair, Prompt, Span

_SIDE = 320
"""Longest side of a picture in the page, in pixels."""


def preview_html(pairs: Pairs, title: str, most: int = 100) -> str:
    """A page that shows the first pairs.

    Parameters
    ----------
    pairs
        What `load_pairs` gives; their pictures are opened one after the other.
    title
        What the page is called.
    most
        How many pairs are shown.

    Returns
    -------
    str
        HTML without scripts and without addresses; whatever texts of the dataset hold stays text.
    """
    shown = pairs[:most]
    counted = f"{len(pairs)} pairs" + ("" if pairs.considered is None else f" of {pairs.considered:,} candidates")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = (resources.files("vlm_patching.pairs") / "preview.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        title=title,
        counted=counted,
        dropped=sorted(pairs.dropped.items(), key=lambda item: (-item[1], item[0])),
        colors=colors_of(shown),
        left_out=len(pairs) - len(shown),
        pairs=map(_described, shown),
    )


def _described(pair: Pair) -> dict[str, Any]:
    other = pair.spans if pair.corrupted.text == pair.clean.text else pair.spans_corrupted
    return {
        "id": pair.id,
        "task": pair.task,
        "answer": pair.answer,
        "foil": pair.foil,
        "sides": [
            {"name": "clean", **_side(pair.clean, pair.spans, pair.regions)},
            {"name": "corrupted", **_side(pair.corrupted, other, {})},
        ],
    }


def _side(prompt: Prompt, spans: Mapping[str, Span], regions: Mapping[str, Box]) -> dict[str, Any]:
    pictures: Sequence[Image.Image] = prompt.pictures()
    boxes: dict[str, list[str]] = {}
    for name, (x0, y0, x1, y1) in regions.items():
        width, height = pictures[0].size
        percent = (100 * x0 / width, 100 * y0 / height, 100 * (x1 - x0) / width, 100 * (y1 - y0) / height)
        boxes[name] = [f"{value:.3f}%" for value in percent]
    shown = [
        {"source": _source(picture), "size": picture.size, "boxes": {} if number else boxes}
        for number, picture in enumerate(pictures)
    ]
    return {"pictures": shown, "pieces": marked(prompt.text, spans)}


def _source(picture: Image.Image) -> str:
    """A picture as an address that holds it: small ones as they are, of large ones a smaller JPEG."""
    kind = "PNG" if max(picture.size) <= 128 else "JPEG"
    if kind == "JPEG":
        picture = picture.copy()
        picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
