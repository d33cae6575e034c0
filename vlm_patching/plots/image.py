"""What single patches of a picture do, drawn over the picture."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL.Image import Image

from vlm_patching.analysis import above_mean, effect
from vlm_patching.analysis.effects import method_of
from vlm_patching.errors import SpecError, unknown
from vlm_patching.plots.labels import effect_label

_OPACITY = 0.8


def image(
    ds: xr.Dataset,
    example: str,
    picture: Image,
    *,
    metric: str = "probability",
    minus_mean: bool = True,
    region: str | None = "object",
    limit: float | None = None,
    ax: Axes | None = None,
    **cell: Any,
) -> Figure:
    """One example's attention over the patches of its picture, or the effects of patching them, over the picture.

    Parameters
    ----------
    ds
        What `vp.run` gave: a reading of attention, or another method that has an effect, swept over single patches
        (`each:image`).
    example
        Which one: a label of `example`.
    picture
        The example's clean picture, as it was before the model's image processor: the boxes are in its pixels.
    metric
        One of the dataset's metrics; nothing for attention.
    minus_mean
        Take from the head's attention the mean of all heads (`analysis.above_mean`).
    region
        Role of the patches to draw a dashed frame around; None for no frame.
    limit
        End of the colour scale; the largest absolute value where not given.
    ax
        Axes to draw in; a new figure where not given.
    **cell
        A label of every dimension (`site`, `layer`, `head`, `position`, `window`, ...) that has more than one: of
        attention the `position` is the attending one, of effects the positions are the patches.

    Returns
    -------
    matplotlib.figure.Figure
        Red where the head attends to a patch more than others do, or where a patch carries the answer; blue the other
        way; the picture, in grey, where there is nothing. Draws are averaged. The colour scale is symmetric about 0; it
        begins at 0 for attention from which no mean was taken.

    Raises
    ------
    SpecError
        An example that is not there or was not kept, a dimension to choose a label of, patches without boxes or outside
        of the picture, and what `effect` refuses.

    Notes
    -----
    Golovanevsky et al. (2024), "What Do VLMs NOTICE?", draw attention minus its mean over heads this way.
    """
    names = [str(name) for name in ds["example"].values]
    if example not in names:
        raise unknown("example in this dataset", example, names)
    ds = ds.isel(example=[names.index(example)])
    if ds["kept"].item() != "kept":
        raise SpecError(f"Example {example!r} was not kept: {ds['kept'].item()}.")
    of_attention = method_of(ds) == "attention"
    across = "key" if of_attention else "position"
    if of_attention:
        if minus_mean and ds.sizes["layer"] * ds.sizes["head"] < 2:
            raise SpecError("Of a single head there is no mean over heads to take off; say minus_mean=False.")
        values = above_mean(ds) if minus_mean else ds["attention"]
        label = "attention minus the mean of all heads" if minus_mean else "attention"
    else:
        values, label = effect(ds, metric), effect_label(ds, metric, False)
        values = values.mean("draw") if "draw" in values.dims else values
    values, chosen = _pick(values.isel(example=0), across, cell)
    boxes, roles = _patches(ds.isel(example=0), "key_" if of_attention else "")
    shown = np.isfinite(boxes).all(axis=1) & np.isfinite(values.values)
    if not shown.any():
        raise SpecError(f"Example {example!r} has no number at a single patch of the picture here ({chosen}).")
    _check_inside(boxes[shown], picture)
    limit = limit or float(abs(values.values[shown]).max()) or 1.0
    scale = (0.0 if of_attention and not minus_mean else -limit, limit)
    figure, ax = _over(picture, ax)
    overlay = PatchCollection(
        [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes[shown] - 0.5],
        cmap=_see_through(scale[0] / limit),
        edgecolor="none",
        antialiased=False,
    )
    overlay.set_array(values.values[shown])
    overlay.set_clim(*scale)
    ax.add_collection(overlay)
    _frame(ax, boxes[shown & (roles == region)])
    figure.colorbar(overlay, ax=ax, label=label, shrink=0.85)
    ax.set_title(_title(ds, chosen), fontsize=9, loc="left")
    return figure


def _pick(values: xr.DataArray, across: str, cell: dict[str, Any]) -> tuple[xr.DataArray, str]:
    """The values at one label of each dimension but `across`, and what they are called."""
    dims = [str(name) for name in values.dims if name != across]
    for name in cell:
        if name not in dims:
            raise unknown("dimension to choose a label of", name, dims)
    chosen = []
    for name in dims:
        labels = [str(label) for label in values[name].values]
        if name not in cell and len(labels) > 1:
            raise SpecError(f"Name one {name} of {', '.join(labels)}: {name}=...")
        wanted = str(cell.get(name, labels[0]))
        if wanted not in labels:
            raise unknown(f"{name} in this dataset", wanted, labels)
        values = values.isel({name: labels.index(wanted)})
        chosen.append(wanted if name == "site" else f"{'at' if name == 'position' else name} {wanted}")
    return values, ", ".join(chosen)


def _patches(ds: xr.Dataset, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Box [patch, corner] in pixels, NaN for what is no single patch, and role [patch]."""
    if f"{prefix}box" not in ds.coords:
        raise SpecError(
            f"This dataset says no boxes of patches ({prefix}box): sweep single patches, for example each:image."
        )
    patch = (ds[f"{prefix}row"].values >= 0) & (ds[f"{prefix}modality"].values == "image")
    boxes = np.asarray(ds[f"{prefix}box"].transpose(..., "corner").values, dtype=float)
    known = patch & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return np.where(known[:, None], boxes, np.nan), ds[f"{prefix}role"].values


def _check_inside(boxes: np.ndarray, picture: Image) -> None:
    width, height = picture.size
    if boxes.min() < 0 or boxes[:, 2].max() > width or boxes[:, 3].max() > height:
        raise SpecError(
            f"The patches reach to pixel {int(boxes[:, 2].max())} × {int(boxes[:, 3].max())} and the picture has "
            f"{width} × {height}: it is not the picture that the example was run with."
        )


def _over(picture: Image, ax: Axes | None) -> tuple[Figure, Axes]:
    """Axes with the picture in light grey, so that colours are the overlay's alone."""
    if ax is None:
        figure, ax = plt.subplots(figsize=(5.2, 4.7), layout="constrained")
    else:
        whole = ax.get_figure(root=True)
        assert whole is not None
        figure = whole
    ax.imshow(np.asarray(picture.convert("L")), cmap="gray", vmin=-120, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    return figure, ax


def _frame(ax: Axes, boxes: np.ndarray) -> None:
    """Dashed around all of these boxes together."""
    if len(boxes):
        (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0) - 0.5, boxes[:, 2:].max(axis=0) - 0.5
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linestyle="--", linewidth=1.2, edgecolor="k"))


def _see_through(low: float) -> ListedColormap:
    """From low (-1 or 0) to 1, blue to red, letting the picture through the more, the nearer a value is to 0."""
    at = np.linspace(low, 1, 255)
    colors = plt.get_cmap("RdBu_r")((at + 1) / 2)
    colors[:, 3] = _OPACITY * np.sqrt(abs(at))
    return ListedColormap(colors)


def _title(ds: xr.Dataset, chosen: str) -> str:
    question = f"{ds['example'].item()}"
    if "text" in ds.coords:
        question += f": {ds['text'].item()}" + (f" → {ds['answer'].item()}" if "answer" in ds.coords else "")
    return "\n".join([*textwrap.wrap(chosen, 62), *textwrap.wrap(question, 62)[:2]])
