"""What patching single patches does, drawn over the picture."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr
from matplotlib.axes import Axes

from vlm_patching.analysis import effect, total_effect
from vlm_patching.analysis.effects import mean_total, over_draws
from vlm_patching.pairs.pair import Box
from vlm_patching.plots.labels import Labeller, effect_label
from vlm_patching.plots.overlay import Pictures, check_region, headline, one_example, paint, painted, patch_boxes
from vlm_patching.plots.panels import check_drawn, pick
from vlm_patching.plots.style import Drawn, styled


@styled
def image(
    ds: xr.Dataset,
    example: str,
    picture: Pictures,
    *,
    metric: str = "probability",
    site: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    window: int | None = None,
    strength: float | None = None,
    normalize: bool = False,
    region: str | None = "object",
    boxes: Mapping[str, Box] | None = None,
    limit: float | None = None,
    labeller: Labeller | None = None,
    ax: Axes | None = None,
) -> Drawn:
    """One example's effects of patching single patches, each over its place in the picture; a panel for every layer.

    Parameters
    ----------
    ds
        What `vp.run` gave, of a method that has an effect, swept over single patches (`each:image`).
    example
        Which one: a label of `example`.
    picture
        The example's clean picture, as it was before the model's image processor: the boxes are in its pixels. Of
        several pictures all of them.
    metric
        One of the dataset's metrics.
    site, head, window, strength
        A label of every dimension that has more than one.
    layer
        Only this one.
    normalize
        Shares of the example's total effect.
    region
        Role of the patches to draw a dashed frame around; None for no frame.
    boxes
        Name → pixel box, as a pair's `regions`; drawn with their names.
    limit
        End of the colour scale; the largest absolute value where not given.
    labeller, ax
        As in `heatmap`.

    Returns
    -------
    matplotlib.axes.Axes
        Or an array of them: a panel for every layer, picture, and, of pictures that are cut up, one for the whole seen
        small and one for its tiles. Red where a patch carries the answer, blue where it works against it; the picture,
        in grey, where there is nothing or no number. Draws are averaged. The colour scale is symmetric about 0.

    Raises
    ------
    SpecError
        An example that is not there or was not kept, a dimension to choose a label of, patches without boxes or outside
        of the picture, and what `effect` refuses.
    """
    check_drawn(ds, "image")
    labeller = labeller or Labeller()
    one = one_example(ds, example)
    patch_boxes(one)  # before any other choice is asked for
    check_region(ds, "", region)
    values = effect(one, metric)
    if normalize:
        values = values / mean_total(total_effect(one, metric), metric)
    wanted = {"site": site, "layer": layer, "head": head, "window": window, "strength": strength}
    values, chosen = pick(over_draws(values).isel(example=0), ("layer", "position"), wanted)
    layers = values["layer"].values.tolist()
    alone = len(layers) == 1
    parts = {**chosen, **({"layer": layers[0]} if alone else {})}
    words = ", ".join(labeller.chosen(name, label) for name, label in parts.items())
    named = [(words if alone and ax is not None else "" if alone else labeller.chosen("layer", n)) for n in layers]
    rows = values.transpose("layer", "position").values
    panels = painted(one, "", list(zip(named, rows, strict=True)), region)
    label = effect_label(ds, metric, normalize, labeller)
    drawn = paint(panels, picture, label, limit=limit, boxes=boxes, ax=ax)
    if ax is None:
        headline(drawn, one, words, labeller)
    return drawn
