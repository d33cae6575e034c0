"""SVO-Probes: questions that read as English, about the word in which two pictures differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vlm_patching as vp
from tests.datasets.kit import SVO, many, svo_probes, svo_row, table
from tests.refusals import refusal, says
from vlm_patching.pairs.candidates import Choice
from vlm_patching.pairs.datasets import svo_probes as dataset

CASES = [
    (
        ("A girl sits on a bench.", "girl,sit,bench", "girl,sit,chair", "object"),
        ("Is a girl sitting on a bench or a chair?", "bench", "chair"),
    ),
    (
        ("The girl is sitting on the bench", "girl,sit,bench", "girl,stand,bench", "verb"),
        ("Is the girl sitting or standing on the bench?", "sitting", "standing"),
    ),
    (
        ("A young girl sat on her bench.", "girl,sit,bench", "dog,sit,bench", "subject"),
        ("Is a girl or a dog sitting on her bench?", "girl", "dog"),
    ),
    (
        ("People ride horses on the beach.", "person,ride,horse", "person,ride,bike", "object"),
        ("Are people riding horses or bikes?", "horses", "bikes"),
    ),
    (
        ("Two women are standing in the grass.", "woman,stand,grass", "woman,lie,grass", "verb"),
        ("Are women standing or lying in the grass?", "standing", "lying"),
    ),
    (
        ("A man holds an umbrella.", "man,hold,umbrella", "['man,hold,guitar', 'man,play,guitar']", "object"),
        ("Is a man holding an umbrella or a guitar?", "umbrella", "guitar"),
    ),
    (
        ("A child eats an apple", "child,eat,apple", "child,eat,rice", "object"),
        ("Is a child eating an apple or rice?", "apple", "rice"),
    ),
    (
        ("A woman walks in front of the house.", "woman,walk,house", "woman,run,house", "verb"),
        ("Is a woman walking or running in front of the house?", "walking", "running"),
    ),
    (
        ("The dogs lay on the beach", "dog,lie,beach", "cow,lie,beach", "subject"),
        ("Are the dogs or the cows lying on the beach?", "dogs", "cows"),
    ),
]


def asked(row: list[Any], folder: Path) -> vp.Pair:
    svo_probes(folder, [row])
    (pair,) = vp.load_pairs("svo_probes", path=folder)
    return pair


@pytest.mark.parametrize(("row", "asked_for"), CASES)
def test_the_question_reads_as_english_and_its_spans_say_the_words(
    tmp_path: Path, row: tuple[str, str, str, str], asked_for: tuple[str, str, str]
) -> None:
    role, (question, answer, foil) = row[3], asked_for
    pair = asked(svo_row(4, *row), tmp_path)
    assert (pair.clean.text, pair.answer, pair.foil, pair.task) == (question, answer, foil, role)
    assert pair.corrupted.text == question
    words = {name: question[slice(*span)] for name, span in pair.spans.items()}
    assert words["answer_option"] == answer == words[role] and words["foil_option"] == foil
    assert {"subject", "verb", "object"} <= set(words)
    assert (pair.clean.image, pair.corrupted.image) == tuple(tmp_path / "images" / f"{n}.jpg" for n in (8, 9))
    assert pair.id.startswith(f"{role}-8-9-")


@pytest.mark.parametrize(
    ("sentence", "own", "other", "role", "reason"),
    [
        ("A bench is sat on by a girl", "girl,sit,bench", "girl,sit,chair", "object", "in this order"),
        (
            "A girl sits with a dog on a bench",
            "girl,sit,bench",
            "girl,sit,chair",
            "object",
            "other words stand between",
        ),
        ("A girl sits on a bench", "girl,sit,bench", "girl,stand,chair", "object", "do not differ in the word"),
        ("A girl sits on a bench", "girl,sit,bench", "['[]']", "object", "do not differ in the word"),
        ("A girl sits on a bench", "girl,sit,bench", "person,sit,bench", "subject", "nearly the same"),
        ("A girl sits on a bench", "girl,sit,bench", "girl,sit,Bench", "object", "do not differ"),
    ],
)
def test_a_row_that_makes_no_fair_question_is_left_out_and_counted(
    tmp_path: Path, sentence: str, own: str, other: str, role: str, reason: str
) -> None:
    svo_probes(tmp_path, [*many(2), svo_row(9, sentence, own, other, role)])
    dropped = vp.load_pairs("svo_probes", path=tmp_path).dropped
    assert [reason in said for said in dropped] == [True] and list(dropped.values()) == [1]


def test_a_row_that_is_there_twice_is_one_pair(tmp_path: Path) -> None:
    rows = many(3)
    pairs = vp.load_pairs("svo_probes", path=svo_probes(tmp_path, [*rows, rows[1]]))
    assert len(pairs) == 3 and pairs.dropped == {"the same row is there before": 1}


def test_only_roles_that_are_asked_for_are_taken(tmp_path: Path) -> None:
    svo_probes(tmp_path, [svo_row(i, *row) for i, (row, _) in enumerate(CASES)])
    for role in ("subject", "verb", "object"):
        pairs = vp.load_pairs("svo_probes", path=tmp_path, roles=[role])
        assert {pair.task for pair in pairs} == {role}
        assert len(pairs) == sum(row[3] == role for row, _ in CASES)
        assert pairs.dropped["its role is not asked for"] == len(CASES) - len(pairs)


def test_an_image_of_any_ending_is_found_by_its_id(tmp_path: Path) -> None:
    svo_probes(tmp_path, many(1))
    (tmp_path / "images" / "0.jpg").rename(tmp_path / "images" / "0.webp")
    (pair,) = vp.load_pairs("svo_probes", path=tmp_path)
    assert pair.clean.image == tmp_path / "images" / "0.webp"


def test_a_folder_without_images_or_with_another_table_is_refused(tmp_path: Path) -> None:
    says(refusal(lambda: vp.load_pairs("svo_probes", path=tmp_path)), str(tmp_path / "images"), "does not exist")
    (tmp_path / "images").mkdir()
    says(
        refusal(lambda: vp.load_pairs("svo_probes", path=tmp_path)), str(tmp_path / "svo_probes.csv"), "does not exist"
    )
    table(tmp_path / "svo_probes.csv", [name.replace("subj_neg", "subject_neg") for name in SVO], many(1))
    says(
        refusal(lambda: vp.load_pairs("svo_probes", path=tmp_path)),
        *("svo_probes.csv, line 1", "'subj_neg'", "Did you mean 'subject_neg'?"),
    )


def test_every_candidate_tells_its_words_by_role(tmp_path: Path) -> None:
    svo_probes(tmp_path, [svo_row(i, *row) for i, (row, _) in enumerate(CASES)])
    kind = dataset.SvoProbes.model_validate({"dataset": "svo_probes", "path": str(tmp_path)})
    found = [each.what for each in dataset.candidates(kind)]
    assert all(isinstance(what, Choice) for what in found)
    words = vp.load_pairs("svo_probes", path=tmp_path, n=1).vocabulary.words
    assert words["verb"] == {"lying": "lie", "running": "run", "sitting": "sit", "standing": "stand", "walking": "walk"}
    assert set(words["object"]) == {"apple", "bench", "chair", "guitar", "rice", "umbrella"}
    assert words["object, plural"] == {"bikes": "bike", "horses": "horse"}
