"""How figures look: widths and letters for screen and print, and files that keep text as text.

Nothing here changes matplotlib's global settings: they hold inside of a plot function, and while a file is written.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from vlm_patching.errors import SpecError, unknown

WIDTHS: dict[str, float | None] = {"screen": None, "single": 3.35, "double": 7.0}
"""Name → inches; on a screen a figure is as wide as what it holds. The others are a journal's one and two columns."""
FORMATS = ("png", "pdf", "svg", "jpg")
MOST_INCHES = 13.0
"""Of a figure for a screen: panels go into another row before it gets wider."""
_PRINT_POINTS = 7.0
_FILES: dict[Any, Any] = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "vlm_patching"}

Drawn = Any
"""What plot functions return: the Axes, or an array of them where there are several panels."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Style:
    """How figures are made.

    Attributes
    ----------
    width
        Inches; None: as wide as what is drawn.
    points
        Size of the letters; None: what matplotlib is set to.
    title
        Whether a figure says above its panels what it is of; a caption says it in print.
    """

    width: float | None = None
    points: float | None = None
    title: bool = True


_current: ContextVar[Style] = ContextVar("style", default=Style())  # noqa: B039 - it is frozen


@contextmanager
def style(width: str | float = "screen", *, points: float | None = None, title: bool = True) -> Iterator[Style]:
    """Make the figures that are drawn inside of a `with` block as wide as a column, with letters for print.

    Parameters
    ----------
    width
        `screen`, `single` (85 mm), `double` (178 mm), or inches.
    points
        Size of the letters; 7 in print, and matplotlib's own setting on a screen, where not given.
    title
        Say above the panels what a figure is of.

    Raises
    ------
    SpecError
        Another name, or a width or size that is not positive.

    Examples
    --------
    >>> with style("single", title=False) as chosen:  # doctest: +SKIP
    ...     save(heatmap(ds), "figure.pdf")
    """
    inches: float | None
    if isinstance(width, str):
        if width not in WIDTHS:
            raise unknown("width of a figure", width, WIDTHS)
        inches = WIDTHS[width]
    else:
        inches = float(width)
    for name, number in (("width", inches), ("points", points)):
        if number is not None and not number > 0:
            raise SpecError(f"{name} of a style must be positive, not {number}.")
    if points is None and inches is not None:
        points = _PRINT_POINTS
    chosen = Style(inches, points, title)
    token = _current.set(chosen)
    try:
        yield chosen
    finally:
        _current.reset(token)


def current() -> Style:
    """The style that holds here."""
    return _current.get()


def letters() -> float:
    """Size of the letters, in points."""
    return current().points or float(plt.rcParams["font.size"])


def small() -> float:
    """Size of the letters on ticks and in legends."""
    return 0.85 * letters()


def inches(number: float) -> float:
    """So many inches of a figure with letters of 10 points."""
    return number * letters() / 10


def printed() -> bool:
    """Whether the figure is to fit into a column of a page."""
    return current().width is not None


def most_inches() -> float:
    """How wide a figure may get."""
    return current().width or MOST_INCHES


def check_width(least: float, figure: str) -> None:
    """Refuse a style in which a figure's panels, side by side, would be too narrow to be read."""
    width = current().width
    if width is not None and width < least:
        raise SpecError(
            f"plot.{figure} has its panels side by side and needs {least:.1f} inches here; the style has {width:g} "
            f"(double has {WIDTHS['double']:g}, and screen as many as are needed)."
        )


def styled(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A plot function that draws in the style that holds."""

    @functools.wraps(function)
    def inside(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        size = letters()
        settings: dict[Any, Any] = {
            "font.size": size,
            "axes.titlesize": size,
            "axes.labelsize": size,
            "figure.titlesize": size,
            "xtick.labelsize": small(),
            "ytick.labelsize": small(),
            "legend.fontsize": small(),
            "legend.title_fontsize": small(),
            "hatch.linewidth": 0.5,
            **({"axes.linewidth": 0.5, "xtick.major.width": 0.5, "ytick.major.width": 0.5} if printed() else {}),
        }
        with plain_letters(), mpl.rc_context(settings):
            drawn = function(*arguments, **named)
        for axes in _each(drawn):
            for text in axes.findobj(Text):
                text.set_parse_math(False)
        return drawn

    return inside


def _each(drawn: Drawn) -> list[Axes]:
    return [drawn] if isinstance(drawn, Axes) else list(np.ravel(drawn))


@contextmanager
def plain_letters() -> Iterator[None]:
    """Dollar signs are dollar signs, in texts out of a dataset: no formula begins with one."""
    plt.draw_if_interactive()  # loads the backend: a notebook's turns interactive as it is loaded, which is to stay
    with mpl.rc_context({"text.parse_math": False}):
        yield


def canvas(
    rows: int, columns: int, width: float, height: float, ratios: Sequence[float] | None = None, **more: Any
) -> tuple[Figure, list[Axes]]:
    """A new figure and its panels, row by row.

    Parameters
    ----------
    width, height
        Inches on a screen; in print the width is the style's.
    ratios
        Of the columns' widths.
    """
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(current().width or width, height),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"width_ratios": ratios} if ratios is not None else None,
        **more,
    )
    return figure, list(axes.flat)


def figure_of(drawn: Drawn) -> Figure:
    """The figure of what a plot function returned.

    Parameters
    ----------
    drawn
        Axes, or an array of them.

    Returns
    -------
    matplotlib.figure.Figure
        The whole figure, also where the axes are of a part of it.
    """
    figure = _each(drawn)[0].get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def returned(axes: Sequence[Axes]) -> Drawn:
    """The Axes of one panel; an array of them where there are several."""
    if len(axes) == 1:
        return axes[0]
    array = np.empty(len(axes), dtype=object)
    array[:] = list(axes)
    return array


def save(drawn: Figure | Drawn, path: str | Path, dpi: float = 200) -> Path:
    """Write a figure; text stays text in SVG and PDF.

    Parameters
    ----------
    drawn
        What a plot function returned, or a figure.
    path
        Its ending says the format: png, pdf, svg or jpg. Missing folders are made.
    dpi
        Pixels per inch, of png and jpg.

    Raises
    ------
    SpecError
        Another ending, or a place that cannot be written to.
    """
    path = Path(path)
    check_format(path.suffix)
    figure = drawn if isinstance(drawn, Figure) else figure_of(drawn)
    unstamped = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    kind = path.suffix.lower().removeprefix(".")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(_FILES), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figure.savefig(path, dpi=dpi, metadata=unstamped.get(kind))
    except OSError as error:
        raise SpecError(f"The figure could not be written to {path}: {error}.") from error
    for warning in {str(each.message): each for each in caught if not str(each.message).startswith("Glyph")}.values():
        warnings.warn(warning.message, warning.category, stacklevel=2)
    if any(str(each.message).startswith("Glyph") for each in caught):
        warnings.warn(
            f"{path} has boxes in the place of characters that the font {mpl.rcParams['font.sans-serif'][0]} lacks.",
            stacklevel=2,
        )
    return path


def check_format(suffix: str) -> None:
    """Refuse an ending that is no kind of figure."""
    known = [f".{name}" for name in FORMATS]
    if suffix.lower() not in known:
        raise unknown("kind of figure", suffix, known)
