"""The errors a user sees: one readable paragraph that names the field, the value, what is allowed and the nearest
match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecError(ValueError):
    """A spec, an argument or an input that cannot work. Raised before a model is loaded wherever that is possible."""


class RunError(RuntimeError):
    """A run that failed; what was already computed is in its store."""


class CheckError(RunError):
    """A trust check that did not hold: the numbers must not be used."""


def nearest(name: object, known: Iterable[object]) -> str:
    """ " Did you mean 'x'?" for the known name closest to a wrong one, or nothing where none is close."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def unknown(what: str, name: object, known: Iterable[object]) -> SpecError:
    """The error for a name that is not in a table.

    Examples
    --------
    >>> str(unknown("metric", "probabilty", ["probability", "log_probability"]))
    "Unknown metric 'probabilty'. Did you mean 'probability'? Known: probability, log_probability."
    """
    names = [str(k) for k in known]
    return SpecError(f"Unknown {what} {name!r}.{nearest(name, names)} Known: {', '.join(names) or 'none'}.")
