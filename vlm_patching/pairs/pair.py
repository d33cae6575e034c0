"""Clean/corrupted pairs of prompts, with the spans and regions that positions are named by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from vlm_patching.errors import SpecError
from vlm_patching.pairs.pictures import Picture, opened

SUBJECT_ROLES = ("subject_first", "subject_middle", "subject_last", "first_subsequent", "further")
"""Position groups around a span `subject` (Meng et al. 2022); their sixth is `last`."""
RESERVED = (
    "all",
    "question",
    "text",
    "last",
    "image",
    "decoding",
    "cls",
    "separator",
    "other",
    "regions",
    "thumbnail",
    "position",
    "edges",
    *SUBJECT_ROLES,
)
"""Names of position groups that every pair has, which its own spans and regions cannot take."""

Span = tuple[int, int]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Prompt:
    """A text, and the images in front of it: mostly one.

    Attributes
    ----------
    image
        A picture, or where one is (a path, or a `StoredPicture`: read when it is needed); several of them; or None.
    text
        The question, as the user writes it; a model's chat template is put around it later.
    """

    image: Picture | tuple[Picture, ...] | None
    text: str

    @property
    def images(self) -> tuple[Picture, ...]:
        """Every image, as it was given."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)

    def pictures(self) -> tuple[Image.Image, ...]:
        """Every image in RGB; `SpecError` where a file is missing or broken."""
        return tuple(map(opened, self.images))

    def picture(self) -> Image.Image:
        """The first image in RGB; `SpecError` where there is none, or its file is missing or broken."""
        if not self.images:
            raise SpecError(f"the prompt {self.text!r} has no image.")
        return opened(self.images[0])

    def with_picture(self, picture: Image.Image) -> Prompt:
        """The prompt with another first image."""
        return Prompt((picture, *self.images[1:]) if len(self.images) > 1 else picture, self.text)


@dataclass(frozen=True)
class Pair:
    """A clean prompt, its corrupted counterpart, and what is measured between them.

    Attributes
    ----------
    id
        Unique within a dataset; the `example` coordinate of results.
    clean, corrupted
        The two prompts. Which of the corrupted prompt's image and text a run takes is the corruption's choice.
    answer, foil
        The correct answer to the clean prompt, and the wrong answer it is measured against.
    spans, spans_corrupted
        Character ranges by name, [start, end), of the clean and of the corrupted text.
    regions
        Pixel boxes by name, x0, y0, x1, y1 (ends excluded), of the clean prompt's (first) image.
    task
        What kind of question it is, where a dataset has several; the `task` coordinate of results.

    Raises
    ------
    SpecError
        An empty text, a span that is not in the text, an empty region, a name that is already taken, or an answer equal
        to its foil.
    """

    id: str
    clean: Prompt
    corrupted: Prompt
    answer: str
    foil: str
    spans: Mapping[str, Span] = field(default_factory=dict)
    spans_corrupted: Mapping[str, Span] = field(default_factory=dict)
    regions: Mapping[str, Box] = field(default_factory=dict)
    task: str = ""

    def __post_init__(self) -> None:
        if not self.clean.text.strip() or not self.corrupted.text.strip():
            raise SpecError(f"Pair {self.id!r}: a text is empty.")
        for kind, names in (("span", {*self.spans, *self.spans_corrupted}), ("region", {*self.regions})):
            for name in names:
                if name in RESERVED or not name.isidentifier():
                    raise SpecError(
                        f"Pair {self.id!r}: a {kind} cannot be called {name!r}. A name is made of letters, digits and "
                        f"_, does not begin with a digit, and is none of {', '.join(RESERVED)}, which are taken."
                    )
        for text, spans in ((self.clean.text, self.spans), (self.corrupted.text, self.spans_corrupted)):
            for name, (start, end) in spans.items():
                if not 0 <= start < end <= len(text):
                    raise SpecError(
                        f"Pair {self.id!r}: span {name!r} is [{start}, {end}], which is not in the text {text!r} "
                        f"of {len(text)} characters; a span is [start, end) with 0 <= start < end <= {len(text)}."
                    )
        for name, (x0, y0, x1, y1) in self.regions.items():
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise SpecError(
                    f"Pair {self.id!r}: region {name!r} is [{x0}, {y0}, {x1}, {y1}]; a region is [x0, y0, x1, y1] in "
                    "pixels, with 0 <= x0 < x1 and 0 <= y0 < y1."
                )
        for name, word in (("answer", self.answer), ("foil", self.foil)):
            if not word.strip():
                raise SpecError(f"Pair {self.id!r}: the {name} is empty.")
        if self.answer.strip() == self.foil.strip():
            raise SpecError(f"Pair {self.id!r}: answer and foil are both {self.answer!r}; they must differ.")


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """SHA-256 over all that pairs hold, pixels included: two results of one digest are of the same pairs."""
    digest = hashlib.sha256()
    for pair in pairs:
        words = [pair.id, pair.clean.text, pair.corrupted.text, pair.answer, pair.foil]
        places = [dict(sorted(part.items())) for part in (pair.spans, pair.spans_corrupted, pair.regions)]
        digest.update(json.dumps([words, places]).encode())
        for prompt in (pair.clean, pair.corrupted):
            for picture in prompt.pictures():
                digest.update(f"{picture.size}".encode() + picture.tobytes())
    return digest.hexdigest()
