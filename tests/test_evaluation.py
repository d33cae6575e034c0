"""Evaluation: only the clean and the corrupted prompts are run, and what they give is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import vlm_patching as vp
from tests.cases import prepare
from tests.conftest import BUNDLED
from tests.oracle import patching as oracle
from tests.refusals import BLIP, changed, refusal, says
from tests.test_cli import Command, command  # noqa: F401 - a fixture
from vlm_patching.backends.local import LocalBackend
from vlm_patching.commands.evaluate import report
from vlm_patching.evaluation import write_kept
from vlm_patching.models import Model

KINDS = ["color_choice", "place"]


def spec_of(name: str, **changes: Any) -> vp.Experiment:
    """Anything that is swept: it is not run."""
    data = {
        "name": "evaluated",
        "model": {"name": name},
        "pairs": {"dataset": "shapes", "n": 12, "questions": KINDS, "keep": "all"},
        "corruption": {"kind": "semantic_image_pair"},
        "patch": {"sites": ["token_embeds"], "positions": ["last"]},
    }
    return vp.Experiment.from_dict(changed(data, changes))


def unsure(pairs: Any) -> list[vp.Pair]:
    """Every third pair asks of a picture that it is not about."""

    pairs = list(pairs)
    for i in range(0, len(pairs), 3):
        prompt = vp.Prompt(pairs[(i + 1) % len(pairs)].clean.image, pairs[i].clean.text)
        pairs[i] = replace(pairs[i], clean=prompt)
    return pairs


@pytest.mark.parametrize("name", BUNDLED)
def test_it_is_what_one_plain_forward_pass_a_prompt_gives(name: str, loaded: dict[str, Model]) -> None:
    model, experiment = loaded[name], spec_of(name)
    pairs = unsure(vp.load_pairs("shapes", n=12, questions=KINDS))
    ds = vp.evaluate(experiment, model=model, inputs=pairs, progress=False)
    tokenizer, right = model.description.tokenizer, []
    for number, pair in enumerate(pairs):
        answer, foil = (tokenizer.convert_tokens_to_ids(word) for word in (pair.answer, pair.foil))
        for run, prompt in (("clean", pair.clean), ("corrupted", vp.Prompt(pair.corrupted.image, pair.clean.text))):
            logits, _ = oracle.run(model.envoy._module, prepare(model, prompt.image, prompt.text))
            wanted = oracle.metrics(logits, answer, foil)
            assert float(ds[f"probability_{run}"][number]) == pytest.approx(wanted["probability"], abs=1e-5)
            assert float(ds[f"logit_difference_{run}"][number]) == pytest.approx(wanted["logit_difference"], abs=1e-4)
            if run == "clean":
                right.append(float(int(torch.argmax(logits)) == answer))
    assert ds["right"].values.tolist() == right and 0 < sum(right) < len(right)
    assert (ds["kept"] == "kept").values.tolist() == [one == 1 for one in right]
    assert set(ds.data_vars) == {"right"} | {
        f"{metric}_{run}" for metric in ("probability", "logit_difference") for run in ("clean", "corrupted")
    }


def test_accuracy_is_counted_by_kind_with_wilsons_interval() -> None:
    tasks = ["a"] * 4 + ["b"] * 2 + ["a"]
    right = [1, 1, 0, 1, 0, 1, np.nan]
    coordinates = {"task": ("example", tasks), "said_clean": ("example", list("xxyxyxx"))}
    said = ("example", list("xyyyyxx"))
    ds = xr.Dataset({"right": ("example", right)}, {**coordinates, "said_corrupted": said}, {"method": "evaluate"})
    found = vp.analysis.accuracy(ds)
    assert found["task"].values.tolist() == ["a", "b"]
    assert found["pairs"].values.tolist() == [4, 2] and found["right"].values.tolist() == [3, 1]
    assert found["flipped"].values.tolist() == [pytest.approx(2 / 3), 0.0]
    z, p, n = 1.959964, 0.75, 4
    center, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        (z / (1 + z * z / n)) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)),
    )
    assert found["lower"].values[0] == pytest.approx(center - half, abs=1e-6)
    assert found["upper"].values[0] == pytest.approx(center + half, abs=1e-6)
    assert float(vp.analysis.accuracy(ds, None)["accuracy"]) == pytest.approx(4 / 6)


def test_noise_has_a_row_for_every_draw(loaded: dict[str, Model]) -> None:
    experiment = spec_of("shapes-llava", corruption={"kind": "gaussian_noise", "draws": 3}, **{"pairs.n": 2})
    ds = vp.evaluate(experiment, model=loaded["shapes-llava"], progress=False)
    assert ds["probability_corrupted"].dims == ("example", "draw") == ds["said_corrupted"].dims
    assert np.isfinite(ds["probability_corrupted"]).all() and ds.sizes == {"example": 2, "draw": 3}


def test_a_method_without_a_corrupted_run_is_evaluated_too(loaded: dict[str, Model]) -> None:
    data = {"name": "l", "model": {"name": "shapes-llava"}, "pairs": {"dataset": "shapes", "n": 2}, "lens": {}}
    data["lens"] = {"positions": ["last"]}
    ds = vp.evaluate(vp.Experiment.from_dict(data), model=loaded["shapes-llava"], progress=False)
    assert ds["right"].values.tolist() == [1, 1] and "said_corrupted" not in ds


def test_it_goes_on_where_it_stopped(tmp_path: Path, loaded: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    model, experiment, ran = loaded["shapes-llava"], spec_of("shapes-llava"), list[int]()
    wanted = vp.evaluate(experiment, model=model, store=tmp_path / "whole.zarr", batch_rows=1, progress=False)
    real = LocalBackend.execute

    def stopping(backend: LocalBackend, programs: Any) -> Any:
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(len(programs))
        return real(backend, programs)

    with monkeypatch.context() as patched:
        patched.setattr(LocalBackend, "execute", stopping)
        with pytest.raises(KeyboardInterrupt):
            vp.evaluate(experiment, model=model, store=tmp_path / "cut.zarr", batch_rows=1, progress=False)
    halfway = vp.load_results(tmp_path / "cut.zarr")
    assert 0 < int(halfway["right"].notnull().sum()) < 12
    found = vp.evaluate(experiment, model=model, store=tmp_path / "cut.zarr", batch_rows=1, progress=False)
    for name in wanted.data_vars:
        assert (found[name] == wanted[name]).all()


def test_its_store_is_not_that_of_the_sweep(tmp_path: Path, loaded: dict[str, Model]) -> None:
    model, experiment = loaded["shapes-llava"], spec_of("shapes-llava", **{"pairs.n": 2})
    vp.evaluate(experiment, model=model, store=tmp_path / "s.zarr", progress=False)
    message = refusal(lambda: vp.run(experiment, model=model, store=tmp_path / "s.zarr", progress=False))
    says(message, "belongs to another experiment")


def test_what_was_kept_is_what_the_sweep_takes(
    tmp_path: Path,
    command: Command,  # noqa: F811 - the fixture
) -> None:
    spec = tmp_path / "spec.yaml"
    experiment = spec_of("shapes-llava", **{"pairs.keep": "clean_correct"})
    spec.write_text(experiment.to_yaml())
    kept = tmp_path / "kept.json"
    shown = command("evaluate", str(spec), "-o", str(tmp_path / "e.zarr"), "--kept", str(kept), "--json")
    assert shown.code == 0, shown.err
    rows = json.loads(shown.out)
    assert [row["task"] for row in rows] == ["all", "color_choice", "place"] and rows[0]["pairs"] == 12
    ids = json.loads(kept.read_text())
    kept.write_text(json.dumps(ids[:5]))
    pairs = vp.load_pairs("shapes", n=12, questions=KINDS, ids=str(kept))
    whole = vp.load_pairs("shapes", n=12, questions=KINDS)
    assert [pair.id for pair in pairs] == ids[:5] and list(pairs) == [pair for pair in whole if pair.id in ids[:5]]
    assert pairs.dropped == {"it is not in pairs.ids": 7}


def test_where_no_pair_is_right_json_has_null_for_what_has_no_mean(capsys: pytest.CaptureFixture[str]) -> None:
    coordinates = {"kept": ("example", ["wrong"]), "task": ("example", ["color"]), "foil": ("example", ["red"])}
    ds = xr.Dataset(
        {"right": ("example", [0.0])},
        coordinates | {"said_clean": ("example", ["blue"]), "said_corrupted": ("example", ["red"])},
    )
    report(ds.assign_attrs(method="evaluate"), "task", as_json=True)
    (row,) = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert row["accuracy"] == 0 and row["flipped"] is None


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "does not exist"),
        ("{}", "must hold a JSON list of ids"),
        ("[]", "at least one"),
        ("[1]", "which are text"),
        ("[", "is not JSON"),
        ('["other"]', "none of the 2 pairs has one of them; theirs are such as 'shapes-0-0'"),
    ],
)
def test_a_list_of_ids_that_is_none_is_refused(content: str | None, part: str, tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    if content is not None:
        file.write_text(content)
    says(refusal(lambda: vp.load_pairs("shapes", n=2, ids=str(file))), part, "ids.json")


def test_a_list_of_nothing_is_not_written(tmp_path: Path) -> None:
    ds = xr.Dataset(coords={"example": ["a"], "kept": ("example", ["dropped: why"])})
    says(refusal(lambda: write_kept(ds, tmp_path / "ids.json")), "No pair was kept")
    assert not (tmp_path / "ids.json").exists()


def test_effects_of_an_evaluation_are_refused_and_accuracy_of_a_sweep() -> None:
    ds = xr.Dataset({"right": ("example", [1.0])}, {"kept": ("example", ["kept"])}, {"method": "evaluate"})
    says(refusal(lambda: vp.effect(ds, "probability")), "analysis.accuracy")
    says(refusal(lambda: vp.analysis.accuracy(ds.assign_attrs(method="patch"))), "this dataset's method is patch")
    says(refusal(lambda: vp.analysis.accuracy(ds, "kind")), "coordinate of the examples")
    says(refusal(lambda: vp.analysis.accuracy(ds, None, level=1.5)), "between 0 and 1")


def test_bad_input_is_refused_before_the_model_is_loaded(weights_stay_where_they_are: None) -> None:
    says(refusal(lambda: vp.evaluate(vp.Experiment.from_dict(BLIP), backend="dusk")), "backend")
    says(refusal(lambda: vp.evaluate(vp.Experiment.from_dict(BLIP), batch_rows=0)), "batch_rows must be at least 1")
