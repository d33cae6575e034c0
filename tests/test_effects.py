"""Effects on hand-made numbers: signs, normalisation, and NaN where there is nothing to say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import vlm_patching as vp
from vlm_patching.analysis import metrics_of
from vlm_patching.analysis.effects import LEAST_TOTAL_EFFECT

NAN = float("nan")


def dataset(
    patched: Any,
    clean: Any,
    corrupted: Any,
    direction: str = "denoise",
    kept: list[str] | None = None,
    metric: str = "probability",
) -> xr.Dataset:
    """One site, layers as given: patched [example, layer(, draw)], clean [example], corrupted [example(, draw)]."""
    patched = np.asarray(patched, dtype=np.float32)[:, None]
    dims = ["example", "site", "layer", "draw"][: patched.ndim]
    corrupted = np.asarray(corrupted, dtype=np.float32)
    return xr.Dataset(
        {
            metric: (dims, patched),
            f"{metric}_clean": ("example", np.asarray(clean, dtype=np.float32)),
            f"{metric}_corrupted": (["example", "draw"][: corrupted.ndim], corrupted),
        },
        {
            "example": [f"pair-{i}" for i in range(len(patched))],
            "site": ["language.mlp_out"],
            "kept": ("example", kept or ["kept"] * len(patched)),
        },
        {"direction": direction},
    )


def test_denoising_is_patched_minus_corrupted_and_positive_where_the_answer_comes_back() -> None:
    ds = dataset([[0.7, 0.1, 0.2]], [0.9], [0.2])
    effect = vp.effect(ds, "probability")
    np.testing.assert_allclose(effect.values[0, 0], [0.5, -0.1, 0.0], atol=1e-6)
    assert effect.attrs["direction"] == "denoise" and effect.attrs["metric"] == "probability"
    assert effect.dims == ds["probability"].dims


def test_noising_is_clean_minus_patched_and_positive_where_the_answer_is_lost() -> None:
    ds = dataset([[0.7, 0.1, 0.95]], [0.9], [0.2], "noise")
    np.testing.assert_allclose(vp.effect(ds, "probability").values[0, 0], [0.2, 0.8, -0.05], atol=1e-6)


def test_the_total_effect_is_clean_minus_corrupted_in_both_directions() -> None:
    for direction in ("denoise", "noise"):
        ds = dataset([[0.0], [0.0]], [0.9, 0.1], [0.2, 0.4], direction)
        np.testing.assert_allclose(vp.total_effect(ds, "probability").values, [0.7, -0.3], atol=1e-6)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_normalised_0_is_the_run_started_from_and_1_the_run_the_values_come_from(direction: str) -> None:
    ends = [0.2, 0.9] if direction == "denoise" else [0.9, 0.2]
    ds = dataset([[ends[0], ends[1], 0.55]], [0.9], [0.2], direction)
    effect = vp.effect(ds, "probability", normalize=True)
    np.testing.assert_allclose(effect.values[0, 0], [0.0, 1.0, 0.5], atol=1e-6)


def test_a_negative_total_effect_is_divided_by_with_its_sign() -> None:
    ds = dataset([[2.0]], [1.0], [3.0], metric="logit_difference")
    np.testing.assert_allclose(vp.effect(ds, "logit_difference", normalize=True).values[0, 0], [0.5])


@pytest.mark.parametrize("metric", sorted(LEAST_TOTAL_EFFECT))
def test_a_total_effect_under_the_threshold_gives_nan_and_never_inf(metric: str) -> None:
    least = LEAST_TOTAL_EFFECT[metric]
    totals = [0.0, 0.5 * least, -0.5 * least, 2 * least, -2 * least]
    ds = dataset([[1.0]] * 5, [0.5] * 5, [0.5 - total for total in totals], metric=metric)
    effect = vp.effect(ds, metric, normalize=True)
    assert not np.isinf(effect.values).any()
    np.testing.assert_array_equal(np.isnan(effect.values[:, 0, 0]), [True, True, True, False, False])
    assert effect.attrs["least_total_effect"] == least
    assert np.isfinite(vp.effect(ds, metric).values).all()


def test_a_threshold_of_0_still_never_divides_by_0_and_a_negative_one_is_refused() -> None:
    ds = dataset([[0.7], [0.5]], [0.5, 0.5], [0.5, 0.499])
    effect = vp.effect(ds, "probability", normalize=True, threshold=0.0)
    assert np.isnan(effect.values[0, 0, 0]) and np.isfinite(effect.values[1, 0, 0])
    with pytest.raises(vp.SpecError, match="threshold"):
        vp.effect(ds, "probability", normalize=True, threshold=-0.1)
    assert np.isnan(vp.effect(ds, "probability", normalize=True, threshold=0.5).values).all()


def test_a_dropped_example_is_nan_even_where_it_has_numbers() -> None:
    kept = ["kept", "dropped: the clean run says 'red', not 'blue'"]
    ds = dataset([[0.7], [0.7]], [0.9, 0.9], [0.2, 0.2], kept=kept)
    for normalize in (False, True):
        np.testing.assert_array_equal(np.isnan(vp.effect(ds, "probability", normalize).values[:, 0, 0]), [False, True])
    np.testing.assert_array_equal(np.isnan(vp.total_effect(ds, "probability").values), [False, True])


def test_a_cell_that_was_not_run_is_nan() -> None:
    ds = dataset([[0.7, NAN]], [0.9], [0.2])
    for normalize in (False, True):
        np.testing.assert_array_equal(np.isnan(vp.effect(ds, "probability", normalize).values[0, 0]), [False, True])


def test_every_noise_draw_is_compared_with_its_own_corrupted_run() -> None:
    ds = dataset([[[0.7, 0.6]]], [0.9], [[0.2, 0.4]])
    np.testing.assert_allclose(vp.effect(ds, "probability").values[0, 0, 0], [0.5, 0.2], atol=1e-6)
    shares = vp.effect(ds, "probability", normalize=True)
    np.testing.assert_allclose(shares.values[0, 0, 0], [5 / 7, 2 / 5], atol=1e-6)
    assert shares.dims == ("example", "site", "layer", "draw")


def test_a_metric_that_the_dataset_lacks_is_refused_with_the_nearest_one() -> None:
    ds = dataset([[0.7]], [0.9], [0.2])
    assert metrics_of(ds) == ["probability"]
    for call in (vp.effect, vp.total_effect):
        with pytest.raises(vp.SpecError, match="Did you mean 'probability'"):
            call(ds, "probabilty")
        with pytest.raises(vp.SpecError, match="probability_clean"):
            call(ds, "probability_clean")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    "corruption", [{"kind": "semantic_image_pair"}, {"kind": "gaussian_noise", "std": 1.0, "draws": 2}]
)
def test_in_a_real_run_patching_all_of_the_last_layer_has_the_whole_total_effect(
    direction: str, corruption: dict[str, Any]
) -> None:
    spec = {
        "name": "effects",
        "model": {"name": "shapes-blip"},
        "pairs": {"dataset": "shapes", "n": 2, "seed": 3, "keep": "all"},
        "corruption": corruption,
        "patch": {"sites": ["answer_decoder.resid_post"], "positions": ["decoding"], "direction": direction},
    }
    ds = vp.run(vp.Experiment.from_dict(spec), progress=False)
    effect, total = vp.effect(ds, "logit_difference"), vp.total_effect(ds, "logit_difference")
    last = effect.isel(layer=-1, position=0, site=0)
    np.testing.assert_allclose(last.values, total.values, rtol=0, atol=1e-4)
    shares = vp.effect(ds, "logit_difference", normalize=True, threshold=0.01).isel(layer=-1)
    assert np.isfinite(shares.values).any()
    np.testing.assert_allclose(shares.values[np.isfinite(shares.values)], 1.0, atol=0.02)
    sign = 1 if direction == "denoise" else -1
    base = ds["logit_difference_corrupted" if direction == "denoise" else "logit_difference_clean"]
    np.testing.assert_allclose(effect.values, (sign * (ds["logit_difference"] - base)).transpose(*effect.dims).values)


def other_method(method: str, edited: Any, clean: Any, metric: str = "probability", **attrs: str) -> xr.Dataset:
    """As `dataset`, of a method without a corrupted run."""
    ds = dataset(edited, clean, [0.25] * len(clean), metric=metric)
    ds.attrs = {"method": method, **attrs}
    return ds if attrs.get("base") == "corrupted" else ds.drop_vars(f"{metric}_corrupted")


@pytest.mark.parametrize("method", ["knockout", "ablate"])
def test_taking_away_what_carries_the_answer_has_a_positive_effect(method: str) -> None:
    ds = other_method(method, [[0.2, 0.8, 0.9]], [0.8])
    np.testing.assert_allclose(vp.effect(ds).values[0, 0], [0.6, 0.0, -0.1], atol=1e-6)
    assert vp.effect(ds).attrs == {"metric": "probability", "method": method}


@pytest.mark.parametrize(("base", "wanted"), [("clean", [-0.5, 0.0]), ("corrupted", [0.0, 0.5])])
def test_steering_is_compared_with_the_run_that_was_steered(base: str, wanted: list[float]) -> None:
    ds = other_method("steer", [[0.25, 0.75]], [0.75], base=base)
    np.testing.assert_allclose(vp.effect(ds).values[0, 0], wanted)
    assert vp.effect(ds).attrs["base"] == base
    if base == "corrupted":
        np.testing.assert_allclose(vp.effect(ds, normalize=True).values[0, 0], [0, 1])


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_path_patching_has_the_effect_of_patching(direction: str) -> None:
    ds = dataset([[0.7, 0.1]], [0.9], [0.2], direction)
    np.testing.assert_array_equal(vp.effect(ds.assign_attrs(method="path")), vp.effect(ds))


@pytest.mark.parametrize(
    ("method", "sign"), [("patch", 1), ("path", 1), ("knockout", -1), ("ablate", -1), ("steer", 1)]
)
def test_where_less_is_better_the_sign_is_turned_for_every_method(method: str, sign: int) -> None:
    more, less = (
        dataset([[4.0]], [1.0], [1.0], metric=metric).assign_attrs(method=method)
        for metric in ("logit_difference", "answer_rank")
    )
    assert vp.effect(more, "logit_difference").item() == -vp.effect(less, "answer_rank").item() == 3 * sign


def test_a_dropped_example_has_no_effect_in_any_method() -> None:
    for method in ("knockout", "ablate", "steer", "path"):
        ds = dataset([[0.7], [0.7]], [0.9, 0.9], [0.2, 0.2], kept=["kept", "dropped: no"]).assign_attrs(method=method)
        np.testing.assert_array_equal(np.isnan(vp.effect(ds).values[:, 0, 0]), [False, True])


def test_metrics_without_a_corrupted_run_are_listed_and_what_is_beside_them_is_not() -> None:
    ds = other_method("knockout", [[0.2]], [0.8])
    ds = ds.assign(probability_placebo=ds["probability"], probability_exact=ds["probability"])
    assert metrics_of(ds) == ["probability"]
    assert metrics_of(xr.Dataset({"attention": ("key", [0.5])})) == []


def test_a_lens_and_attention_have_no_effect_and_the_error_names_what_to_use() -> None:
    lens = other_method("lens", [[0.2]], [0.8])
    with pytest.raises(vp.SpecError, match=r"plot\.lens"):
        vp.effect(lens)
    attention = xr.Dataset({"attention": ("key", [0.5])}, attrs={"method": "attention"})
    for call in (vp.effect, vp.total_effect):
        with pytest.raises(vp.SpecError, match=r"head_functions.*plot\.image"):
            call(attention, "probability")


def test_without_a_corrupted_run_there_is_no_total_effect_and_nothing_to_normalise_by() -> None:
    for method, named in (("knockout", "knockout_change"), ("ablate", "knockout_change"), ("steer", "clean run")):
        ds = other_method(method, [[0.2]], [0.8])
        with pytest.raises(vp.SpecError, match=f"method {method}.*no corrupted run"):
            vp.total_effect(ds, "probability")
        with pytest.raises(vp.SpecError, match=named):
            vp.effect(ds, normalize=True)
    with pytest.raises(vp.SpecError, match="probability_corrupted"):
        vp.effect(other_method("patch", [[0.2]], [0.8]))


def test_a_method_or_base_that_does_not_exist_is_refused() -> None:
    with pytest.raises(vp.SpecError, match="Did you mean 'knockout'"):
        vp.effect(other_method("knokout", [[0.2]], [0.8]))
    with pytest.raises(vp.SpecError, match="corrupted"):
        vp.effect(other_method("steer", [[0.2]], [0.8], base="corupted"))


def test_an_estimates_effect_says_that_it_is_one() -> None:
    ds = dataset([[0.7]], [0.9], [0.2]).assign_attrs(estimate="attribution")
    assert vp.effect(ds).attrs["estimate"] == "attribution"


def drawn(examples: int, least: float) -> xr.Dataset:
    """Effects that are noisy halves of total effects from `least` on."""
    rng = np.random.default_rng(3)
    total = least + rng.exponential(0.2, examples)
    patched = 0.1 + total[:, None] / 2 + rng.normal(0, 0.02, (examples, 2))
    return dataset(patched, 0.1 + total, np.full(examples, 0.1))


def test_the_mean_of_shares_is_mean_effect_over_mean_total_effect() -> None:
    patched = np.array([[[0.5, 0.7], [0.2, NAN]], [[0.9, 0.1], [NAN, NAN]]])
    ds = dataset(patched, [0.9, 0.8], [[0.1, 0.3], [0.2, 0.1]])
    mean = vp.analysis.shares(ds).mean(("example", "draw")).values[0]
    total = np.array([[0.8, 0.6], [0.6, 0.7]])
    effects = patched - np.array([[0.1, 0.3], [0.2, 0.1]])[:, None]
    np.testing.assert_allclose(mean, [effects[:, 0].mean() / total.mean(), effects[0, 1, 0] / 0.8], rtol=1e-5)


def test_of_equal_total_effects_a_share_is_the_normalised_effect() -> None:
    ds = dataset([[0.5, 0.1], [0.7, 0.3]], [0.9, 0.9], [0.1, 0.1])
    np.testing.assert_allclose(vp.analysis.shares(ds), vp.effect(ds, normalize=True), rtol=1e-5)


def test_the_interval_of_shares_is_that_of_the_ratio_of_means() -> None:
    ds = drawn(60, least=0.02)
    interval = vp.analysis.bootstrap(vp.analysis.shares(ds)).isel(site=0, layer=0)
    effect, total = vp.effect(ds).values[:, 0, 0], vp.total_effect(ds, "probability").values
    picked = np.random.default_rng(0).integers(0, 60, (4000, 60))
    low, high = np.quantile(effect[picked].mean(1) / total[picked].mean(1), [0.025, 0.975])
    width = high - low
    assert abs(float(interval["low"]) - low) < 0.15 * width and abs(float(interval["high"]) - high) < 0.15 * width
    own = vp.analysis.bootstrap(vp.effect(ds, normalize=True, threshold=0)).isel(site=0, layer=0)
    assert float(own["high"] - own["low"]) > 1.5 * width, "a mean of ratios is ruled by the smallest total effects"


def test_shares_of_a_total_effect_near_0_are_nan() -> None:
    ds = dataset([[0.5], [0.4]], [0.5, 0.5], [0.496, 0.498])
    assert np.isnan(vp.analysis.shares(ds)).all()


def test_there_are_no_shares_where_nothing_is_normalised() -> None:
    ds = dataset([[0.5], [0.4]], [0.9, 0.9], [0.1, 0.1])
    with pytest.raises(vp.SpecError, match="knockout_change"):
        vp.analysis.shares(ds.assign_attrs(method="knockout"))
