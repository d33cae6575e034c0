"""What the pages of the reference list is what there is: no more, no less."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

import pytest
import xarray as xr

import vlm_patching as vp
from docs.tools import api, pages, tables
from docs.tools.blocks import without_blocks
from vlm_patching.metrics import METRICS
from vlm_patching.models.families import families
from vlm_patching.pairs import CORRUPTED_INPUT, IMAGE_CORRUPTIONS
from vlm_patching.pairs.pair import RESERVED

WRITTEN = pages.written()
NOT_GROUPS = ("other", "regions", "thumbnail", "position", "edges")
"""Names that spans cannot have either, but that are no groups: parts of selectors, and a graph's own dimensions."""


def named(page: str) -> set[str]:
    """Everything that stands as code in a page's prose."""
    return set(re.findall(r"`([^`\n]+)`", without_blocks(WRITTEN[page])))


def test_every_component_and_stack_of_every_family_is_explained() -> None:
    known: set[str] = set()
    for family in families().values():
        for stack in family.file.stacks:
            known.add(stack.name)
    for name in vp.bundled_models():
        architecture = vp.describe_model(name).architecture
        known |= {component for stack in architecture.stacks for component in (*stack.components, *stack.attentions)}
        known |= set(architecture.entries)
    rows = re.findall(r"^\| `(\w+)` \|", WRITTEN["reference/sites.md"].split("## The bundled models")[0], re.MULTILINE)
    assert known <= set(rows)
    assert len(rows) == len(set(rows))


def test_every_position_group_is_explained() -> None:
    explained = named("reference/positions.md")
    assert {name for name in RESERVED if name not in NOT_GROUPS} <= explained


def test_the_corruptions_that_are_explained_here_are_those_without_a_row_of_their_own() -> None:
    assert set(tables.CORRUPTIONS) == set(CORRUPTED_INPUT) - set(IMAGE_CORRUPTIONS)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("reference/metrics.md", METRICS),
        ("reference/corruptions.md", CORRUPTED_INPUT),
        ("reference/presets.md", vp.presets()),
        ("reference/sites.md", families()),
    ],
)
def test_a_table_has_a_row_for_every_name(page: str, names: object) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", WRITTEN[page], re.MULTILINE)
    assert [name for name in names if name not in rows] == []  # type: ignore[attr-defined]


def test_every_method_page_has_its_parts_and_presets_that_there_are() -> None:
    methods = {path: text for path, text in WRITTEN.items() if path.startswith("methods/") and "index" not in path}
    assert len(methods) >= 13
    mentioned: set[str] = set()
    for path, text in methods.items():
        assert "**Asks:**" in text and "**To cite:**" in text, path
        assert re.search(r"\\\[.+?\\\]", text, re.DOTALL), f"{path} has no equation"
        assert re.search("depart", text), path
        mentioned |= set(re.findall(r"^name: (\S+)$", text, re.MULTILINE))
    linked = re.findall(r"\]\((\w[\w-]*\.md)\)", WRITTEN["methods/index.md"])
    assert {f"methods/{name}" for name in linked} >= set(methods)
    assert mentioned & set(vp.presets())


@pytest.fixture(scope="module")
def datasets() -> list[xr.Dataset]:
    """Results of every method, small."""
    changes = {"pairs.n": 2}
    noise = {"corruption.draws": 2, "patch.window": [1, 3]}
    attribution = {"patch.verify": 2, "patch.placebo": False}
    names = {
        "palit2023": noise,
        "heads_llava_placebo": {},
        "heads_llava_attribution": attribution,
        "zhang2024_flow_llava": {},
        "notice2024_llava_head_functions": {},
        "steering_llava": {},
    }
    return [vp.run(vp.Experiment.from_spec(name, {**changes, **more}), progress=False) for name, more in names.items()]


def test_every_dimension_coordinate_and_attribute_of_results_is_explained(datasets: list[xr.Dataset]) -> None:
    page = named("reference/results.md")
    key = {"key_modality", "key_row", "key_col", "key_box"}  # "the same of keys"
    for ds in datasets:
        metrics = {"probability", "logit_difference"}
        shown = {f"m{str(name).removeprefix(metric)}" for name in ds for metric in metrics if metric in str(name)}
        assert {*map(str, ds.dims)} <= page
        assert {*map(str, ds.coords)} - key <= page
        assert {*map(str, ds.attrs)} <= page
        assert shown <= page, shown


def test_everything_that_is_explained_of_results_is_there(datasets: list[xr.Dataset]) -> None:
    page = WRITTEN["reference/results.md"].partition("## Dimensions")[2]
    rows = [cell for row in re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE) for cell in re.findall("`([^`]+)`", row)]
    there = {str(name) for ds in datasets for name in (*ds.dims, *ds.coords, *ds.data_vars, *ds.attrs)}
    there |= {f"m{name.removeprefix('probability')}" for name in there if name.startswith("probability")}
    elsewhere = {"vector_sha256", "quantization"}
    assert [name for name in rows if name not in there | elsewhere] == []


def test_what_is_public_is_documented() -> None:
    assert list(api.problems()) == []
    assert {"vp.run", "vp.analysis.bootstrap", "vp.bundle.save", "vp.plot.heatmap"} <= set(api.public())


def test_a_missing_docstring_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def undocumented(ds: object) -> None:
        pass

    def half(ds: object, metric: str) -> None:
        """Something.

        Parameters
        ----------
        ds
            A dataset.
        """

    monkeypatch.setattr(vp.analysis, "bootstrap", undocumented)
    monkeypatch.setattr(vp.analysis, "effect", half)
    assert set(api.problems()) == {
        "vp.analysis.bootstrap has no docstring.",
        "vp.analysis.effect: the parameter metric is not said.",
    }
    with pytest.raises(ValueError, match=r"vp\.analysis\.bootstrap has no docstring"):
        api.pages()


MODULES = sorted({value.__module__ for value in api.public().values() if inspect.getmodule(value)})


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_of_what_is_public_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
