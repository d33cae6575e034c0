"""Pairs side by side: both pictures with boxes, both texts with spans."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea, VPacker
from matplotlib.patches import Patch, Rectangle

from vlm_patching.errors import SpecError
from vlm_patching.pairs import Pair, Prompt
from vlm_patching.pairs.marking import colors_of, marked
from vlm_patching.pairs.pair import Box, Span
from vlm_patching.plots.style import plain_letters

_WIDTH, _TITLE = 42, 34
"""Characters of a line of text, and of a title."""
_SIDE = 2.6
"""Inches of a picture's width."""


@plain_letters()
def gallery(pairs: Sequence[Pair], *, most: int = 8, columns: int = 2) -> Figure:
    """Draw pairs: the clean prompt on the left, the corrupted one on the right.

    Parameters
    ----------
    pairs
        What `vp.load_pairs` gives.
    most
        How many are drawn: the first ones.
    columns
        Pairs side by side.

    Returns
    -------
    matplotlib.figure.Figure
        Words of spans are marked in the colour of their name, regions are framed in theirs; the legend names them.

    Raises
    ------
    SpecError
        No pair, or a picture that cannot be read.

    Examples
    --------
    >>> import vlm_patching as vp
    >>> figure = gallery(vp.load_pairs("shapes", n=2))
    """
    shown = list(pairs[:most])
    if not shown or columns < 1:
        raise SpecError("There is nothing to draw: give at least one pair, and at least one column.")
    columns = min(columns, len(shown))
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    colors = colors_of(shown)
    heights = [max(map(_height, row)) for row in rows]
    figure, axes = plt.subplots(
        len(rows),
        2 * columns,
        figsize=(2 * _SIDE * columns, sum(heights) + 0.4),
        layout="constrained",
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    for ax in axes.flat:
        ax.set_axis_off()
        ax.set_anchor("NW")
    for number, pair in enumerate(shown):
        left, right = axes[number // columns, 2 * (number % columns) :][:2]
        other = pair.spans if pair.corrupted.text == pair.clean.text else pair.spans_corrupted
        _draw(left, pair.clean, pair.spans, pair.regions, colors)
        _draw(right, pair.corrupted, other, {}, colors)
        left.set_title(f"{_short(f'{pair.answer}, not {pair.foil}')}\nclean", fontsize=9, loc="left")
        right.set_title(f"{_short(pair.id)}\ncorrupted", fontsize=9, loc="left", color="0.4")
    if colors:
        handles = [Patch(facecolor=color, label=name.replace("_", " ")) for name, color in colors.items()]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8, frameon=False
        )
    return figure


def _height(pair: Pair) -> float:
    """Inches that a pair needs: its taller picture (at most half as high again as wide), titles, and lines of text."""
    prompts = (pair.clean, pair.corrupted)
    shapes = [min(1.5, _joined(prompt).shape[0] / _joined(prompt).shape[1]) for prompt in prompts if prompt.images]
    lines = max(len(prompt.text) // _WIDTH + 1 for prompt in prompts)
    return _SIDE * max(shapes, default=0.2) + 0.5 + 0.18 * lines


def _joined(prompt: Prompt) -> np.ndarray:
    """A prompt's pictures in a row, as high as the lowest of them: [height, width, color]."""
    pictures = prompt.pictures()
    height = min(picture.height for picture in pictures)
    sizes = [(max(1, round(picture.width * height / picture.height)), height) for picture in pictures]
    row = [np.asarray(picture.resize(size)) for picture, size in zip(pictures, sizes, strict=True)]
    return np.concatenate(row, axis=1)


def _short(words: str) -> str:
    return textwrap.shorten(words, _TITLE, placeholder="…") if " " in words else words[:_TITLE]


def _draw(
    ax: Axes, prompt: Prompt, spans: Mapping[str, Span], regions: Mapping[str, Box], colors: Mapping[str, str]
) -> None:
    if prompt.images:
        joined = _joined(prompt)
        ax.imshow(joined)
        scale = joined.shape[0] / prompt.picture().height
        for name, box in regions.items():
            x0, y0, x1, y1 = (scale * edge - 0.5 for edge in box)
            frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=2, edgecolor=colors[name])
            ax.add_patch(frame)
    else:
        ax.text(0.5, 0.5, "no picture", ha="center", va="center", color="0.5", transform=ax.transAxes)
    text = AnnotationBbox(
        _written(prompt.text, spans, colors),
        (0, 0),
        xycoords="axes fraction",
        xybox=(0, -4),
        boxcoords="offset points",
        box_alignment=(0, 1),
        frameon=False,
        pad=0,
    )
    ax.add_artist(text)


def _written(text: str, spans: Mapping[str, Span], colors: Mapping[str, str]) -> VPacker:
    """A text in lines, the words of spans on the colour of the shortest span that they are in."""
    lines: list[list[Any]] = [[]]
    length = 0
    for word in _words(marked(text, spans)):
        size = sum(len(piece) for piece, _ in word)
        if lines[-1] and length + size > _WIDTH:
            lines.append([])
            length = 0
        lines[-1].append(HPacker(children=[_piece(*part, colors) for part in word], pad=0, sep=0))
        length += size + 1
    return VPacker(
        children=[HPacker(children=line, pad=0, sep=3) for line in lines if line], pad=0, sep=3, align="left"
    )


def _piece(text: str, names: Sequence[str], colors: Mapping[str, str]) -> TextArea:
    style: dict[str, Any] = {"fontsize": 8}
    if names:
        style["bbox"] = {
            "facecolor": colors[names[0]],
            "edgecolor": "none",
            "boxstyle": "square,pad=0.12",
            "alpha": 0.75,
        }
    return TextArea(text, textprops=style)


def _words(pieces: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[list[tuple[str, tuple[str, ...]]]]:
    """The pieces of each word: cut at spaces, but not where a span begins or ends inside a word."""
    word: list[tuple[str, tuple[str, ...]]] = []
    for text, names in pieces:
        for part in re.findall(r"\s+|\S+", text):
            if part.isspace():
                if word:
                    yield word
                word = []
            else:
                word.append((part, names))
    if word:
        yield word
