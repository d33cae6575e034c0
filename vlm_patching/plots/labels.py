"""What coordinates are called on a figure, apart from how they are drawn."""

from __future__ import annotations

import xarray as xr

from vlm_patching.metrics import METRICS

_DONE = {
    "knockout": "attention blocked",
    "ablate": "cells ablated",
    "steer": "cells steered",
    "lens": "read through the lens",
    "attention": "attention read",
}


def position_labels(ds: xr.Dataset) -> list[str]:
    """A label for each position: a group's name; at an index its token where all kept examples agree, else roles."""
    if not {"token", "role", "modality"} <= set(ds.coords):
        return [str(label) for label in ds["position"].values]
    kept = ds["kept"].values == "kept"
    labels = []
    for i, label in enumerate(ds["position"].values):
        tokens = {t for t in ds["token"].values[kept, i] if t}
        roles = sorted({r for r in ds["role"].values[kept, i] if r})
        modality = {m for m in ds["modality"].values[kept, i] if m}
        if not str(label).lstrip("-").isdigit():
            labels.append(str(label))
        elif len(tokens) == 1 and modality != {"image"}:
            labels.append(tokens.pop())
        elif not roles or modality == {"image"}:
            labels.append(str(label))
        else:
            labels.append(f"[{'|'.join(roles)}]".replace("answer_option|foil_option", "option"))
    return labels


def effect_label(ds: xr.Dataset, metric: str, normalized: bool) -> str:
    """What the colour bar shows."""
    name = METRICS[metric]["label"]
    if normalized:
        return f"share of the total effect\n({name})"
    method = str(ds.attrs.get("method", "patch"))
    said = {"ablate": "loss when ablated, of", "knockout": "loss when blocked, of", "steer": "gain when steered, of"}
    return f"{said.get(method, 'indirect effect on')}\n{name}"


def subtitle(ds: xr.Dataset, metric: str) -> str:
    """Model, what was done, how many examples the means are over, and the total effect or the clean run's metric."""
    from vlm_patching.analysis import total_effect

    kept = ds["kept"] == "kept"
    restored = ds.attrs.get("direction", "denoise") == "denoise"
    done = _DONE.get(str(ds.attrs.get("method", "patch")), "cells restored" if restored else "cells corrupted")
    pairs = f"mean of {int(kept.sum())} of {ds.sizes['example']} pairs"
    if ds.attrs.get("examples_unaffected"):
        pairs += f" ({ds.attrs['examples_unaffected']} with an unchanged answer)"
    if f"{metric}_corrupted" in ds:
        scale = f"total effect {float(total_effect(ds, metric).mean()):.3g}"
    else:
        scale = f"clean run {float(ds[f'{metric}_clean'].where(kept).mean()):.3g}"
    return f"{ds.attrs.get('model', '')}: {done}, {pairs}, {scale}"
