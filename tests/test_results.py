"""The dataset that comes back: layout, labels, where it is from, and the checks that keep wrong numbers out."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

import vlm_patching as vp
from vlm_patching.backends import interventions, kernels
from vlm_patching.graph import InterventionGraph
from vlm_patching.inputs import encode_pair
from vlm_patching.models.load import weights_digest

NOISE = {"kind": "gaussian_noise", "std": 1.0, "draws": 2}


def experiment(name: str = "shapes-llava", **changes: Any) -> vp.Experiment:
    stack = "language" if name == "shapes-llava" else "question_encoder"
    data: dict[str, Any] = {
        "name": "results",
        "model": {"name": name},
        "pairs": {"dataset": "shapes", "n": 2, "seed": 3, "keep": "all"},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": [f"{stack}.resid_post"], "positions": ["answer_option", "last"]},
        "metrics": ["probability", "logit_difference"],
        "seed": 7,
        "source": "A paper (2024).",
        "deviations": ["One.", "Two."],
    }
    return vp.Experiment.from_dict(data | changes)


def patch(*sites: str, **changes: Any) -> dict[str, Any]:
    return {"sites": list(sites), "positions": ["last"], **changes}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: vp.load_model(name) for name in ("shapes-llava", "shapes-blip")}


@pytest.fixture(scope="module")
def ran(models: dict[str, Any]) -> xr.Dataset:
    """A small sweep with every kind of position."""
    positions = ["image:object", "each:image", "image", "answer_option", 3, -1]
    return vp.run(
        experiment(
            patch=patch("language.resid_post", "language.mlp_out", layers=[0, 5], positions=positions, window=2)
        ),
        model=models["shapes-llava"],
        progress=False,
    )


def test_dimensions_follow_the_sweep_in_their_order(models: dict[str, Any]) -> None:
    for changes, dims in (
        ({}, ("example", "site", "layer", "position")),
        ({"patch": patch("language.attn_head")}, ("example", "site", "layer", "head", "position")),
        ({"corruption": NOISE}, ("example", "site", "layer", "position", "draw")),
        ({"corruption": NOISE, "patch": patch("language.attn_head", layers=[1])},
         ("example", "site", "layer", "head", "position", "draw")),
    ):  # fmt: skip
        ds = vp.run(experiment(**changes), model=models["shapes-llava"], progress=False)
        for metric in ("probability", "logit_difference"):
            assert ds[metric].dims == dims
            assert ds[f"{metric}_clean"].dims == ("example",)
            assert ds[f"{metric}_corrupted"].dims == (("example", "draw") if "draw" in dims else ("example",))
            assert np.isfinite(ds[metric].values).all()
        assert set(ds.dims) == set(dims)


def test_values_are_float32_of_one_variable_a_metric_and_run(ran: xr.Dataset) -> None:
    metrics = ("probability", "logit_difference")
    assert set(ran.data_vars) == {f"{m}{run}" for m in metrics for run in ("", "_clean", "_corrupted")}
    assert all(variable.dtype == np.float32 for variable in ran.data_vars.values())
    assert ((ran["probability"] >= 0) & (ran["probability"] <= 1)).all()


def test_examples_carry_their_id_answer_foil_text_and_whether_they_were_kept(ran: xr.Dataset) -> None:
    pairs = vp.load_pairs("shapes", n=2, seed=3)
    for name, wanted in (
        ("example", [p.id for p in pairs]),
        ("answer", [p.answer for p in pairs]),
        ("foil", [p.foil for p in pairs]),
        ("text", [p.clean.text for p in pairs]),
        ("kept", ["kept", "kept"]),
    ):
        assert ran[name].dims == ("example",) and ran[name].values.tolist() == wanted
    assert ran["site"].values.tolist() == ["language.resid_post", "language.mlp_out"]
    assert ran["layer"].values.tolist() == [0, 5]
    assert ran["layers_covered"].values.tolist() == [[1, 2], [1, 2]]


def test_positions_carry_what_they_are(ran: xr.Dataset, models: dict[str, Any]) -> None:
    tokens = models["shapes-llava"].description.processor.tokenizer.convert_ids_to_tokens
    for i, pair in enumerate(vp.load_pairs("shapes", n=2, seed=3)):
        ready = encode_pair(pair, models["shapes-llava"].description, ("clean",))
        ids = ready.inputs["clean"]["input_ids"][0].tolist()
        at = ran.isel(example=i)
        text = at.sel(position="answer_option")
        assert (text["token"], text["modality"], text["role"]) == (pair.answer, "text", "answer_option")
        assert (int(text["row"]), int(text["col"])) == (-1, -1) and (text["box"] == -1).all()
        for label in (3, -1):
            assert at["token"].sel(position=str(label)).item() == tokens(ids[label])
        image = at.sel(position="image")
        assert (image["modality"], image["role"]) == ("image", "image")
        assert image["box"].values.tolist() == [0, 0, 96, 96]
        start = ids.index(models["shapes-llava"].description.config.image_token_id)
        for k in range(16):
            patch_ = at.sel(position=str(start + k))
            row, col = divmod(k, 4)
            assert (int(patch_["row"]), int(patch_["col"])) == (row, col)
            assert (int(patch_["image"]), int(patch_["tile"])) == (0, 0)
            assert patch_["box"].values.tolist() == [24 * col, 24 * row, 24 * col + 24, 24 * row + 24]
            assert patch_["modality"].item() == "image"
        x0, y0, x1, y1 = at.sel(position="image:object")["box"].values.tolist()
        a0, b0, a1, b1 = pair.regions["object"]
        assert (
            x0 <= a0 and y0 <= b0 and x1 >= a1 and y1 >= b1 and at["modality"].sel(position="image:object") == "image"
        )
    assert ran["corner"].values.tolist() == ["x0", "y0", "x1", "y1"]


def test_a_position_that_an_example_lacks_is_nan_and_unlabelled_there(models: dict[str, Any]) -> None:
    pairs = vp.load_pairs("shapes", n=1, seed=3) + vp.load_pairs("shapes", n=1, seed=4, questions=["shape_choice"])
    spec = experiment("shapes-blip", patch=patch("question_encoder.resid_post", layers=[0], positions="all"))
    ds = vp.run(spec, model=models["shapes-blip"], inputs=pairs, progress=False)
    counts = [int(np.isfinite(ds["probability"].isel(example=i)).sum()) for i in (0, 1)]
    assert counts[0] < counts[1] == ds.sizes["position"]
    assert (ds["token"].values[0] != "").sum() == counts[0]


def test_attributes_say_where_the_numbers_are_from(ran: xr.Dataset, models: dict[str, Any]) -> None:
    a = ran.attrs
    again = vp.Experiment.from_dict(yaml.safe_load(a["experiment_yaml"]))
    assert again.id == a["experiment_id"] == vp.Experiment.from_json(a["experiment"]).id
    assert InterventionGraph.from_json(a["graph"]).id == a["graph_id"] == again.graph().id
    assert (a["model"], a["model_revision"], a["dtype"], a["device"]) == ("shapes-llava", "", "float32", "cpu")
    assert (a["backend"], a["seed"], a["direction"], a["name"]) == ("local", 7, "denoise", "results")
    assert (a["source"], a["deviations"]) == ("A paper (2024).", "One.\nTwo.")
    assert (
        a["weights_sha256"] == weights_digest(models["shapes-llava"].envoy._module) and len(a["weights_sha256"]) == 64
    )
    versions = json.loads(a["versions"])
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"vlm_patching", "nnsight", "transformers", "xarray", "zarr", "numpy", "python"} <= set(versions)
    root = Path(vp.__file__).parents[1]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert a["git_commit"] == head.stdout.strip() and a["git_dirty"] in (0, 1)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(a["created_at"])
    assert datetime.timedelta() <= age < datetime.timedelta(minutes=30)
    assert a["wall_seconds"] > 0 and (a["examples"], a["examples_kept"]) == (2, 2)
    checks = json.loads(a["checks"])
    assert checks["passed"] is True and checks["cells"] >= 8 and checks["example"] == ran["example"].values[0]
    assert {"patch nothing", "patch itself", "patch everything in language", "one forward pass a cell"} <= set(checks)
    assert all(isinstance(value, str | int | float) for value in a.values())


def most_likely(model: Any, pair: vp.Pair) -> str:
    ready = encode_pair(pair, model.description, ("clean",))
    with torch.no_grad():
        logits = model.envoy._module(**ready.inputs["clean"]).logits[0, -1]
    return str(model.description.processor.tokenizer.convert_ids_to_tokens(int(logits.argmax())))


def test_a_dropped_pair_says_why_and_has_base_runs_but_no_patched_values(models: dict[str, Any]) -> None:
    model, pair = models["shapes-llava"], vp.load_pairs("shapes", n=1, seed=3)[0]
    said = most_likely(model, pair)
    words = [word for word in ("red", "blue", "heart") if word != said][:2]
    wrong = replace(pair, answer=words[0], foil=words[1])
    spec = experiment(pairs={"dataset": "shapes", "keep": "clean_correct"})
    ds = vp.run(spec, model=model, inputs=[wrong], progress=False)
    assert ds["kept"].item().startswith("dropped") and repr(said) in ds["kept"].item() and words[0] in ds["kept"].item()
    assert np.isnan(ds["probability"].values).all() and np.isfinite(ds["probability_clean"].values).all()
    assert np.isfinite(ds["probability_corrupted"].values).all()
    assert (
        np.isnan(vp.effect(ds, "probability").values).all()
        and np.isnan(vp.total_effect(ds, "probability").values).all()
    )
    assert ds.attrs["examples_kept"] == 0 and "checks" not in ds.attrs


@pytest.mark.parametrize(
    ("keep", "clean", "corrupted", "outcome"),
    [
        ("clean_correct", "answer", "answer", "kept"),
        ("clean_correct", "foil", "answer", "dropped: the clean run says"),
        ("clean_correct_corrupted_wrong", "answer", "foil", "kept"),
        ("clean_correct_corrupted_wrong", "answer", "answer", "dropped: the corrupted run still says"),
        ("clean_correct_corrupted_wrong", "foil", "foil", "dropped: the clean run says"),
        ("all", "foil", "answer", "kept"),
    ],
)
def test_the_rule_of_which_pairs_are_kept(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, keep: str, clean: str, corrupted: str, outcome: str
) -> None:
    said, rule = {"clean": clean, "corrupted": corrupted}, kernels.is_kept

    def is_kept(program: dict[str, Any], results: dict[str, Any]) -> bool:
        for run, word in said.items():
            results[f"{run}.top"][0] = torch.full_like(results[f"{run}.top"][0], program[word])
            results[f"{run}.right"][0] = torch.full_like(results[f"{run}.right"][0], word == "answer")
        return rule(program, results)

    monkeypatch.setattr(kernels, "is_kept", is_kept)
    spec = experiment(pairs={"dataset": "shapes", "n": 1, "keep": keep}, patch=patch("language.resid_post", layers=[1]))
    ds = vp.run(spec, model=models["shapes-llava"], progress=False)
    assert ds["kept"].item().startswith(outcome)
    assert np.isfinite(ds["probability"].values).all() == (outcome == "kept")


@pytest.mark.parametrize("changes", [{}, {"corruption": NOISE, "patch": patch("language.attn_head", layers=[1, 2])}])
def test_the_results_in_memory_in_zarr_and_in_netcdf_are_equal(
    models: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    spec, model = experiment(**changes), models["shapes-llava"]
    memory = vp.run(spec, model=model, progress=False)
    stored = vp.run(spec, model=model, store=tmp_path / "a.zarr", progress=False)
    xr.testing.assert_equal(memory, stored)
    xr.testing.assert_identical(vp.load_results(tmp_path / "a.zarr"), stored)
    assert set(memory.variables) == set(stored.variables)
    for name in memory.variables:
        assert memory[name].dims == stored[name].dims and memory[name].dtype == stored[name].dtype, name
    assert set(memory.attrs) == set(stored.attrs)
    stored.to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as back:
        xr.testing.assert_equal(back.load(), stored)
        assert back.attrs == stored.attrs


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("shapes-llava", {"corruption": NOISE}),
        ("shapes-llava", {"patch": patch("vision.resid_post", positions=["image:object", "cls"])}),
        ("shapes-blip", {"patch": patch("question_encoder.cross_attn_head", window=2)}),
        ("shapes-blip", {"corruption": NOISE, "patch": patch("answer_decoder.mlp_out", direction="noise")}),
    ],
)
def test_the_numbers_do_not_depend_on_the_size_of_a_batch(
    models: dict[str, Any], model: str, changes: dict[str, Any]
) -> None:
    pairs = {"dataset": "shapes", "n": 1, "seed": 3, "keep": "all"}
    spec = experiment(model, **changes, pairs=pairs)
    wanted = vp.run(spec, model=models[model], progress=False, checks=False)
    for rows in (1, 5):
        found = vp.run(spec, model=models[model], batch_rows=rows, progress=False, checks=False)
        for metric, tolerance in (("probability", 1e-6), ("logit_difference", 1e-5)):  # float32 rounding of a logit
            np.testing.assert_allclose(found[metric].values, wanted[metric].values, rtol=0, atol=tolerance)


def test_a_batch_of_no_rows_is_refused() -> None:
    with pytest.raises(vp.SpecError, match="batch_rows"):
        vp.run(experiment(), batch_rows=0)


def next_row(value: Any, op: dict[str, Any], values: dict[str, Any], right: Any = interventions.edited) -> Any:
    return right(value, op | {name: op[name].roll(1) for name in ("at_rows", "at_positions")}, values)


def no_row(value: Any, op: dict[str, Any], values: dict[str, Any]) -> Any:
    return value


def first_image(model: Any, operation: Any, rows: int, values: Any, found: Any, right: Any = kernels.apply) -> None:
    if operation["do"] == "skip" and operation["index"] is not None:
        operation = operation | {"index": torch.zeros_like(operation["index"])}
    right(model, operation, rows, values, found)


@pytest.mark.parametrize(("function", "fault"), [("edited", next_row), ("edited", no_row), ("apply", first_image)])
def test_a_check_catches_a_faulty_kernel_and_names_the_cell_and_both_values(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, function: str, fault: Any
) -> None:
    monkeypatch.setattr(kernels if function == "apply" else interventions, function, fault)
    with pytest.raises(vp.CheckError) as caught:
        vp.run(experiment(corruption={**NOISE, "std": 5.0}), model=models["shapes-llava"], progress=False)
    said = str(caught.value)
    for word in ("language.resid_post", "layer ", "position ", "draw ", "tolerance"):
        assert word in said
    found, wanted = re.search(r"(?:probability|logit_difference) is (\S+) where (\S+) was expected", said).groups()
    assert abs(float(found) - float(wanted)) > 1e-5


def test_a_check_that_fails_leaves_the_example_out_of_the_store(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(interventions, "edited", no_row)
    with pytest.raises(vp.CheckError):
        vp.run(experiment(), model=models["shapes-llava"], store=tmp_path / "a.zarr", progress=False)
    ds = vp.load_results(tmp_path / "a.zarr")
    assert ds["kept"].values.tolist() == ["", ""] and np.isnan(ds["probability"].values).all()
    assert "checks" not in ds.attrs


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("model", ["shapes-blip", "shapes-llava"])
def test_half_precision_runs_near_float32_or_is_refused(models: dict[str, Any], model: str, dtype: str) -> None:
    spec = experiment(model, corruption=NOISE)
    wanted = vp.run(spec, model=models[model], progress=False)
    try:
        ds = vp.run(experiment(model, corruption=NOISE, model={"name": model, "dtype": dtype}), progress=False)
    except vp.SpecError as error:
        assert dtype in str(error)
        return
    assert ds.attrs["dtype"] == dtype and ds["probability"].dtype == np.float32
    np.testing.assert_allclose(ds["probability"].values, wanted["probability"].values, rtol=0, atol=0.1)
    assert ds.attrs["weights_sha256"] != wanted.attrs["weights_sha256"]


def test_a_store_is_not_resumed_with_other_pairs(models: dict[str, Any], tmp_path: Path) -> None:
    spec, model = experiment(patch=patch("language.resid_post", layers=[1])), models["shapes-llava"]
    vp.run(spec, model=model, inputs=vp.load_pairs("shapes", n=1, seed=1), store=tmp_path / "a.zarr", progress=False)
    others = vp.load_pairs("shapes", n=2, seed=2)
    with pytest.raises(vp.SpecError, match="pair"):
        vp.run(spec, model=model, inputs=others, store=tmp_path / "a.zarr", progress=False)


def test_what_the_model_said_is_kept_and_pairs_that_no_corruption_affected_are_counted(tmp_path: Path) -> None:
    model = vp.load_model("shapes-llava")
    spec = experiment(corruption={"kind": "gaussian_noise", "std": 60.0, "draws": 3})
    spec = vp.Experiment.from_dict(spec.to_dict() | {"pairs": {"dataset": "shapes", "n": 12}})
    ds = vp.run(spec, model=model, store=tmp_path / "noise.zarr", progress=False)
    assert ds["said_clean"].values.tolist() == ds["answer"].values.tolist()
    assert ds["said_corrupted"].dims == ("example", "draw")
    assert len(set(ds["said_corrupted"].values.ravel())) > 1
    untouched = [
        row.tolist() == [clean] * 3
        for row, clean in zip(ds["said_corrupted"].values, ds["said_clean"].values, strict=True)
    ]
    assert ds.attrs["examples_unaffected"] == sum(untouched)
    weak = vp.Experiment.from_dict(spec.to_dict() | {"corruption": {"kind": "gaussian_noise", "std": 1e-6, "draws": 2}})
    assert vp.run(weak, model=model, progress=False).attrs["examples_unaffected"] == 12
    pair = vp.Experiment.from_dict(spec.to_dict() | {"corruption": {"kind": "semantic_image_pair"}})
    swapped = vp.run(pair, model=model, progress=False)
    assert swapped["said_corrupted"].values.tolist() == swapped["foil"].values.tolist()
    assert swapped.attrs["examples_unaffected"] == 0
