"""What runs programs, wherever the model is: the one face that the pipeline sees of a backend."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from vlm_patching.backends.plan import Settings
from vlm_patching.models import ModelDescription


@dataclass(frozen=True)
class Piece:
    """Cells of one example that are run together.

    Attributes
    ----------
    example
        Its number.
    cells
        The numbers of the cells.
    settings
        How they are cut into passes.
    make
        Makes its program.
    group
        Pieces of one group may share passes; None for one that is run alone.
    """

    example: int
    cells: torch.Tensor
    settings: Settings
    make: Callable[[Piece], dict[str, Any]]
    group: int | None = None

    def program(self) -> dict[str, Any]:
        """What `kernels.run_programs` interprets."""
        return self.make(self)


@dataclass(frozen=True)
class Failure:
    """Why a piece has no results.

    Attributes
    ----------
    why
        A sentence.
    size
        Whether it is memory that did not suffice: smaller passes may help, or fewer cells at a time.
    time
        Whether it is time that did not suffice: fewer cells at a time may help.
    """

    why: str
    size: bool = False
    time: bool = False


Outcome = dict[str, Any] | Failure


class Backend(Protocol):
    """Interprets programs on one model.

    Attributes
    ----------
    description
        The model, without its weights.
    dtype
        What it computes in.
    """

    name: str
    description: ModelDescription
    dtype: str

    def attributes(self) -> dict[str, Any]:
        """What a result says of the model and of where it ran."""
        ...

    def settings(self, rows: int | None) -> Settings:
        """How sweeps are cut into passes where it runs."""
        ...

    def execute(self, programs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """One result dict a program, as `kernels.run_together` describes it."""
        ...

    def summaries(self, programs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """What `kernels.summarize` gives."""
        ...

    def stream(self, queue: deque[Piece], say: Callable[[str], None]) -> Iterator[tuple[Piece, Outcome]]:
        """Pieces and what came of them, until the queue is empty; more may be put into it on the way.

        Parameters
        ----------
        say
            Takes a word on the state of things, for the progress bar.
        """
        ...

    def running(self, threads: int | None) -> AbstractContextManager[None]:
        """What holds while anything runs."""
        ...


def shipped(programs: Sequence[dict[str, Any]], dtype: str) -> list[dict[str, Any]]:
    """Programs with what only the machine knows, and without what only the plan needs."""
    planning = ("needs", "keeps")

    def lean(trace: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in trace.items() if name not in planning}

    return [
        {
            **program,
            "dtype": dtype,
            "bases": [lean(trace) for trace in program["bases"]],
            "sweeps": [lean(trace) for trace in program["sweeps"]],
        }
        for program in programs
    ]
