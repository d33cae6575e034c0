"""The errors a user sees: one readable paragraph that names the field, the value, what is allowed and the nearest
match."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from pathlib import Path

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 200, 200, 100
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = 20


class SpecError(ValueError):
    """A spec, an argument or an input that cannot work. Raised before a model is loaded wherever that is possible.

    Parameters
    ----------
    message
        One paragraph.
    reason
        Of an input that is one of many: what is wrong, in words that others' errors share. They are counted by it where
        they are skipped.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class RunError(RuntimeError):
    """A run that failed; what was already computed is in its store."""


class CheckError(RunError):
    """A trust check that did not hold: the numbers must not be used."""


def shown(value: object) -> str:
    """A value as an error shows it: as Python writes it, cut where that is long."""
    return _SHORT.repr(value)


def nearest(name: object, known: Iterable[object], cutoff: float = 0.5) -> str:
    """ " Did you mean 'x'?" for the known name closest to a wrong one, or nothing where none is close.

    How close it has to be `cutoff` says: 1 is the same name, and 0 any.
    """
    if not isinstance(name, str | int | Path):
        return ""
    match = difflib.get_close_matches(str(name)[:200], [str(k) for k in known], n=1, cutoff=cutoff)
    return f" Did you mean {match[0]!r}?" if match else ""


def unknown(what: str, name: object, known: Iterable[object]) -> SpecError:
    """The error for a name that is not in a table.

    Examples
    --------
    >>> str(unknown("metric", "probabilty", ["probability", "log_probability"]))
    "Unknown metric 'probabilty'. Did you mean 'probability'? Known: probability, log_probability."
    """
    names = [str(k) for k in known]
    return SpecError(f"Unknown {what} {shown(name)}.{nearest(name, names)} Known: {', '.join(names) or 'none'}.")
