"""What every position of a stack is: modality, role, token; for image positions row, column and pixel box.

Positions are chosen by selectors: a group's name (all of its positions are patched together, as one cell), ``each:``
and a group (one cell a position), ``all`` (``each`` of every position of the stack) or a token index (negative from
the end).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_patching.errors import SpecError, nearest
from vlm_patching.pairs.pair import Box

Selector = str | int


@dataclass(frozen=True)
class Position:
    """One position of a stack.

    Attributes
    ----------
    label
        Its value on the `position` dimension: the index in a text stack, ``r0c3`` for a patch (``i1t2r0c3`` of several
        pictures and tiles), ``q4`` for a latent, `cls`, `decoding`.
    modality
        `text` or `image`; `padding` of a picture that is smaller than others.
    role
        Name of the narrowest span or region it lies in, else `question`, `template`, `special`, `image`.
    token
        The token's text.
    row, col
        Place in the patch grid, counted from the top left; -1 where there is none.
    box
        What it covers of the original picture, in pixels.
    image, tile
        Which of the prompt's pictures, and which part of it that was encoded by itself (-1: all of it, seen small).
    """

    label: str
    modality: str
    role: str
    token: str
    row: int = -1
    col: int = -1
    box: Box | None = None
    image: int = 0
    tile: int = 0


@dataclass(frozen=True)
class Chosen:
    """What one selector means in one example: indices that are patched together, under one label.

    Attributes
    ----------
    selector
        What they were chosen by; "" where by none.
    labels
        Each position's own label, where they are the keys of attention.
    """

    label: str
    indices: tuple[int, ...]
    selector: Selector = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class StackPositions:
    """All positions of one stack in one example, its groups (name → indices), and the groups the model does not see."""

    stack: str
    positions: tuple[Position, ...]
    groups: Mapping[str, tuple[int, ...]]
    unseen: tuple[str, ...] = ()

    def has(self, selector: Selector) -> bool:
        """Whether a selector means anything here."""
        if isinstance(selector, int):
            return -len(self.positions) <= selector < len(self.positions)
        return selector.removeprefix("each:") in (*self.groups, "all")

    def choose(self, selector: Selector) -> list[Chosen]:
        """The cells' positions that a selector stands for.

        Raises
        ------
        SpecError
            An index past the end, or a group that this example does not have; what it has is listed.
        """
        if isinstance(selector, int):
            if not self.has(selector):
                raise SpecError(
                    f"position {selector} does not exist: the {self.stack} has {len(self.positions)} positions"
                )
            return [Chosen(str(selector), (selector % len(self.positions),), selector)]
        name = selector.removeprefix("each:")
        if name in self.unseen:
            raise SpecError(f"{name} lies outside of what the model's image processor leaves of the picture")
        if not self.has(selector):
            known = [*self.groups, "all"]
            raise SpecError(
                f"the {self.stack} has no position group {name!r}.{nearest(name, known)} It has: {', '.join(known)}"
            )
        indices = tuple(range(len(self.positions))) if name == "all" else self.groups[name]
        if selector == "all" or selector.startswith("each:"):
            return [Chosen(self.positions[i].label, (i,), selector) for i in indices]
        if len(indices) == 1 and self.positions[indices[0]].label == "decoding":
            return [Chosen("decoding", indices, selector)]
        return [Chosen(name, indices, selector)]

    def describe(self, chosen: Chosen) -> Position:
        """What a chosen label is: a single position's own description, or what its positions have in common."""
        members = [self.positions[i] for i in chosen.indices]
        if len(members) == 1:
            return members[0]
        tokens = [m.token for m in members]
        if members[0].modality == "image":
            tokens = list(dict.fromkeys(tokens))  # one mark stands for all patches
        boxes = [m.box for m in members if m.box]
        union = None
        if boxes:
            x0, y0, x1, y1 = zip(*boxes, strict=True)
            union = (min(x0), min(y0), max(x1), max(y1))
        modality = members[0].modality if len({m.modality for m in members}) == 1 else "mixed"
        return Position(chosen.label, modality, chosen.label, " ".join(tokens), box=union)


def overlaps(box: Box, region: Box) -> bool:
    """Whether any pixel of a patch lies in a region."""
    return box[0] < region[2] and region[0] < box[2] and box[1] < region[3] and region[1] < box[3]
