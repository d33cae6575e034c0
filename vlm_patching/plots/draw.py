"""The figures that a dataset calls for, whatever its method."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from vlm_patching.errors import unknown
from vlm_patching.plots.heatmap import head_function, heads, heatmap, mean_effect
from vlm_patching.plots.lines import knockout, lens


def draw(
    ds: xr.Dataset,
    metric: str = "probability",
    *,
    site: str | None = None,
    position: str | None = None,
    normalize: bool = False,
) -> dict[str, Figure]:
    """One figure of a dataset, or of heads one for each position, all on one scale.

    Parameters
    ----------
    ds
        What `vp.run` gave, by any method.
    metric, site, position, normalize
        As `heatmap`, `heads`, `knockout`, `lens` and `head_function` take them, as far as they do.

    Returns
    -------
    dict
        What a figure is of ("" where it is the only one, else the position) → the figure.
    """
    method = ds.attrs.get("method", "patch")
    if method == "knockout":
        return {"": knockout(ds, metric, site=site)}
    if method == "lens":
        return {"": lens(ds, metric, site=site)}
    if "head" not in ds.dims:
        return {"": heatmap(ds, metric, site=site, normalize=normalize)}
    known = [str(label) for label in ds["position"].values]
    if position is not None and position not in known:
        raise unknown("position in this dataset", position, known)
    positions = [position] if position is not None else known
    if method == "attention":
        figures = {label: head_function(ds, site=site, position=label) for label in positions}
    else:
        limit = float(abs(mean_effect(ds, metric, normalize).sel(position=positions)).max()) or None
        figures = {
            label: heads(ds, metric, site=site, position=label, normalize=normalize, limit=limit) for label in positions
        }
    return figures if len(figures) > 1 else {"": figures[positions[0]]}
