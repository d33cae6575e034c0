"""FineCops-Ref (Liu et al. 2024): expressions that pick out an object, and hard negatives of them.

Files, of figshare.com/articles/dataset/26048050: the annotations with negatives in the format of COCO,
`test_expression_all_coco_format.json`, `expression_all_train_set_coco_format.json` or
`expression_all_val_set_coco_format.json`; `images/ID.jpg`, the images of GQA; and for `negatives: image` the files
`neg_*` out of neg_images.tgz, in `final_neg_images/`, `neg_images/` or `images/`. An entry of `images` has id,
file_name, width, height; one of `annotations` has image_id, bbox (x, y, width, height), expression (or caption), tuple
(whose first word is the object), and of a negative positive_id, negative_cate (text or image) and negative_type.

Pair rule: clean is the positive, "Does this picture show the boy on the brown horse, yes or no?"; the answer is yes.

- `negatives: image`: the corrupted image is the negative one, in which what the expression says was changed.
- `negatives: text`: the image stays, and in the corrupted text the expression is the negative one: "... the boy on the
  white horse ...". The words in which they differ are the span `constraint`, so they need not be as many.

Held in memory: of every image its name, and of every positive its expression, object and box. The file is read thrice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from vlm_patching.pairs.candidates import Candidate, Choice, Dropped, Found, attempt, literal
from vlm_patching.pairs.datasets.base import YesNoSpec
from vlm_patching.pairs.pair import Box
from vlm_patching.pairs.pictures import Picture, Resized
from vlm_patching.pairs.reading.json_files import read_json
from vlm_patching.pairs.reading.rows import BadRow, Row

ABOUT = "expressions that pick out an object of a photograph, and hard negatives of them: other words or other images"
FILES = "test_expression_all_coco_format.json, neg_images.tgz (figshare.com, article 26048050), images/ of GQA"
_ANNOTATIONS = {
    "test": "test_expression_all_coco_format.json",
    "train": "expression_all_train_set_coco_format.json",
    "val": "expression_all_val_set_coco_format.json",
}
_NEGATIVES = ("final_neg_images", "neg_images", "images")
Kind = Literal["object", "attribute", "relation", "order", "flip", "swap_attr"]


class FineCopsRef(YesNoSpec):
    """FineCops-Ref: an expression and its image, and a hard negative of one of them.

    Attributes
    ----------
    path
        The folder with the annotations and the folders of images.
    split
        test, train or val.
    negatives
        `image`: the corrupted image is a negative one. `text`: the corrupted text has a negative expression.
    types
        Only negatives of these types; all where not given. It is the pair's `task`.
    """

    dataset: Literal["finecops_ref"]
    split: Literal["test", "train", "val"] = "test"
    negatives: Literal["image", "text"] = "image"
    types: tuple[Kind, ...] | None = Field(default=None, min_length=1)


@dataclass(frozen=True, slots=True)
class _Positive:
    """An expression, the name of its image, the object it is about, and where this is."""

    expression: str
    image: str
    subject: str
    box: Box


def candidates(spec: FineCopsRef) -> Iterator[Found]:
    """A question of every negative."""
    path = spec.folder / _ANNOTATIONS[spec.split]
    images: dict[int, tuple[str, tuple[int, int]]] = {}
    for row in read_json(path, "images"):
        try:
            entry = _entry(row)
            images[entry.whole("id")] = entry.text("file_name"), (entry.whole("width"), entry.whole("height"))
        except BadRow as error:
            yield Found(row.where, error)
    positives: dict[int, _Positive] = {}
    for row in read_json(path, "annotations"):
        try:
            entry = _entry(row)
            if entry.values.get("negative_cate") is None:
                positives[entry.whole("id")] = _positive(entry, images)
        except BadRow as error:
            yield Found(row.where, error)
    for row in read_json(path, "annotations"):
        if isinstance(row, Row) and row.values.get("negative_cate") is not None:
            yield Found(row.where, attempt(partial(_question, spec, row, images, positives), row.where))


def _entry(row: Row | BadRow) -> Row:
    if isinstance(row, BadRow):
        raise row
    return row


def _positive(row: Row, images: Mapping[int, tuple[str, tuple[int, int]]]) -> _Positive:
    name, size = _image(row, images)
    chain = row.value("tuple")
    try:
        subject = str(chain[0][0])
    except (IndexError, KeyError, TypeError) as error:
        raise row.bad("'tuple' does not begin with an object", f" but is {chain!r}") from error
    return _Positive(_expression(row), name, subject, row.box("bbox", size))


def _image(row: Row, images: Mapping[int, tuple[str, tuple[int, int]]]) -> tuple[str, tuple[int, int]]:
    number = row.whole("image_id")
    if number not in images:
        raise row.bad("'image_id' is the id of no image", f": {number}")
    return images[number]


def _expression(row: Row) -> str:
    """An expression as it stands inside of a sentence: without a full stop, and with a small letter."""
    words = row.text("expression" if "expression" in row.values else "caption").rstrip(" .")
    if not words:
        raise row.bad("its expression is empty")
    return words[0].lower() + words[1:] if words[1:2].islower() or words[1:2] == " " else words


def _question(
    spec: FineCopsRef,
    row: Row,
    images: Mapping[int, tuple[str, tuple[int, int]]],
    positives: Mapping[int, _Positive],
) -> Candidate:
    where, kind = row.text("negative_cate"), row.text("negative_type")
    if where not in ("text", "image"):
        raise row.bad("'negative_cate' is neither text nor image", f" but {where!r}")
    if where != spec.negatives:
        return Dropped(f"its negative is of another kind: {where}")
    if spec.types is not None and kind not in spec.types:
        return Dropped("its type is not asked for")
    positive = positives.get(row.whole("positive_id"))
    if positive is None:
        raise row.bad("'positive_id' is the id of no positive", f": {row.value('positive_id')}")
    clean = spec.folder / "images" / positive.image
    corrupted: Picture = clean
    asked = _Asked(positive.expression)
    if spec.negatives == "image":
        corrupted = Resized(_negative(spec.folder, _image(row, images)[0]), clean)
    else:
        asked = _Asked.differing(positive.expression.split(), _expression(row).split())
        if asked.own == asked.other:
            return Dropped("its expression is that of its positive")
    said, subject = asked.around(positive.subject)
    return Choice(
        id=f"{row.whole('positive_id')}-{row.whole('id')}",
        question=f"Does this picture show {said}, {{first}} or {{second}}?",
        answer=spec.yes_no[0],
        foil=spec.yes_no[1],
        clean=clean,
        corrupted=corrupted,
        words={**subject, **({"constraint": asked.own} if asked.own else {})},
        corrupted_words={"constraint": asked.other} if asked.own else {},
        role="truth",
        regions={"object": positive.box},
        task=kind,
    )


def _negative(folder: Path, name: str) -> Path:
    """Where a negative image is; in the last folder that it may be in, where it is in none."""
    places = [folder / inside / name for inside in _NEGATIVES]
    return next((place for place in places if os.path.isfile(place)), places[-1])  # of any name


@dataclass(frozen=True, slots=True)
class _Asked:
    """An expression: what is other words in the negative one (nothing where it is the same), and what is around it."""

    before: str
    own: str = ""
    other: str = ""
    behind: str = ""

    @classmethod
    def differing(cls, own: Sequence[str], other: Sequence[str]) -> _Asked:
        """Of the words of two.

        Where one only has more words than the other, the word ahead of them (or behind) is counted among them, so that
        neither is empty.
        """
        most = min(len(own), len(other))
        begin = next((i for i in range(most) if own[i] != other[i]), most)
        end = next((i for i in range(most - begin) if own[-1 - i] != other[-1 - i]), most - begin)
        if begin + end == most and own != other:
            begin, end = (begin - 1, end) if begin else (begin, end - 1)
        before, behind = own[:begin], own[len(own) - end :]
        mine, theirs = (" ".join(words[begin : len(words) - end]) for words in (own, other))
        return cls(" ".join([*before, ""]), mine, theirs, " ".join(["", *behind]))

    def around(self, subject: str) -> tuple[str, dict[str, str]]:
        """The expression as a template, and the object's name where it says it once, outside of what is changed."""
        parts = (self.before, self.behind, self.own)
        said = [list(re.finditer(rf"\b{re.escape(subject)}\b", part, re.IGNORECASE)) for part in parts]
        once = [len(there) for there in said] in ([1, 0, 0], [0, 1, 0])
        before, behind = (
            f"{literal(part[: there[0].start()])}{{subject}}{literal(part[there[0].end() :])}"
            if once and there
            else literal(part)
            for part, there in zip(parts[:2], said[:2], strict=True)
        )
        name = (said[0] or said[1])[0][0] if once else ""
        return f"{before}{'{constraint}' if self.own else ''}{behind}", {"subject": name} if once else {}
