"""FER2013: faces of two emotions, out of a table of pixels or out of folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlm_patching as vp
from tests.datasets.kit import face, fer_folders, fer_table, table
from tests.refusals import refusal, says

WORDS = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")
EMOTIONS = [0, 3, 3, 4, 6, 6, 2]


def pixels(picture: Image.Image) -> list[int]:
    return np.asarray(picture.convert("L")).ravel().tolist()


def faces(emotions: Sequence[int]) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {word: [] for word in WORDS}
    for i, emotion in enumerate(emotions):
        found[WORDS[emotion]].append([int(value) for value in face(7 * i).split()])
    return found


def test_every_face_of_the_table_is_asked_about_with_one_of_another_emotion(tmp_path: Path) -> None:
    fer_table(tmp_path / "fer2013.csv", EMOTIONS)
    pairs = vp.load_pairs("fer2013", path=tmp_path)
    assert sorted(pair.answer for pair in pairs) == sorted(WORDS[emotion] for emotion in EMOTIONS)
    known = faces(EMOTIONS)
    for pair in pairs:
        assert pair.clean.picture().size == (48, 48)
        assert pixels(pair.clean.picture()) in known[pair.answer]
        assert pixels(pair.corrupted.picture()) in known[pair.foil] and pair.foil != pair.answer
        assert pair.clean.text in [
            f"Is this person feeling {a} or {b}?" for a, b in ((pair.answer, pair.foil), (pair.foil, pair.answer))
        ]
        assert pair.clean.text[slice(*pair.spans["answer_option"])] == pair.answer
    assert set(pairs.vocabulary.words["emotion"]) <= set(WORDS)


def test_a_split_of_the_table_is_its_usage(tmp_path: Path) -> None:
    fer_table(tmp_path / "fer2013.csv", [0, 3, 4, 6], ["Training", "PublicTest", "Training", "PublicTest"])
    pairs = vp.load_pairs("fer2013", path=tmp_path, split="publictest")
    assert {pair.answer for pair in pairs} == {"happy", "neutral"} == {pair.foil for pair in pairs}
    assert pairs.dropped == {"of another split": 2}
    message = refusal(lambda: vp.load_pairs("fer2013", path=tmp_path, split="PublicTset"))
    says(message, "pairs.split", "'PublicTset'", "Did you mean 'PublicTest'?", "Training")


def test_a_table_with_spaces_before_its_columns_and_without_usage_is_read(tmp_path: Path) -> None:
    rows = [(emotion, face(i)) for i, emotion in enumerate((0, 3))]
    table(tmp_path / "icml_face_data.csv", ("emotion", " pixels"), rows)
    assert len(vp.load_pairs("fer2013", path=tmp_path)) == 2
    message = refusal(lambda: vp.load_pairs("fer2013", path=tmp_path, split="Training"))
    says(message, "icml_face_data.csv, line 1", "'Usage'")


def test_the_same_face_twice_is_one_pair(tmp_path: Path) -> None:
    rows = [(0, face(1), "Training"), (3, face(2), "Training"), (0, face(1), "PublicTest"), (3, face(1), "Training")]
    table(tmp_path / "fer2013.csv", ("emotion", "pixels", "Usage"), rows)
    pairs = vp.load_pairs("fer2013", path=tmp_path)
    assert len(pairs) == 3 and list(pairs.dropped.values()) == [1]


@pytest.mark.parametrize("place", ["", "images"])
def test_faces_in_folders_are_found_with_and_without_splits(tmp_path: Path, place: str) -> None:
    fer_folders(tmp_path / place, {"train": {"angry": 2, "happy": 1}, "test": {"sad": 1, "surprise": 2}})
    pairs = vp.load_pairs("fer2013", path=tmp_path)
    assert len(pairs) == 6
    assert all(pair.clean.image.parent.name in ("angry", "happy", "sad", "surprise") for pair in pairs)
    test = vp.load_pairs("fer2013", path=tmp_path, split="test")
    assert {pair.answer for pair in test} == {"sad", "surprised"}
    says(refusal(lambda: vp.load_pairs("fer2013", path=tmp_path, split="tset")), "Did you mean 'test'?", "train")


def test_emotions_are_called_as_the_spec_says(tmp_path: Path) -> None:
    fer_folders(tmp_path, {"": {"fear": 1, "neutral": 1}})
    words = [*WORDS[:2], "afraid", *WORDS[3:]]
    assert {pair.answer for pair in vp.load_pairs("fer2013", path=tmp_path, words=words)} == {"afraid", "neutral"}
    for wrong in (words[:6], [*words[:6], "afraid"], [*words[:6], ""]):
        says(refusal(lambda wrong=wrong: vp.load_pairs("fer2013", path=tmp_path, words=wrong)), "pairs.words")


@pytest.mark.parametrize(
    ("row", "parts", "reason"),
    [
        ((9, face(5)), ("'emotion'", "0 to 6", "9"), "'emotion' is no number from 0 to 6"),
        (("joy", face(5)), ("'emotion'", "whole number", "'joy'"), "'emotion' is no whole number"),
        ((4, ""), ("'pixels'", "empty"), "'pixels' is empty"),
        ((4, "1 2 3"), ("48 × 48",), "an image cannot be read"),
        ((4, face(5).replace(" 9 ", " 999 ")), ("48 × 48",), "an image cannot be read"),
        ((4, face(5).replace(" 9 ", " x ")), ("48 × 48",), "an image cannot be read"),
    ],
    ids=["emotion", "no-number", "no-pixels", "few-pixels", "large-pixel", "odd-pixel"],
)
def test_a_bad_row_of_the_table_is_named_or_skipped(
    tmp_path: Path, row: tuple[Any, str], parts: tuple[str, ...], reason: str
) -> None:
    rows = [(0, face(1), "Training"), (*row, "Training"), (3, face(2), "Training"), (6, face(3), "Training")]
    path = table(tmp_path / "fer2013.csv", ("emotion", "pixels", "Usage"), rows)
    says(refusal(lambda: vp.load_pairs("fer2013", path=tmp_path)), str(path), *parts)
    for seed in range(4):  # a broken picture may be drawn as another's corrupted one, too
        skipped = vp.load_pairs("fer2013", path=tmp_path, on_error="skip", seed=seed)
        assert 1 <= len(skipped) <= 3 and set(skipped.dropped) == {f"error: {reason}"}


def test_a_folder_without_faces_is_refused(tmp_path: Path) -> None:
    says(refusal(lambda: vp.load_pairs("fer2013", path=tmp_path)), str(tmp_path), "fer2013.csv", "angry", "surprise")
    fer_folders(tmp_path, {"": {"angry": 3}})
    says(refusal(lambda: vp.load_pairs("fer2013", path=tmp_path)), "no pair left", "there is no other emotion (3)")
