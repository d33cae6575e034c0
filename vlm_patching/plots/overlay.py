"""Values of single patches, in colours over the picture that the patches are of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from PIL.Image import Image

from vlm_patching.errors import SpecError, unknown
from vlm_patching.pairs.pair import Box
from vlm_patching.plots.labels import Labeller, is_one_position
from vlm_patching.plots.maps import DIVERGING, bar_aspect, say
from vlm_patching.plots.panels import fitted
from vlm_patching.plots.style import (
    Drawn,
    canvas,
    current,
    figure_of,
    inches,
    letters,
    most_inches,
    printed,
    returned,
    small,
)

Pictures = Image | Sequence[Image]
_OPACITY = 0.8


@dataclass(frozen=True)
class Painted:
    """What is painted over one picture.

    Attributes
    ----------
    boxes
        [patch, corner] in pixels.
    values
        [patch].
    framed
        [patch]: those with a dashed frame around all of them.
    image
        Which of the example's pictures.
    """

    title: str
    boxes: np.ndarray
    values: np.ndarray
    framed: np.ndarray
    image: int


def one_example(ds: xr.Dataset, example: str) -> xr.Dataset:
    """The dataset of one example, still with its dimension; `SpecError` where it is not there or was not kept."""
    names = [str(name) for name in ds["example"].values]
    if example not in names:
        raise unknown("example in this dataset", example, names)
    ds = ds.isel(example=[names.index(example)])
    if ds["kept"].item() != "kept":
        raise SpecError(f"Example {example!r} was not kept: {ds['kept'].item()}.")
    return ds


def painted(ds: xr.Dataset, prefix: str, values: Sequence[tuple[str, np.ndarray]], region: str | None) -> list[Painted]:
    """The panels of one example: for each title and values [patch] its pictures, and its thumbnail beside its tiles.

    Parameters
    ----------
    ds
        One example.
    prefix
        Of the coordinates that say where patches are: "" for positions, "key_" for keys.
    region
        Role of the patches that get a frame.

    Raises
    ------
    SpecError
        No patch with a box, or none with a number.
    """
    one = ds.isel(example=0)
    boxes = patch_boxes(ds, prefix)
    roles = one[f"{prefix}role"].values
    image, tile = (
        one[f"{prefix}{name}"].values if f"{prefix}{name}" in one.coords else np.zeros(len(boxes), dtype=int)
        for name in ("image", "tile")
    )
    found = []
    for title, numbers in values:
        shown = np.isfinite(boxes).all(axis=1) & np.isfinite(numbers)
        places = {(int(i), t >= 0) for i, t in zip(image[shown], tile[shown], strict=True)}
        for number, cut in sorted(places):  # the whole seen small stands before its tiles
            here = shown & (image == number) & ((tile >= 0) == cut)
            parts = [title] if title else []
            parts += [f"picture {number}"] if len({i for i, _ in places}) > 1 else []
            parts += [("tiles" if cut else "seen small")] if (number, not cut) in places else []
            framed = here & (roles == region)
            found.append(Painted(", ".join(parts), boxes[here], numbers[here], framed[here], number))
    if not found:
        raise SpecError(
            f"Example {str(one['example'].item())!r} has no number at a single patch of the picture here: sweep single "
            "patches, for example each:image."
        )
    return found


def patch_boxes(ds: xr.Dataset, prefix: str = "") -> np.ndarray:
    """Box [patch, corner] of one example in pixels, NaN for what is no single patch; `SpecError` where none is one."""
    one = ds.isel(example=0)
    if f"{prefix}box" not in one.coords:
        raise SpecError(
            f"This dataset says no boxes of patches ({prefix}box): sweep single patches, for example each:image."
        )
    labels = one["key" if prefix else "position"].values
    patch = (one[f"{prefix}row"].values >= 0) & (one[f"{prefix}modality"].values == "image")
    patch &= np.array([is_one_position(label) for label in labels])
    boxes = np.asarray(one[f"{prefix}box"].transpose(..., "corner").values, dtype=float)
    known = patch & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not known.any():
        raise SpecError(
            "None of this dataset's positions is a single patch: sweep them one by one, as each:image does."
        )
    return np.where(known[:, None], boxes, np.nan)


def paint(
    panels: Sequence[Painted],
    pictures: Pictures,
    label: str,
    *,
    signed: bool = True,
    limit: float | None = None,
    boxes: Mapping[str, Box] | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """Draw panels in one scale, each over its picture.

    Parameters
    ----------
    label
        Of the colour bar.
    signed
        Colours symmetric about 0; else from 0 on.
    limit
        End of the scale; the largest absolute value where not given.
    boxes
        Name → pixel box of the first picture, drawn with its name.

    Raises
    ------
    SpecError
        Fewer pictures than the example has, a picture that patches reach out of, several panels and one `ax`.
    """
    if ax is not None and len(panels) > 1:
        raise SpecError(f"One axes holds one panel, and these are {len(panels)}: {'; '.join(p.title for p in panels)}.")
    every = [pictures] if isinstance(pictures, Image) else list(pictures)
    for panel in panels:
        _check_inside(panel, every)
    largest = max(float(abs(panel.values).max()) for panel in panels)
    end = limit or largest or 1.0
    axes = [ax] if ax is not None else _axes(len(panels), every[0])
    colors = _see_through(-1.0 if signed else 0.0)
    for one, panel in zip(axes, panels, strict=True):
        overlay = _draw(one, panel, every[panel.image], colors)
        overlay.set_clim(-end if signed else 0.0, end)
        if boxes and panel.image == 0:
            _name_boxes(one, boxes)
        width = one.get_window_extent().width / one.figure.dpi
        one.set_title(fitted(panel.title, max(width, inches(2.2))))
    extend = ("both" if signed else "max") if largest > end * (1 + 1e-6) else "neither"
    height = max(figure_of(axes[0]).get_figheight() * 0.75, inches(2))
    beside = axes if len(axes) > 1 else axes[0]
    size: dict[str, Any] = {"aspect": bar_aspect(height)} if ax is None else {"aspect": 20, "shrink": 0.8}
    bar = axes[0].figure.colorbar(overlay, ax=beside, extend=extend, pad=0.02, **size)
    say(bar, label, height)
    bar.ax.tick_params(labelsize=small())
    bar.outline.set_visible(False)
    return returned(axes)


def _axes(panels: int, picture: Image) -> list[Axes]:
    """A new figure's panels, as many in a row as fit, each with the picture's shape."""
    beside, above = inches(1.3), inches(0.9) if current().title else 0.1
    side = inches(3.6 if panels == 1 else 2.4)
    least = inches(1.25) if printed() else side
    in_row = min(panels, max(1, int((most_inches() - beside) / least)))
    rows = math.ceil(panels / in_row)
    in_row = math.ceil(panels / rows)
    width = current().width or in_row * side + beside
    side = (width - beside) / in_row
    tall = side * min(max(picture.height / picture.width, 0.4), 2.0) + inches(0.35)
    _, axes = canvas(rows, in_row, width, rows * tall + above)
    for spare in axes[panels:]:
        spare.remove()
    return axes[:panels]


def _check_inside(panel: Painted, pictures: Sequence[Image]) -> None:
    if panel.image >= len(pictures):
        raise SpecError(f"The example has patches of picture {panel.image}, and {len(pictures)} were given, from 0 on.")
    width, height = pictures[panel.image].size
    if panel.boxes.min() < 0 or panel.boxes[:, 2].max() > width or panel.boxes[:, 3].max() > height:
        raise SpecError(
            f"The patches reach to pixel {int(panel.boxes[:, 2].max())} × {int(panel.boxes[:, 3].max())} and the "
            f"picture has {width} × {height}: it is not the picture that the example was run with."
        )


def _draw(ax: Axes, panel: Painted, picture: Image, colors: ListedColormap) -> PatchCollection:
    # In light grey, so that colours are the overlay's alone.
    ax.imshow(np.asarray(picture.convert("L")), cmap="gray", vmin=-120, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    overlay = PatchCollection(
        [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in panel.boxes - 0.5],
        cmap=colors,
        edgecolor="none",
        antialiased=False,
    )
    overlay.set_array(panel.values)
    ax.add_collection(overlay)
    if panel.framed.any():
        inside = panel.boxes[panel.framed]
        (x0, y0), (x1, y1) = inside[:, :2].min(axis=0) - 0.5, inside[:, 2:].max(axis=0) - 0.5
        ax.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linestyle="--", linewidth=0.12 * letters(), edgecolor="k")
        )
    return overlay


def _name_boxes(ax: Axes, boxes: Mapping[str, Box]) -> None:
    halo: list[AbstractPathEffect] = [withStroke(linewidth=2, foreground="white")]
    for name, (x0, y0, x1, y1) in boxes.items():
        frame = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, linewidth=1, edgecolor="k", label=name)
        frame.set_path_effects(halo)
        ax.add_patch(frame)
        ax.text(x0, y0 - 1.5, name, fontsize=small(), va="bottom", path_effects=halo)


def _see_through(low: float) -> ListedColormap:
    """From low (-1 or 0) to 1, blue to red, letting the picture through the more, the nearer a value is to 0."""
    at = np.linspace(low, 1, 255)
    colors = plt.get_cmap(DIVERGING)((at + 1) / 2)
    colors[:, 3] = _OPACITY * np.sqrt(abs(at))
    return ListedColormap(colors)


def headline(drawn: Drawn, ds: xr.Dataset, chosen: str, labeller: Labeller) -> None:
    """Say above the panels which example they are of, its question and answer, and what is the same in all."""
    if not current().title:
        return
    one = ds.isel(example=0)
    question = str(one["example"].item())
    if "text" in one.coords:
        question += f": {one['text'].item()}" + (f" → {one['answer'].item()}" if "answer" in one.coords else "")
    model = labeller.model(str(ds.attrs.get("model", "")))
    first = ", ".join(part for part in (model, chosen) if part)
    figure = figure_of(drawn)
    width = figure.get_figwidth() - 0.2
    figure.suptitle("\n".join(fitted(line, width) for line in (first, question)))
