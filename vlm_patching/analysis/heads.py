"""Universal heads: those that matter in every task, by the published rule and by a tested one beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from vlm_patching.analysis.effects import over_draws
from vlm_patching.analysis.thresholds import permutation_max_t
from vlm_patching.analysis.uncertainty import bootstrap, with_numbers
from vlm_patching.errors import SpecError

_HEADS = ("layer", "head")


def universal_heads(
    effects: Mapping[str, xr.DataArray],
    deviations: float = 2.0,
    *,
    level: float = 0.05,
    resamples: int = 2000,
    permutations: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Heads that are important in every task.

    Parameters
    ----------
    effects
        Task → what `vp.effect` gave for it: `example`, `layer`, `head`, and any of `site`, `position`, `draw`. Tasks
        may have other examples, and must have the same heads. Draws are averaged inside their example.
    deviations
        Standard deviations over the mean from which a head is important.
    level
        Family-wise error rate of each task's test, over all its cells; the intervals cover 1 - level.
    resamples, permutations, seed
        As in `bootstrap` and `permutation_max_t`.

    Returns
    -------
    xarray.Dataset
        The published rule, over `task`, `layer`, `head` (and `site`, `position`, each ruled apart):

        - `mean_abs`: mean over examples of abs(effect), in the effect's unit;
        - `threshold` (without `layer` and `head`): mean + deviations · std of `mean_abs` over all heads;
        - `important`: `mean_abs` above `threshold`;
        - `universal` (without `task`): important in every task.

        The tested rule, of the signed effect (positive means that the head carries the answer):

        - `mean`, `low`, `high`: `bootstrap`;
        - `t`, `p`, `significant`: `permutation_max_t`;
        - `universal_tested` (without `task`): significant in every task;
        - `same_sign` (without `task`): the mean has one sign in all tasks.

        NaN where a head was not run; such a head is not important.

    Raises
    ------
    SpecError
        No tasks, an effect without heads, tasks whose heads differ, and what `bootstrap` refuses.

    Notes
    -----
    Golovanevsky et al. (2024), "What Do VLMs NOTICE?", with the population std (ddof 0) as in their code; NaN is left
    out here and 0 there. abs() makes noise count: a head whose effect only varies much from example to example has a
    large mean abs(effect) and none on average. The tested rule asks for one direction. Significant in every task is an
    intersection of tests, so its family-wise error is at most `level` too (Berger 1982).
    """
    _check(effects, deviations)
    tasks = []
    for name, effect in effects.items():
        there = with_numbers(effect).sum()
        if there < 2:
            raise SpecError(f"Task {name!r}: at least 2 examples with numbers are needed, and there are {there}.")
        mean_abs = abs(over_draws(effect).drop_attrs(deep=False)).astype(np.float64).mean("example")
        threshold = mean_abs.mean(_HEADS) + deviations * mean_abs.std(_HEADS, ddof=0)
        task = bootstrap(effect, 1 - level, resamples, seed).merge(
            permutation_max_t(effect, permutations, seed, level), compat="override", combine_attrs="drop"
        )
        tasks.append(task.assign(mean_abs=mean_abs, threshold=threshold, important=mean_abs > threshold))
    try:
        ds = xr.concat(tasks, dim="task", join="exact", coords="minimal", compat="override", combine_attrs="drop")
    except ValueError as error:
        raise SpecError(f"The tasks {', '.join(effects)} do not have the same heads: {error}") from error
    ds = ds.assign_coords(task=np.array(list(effects), dtype=object))
    ds["universal"] = ds["important"].all("task")
    ds["universal_tested"] = ds["significant"].all("task")
    ds["same_sign"] = (ds["mean"] > 0).all("task") | (ds["mean"] < 0).all("task")
    shared = {k: v for k, v in effect.attrs.items() if all(k in e.attrs and e.attrs[k] == v for e in effects.values())}
    settings = {"deviations": deviations, "level": level, "resamples": resamples, "permutations": permutations}
    return ds.assign_attrs({**shared, **settings, "seed": seed})


def by_task(effect: xr.DataArray) -> dict[str, xr.DataArray]:
    """An effect's examples apart, by their `task`: what `universal_heads` takes.

    Parameters
    ----------
    effect
        What `vp.effect` gave for a dataset of several tasks.

    Raises
    ------
    SpecError
        The effect has no coordinate `task`.
    """
    if "task" not in effect.coords:
        raise SpecError("The effect has no coordinate task(example), which says what kind of question each example is.")
    tasks = effect["task"].values
    return {str(task): effect.isel(example=np.flatnonzero(tasks == task)) for task in dict.fromkeys(tasks.tolist())}


def label_by_modality(image: xr.DataArray, text: xr.DataArray) -> xr.DataArray:
    """What a universal head is for, from the corruption of which it is universal.

    Parameters
    ----------
    image
        True where a head is universal under image corruption (semantic image pairs): `universal` or `universal_tested`
        of the tasks whose image was corrupted.
    text
        The same under text corruption (symmetric token replacement), of the same heads.

    Returns
    -------
    xarray.DataArray
        `vision` (image only), `text` (text only), `multimodal` (both) or "" (neither), with the dimensions of `image`.

    Raises
    ------
    SpecError
        Arrays that are not of bool, or not of the same heads.

    Examples
    --------
    >>> image = xr.DataArray([[True, True, False]], dims=("layer", "head"))
    >>> text = xr.DataArray([[False, True, True]], dims=("layer", "head"))
    >>> label_by_modality(image, text).values.tolist()
    [['vision', 'multimodal', 'text']]

    Notes
    -----
    Golovanevsky et al. (2024), "What Do VLMs NOTICE?".
    """
    for name, universal in (("image", image), ("text", text)):
        if universal.dtype != bool:
            raise SpecError(f"{name} must be true or false for every head (`universal`), not {universal.dtype}.")
    try:
        image, text = xr.align(image, text.transpose(*image.dims), join="exact")
    except ValueError as error:
        raise SpecError(f"Image and text corruption were not tested on the same heads: {error}") from error
    names = np.array(["", "vision", "text", "multimodal"], dtype=object)
    return image.copy(data=names[image.values + 2 * text.values]).rename("modality").drop_attrs(deep=False)


def _check(effects: Mapping[str, xr.DataArray], deviations: float) -> None:
    if not effects:
        raise SpecError("universal_heads needs at least one task.")
    if deviations < 0:
        raise SpecError(f"deviations must not be negative, not {deviations}.")
    for task, effect in effects.items():
        missing = [name for name in ("example", *_HEADS) if name not in effect.dims]
        if missing:
            raise SpecError(f"The effect of task {task!r} has no dimension {', '.join(missing)}.")
    first, *others = effects.items()
    for task, effect in others:
        if {d for d in effect.dims if d != "draw"} != {d for d in first[1].dims if d != "draw"}:
            raise SpecError(
                f"Tasks {first[0]!r} and {task!r} have other dimensions: {first[1].dims} and {effect.dims}."
            )
