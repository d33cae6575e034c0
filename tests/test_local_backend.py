"""The local backend makes the programs of the next pieces while the model runs those before."""

from __future__ import annotations

from collections import deque
from threading import Event
from typing import Any

import pytest
import torch

import vlm_patching as vp
from vlm_patching.backends.base import Piece
from vlm_patching.backends.local import LocalBackend
from vlm_patching.backends.plan import Settings


class Watched(LocalBackend):
    """Runs nothing: it waits until the piece behind those that it is given has been made."""

    def __init__(self, made: list[Event]) -> None:
        self.made, self.ran = made, list[int]()

    def execute(self, programs: Any) -> list[dict[str, Any]]:
        self.ran += [program["number"] for program in programs]
        behind = self.ran[-1] + 1
        assert behind == len(self.made) or self.made[behind].wait(60), "the next piece waits for the model"
        return [{"number": program["number"]} for program in programs]


def pieces(made: list[Event], groups: list[int | None], broken: int | None = None) -> deque[Piece]:
    def make(piece: Piece) -> dict[str, Any]:
        if piece.example == broken:
            raise vp.SpecError("broken")
        made[piece.example].set()
        return {"number": piece.example}

    return deque(Piece(i, torch.arange(1), Settings(), make, group) for i, group in enumerate(groups))


@pytest.mark.parametrize("groups", [[None, None, None, None], [0, 0, 1, 1]])
def test_the_next_pieces_are_made_while_those_before_run(groups: list[int | None]) -> None:
    made = [Event() for _ in groups]
    backend = Watched(made)
    outcomes = list(backend.stream(pieces(made, groups), lambda _: None))
    assert [outcome["number"] for _, outcome in outcomes] == backend.ran == [0, 1, 2, 3]  # type: ignore[index]


def test_what_cannot_be_made_is_an_error_only_when_its_turn_comes() -> None:
    made = [Event() for _ in range(3)]
    made[2].set()
    found = []
    with pytest.raises(vp.SpecError, match="broken"):
        for piece, _ in Watched(made).stream(pieces(made, [None, None, None], broken=2), lambda _: None):
            found.append(piece.example)
    assert found == [0, 1]
