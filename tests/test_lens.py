"""The logit lens equals the oracle's: the model's own final norm and unembedding, applied to what a hook has read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vlm_patching as vp
from tests.cases import NAMES, TOLERANCE, Cell, assert_equals_oracle, make_case, results
from tests.oracle.patching import layer_count
from tests.oracle.readouts import lens

POSITIONS = {"language": ["each:image:object", "each:question", 0, "last"], "answer_decoder": ["decoding"]}


def stack_of(name: str) -> str:
    return "answer_decoder" if "blip" in name else "language"


@pytest.mark.parametrize("name", NAMES)
def test_the_lens_equals_the_oracle_at_every_layer_and_position(name: str, loaded: dict[str, Any]) -> None:
    case, stack = make_case(loaded[name]), stack_of(name)
    ds = results(loaded[name], [case], {"lens": {"positions": POSITIONS[stack]}})
    assert ds["probability"].dims == ("example", "site", "layer", "position")
    assert ds["site"].values.tolist() == [f"{stack}.resid_post"]
    assert ds.sizes["layer"] == layer_count(case.module, f"{stack}.resid_post")

    def wanted(cell: Cell) -> dict[str, float]:
        (position,) = case.indices(stack, cell["position"])
        return case.metrics(lens(case.module, case.inputs["clean"], cell["site"], cell["layer"], position))

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_what_enters_a_layer_is_read_as_what_leaves_the_one_below(name: str, loaded: dict[str, Any]) -> None:
    case, stack = make_case(loaded[name]), stack_of(name)
    count = layer_count(case.module, f"{stack}.resid_post")
    section = {"sites": [f"{stack}.resid_pre", f"{stack}.resid_post"], "layers": f"1:{count}", "positions": ["last"]}
    ds = results(loaded[name], [case], {"lens": section})
    (last,) = case.indices(stack, "last")

    def wanted(cell: Cell) -> dict[str, float]:
        layer = cell["layer"] - (cell["site"] == f"{stack}.resid_pre")
        return case.metrics(lens(case.module, case.inputs["clean"], f"{stack}.resid_post", layer, last))

    assert_equals_oracle(ds, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_at_the_last_layer_and_position_the_lens_is_the_clean_run(name: str, loaded: dict[str, Any]) -> None:
    case = make_case(loaded[name])
    ds = results(loaded[name], [case], {"lens": {"positions": ["last"]}})
    for metric, tolerance in TOLERANCE.items():
        values = ds[metric][0, 0, :, 0].values
        np.testing.assert_allclose(values[-1], ds[f"{metric}_clean"].values[0], rtol=0, atol=tolerance / 10)
        assert np.ptp(values) >= 100 * tolerance


@pytest.mark.parametrize("name", NAMES)
def test_positions_together_and_stacks_without_an_unembedding_are_refused(name: str, loaded: dict[str, Any]) -> None:
    case = make_case(loaded[name])
    with pytest.raises(vp.SpecError, match=r"vision\.resid_post.*unembedding"):
        results(loaded[name], [case], {"lens": {"sites": ["vision.resid_post"], "positions": ["cls"]}})
    if "llava" in name:
        with pytest.raises(vp.SpecError, match="each:question"):
            results(loaded[name], [case], {"lens": {"positions": ["question"]}})
