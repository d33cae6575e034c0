"""What the tests of datasets share: small files in each dataset's own format, with other content."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SVO = [
    *("sentence", "pos_triplet", "neg_triplet", "pos_url", "neg_url"),
    *("pos_image_id", "neg_image_id", "subj_neg", "verb_neg", "obj_neg"),
]
ROLES = ("subject", "verb", "object")


def picture(path: Path, number: int = 0, size: tuple[int, int] = (32, 32)) -> Path:
    """A picture of its own colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (number * 37 % 256, number * 91 % 256, number * 151 % 256)
    Image.new("RGB", size, color).save(path)
    return path


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def svo_row(number: int, sentence: str, triplet: str, other: str, role: str) -> list[Any]:
    """A row of svo_probes.csv about the images 2 · number and 2 · number + 1, which differ in a role."""
    flags = [each == role for each in ROLES]
    return [sentence, triplet, other, "http://a/p.jpg", "http://a/n.jpg", 2 * number, 2 * number + 1, *flags]


def svo_probes(folder: Path, rows: Sequence[Sequence[Any]]) -> Path:
    """svo_probes.csv, and every image that it names."""
    table(folder / "svo_probes.csv", SVO, rows)
    for number in {int(row[at]) for row in rows for at in (5, 6)}:
        picture(folder / "images" / f"{number}.jpg", number)
    return folder


def many(count: int) -> list[list[Any]]:
    """So many rows of svo_probes.csv, of known words."""
    nouns = ["circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond"]
    rows = []
    for i in range(count):
        subject, thing, other = (nouns[(i + k) % 8] for k in (0, 1 + i % 3, 4 + i % 3))
        words = f"{subject},touch,{thing}", f"{subject},touch,{other}"
        rows.append(svo_row(i, f"A {subject} touches the {thing}.", *words, "object"))
    return rows


def mit_states(folder: Path, counts: dict[str, int]) -> Path:
    """Folders "adjective noun" of images/, each with so many pictures."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(folder / "images" / name / f"{i}.jpg", 10 * number + i)
    return folder


def face(number: int) -> str:
    """The pixels of a face, as fer2013.csv has them: a ramp from its own grey on."""
    return " ".join(str((number + i) % 256) for i in range(48 * 48))


def fer_table(path: Path, emotions: Sequence[int], usages: Sequence[str] = ()) -> Path:
    """fer2013.csv, of a face for every number of an emotion."""
    usage = [usages[i] if i < len(usages) else "Training" for i in range(len(emotions))]
    rows = [(emotion, face(7 * i), usage[i]) for i, emotion in enumerate(emotions)]
    return table(path, ("emotion", "pixels", "Usage"), rows)


def fer_folders(folder: Path, splits: dict[str, dict[str, int]]) -> Path:
    """Folders of the emotions' names in folders of splits ("" for none), each with so many pictures."""
    for split, counts in splits.items():
        for emotion, count in counts.items():
            for i in range(count):
                picture(folder / split / emotion / f"{emotion}_{i}.jpg", len(emotion) + i)
    return folder
