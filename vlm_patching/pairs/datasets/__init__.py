"""One file a dataset, found by its name: its options, the files it reads, its pair rule.

A dataset is added by adding its file and its row in `DATASETS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from vlm_patching.pairs.datasets import (
    clevr,
    coco_qa,
    cooco,
    fer2013,
    finecops_ref,
    folder,
    gqa,
    hub,
    iconqa,
    mit_states,
    shapes,
    shapeworld,
    svo_probes,
    visual_jenga,
    vqa_constraints,
    vqa_v2,
)
from vlm_patching.pairs.datasets.base import Dataset, DatasetSpec
from vlm_patching.validation import Section

DATASETS = {
    "shapes": Dataset(shapes.Shapes, shapes.candidates, shapes.ABOUT, shapes.FILES, sampled=False),
    "folder": Dataset(folder.Folder, folder.candidates, folder.ABOUT, folder.FILES, sampled=False),
    "svo_probes": Dataset(
        svo_probes.SvoProbes,
        svo_probes.candidates,
        svo_probes.ABOUT,
        svo_probes.FILES,
        excluded="svo_probes",
        repeats=True,
    ),
    "mit_states": Dataset(
        mit_states.MitStates,
        mit_states.candidates,
        mit_states.ABOUT,
        mit_states.FILES,
        excluded=mit_states.EXCLUDED,
    ),
    "fer2013": Dataset(fer2013.Fer2013, fer2013.candidates, fer2013.ABOUT, fer2013.FILES),
    "coco_qa": Dataset(
        coco_qa.CocoQa, coco_qa.candidates, coco_qa.ABOUT, coco_qa.FILES, excluded=coco_qa.EXCLUDED, repeats=True
    ),
    "gqa": Dataset(gqa.Gqa, gqa.candidates, gqa.ABOUT, gqa.FILES),
    "vqa_constraints": Dataset(
        vqa_constraints.VqaConstraints,
        vqa_constraints.candidates,
        vqa_constraints.ABOUT,
        vqa_constraints.FILES,
        excluded=vqa_constraints.EXCLUDED,
        repeats=True,
    ),
    "clevr": Dataset(clevr.Clevr, clevr.candidates, clevr.ABOUT, clevr.FILES, repeats=True),
    "vqa_v2": Dataset(
        vqa_v2.VqaV2, vqa_v2.candidates, vqa_v2.ABOUT, vqa_v2.FILES, excluded=vqa_v2.EXCLUDED, repeats=True
    ),
    "cooco": Dataset(cooco.Cooco, cooco.candidates, cooco.ABOUT, cooco.FILES, excluded=cooco.EXCLUDED),
    "finecops_ref": Dataset(finecops_ref.FineCopsRef, finecops_ref.candidates, finecops_ref.ABOUT, finecops_ref.FILES),
    "iconqa": Dataset(iconqa.IconQA, iconqa.candidates, iconqa.ABOUT, iconqa.FILES),
    "visual_jenga": Dataset(visual_jenga.VisualJenga, visual_jenga.candidates, visual_jenga.ABOUT, visual_jenga.FILES),
    "shapeworld": Dataset(
        shapeworld.ShapeWorld,
        shapeworld.candidates,
        shapeworld.ABOUT,
        shapeworld.FILES,
        excluded=shapeworld.EXCLUDED,
    ),
    "hub": Dataset(hub.Hub, hub.candidates, hub.ABOUT, hub.FILES),
}

if TYPE_CHECKING:
    PairsSpec = DatasetSpec
else:
    PairsSpec = Annotated[reduce(or_, (each.spec for each in DATASETS.values())), Field(discriminator="dataset")]
    """The section `pairs` of a spec: that of the dataset it names."""


def pairs_keys(location: Sequence[Any]) -> list[str]:
    """The keys of a spec's section of pairs, or of one inside it, at a location that names the dataset behind it."""
    named = location[1] if len(location) > 1 and location[1] in DATASETS else None
    section: type[Section] = DATASETS[named].spec if named else DatasetSpec
    for part in location[2:]:
        inside = section.model_fields[part].annotation if part in section.model_fields else None
        if isinstance(inside, type) and issubclass(inside, Section):
            section = inside
    return list(section.model_fields)
