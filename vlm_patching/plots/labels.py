"""What coordinates are called on a figure, apart from how they are drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from vlm_patching.metrics import METRICS

_DONE = {
    "knockout": "attention blocked",
    "ablate": "cells ablated",
    "steer": "cells steered",
    "lens": "read through the lens",
    "attention": "attention read",
}
_EFFECTS = {
    "ablate": ("loss when ablated, of", "+\N{NO-BREAK SPACE}carried the answer, −\N{NO-BREAK SPACE}worked against it"),
    "steer": ("gain when steered, of", "+\N{NO-BREAK SPACE}brings the answer about, −\N{NO-BREAK SPACE}takes it away"),
}
_EFFECT = ("indirect effect on", "+\N{NO-BREAK SPACE}carries the answer, −\N{NO-BREAK SPACE}works against it")
_WORDS = {
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "first_subsequent": "first subsequent token",
    "further": "further tokens",
    "answer_option|foil_option": "option",
}


_ONE = re.compile(r"-?\d+|(i\d+)?(t-?\d+)?r\d+c\d+")


def is_one_position(label: object) -> bool:
    """Whether a label is of a token or a patch (an index, ``r0c3``), and not of a group, even one of one member."""
    return _ONE.fullmatch(str(label)) is not None


class Labeller:
    """Turns what a dataset calls things into words on a figure.

    A method for each kind of thing; a subclass that replaces one changes that kind on every figure. For a few other
    words a mapping will do.

    Parameters
    ----------
    words
        Name in the dataset → what it is called on figures: sites, positions, roles, edges, metrics, models.

    Examples
    --------
    >>> Labeller({"language.mlp_out": "MLP"}).site("language.mlp_out")
    'MLP'
    >>> Labeller().head(5, 3)
    'L5.H3'
    """

    def __init__(self, words: Mapping[str, str] | None = None) -> None:
        self.words = {**_WORDS, **(words or {})}

    def word(self, name: str) -> str:
        """A name of any kind."""
        return self.words.get(name, name)

    def position(self, label: str, token: str, role: str, modality: str) -> str:
        """A position.

        Parameters
        ----------
        label
            Its value on the dimension, a group's name or a token's index; of a patch ``r0c3``, its row and column.
        token
            Its text, where all kept examples have the same there, else "".
        role, modality
            Its roles in the kept examples, joined by "|"; whether it is `text` or `image`.
        """
        if label in self.words or not label.lstrip("-").isdigit() or modality == "image":
            return self.word(label)
        if token:
            return token
        return f"[{self.word(role)}]" if role else label

    def mean_of(self, group: str) -> str:
        """A column that is a mean over the single positions of a group."""
        return f"{self.word(group)}, mean"

    def model(self, model: str) -> str:
        """A model: a bundled name or a hub id as it is, of a folder its own name."""
        return self.words.get(model) or (Path(model).name if Path(model).is_absolute() else model)

    def site(self, site: str) -> str:
        """A site, or several that are patched together ("a+b")."""
        return self.words.get(site) or " + ".join(self.word(part) for part in site.split("+"))

    def edges(self, edges: str) -> str:
        """A set of blocked edges: "image -> last"."""
        return self.words.get(edges) or " → ".join(self.word(part.strip()) for part in edges.split("->"))

    def layer(self, layer: int) -> str:
        """A layer on an axis."""
        return str(layer)

    def head(self, layer: int, head: int) -> str:
        """One head."""
        return f"L{layer}.H{head}"

    def metric(self, metric: str, unit: bool = True) -> str:
        """A metric, and its unit where it has one; a share of a metric has none."""
        if metric in self.words:
            return self.words[metric]
        row = METRICS[metric]
        name = str(row["label"]).replace(" - ", "\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}")
        return f"{name} ({row['unit']})" if unit and row["unit"] else name

    def chosen(self, name: str, label: Any) -> str:
        """A label of any dimension, where it says what a panel, a line or a cell is."""
        if name == "site":
            return self.site(str(label))
        if name == "edges":
            return self.edges(str(label))
        if name == "position":
            return self.word(str(label))
        if isinstance(label, float):
            label = f"{label:g}"
        return f"{self.word(name)} {label}"


def position_labels(ds: xr.Dataset, labeller: Labeller | None = None) -> list[str]:
    """What figures call each position.

    Parameters
    ----------
    ds
        What `vp.run` gave, of a sweep over positions.
    labeller
        What things are called.

    Returns
    -------
    list of str
        In the order of the dimension `position`: a group's name; at an index its token where all kept examples agree,
        else its roles; of a patch its row and column.
    """
    labeller = labeller or Labeller()
    names = [str(label) for label in ds["position"].values]
    if not {"token", "role", "modality"} <= set(ds.coords):
        return [labeller.position(name, "", "", "") for name in names]
    kept = ds["kept"].values == "kept"
    found = []
    for i, name in enumerate(names):
        tokens, roles, modalities = (
            sorted({x for x in ds[of].transpose("example", "position").values[kept, i] if x})
            for of in ("token", "role", "modality")
        )
        token = tokens[0] if len(tokens) == 1 else ""
        if name.isdigit() and modalities == ["image"] and {"row", "col"} <= set(ds.coords):
            places = {
                tuple(place) for place in zip(*(ds[of].values[kept, i].tolist() for of in ("row", "col")), strict=True)
            }
            row, col = min(places)
            name = f"r{row}c{col}" if len(places) == 1 and row >= 0 else name
        found.append(labeller.position(name, token, "|".join(roles), "|".join(modalities)))
    return found


def effect_label(ds: xr.Dataset, metric: str, normalized: bool, labeller: Labeller | None = None) -> str:
    """What a colour bar or an axis of effects shows: quantity, unit, and what its sign means."""
    of, sign = _EFFECTS.get(str(ds.attrs.get("method", "patch")), _EFFECT)
    name = (labeller or Labeller()).metric(metric, unit=not normalized)
    quantity = f"share of the total effect on {name}" if normalized else f"{of} {name}"
    if not normalized and METRICS[metric]["better"] < 0:
        quantity += ", sign turned"
    return f"{quantity}\n{sign}"


def subtitle(ds: xr.Dataset, metric: str | None, labeller: Labeller | None = None) -> str:
    """Model, what was done, how many examples the means are over; of a metric the total effect, or the clean run's."""
    from vlm_patching.analysis import total_effect

    kept = ds["kept"] == "kept"
    restored = ds.attrs.get("direction", "denoise") == "denoise"
    done = _DONE.get(str(ds.attrs.get("method", "patch")), "cells restored" if restored else "cells corrupted")
    if "window" not in ds.dims and "layers_covered" in ds.coords and int(ds["layers_covered"].max()) > 1:
        done += f" in windows of {int(ds['layers_covered'].max())} layers"
    pairs = f"mean of {int(kept.sum())} of {ds.sizes['example']} pairs"
    waiting = int((ds["kept"] == "").sum())
    if waiting:
        pairs += f" ({waiting} not run yet)"
    if ds.attrs.get("examples_unaffected"):
        pairs += f" ({ds.attrs['examples_unaffected']} with an unchanged answer)"
    model = (labeller or Labeller()).model(str(ds.attrs.get("model", "")))
    if metric is None:
        return f"{model}: {done}, {pairs}"
    if f"{metric}_corrupted" in ds:
        scale = f"total effect {float(total_effect(ds, metric).mean()):.3g}"
    else:
        scale = f"clean run {float(ds[f'{metric}_clean'].where(kept).mean()):.3g}"
    return f"{model}: {done}, {pairs}, {scale}"
