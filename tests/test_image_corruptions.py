"""Images corrupted in place: what each does to the pixels, and that a run uses the picture that was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlm_patching as vp
from vlm_patching.pairs import IMAGE_CORRUPTIONS


@pytest.fixture(scope="module")
def pairs() -> list[vp.Pair]:
    return vp.load_pairs("shapes", n=6, seed=3)


def pixels(prompt: vp.Prompt) -> np.ndarray:
    return np.asarray(prompt.picture()).astype(int)


def corrupted(pairs: list[vp.Pair], kind: str, **settings: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    made = vp.corrupt_images(pairs, kind, **settings)
    assert [p.clean for p in made] == [p.clean for p in pairs]
    return [(pixels(p.clean), pixels(p.corrupted)) for p in made]


@pytest.mark.parametrize("kind", list(IMAGE_CORRUPTIONS))
def test_the_same_seed_gives_the_same_picture_and_everything_else_stays(pairs: list[vp.Pair], kind: str) -> None:
    first, second = vp.corrupt_images(pairs, kind, seed=1), vp.corrupt_images(pairs, kind, seed=1)
    for old, one, two in zip(pairs, first, second, strict=True):
        assert (pixels(one.corrupted) == pixels(two.corrupted)).all()
        assert pixels(one.corrupted).shape == pixels(old.clean).shape
        assert (pixels(one.corrupted) != pixels(old.clean)).any()
        assert (one.answer, one.foil, one.spans, one.corrupted.text) == (
            old.answer,
            old.foil,
            old.spans,
            old.corrupted.text,
        )


def test_a_blank_image_is_one_colour(pairs: list[vp.Pair]) -> None:
    for _, made in corrupted(pairs, "blank_image"):
        assert (made == 0).all()
    for _, made in corrupted(pairs, "blank_image", color=(10, 20, 30)):
        assert (made == [10, 20, 30]).all()


def test_a_mean_colour_image_has_the_mean_of_each_channel(pairs: list[vp.Pair]) -> None:
    for clean, made in corrupted(pairs, "mean_color_image"):
        assert (made == made[0, 0]).all()
        assert np.abs(made[0, 0] - clean.mean((0, 1))).max() <= 0.5


def test_a_blurred_image_keeps_its_mean_and_loses_its_edges(pairs: list[vp.Pair]) -> None:
    for clean, made in corrupted(pairs, "blurred_image", radius=6):
        assert np.abs(made.mean() - clean.mean()) < 2
        assert np.abs(np.diff(made, axis=0)).max() < np.abs(np.diff(clean, axis=0)).max() / 3


def test_a_shuffled_image_has_the_same_patches_in_another_order(pairs: list[vp.Pair]) -> None:
    for clean, made in corrupted(pairs, "shuffled_image", grid=4):
        before, after = (
            sorted(x[r : r + 24, c : c + 24].tobytes() for r in range(0, 96, 24) for c in range(0, 96, 24))
            for x in (clean, made)
        )
        assert before == after


def test_what_does_not_fit_the_grid_of_a_shuffle_stays_in_place() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (53, 71, 3), np.uint8)
    prompt = vp.Prompt(Image.fromarray(noise), "is it red or blue?")
    made = vp.corrupt_images([vp.Pair("0", prompt, prompt, "red", "blue")], "shuffled_image", grid=5)[0]
    found = pixels(made.corrupted)
    assert (found[50:] == noise[50:]).all() and (found[:, 70:] == noise[:, 70:]).all()
    assert sorted(found.reshape(-1, 3).tolist()) == sorted(noise.reshape(-1, 3).tolist())


def test_a_masked_region_is_the_mean_colour_and_all_else_is_the_clean_image(pairs: list[vp.Pair]) -> None:
    for pair, (clean, made) in zip(pairs, corrupted(pairs, "masked_region"), strict=True):
        x0, y0, x1, y1 = pair.regions["object"]
        assert (made[y0:y1, x0:x1] == made[y0, x0]).all()
        assert np.abs(made[y0, x0] - clean.mean((0, 1))).max() <= 0.5
        made[y0:y1, x0:x1] = clean[y0:y1, x0:x1]
        assert (made == clean).all()


def test_another_image_is_that_of_another_pair(pairs: list[vp.Pair]) -> None:
    for i, (_, made) in enumerate(corrupted(pairs, "other_image")):
        assert any((made == pixels(other.clean)).all() for j, other in enumerate(pairs) if j != i)


@pytest.mark.parametrize(
    ("kind", "settings", "parts"),
    [
        ("blured_image", {}, ["blured_image", "Did you mean 'blurred_image'?"]),
        ("blank_image", {"colour": (1, 2, 3)}, ["colour", "Did you mean 'color'?"]),
        ("blank_image", {"color": (1, 2, 300)}, ["0 to 255", "300"]),
        ("masked_region", {"region": "objct"}, ["shapes-3-0", "objct", "Did you mean 'object'?"]),
        ("shuffled_image", {"grid": 97}, ["shapes-3-0", "96 × 96", "97"]),
    ],
)
def test_what_cannot_be_done_is_refused(pairs: list[vp.Pair], kind: str, settings: Any, parts: list[str]) -> None:
    with pytest.raises(vp.SpecError) as error:
        vp.corrupt_images(pairs, kind, **settings)
    assert all(part in str(error.value) for part in parts)


def test_one_pair_has_no_other_image(pairs: list[vp.Pair]) -> None:
    with pytest.raises(vp.SpecError, match="there is no other"):
        vp.corrupt_images(pairs[:1], "other_image")


def test_a_setting_of_another_corruption_is_refused() -> None:
    spec = _spec("blank_image")
    spec["corruption"]["radius"] = 3.0
    with pytest.raises(vp.SpecError, match="radius belong to blurred_image, not to blank_image"):
        vp.Experiment.from_dict(spec)


def _spec(kind: str, **settings: Any) -> dict[str, Any]:
    return {
        "name": kind,
        "model": {"name": "shapes-llava"},
        "pairs": {"dataset": "shapes", "n": 4, "seed": 3},
        "corruption": {"kind": kind, **settings},
        "patch": {"sites": ["language.resid_post"], "positions": ["image:object", "last"]},
        "seed": 5,
    }


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {}) for kind in IMAGE_CORRUPTIONS),
        ("blank_image", {"color": [9, 99, 9]}),
        ("shuffled_image", {"grid": 8}),
    ],
)
def test_a_run_equals_that_of_a_semantic_pair_with_the_picture_that_was_made(kind: str, settings: Any) -> None:
    model, pairs = vp.load_model("shapes-llava"), vp.load_pairs("shapes", n=4, seed=3)
    made = vp.corrupt_images(pairs, kind, seed=5, **{k: tuple(v) if k == "color" else v for k, v in settings.items()})
    found = vp.run(vp.Experiment.from_dict(_spec(kind, **settings)), model=model, progress=False)
    wanted = vp.run(vp.Experiment.from_dict(_spec("semantic_image_pair")), model=model, inputs=made, progress=False)
    for metric in ("probability", "logit_difference"):
        np.testing.assert_array_equal(found[metric].values, wanted[metric].values)
    clean, last = found["logit_difference_clean"].values, found["logit_difference"].sel(position="last", layer=5)
    np.testing.assert_allclose(last.values[:, 0], clean, atol=1e-4)
    if kind in ("blank_image", "mean_color_image", "masked_region"):
        assert float(vp.total_effect(found, "logit_difference").min()) > 1  # without its object, the answer is gone


def test_other_settings_make_another_experiment(tmp_path: Path) -> None:
    ids = {vp.Experiment.from_dict(_spec("shuffled_image", **s)).id for s in ({}, {"grid": 4}, {"grid": 8})}
    assert len(ids) == 3
