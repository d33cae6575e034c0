"""Time how pairs are made of a dataset's files:  python benchmarks/pairs.py

A table as large as SVO-Probes (48,000 rows about 14,000 pictures) is generated, and shorter ones; each figure is of a
process of its own. The record goes to benchmarks/results, and the page beside it is written anew.

(It is not called datasets.py: beside the other scripts that would stand before the package of that name.)
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import Record
from memory import peak_of
from PIL import Image
from report import machine, now, render, write
from sweeps import sweeps

from vlm_patching.pairs import Pairs, load_pairs
from vlm_patching.pairs.datasets.svo_probes import SvoProbes
from vlm_patching.pairs.loading import load_unopened

HERE = Path(__file__).resolve().parent
ROWS, PICTURES = 48_000, 14_000
SAMPLE = 500
TARGET = 2_000
"""Pairs a second, without opening pictures."""
_NOUNS = ("man", "woman", "boy", "girl", "dog", "cat", "horse", "child", "bird", "cow")
_VERBS = ("sit", "stand", "lie", "run", "walk", "jump", "play", "ride", "hold", "eat")
_THINGS = ("bench", "grass", "beach", "street", "field", "table", "chair", "road", "park", "car")
_COLUMNS = "sentence pos_triplet neg_triplet pos_url neg_url pos_image_id neg_image_id subj_neg verb_neg obj_neg"


def main() -> None:
    """Measure everything; or, in a process of its own, one thing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs=4, metavar=("FOLDER", "ROWS", "PAIRS", "PICTURES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        folder, rows, pairs, opened = arguments.work
        print(json.dumps(_measured(Path(folder), int(rows), int(pairs) or None, opened == "opened")))
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        todo = [(rows, SAMPLE, "unopened") for rows in (ROWS // 4, ROWS // 2, ROWS)]
        todo += [(ROWS, 0, "unopened"), (ROWS, SAMPLE, "opened")]
        rows = [_in_a_process(folder, *each) for each in todo]
    slow = [row["what"] for row in rows if "opened" not in row["what"] and row["rows_per_second"] < TARGET]
    failures = [f"{what}: fewer than {TARGET:,} rows a second" for what in slow]
    record: Record = {"name": "pairs", "dtype": "float32", "rows": rows, "failures": failures}
    record |= {"machine": machine(1, "cpu"), **now()}
    write(HERE / "results", record)
    (HERE / "RESULTS.md").write_text(render(HERE / "results", [*sweeps(False, "cpu"), "memory", "examples"]))
    for row in rows:
        print(row)
    if failures:
        sys.exit("FAILED\n" + "\n".join(failures))


def generate(folder: Path) -> None:
    """Tables of 12,000, 24,000 and 48,000 rows in SVO-Probes' format, each in a folder with the pictures it names."""
    draw = random.Random(0)
    (folder / "images").mkdir()
    for i in range(10):
        Image.effect_noise((320, 240), 60).convert("RGB").save(folder / "images" / f"{i}.jpg")
    for i in range(10, PICTURES):
        os.link(folder / "images" / f"{i % 10}.jpg", folder / "images" / f"{i}.jpg")
    rows = [_row(draw) for _ in range(ROWS)]
    for count in (ROWS // 4, ROWS // 2, ROWS):
        place = folder / str(count)
        place.mkdir()
        (place / "images").symlink_to(folder / "images")
        with (place / "svo_probes.csv").open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS.split(), *rows[:count]])


def _row(draw: random.Random) -> list[Any]:
    words = [draw.choice(_NOUNS), draw.choice(_VERBS), draw.choice(_THINGS)]
    place = draw.randrange(3)
    others = list(words)
    others[place] = draw.choice([word for word in (_NOUNS, _VERBS, _THINGS)[place] if word != words[place]])
    address = "https://example.org/" + "x" * 60
    pictures = [draw.randrange(PICTURES), draw.randrange(PICTURES)]
    sentence = f"A {words[0]} {words[1]}s on the {words[2]}."
    return [sentence, ",".join(words), ",".join(others), address, address, *pictures, *(place == i for i in range(3))]


def _in_a_process(folder: str, rows: int, pairs: int, opened: str) -> Record:
    command = [sys.executable, __file__, "--work", f"{folder}/{rows}", str(rows), str(pairs), opened]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Record = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(folder: Path, rows: int, pairs: int | None, opened: bool) -> Record:
    spec = SvoProbes(dataset="svo_probes", path=str(folder), n=pairs)

    def work() -> int:
        made: Pairs = load_pairs("svo_probes", path=folder, n=pairs) if opened else load_unopened(spec)
        assert made.considered == rows
        return len(made)

    found = peak_of(work, "cpu")
    what = f"{'all' if pairs is None else pairs} of {rows:,} rows{', pictures opened' if opened else ''}"
    return found | {"what": what, "rows_per_second": rows / found["seconds"]}


if __name__ == "__main__":
    main()
