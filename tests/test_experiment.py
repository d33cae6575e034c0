"""The experiment spec: it survives YAML and JSON, its hash is its identity, and loading one never runs code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import vlm_patching as vp

METRICS = ["probability", "log_probability", "logit_difference"]
PRESETS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))

SPEC: dict[str, Any] = {
    "name": "base",
    "model": {"name": "shapes-llava"},
    "pairs": {"dataset": "shapes", "n": 4, "seed": 1},
    "corruption": {"kind": "gaussian_noise", "k": 3.0, "draws": 2},
    "patch": {"sites": ["language.resid_post"], "positions": ["last"]},
}


def changed(path: str, value: Any, base: dict[str, Any] = SPEC) -> dict[str, Any]:
    data = json.loads(json.dumps(base))
    *sections, key = path.split(".")
    inside = data
    for section in sections:
        inside = inside[section]
    inside[key] = value
    return data


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
positive = st.floats(min_value=1e-6, max_value=1e6)
seeds = st.integers(-(2**40), 2**40)
numbers = st.lists(st.integers(0, 30), min_size=1, max_size=4, unique=True)
dtypes = st.sampled_from(["float32", "float16", "bfloat16"])
ranges = st.tuples(st.integers(0, 5), st.integers(6, 9)).map(lambda pair: f"{pair[0]}:{pair[1]}")
corruptions = st.one_of(
    st.fixed_dictionaries({"kind": st.sampled_from(["semantic_image_pair", "symmetric_token_replacement"])}),
    st.fixed_dictionaries(
        {"kind": st.just("gaussian_noise")},
        optional={"site": st.just("image_embeds"), "k": positive, "draws": st.integers(1, 20)},
    ),
    st.fixed_dictionaries({"kind": st.just("gaussian_noise"), "std": positive}),
)
of_any_dataset = {
    "n": st.integers(1, 999),
    "seed": seeds,
    "keep": st.sampled_from(["all", "clean_correct", "clean_correct_corrupted_wrong"]),
}
specs = st.fixed_dictionaries(
    {
        "name": texts,
        "model": st.fixed_dictionaries(
            {"name": texts},
            optional={
                "revision": texts,
                "dtype": dtypes,
                "device_map": texts,
            },
        ),
        "pairs": st.one_of(
            st.fixed_dictionaries({"dataset": st.just("folder"), "path": texts}, optional=of_any_dataset),
            st.fixed_dictionaries(
                {"dataset": st.just("shapes")},
                optional={
                    **of_any_dataset,
                    "questions": st.lists(st.sampled_from(["color", "shape_choice", "place"]), min_size=1, max_size=3),
                    "aligned": st.booleans(),
                },
            ),
            st.fixed_dictionaries(
                {"dataset": st.just("svo_probes"), "path": texts},
                optional={
                    **of_any_dataset,
                    "on_error": st.just("skip"),
                    "roles": st.lists(st.sampled_from(["subject", "verb", "object"]), min_size=1, max_size=3),
                },
            ),
        ),
        "corruption": corruptions,
        "patch": st.fixed_dictionaries(
            {"sites": st.lists(texts, min_size=1, max_size=3, unique=True)},
            optional={
                "layers": st.one_of(st.just("all"), ranges, numbers),
                "heads": st.one_of(st.just("all"), ranges, numbers),
                "positions": st.one_of(
                    texts, st.lists(st.one_of(texts, st.integers(-9, 99)), min_size=1, max_size=3, unique=True)
                ),
                "window": st.integers(1, 20),
                "direction": st.sampled_from(["denoise", "noise"]),
            },
        ),
    },
    optional={
        "metrics": st.lists(st.sampled_from(METRICS), min_size=1, max_size=3, unique=True),
        "seed": seeds,
        "source": texts,
        "deviations": st.lists(texts, max_size=2),
    },
)


@settings(max_examples=60, deadline=None)
@given(specs)
def test_any_experiment_survives_yaml_json_and_plain_data(data: dict[str, Any]) -> None:
    experiment = vp.Experiment.from_dict(data)
    for again in (
        vp.Experiment.from_dict(yaml.safe_load(experiment.to_yaml())),
        vp.Experiment.from_json(experiment.to_json()),
        vp.Experiment.from_dict(experiment.to_dict()),
    ):
        assert again == experiment
        assert again.id == experiment.id


def test_a_file_of_yaml_or_json_gives_the_experiment_that_was_written(tmp_path: Path) -> None:
    experiment = vp.Experiment.from_dict(changed("name", "größer: 3σ 🔬 #1\nsecond line"))
    (tmp_path / "a.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    (tmp_path / "a.json").write_text(experiment.to_json(), encoding="utf-8")
    assert vp.Experiment.from_yaml(tmp_path / "a.yaml") == experiment
    assert vp.Experiment.from_yaml(tmp_path / "a.json") == experiment
    assert vp.Experiment.from_spec(tmp_path / "a.yaml") == experiment


@pytest.mark.parametrize("field", ["k", "std"])
def test_an_infinite_noise_is_refused_because_it_would_not_survive_json(field: str) -> None:
    corruption = {"kind": "gaussian_noise", field: float("inf")}
    with pytest.raises(vp.SpecError, match=field):
        vp.Experiment.from_dict(changed("corruption", corruption))


def test_an_experiment_is_frozen() -> None:
    experiment = vp.Experiment.from_dict(SPEC)
    for section, field in ((experiment, "seed"), (experiment.patch, "window"), (experiment.pairs, "n")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, 5)
    assert isinstance(experiment.patch.sites, tuple)
    assert isinstance(hash(experiment), int)


def test_the_hash_is_the_same_in_another_process_and_for_another_order_of_keys() -> None:
    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return value

    here = vp.Experiment.from_dict(SPEC).id
    assert len(here) == 16 and int(here, 16) >= 0
    turned = reversed_keys(SPEC)
    assert list(turned) != list(SPEC)
    assert vp.Experiment.from_dict(turned).id == here
    code = "import json, sys; from vlm_patching.experiment import Experiment as E; print(E.from_json(sys.argv[1]).id)"
    there = subprocess.run(
        [sys.executable, "-c", code, json.dumps(turned)],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert there.stdout.strip() == here


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.name", "shapes-blip"),
        ("model.revision", "abc"),
        ("model.dtype", "bfloat16"),
        ("pairs", {"dataset": "folder", "path": "here", "n": 4, "seed": 1}),
        ("pairs.n", 5),
        ("pairs.seed", 2),
        ("pairs.keep", "all"),
        ("pairs.keep", "clean_correct_corrupted_wrong"),
        ("pairs.questions", ["shape_choice"]),
        ("pairs.aligned", False),
        ("corruption", {"kind": "semantic_image_pair"}),
        ("corruption", {"kind": "gaussian_noise", "std": 3.0, "draws": 2}),
        ("corruption.k", 2.0),
        ("corruption.draws", 3),
        ("patch.sites", ["language.mlp_out"]),
        ("patch.layers", [0]),
        ("patch.heads", [0]),
        ("patch.positions", ["subject"]),
        ("patch.positions", [-1]),
        ("patch.window", 3),
        ("patch.direction", "noise"),
        ("metrics", ["log_probability"]),
        ("seed", 1),
    ],
)
def test_the_hash_changes_with_what_decides_the_numbers(path: str, value: Any) -> None:
    assert vp.Experiment.from_dict(changed(path, value)).id != vp.Experiment.from_dict(SPEC).id


@pytest.mark.parametrize(
    ("path", "value"), [("name", "other"), ("source", "A paper (2024)."), ("deviations", ["One.", "Two."])]
)
def test_the_hash_does_not_change_with_what_only_describes(path: str, value: Any) -> None:
    assert vp.Experiment.from_dict(changed(path, value)).id == vp.Experiment.from_dict(SPEC).id


def test_a_setting_written_out_at_its_default_is_the_same_experiment() -> None:
    written = vp.Experiment.from_dict(changed("patch.window", 1)).to_dict()
    assert vp.Experiment.from_dict(written).id == vp.Experiment.from_dict(SPEC).id
    assert vp.Experiment.from_dict(changed("corruption.k", 3)).id == vp.Experiment.from_dict(SPEC).id


def test_changes_by_dotted_key_replace_values_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    changes = {"pairs.n": 9, "patch.layers": [0, 2], "model.dtype": "bfloat16", "seed": 4, "pairs.keep": "all"}
    experiment = vp.Experiment.from_yaml(path, changes)
    assert (experiment.pairs.n, experiment.patch.layers) == (9, (0, 2))
    assert (experiment.model.dtype, experiment.seed, experiment.pairs.keep) == ("bfloat16", 4, "all")
    assert experiment.model.name == SPEC["model"]["name"]
    assert vp.Experiment.from_yaml(path) == vp.Experiment.from_dict(SPEC)
    with pytest.raises(vp.SpecError, match=r"'nn'.*Did you mean 'n'|pairs\.nn.*Did you mean 'n'"):
        vp.Experiment.from_yaml(path, {"pairs.nn": 1})
    with pytest.raises(vp.SpecError, match=r"name\.deep"):
        vp.Experiment.from_yaml(path, {"name.deep": 1})


def test_presets_are_the_files_of_the_experiments_folder() -> None:
    assert set(vp.presets()) == {path.stem for path in PRESETS}
    assert len(PRESETS) >= 10


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_lowers_to_a_graph_and_says_where_it_comes_from(path: Path) -> None:
    experiment = vp.Experiment.from_spec(path.stem)
    assert experiment == vp.Experiment.from_yaml(path)
    assert experiment.name == path.stem
    assert experiment.source and len(experiment.source.strip()) > 20
    assert "deviations" in yaml.safe_load(path.read_text(encoding="utf-8"))
    assert all(text.strip() for text in experiment.deviations)
    graph = experiment.graph()
    assert graph.name == experiment.name
    assert graph.metrics == experiment.metrics
    assert graph.method == experiment.method and graph.runs[0].name == "clean"
    assert (experiment.corruption is None) == all(run.name != "corrupted" for run in graph.runs)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system", "!!python/object/apply:subprocess.getoutput", "!!python/object/new:os.system"],
)
def test_a_python_tag_in_yaml_is_refused_and_runs_nothing(tmp_path: Path, tag: str) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC) + f'source: {tag} ["touch {trace}"]\n')
    with pytest.raises(vp.SpecError, match="not YAML"):
        vp.Experiment.from_yaml(path)
    with pytest.raises(vp.SpecError, match="not JSON"):
        vp.Experiment.from_json(path.read_text())
    assert not trace.exists()


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inside: st.one_of(
        st.lists(inside, max_size=2), st.dictionaries(st.one_of(texts, seeds), inside, max_size=2)
    ),
    max_leaves=4,
)
paths = ["name", "model", "model.name", "pairs", "pairs.n", "pairs.questions", "corruption", "corruption.kind"]
paths += ["corruption.k", "patch", "patch.sites", "patch.layers", "patch.positions", "patch.window", "metrics", "extra"]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(paths), junk)
def test_whatever_stands_in_a_field_it_is_taken_or_refused_with_a_spec_error_that_names_the_field(
    path: str, value: Any
) -> None:
    data = {key: dict(part) if isinstance(part, dict) else part for key, part in SPEC.items()}
    *sections, key = path.split(".")
    (data[sections[0]] if sections else data)[key] = value
    try:
        vp.Experiment.from_dict(data)
    except vp.SpecError as error:
        assert path.split(".")[0] in str(error)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "5", "name: [unclosed", "a: *nowhere", "\t{"])
def test_a_file_that_holds_no_spec_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(vp.SpecError, match=r"broken\.yaml"):
        vp.Experiment.from_yaml(path)


def test_a_file_that_is_not_text_or_not_a_file_is_refused_with_its_path(tmp_path: Path) -> None:
    picture = tmp_path / "picture.yaml"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\x00")
    for path in (picture, tmp_path, tmp_path / "absent.yaml"):
        with pytest.raises(vp.SpecError, match=path.name):
            vp.Experiment.from_yaml(path)
