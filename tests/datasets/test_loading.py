"""Which of a dataset's rows become pairs: seeded, without replacement, whatever the rows' order, and all is counted."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vlm_patching as vp
from tests.datasets.kit import SVO, many, picture, svo_probes, svo_row, table
from tests.families import all_known
from tests.refusals import BLIP, RECORD, changed, folder_of, refusal, says
from tests.test_cli import Command, command  # noqa: F401 - a fixture
from vlm_patching.bundle import opened
from vlm_patching.pairs import Pairs, loading
from vlm_patching.pairs.reading.rows import BadRow


@pytest.fixture(scope="module")
def rows() -> list[list[Any]]:
    return many(60)


@pytest.fixture(scope="module")
def folder(rows: list[list[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return svo_probes(tmp_path_factory.mktemp("svo"), rows)


def drawn(folder: Path, **options: Any) -> Pairs:
    return vp.load_pairs("svo_probes", path=folder, **options)


def ids(pairs: Pairs) -> list[str]:
    return [pair.id for pair in pairs]


def test_the_first_m_of_n_pairs_are_those_that_n_equal_to_m_gives(folder: Path) -> None:
    whole = drawn(folder, seed=5)
    assert len(whole) == 60 == len(set(ids(whole)))
    for n in (1, 2, 7, 31, 60):
        assert drawn(folder, n=n, seed=5) == whole[:n]


def test_another_seed_draws_other_pairs_and_the_same_seed_the_same(folder: Path) -> None:
    samples = {seed: frozenset(ids(drawn(folder, n=10, seed=seed))) for seed in range(6)}
    assert len(set(samples.values())) == 6
    assert samples[3] == frozenset(ids(drawn(folder, n=10, seed=3)))


def test_every_row_is_drawn_about_as_often_as_any_other(folder: Path) -> None:
    count = Counter(name for seed in range(200) for name in ids(loading.load_unopened(spec(folder, n=15, seed=seed))))
    assert len(count) == 60
    assert all(25 <= times <= 80 for times in count.values())  # 50 ± 4 standard deviations


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(
    rows: list[list[Any]], folder: Path, tmp_path_factory: pytest.TempPathFactory, shuffler: random.Random
) -> None:
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    other = tmp_path_factory.mktemp("shuffled")
    table(other / "svo_probes.csv", SVO, shuffled)
    (other / "images").symlink_to(folder / "images")
    one, two = drawn(folder, n=20), drawn(other, n=20)
    assert [(p.id, p.clean.text, p.answer) for p in one] == [(p.id, p.clean.text, p.answer) for p in two]


@pytest.mark.parametrize("n", [2, 10, 60])
def test_the_answer_comes_first_in_exactly_half_of_the_questions(folder: Path, n: int) -> None:
    first = [pair.spans["answer_option"] < pair.spans["foil_option"] for pair in drawn(folder, n=n, seed=2)]
    assert sum(first) == n // 2
    assert all(one != other for one, other in zip(first[::2], first[1::2], strict=True))


def test_pairs_behave_as_the_list_of_them(folder: Path) -> None:
    pairs = drawn(folder, n=4)
    assert list(pairs) == pairs == [*pairs] and pairs[-1] == list(pairs)[-1]
    assert isinstance(pairs[:2], Pairs) and pairs[:2].considered == 60
    assert pairs != list(pairs)[:3]
    assert (pairs[:1] + pairs[1:]) == pairs
    assert pairs[2] in pairs


def test_what_was_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    bad = svo_row(90, "A circle touches the star.", "circle,touch,star", "circle,touch,ring", "object")
    several = [*bad[:7], True, False, True]
    near = svo_row(91, "A boat touches the shore.", "boat,touch,shore", "ship,touch,shore", "subject")
    unsaid = svo_row(92, "It is touched.", "circle,touch,star", "circle,touch,ring", "object")
    pairs = drawn(svo_probes(tmp_path, [*many(3), several, near, unsaid]), n=3)
    assert pairs.considered == 6
    assert sorted(pairs.dropped.values()) == [1, 1, 1]
    assert pairs.dropped[loading.ALIKE] == 1
    says(pairs.counted(), "3 pairs of 6 candidates", "not exactly one of", "in this order", f"{loading.ALIKE} (1)")


def test_a_row_that_cannot_be_used_is_an_error_with_its_line_or_skipped_and_counted(tmp_path: Path) -> None:
    rows = many(8)
    rows[2][7] = "maybe"
    rows[4][5] = 4711
    folder = svo_probes(tmp_path, rows)
    (folder / "images" / "4711.jpg").unlink()
    (folder / "images" / "12.jpg").write_bytes((folder / "images" / "12.jpg").read_bytes()[:300])
    says(refusal(lambda: drawn(folder)), str(folder / "svo_probes.csv"), "line 4", "'subj_neg'", "'maybe'", "on_error")
    rows[2][7] = False
    table(folder / "svo_probes.csv", SVO, rows)
    says(refusal(lambda: drawn(folder)), "svo_probes.csv, line 6", "4711.jpg", "does not exist")
    rows[4][5] = 0
    table(folder / "svo_probes.csv", SVO, rows)
    says(refusal(lambda: drawn(folder)), "svo_probes.csv, line 8", "12.jpg", "cannot be read as a picture")
    rows[2][7], rows[4][5] = "maybe", 4711
    table(folder / "svo_probes.csv", SVO, rows)
    pairs = drawn(folder, on_error="skip")
    assert len(pairs) == 5 and pairs.considered == 8
    assert pairs.dropped == {
        "error: 'subj_neg' is neither True nor False": 1,
        f"error: {loading.NO_FILE}": 1,
        f"error: {loading.BROKEN}": 1,
    }


def test_broken_pictures_do_not_make_a_sample_smaller_nor_uneven(tmp_path: Path) -> None:
    rows = many(40)
    folder = svo_probes(tmp_path, rows)
    whole = ids(drawn(folder))
    for number in range(0, 80, 4):  # every second row's first picture
        (folder / "images" / f"{number}.jpg").write_bytes(b"no picture")
    pairs = drawn(folder, n=12, on_error="skip")
    good = [name for name in whole if int(name.split("-")[1]) % 4]
    assert ids(pairs) == good[:12]
    assert sum(pair.spans["answer_option"] < pair.spans["foil_option"] for pair in pairs) == 6
    assert pairs.dropped[f"error: {loading.BROKEN}"] == whole.index(ids(pairs)[-1]) - 11


def test_too_few_pairs_are_refused_with_the_counts(tmp_path: Path) -> None:
    unsaid = svo_row(9, "It is touched.", "circle,touch,star", "circle,touch,ring", "object")
    folder = svo_probes(tmp_path, [*many(3), unsaid])
    says(refusal(lambda: drawn(folder, n=4)), "pairs.n is 4", "3 pairs", "4 candidates", "in this order (1)")
    svo_probes(tmp_path, [unsaid])
    says(refusal(lambda: drawn(folder)), "no pair left", "svo_probes", str(folder), "1 candidates", "in this order (1)")


def test_an_id_that_two_rows_have_is_refused_with_both_lines(tmp_path: Path) -> None:
    row = '{"id": "7", "clean": {"image": null, "text": "a b"}, "corrupted": {"image": null, "text": "a c"}, '
    (tmp_path / "pairs.jsonl").write_text("\n".join([row + '"answer": "b", "foil": "c"}'] * 2))
    message = refusal(lambda: vp.load_pairs("folder", path=tmp_path))
    says(message, "pairs.jsonl, line 2", "'7'", "pairs.jsonl, line 1;", "unique")
    pairs = vp.load_pairs("folder", path=tmp_path, on_error="skip")
    assert len(pairs) == 1 and pairs.dropped == {f"error: {loading.TWICE}": 1}


def test_a_sample_holds_no_more_than_it_gives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = 0, 0

    class Counted(loading.Found):
        def __init__(self, found: loading.Found) -> None:
            nonlocal alive, most
            super().__init__(found.where, found.what)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    dataset = loading.DATASETS["svo_probes"]
    counting = type(dataset)(
        dataset.spec, lambda spec: map(Counted, dataset.candidates(spec)), "", "", excluded="svo_probes"
    )
    monkeypatch.setitem(loading.DATASETS, "svo_probes", counting)
    pairs = loading.load_unopened(spec(folder, n=5))
    assert len(pairs) == 5 and most <= 8


def test_pictures_are_opened_when_pairs_are_loaded_and_not_kept(folder: Path) -> None:
    assert all(isinstance(prompt.image, Path) for pair in drawn(folder, n=3) for prompt in (pair.clean, pair.corrupted))


def spec(folder: Path, **options: Any) -> Any:
    kind = loading.DATASETS["svo_probes"].spec
    return kind.model_validate({"dataset": "svo_probes", "path": str(folder), **options})


@pytest.mark.parametrize("dataset", ["visual_jenga", "fer2013", "iconqa", "gqa", "folder"])
def test_a_place_that_cannot_be_looked_at_is_refused(dataset: str) -> None:
    says(refusal(lambda: vp.load_pairs(dataset, path="x" * 300)), "xxx", "File name too long")


def test_ids_of_no_pair_are_told_of(folder: Path, tmp_path: Path) -> None:
    pairs = vp.load_pairs("svo_probes", path=folder, n=4)
    (tmp_path / "ids.json").write_text(json.dumps([pairs[0].id, "zzz"]))
    with pytest.warns(UserWarning, match="lists 2 ids, and 1 of them are of none of the 4 pairs, such as 'zzz'"):
        assert len(vp.load_pairs("svo_probes", path=folder, n=4, ids=str(tmp_path / "ids.json"))) == 1


def test_a_bad_row_says_where_once() -> None:
    assert str(BadRow("a.csv, line 3", "empty", "a.csv, line 3: it is empty.")) == "a.csv, line 3: it is empty."
    assert str(BadRow("a.csv, line 3", "it is empty")) == "a.csv, line 3: it is empty."


# What a model cannot take


def spec_of(folder: Path, **changes: Any) -> vp.Experiment:
    pairs = {"dataset": "svo_probes", "path": str(folder), "keep": "all", "on_error": "skip"}
    return vp.Experiment.from_dict(changed(BLIP, {"pairs": {**pairs, **changes}, "patch.layers": [0]}))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Six rows: of two the model lacks the answer, of one both pictures are the same."""
    rows = many(6)
    for i in (1, 4):
        rows[i] = svo_row(i, "A circle touches the zebra.", "circle,touch,zebra", "circle,touch,star", "object")
    folder = svo_probes(tmp_path, rows)
    picture(folder / "images" / "0.jpg", 7)
    picture(folder / "images" / "1.jpg", 7)
    return folder


def test_pairs_that_the_model_cannot_take_are_dropped_and_counted_in_the_result(mixed: Path, tmp_path: Path) -> None:
    experiment = spec_of(mixed)
    ds = vp.run(experiment, progress=False)
    assert ds.sizes["example"] == 3
    assert ds.attrs["pairs_considered"] == 6
    assert json.loads(ds.attrs["pairs_dropped"]) == {
        "error: the model's vocabulary lacks the answer": 2,
        "error: its images are the same picture": 1,
    }
    bundle = vp.bundle.save(experiment, ds, tmp_path / "b.vlmp.zip", figures={})
    with opened(bundle) as contents:
        assert [pair.id for pair in contents.pairs] == ds["example"].values.tolist()
    assert vp.plan(experiment).pairs == 3


def test_without_skipping_the_first_of_them_is_an_error(mixed: Path) -> None:
    experiment = vp.Experiment.from_dict(
        changed(BLIP, {"pairs": {"dataset": "svo_probes", "path": str(mixed), "keep": "all"}})
    )
    says(refusal(lambda: vp.run(experiment, progress=False)), "Pair '")


def test_where_no_pair_is_left_the_most_frequent_error_is_told(mixed: Path) -> None:
    experiment = vp.Experiment.from_dict(changed(spec_of(mixed).to_dict(), {"patch.positions": ["subjct"]}))
    message = refusal(lambda: vp.run(experiment, progress=False))
    says(message, "No pair is left", "the model cannot take it (3)", "'subjct'", "Did you mean 'subject'?")


def test_a_run_says_how_many_candidates_there_were(mixed: Path, command: Command) -> None:  # noqa: F811
    (mixed / "spec.yaml").write_text(spec_of(mixed).to_yaml())
    said = command("run", str(mixed / "spec.yaml"), "-o", str(mixed / "a.zarr"))
    assert said.code == 0, said.err
    says(said.out, "3 pairs of 6 candidates; dropped: error: the model's vocabulary lacks the answer (2), ")


# One size for all


def test_pictures_and_regions_are_brought_to_the_size_that_is_asked_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mypairs", RECORD)
    picture(folder / "red.png", 3)  # 32 × 32; the other is 96 × 96
    record = changed(RECORD, {"regions": {"object": [1, 2, 31, 30]}})
    (folder / "pairs.jsonl").write_text(json.dumps(record))
    (pair,) = vp.load_pairs("folder", path=folder, size=[64, 16])
    assert {p.size for prompt in (pair.clean, pair.corrupted) for p in prompt.pictures()} == {(64, 16)}
    assert pair.regions == {"object": (2, 1, 62, 15)}
    assert vp.load_pairs("folder", path=folder)[0].clean.picture().size == (32, 32)
    says(refusal(lambda: vp.load_pairs("folder", path=folder, size=[64])), "pairs.size")
    says(refusal(lambda: vp.load_pairs("folder", path=folder, size=[64, 0])), "pairs.size", "at least 1", "0")


def test_pictures_of_different_sizes_run_once_they_are_of_one(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tmp_path_factory.mktemp("qwen2_vl")
    all_known()["qwen2_vl"].build(model)
    folder = folder_of(tmp_path / "mypairs", changed(RECORD, {"corrupted.text": RECORD["clean"]["text"]}))
    Image.new("RGB", (160, 80), "red").save(folder / "red.png")
    pairs = {"dataset": "folder", "path": str(folder), "keep": "all"}
    patch = {"sites": ["language.resid_post"], "layers": [0], "positions": ["last"]}
    spec = changed(BLIP, {"model.name": str(model), "pairs": pairs, "patch": patch})
    says(refusal(lambda: vp.run(vp.Experiment.from_dict(spec), progress=False)), "differ in size", "pairs.size")
    ds = vp.run(vp.Experiment.from_dict(changed(spec, {"pairs.size": [80, 80]})), progress=False)
    assert ds.sizes["example"] == 1


def test_answers_may_begin_with_a_capital_letter_as_models_say_them(folder: Path) -> None:
    plain, pairs = drawn(folder, n=6), drawn(folder, n=6, capitalized=True)
    assert [pair.answer for pair in pairs] == [pair.answer.capitalize() for pair in plain]
    assert [pair.foil for pair in pairs] == [pair.foil.capitalize() for pair in plain]
    assert [(pair.clean.text, pair.spans) for pair in pairs] == [(pair.clean.text, pair.spans) for pair in plain]
