"""The table of figures, what a spec says of them, and what a dataset is drawn as."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import vlm_patching as vp
from vlm_patching.figures import FIGURES, FigureSpec
from vlm_patching.plots.draw import FUNCTIONS, arguments_of, default_metric, figures_of

DOCS = Path(__file__).parents[1] / "docs"
SPEC: dict[str, Any] = {
    "name": "figures",
    "model": {"name": "shapes-llava"},
    "pairs": {"dataset": "shapes", "n": 3, "seed": 1, "keep": "all"},
    "corruption": {"kind": "semantic_image_pair"},
    "patch": {"sites": ["language.resid_post"], "layers": [0, 2, 4], "positions": ["each:image", "subject", "last"]},
}
NAMED = [
    {"figure": "heatmap", "layers": "x"},
    {"figure": "heatmap", "metric": "logit_difference", "normalize": True},
    "lines",
    {"figure": "image", "layer": 2},
]


def experiment(figures: list[Any], **changes: Any) -> vp.Experiment:
    return vp.Experiment.from_dict(SPEC | {"figures": figures} | changes)


@pytest.fixture(scope="module")
def named() -> Any:
    return vp.run(experiment(NAMED), progress=False)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


# The table


def test_every_figure_of_the_table_has_a_function_that_takes_its_arguments_and_no_others() -> None:
    assert list(FUNCTIONS) == list(FIGURES)
    for name, kind in FIGURES.items():
        taken = arguments_of(name) + (["example"] if kind.pictures and "example" not in arguments_of(name) else [])
        assert sorted(kind.arguments) == sorted(taken), name
        assert getattr(vp.plot, name) is FUNCTIONS[name] and FUNCTIONS[name].__doc__


def test_every_argument_of_the_table_can_be_said_in_a_spec() -> None:
    known = set(FigureSpec.model_fields)
    assert {each for kind in FIGURES.values() for each in kind.arguments} == known - {"figure"}


@pytest.mark.parametrize("preset", list(vp.presets()))
def test_every_preset_names_its_figures(preset: str) -> None:
    spec = vp.Experiment.from_spec(preset)
    assert spec.figures
    for each in spec.figures:
        assert spec.method in FIGURES[each.figure].methods
        assert {each.metric, each.other_metric} <= {None, *spec.metrics}


def test_the_page_shows_every_figure_of_the_table_with_small_pictures() -> None:
    page = (DOCS / "figures.md").read_text(encoding="utf-8")
    words = " ".join(page.split())
    for name, kind in FIGURES.items():
        assert f"### {name}\n" in page and f"{kind.about[0].upper()}{kind.about[1:]}." in words
    pictures = re.findall(r"\]\((figures/\w+\.png)\)", page)
    assert {Path(picture).name for picture in pictures} == {path.name for path in (DOCS / "figures").iterdir()}
    assert len(pictures) >= len(FIGURES)
    assert sum((DOCS / picture).stat().st_size for picture in pictures) < 600_000


# A spec's list


def test_a_name_stands_for_its_figure_and_figures_survive_yaml_and_json() -> None:
    spec = experiment(NAMED)
    assert spec.figures[2] == FigureSpec(figure="lines")
    assert vp.Experiment.from_dict(yaml.safe_load(spec.to_yaml())) == spec
    assert vp.Experiment.from_json(spec.to_json()) == spec


def test_figures_do_not_change_what_an_experiment_is() -> None:
    assert experiment(NAMED).id == experiment([]).id == vp.Experiment.from_dict(SPEC).id


@given(st.lists(st.sampled_from([name for name, kind in FIGURES.items() if "patch" in kind.methods]), max_size=4))
def test_any_list_of_figures_of_the_method_is_taken(names: list[str]) -> None:
    assert [each.figure for each in experiment(names).figures] == names


@pytest.mark.parametrize(
    ("figure", "parts"),
    [
        ("heatmaps", ["figures[0].figure", "'heatmaps'", "Did you mean 'heatmap'?"]),
        ("knockout", ["knockout draws knockout", "method is patch", "heatmap"]),
        ("corruptions", ["corruptions draws diagnose"]),
        ({"layers": "x"}, ["figures[0].figure is missing"]),
        ({"figure": "heatmap", "metrics": "probability"}, ["figures[0].metrics", "Did you mean 'metric'?"]),
        ({"figure": "heatmap", "metric": "probabilty"}, ["'probabilty'", "Did you mean 'probability'?"]),
        ({"figure": "heads", "patches": "rows"}, ["heads takes no patches", "position, site"]),
        ({"figure": "heatmap", "layers": "z"}, ["figures[0].layers", "'y' or 'x'"]),
        ({"figure": "heatmap", "limit": 0}, ["figures[0].limit"]),
        ({"figure": "heatmap", "normalize": "yes"}, ["figures[0].normalize", "true or false"]),
        ({"figure": "heads", "position": ["a", "b"]}, ["heads takes one position, not 2"]),
        (3, ["figures[0]", "mapping"]),
    ],
    ids=str,
)
def test_a_wrong_figure_is_refused_before_anything_is_loaded(figure: Any, parts: list[str]) -> None:
    with pytest.raises(vp.SpecError) as raised:
        experiment([figure])
    assert [part for part in parts if part not in str(raised.value)] == []


def test_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(vp.SpecError, match="figures must be a list"):
        vp.Experiment.from_dict(SPEC | {"figures": "heatmap"})


# What is drawn


def test_a_dataset_is_drawn_as_its_experiment_names(named: Any) -> None:
    pairs = vp.rebuild_pairs(named)
    drawn = vp.plot.draw(named, pairs=pairs)
    assert list(drawn) == ["heatmap", "heatmap_2", "lines", "image"]
    first, second = (drawn[name].axes[0] for name in ("heatmap", "heatmap_2"))
    assert (first.get_xlabel(), second.get_xlabel()) == ("layer", "position")
    assert any("share of the total effect" in ax.get_ylabel() for ax in drawn["heatmap_2"].axes)
    assert pairs[0].clean.text in drawn["image"].get_suptitle() and "layer 2" in drawn["image"].get_suptitle()


def test_figures_over_pictures_are_left_out_without_pairs_and_refused_where_asked_for(named: Any) -> None:
    assert list(vp.plot.draw(named)) == ["heatmap", "heatmap_2", "lines"]
    with pytest.raises(vp.SpecError, match="give the pairs that were run"):
        vp.plot.draw(named, figure="image")


def test_one_kind_of_figure_and_other_arguments_can_be_asked_for(named: Any) -> None:
    specs = figures_of(named, "heatmap", {"limit": 0.5})
    assert [spec.arguments() for spec in specs.values()] == [
        {"layers": "x", "limit": 0.5},
        {"metric": "logit_difference", "normalize": True, "limit": 0.5},
    ]
    (other,) = figures_of(named, "distribution", {"top": 3}).values()
    assert other == FigureSpec(figure="distribution", top=3)
    assert vp.plot.draw(named, "logit_difference", figure="distribution", top=3)["distribution"].axes


def test_one_of_several_figures_of_a_kind_can_be_asked_for_by_its_number(named: Any) -> None:
    for number, said in ((1, {"layers": "x"}), (2, {"metric": "logit_difference", "normalize": True})):
        (spec,) = figures_of(named, f"heatmap_{number}").values()
        assert spec.arguments() == said
    with pytest.raises(vp.SpecError, match="no heatmap_3: the experiment names 2 figures heatmap"):
        figures_of(named, "heatmap_3")
    with pytest.raises(vp.SpecError, match="Unknown figure 'heatmaps'"):
        figures_of(named, "heatmaps_1")


def test_another_metric_leaves_alone_a_figure_that_compares_two(named: Any) -> None:
    both = {"figure": "compare", "metric": "probability", "other_metric": "logit_difference"}
    ds = named.assign_attrs(experiment=experiment(["heatmap", both]).to_json())
    specs = figures_of(ds, changes={"metric": "logit_difference"})
    assert (specs["heatmap"].metric, specs["compare"].metric) == ("logit_difference", "probability")


def test_a_dataset_without_named_figures_is_drawn_as_its_method_asks_for(named: Any) -> None:
    plain = named.assign_attrs(experiment=experiment([]).to_json())
    assert list(vp.plot.draw(plain)) == ["heatmap"]
    assert list(vp.plot.draw(plain.drop_attrs())) == ["heatmap"]


def test_what_a_dataset_cannot_be_drawn_as_is_refused_and_no_figure_is_left_open(named: Any) -> None:
    for options, said in (
        ({"figure": "heatmap", "site": "language.mlp"}, "Unknown site in this dataset"),
        ({"figure": "heads"}, "plot.heatmap draws it"),
        ({"figure": "lens"}, "this dataset's method is patch: plot.heatmap"),
        ({"figure": "image", "region": "objekt", "pairs": vp.rebuild_pairs(named)}, "Did you mean 'object'"),
        ({"figure": "heatmap", "top": 2}, "takes top; distribution, attention do"),
        ({"colour": "red"}, "Unknown argument of a figure"),
        ({"metric": "answer_rank"}, "Known: probability, logit_difference"),
    ):
        with pytest.raises(vp.SpecError, match=said):
            vp.plot.draw(named, **options)
        assert plt.get_fignums() == []


def test_figures_in_a_store_that_someone_wrote_are_checked(named: Any) -> None:
    for figures, said in (('"heatmap"', "list"), ('[{"figure": "os.system"}]', "'os.system' is no figure")):
        with pytest.raises(vp.SpecError, match=said):
            vp.plot.draw(named.assign_attrs(experiment=f'{{"figures": {figures}}}'))


def test_the_default_metric_is_one_that_the_dataset_has(named: Any) -> None:
    assert default_metric(named) == "probability"
    assert default_metric(named.drop_vars(["probability", "probability_clean"])) == "logit_difference"


def test_two_figures_of_one_kind_have_two_file_names_in_a_bundle(named: Any, tmp_path: Path) -> None:
    path = vp.bundle.save(experiment(NAMED), named, tmp_path / "a.vlmp.zip")
    assert vp.bundle.verify(path).figures == ("heatmap.png", "heatmap_2.png", "image.png", "lines.png")
