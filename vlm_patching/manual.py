"""What every field of a spec is: its meaning, how it is written, its default, what is allowed.

Read off the pydantic models and their docstrings, so that the reference of the spec and the specs that
`vlm-patching init` writes say what the code does. Nothing here runs an experiment.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vlm_patching.metrics import METRICS
from vlm_patching.pairs import CORRUPTED_INPUT
from vlm_patching.sections import DTYPE_NAMES, Numbers, Selectors
from vlm_patching.sweeps import Names, Widths

NAMED: Mapping[str, Iterable[str]] = {
    "dtype": DTYPE_NAMES,
    "kind of corruption": CORRUPTED_INPUT,
    "metrics": METRICS,
}
"""Field → the table of names that its values are out of, where the field's type does not say it."""
_WRITTEN = {
    get_args(Numbers)[1]: "`all`, a list of whole numbers, or `start:stop`",
    get_args(Selectors)[1]: "list of position groups and token indices, or one group",
    get_args(Widths)[1]: "whole number from 1, or a list of them",
    get_args(Names)[1]: "text, or a list of texts",
}
"""Validator → how values are written that it takes."""
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", type(None): "`null`"}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "min_length": "", "max_length": ""}
"""Bound of a field, as pydantic keeps it → what is said of it; of lengths something is said where they are equal."""
_MANY = {"text": "texts", "whole number": "whole numbers", "number": "numbers", "mapping": "mappings"}


@dataclass(frozen=True)
class Entry:
    """One field of a section.

    Attributes
    ----------
    name, meaning
        What it is called, and what its section's docstring says of it.
    written
        How its value is written, in words.
    required, default
        Whether it must be given; else the value that it has where it is left out.
    allowed
        The names it may have, where there is a table of them; of several, of each.
    sections
        The sections that it may hold.
    """

    name: str
    meaning: str
    written: str
    required: bool
    default: Any
    allowed: tuple[str, ...] = ()
    sections: tuple[type[BaseModel], ...] = ()

    @property
    def shown_default(self) -> str:
        """The default as YAML; a list of one value as that value, where it may be written so."""
        value = self.default
        if isinstance(value, tuple) and len(value) == 1 and ", or " in self.written:
            value = value[0]
        return as_yaml(value)


def entries(section: type[BaseModel]) -> list[Entry]:
    """Every field of a section, in its order."""
    meanings = documented(section)
    return [_entry(section, name, field, meanings.get(name, "")) for name, field in section.model_fields.items()]


def summary(section: type) -> str:
    """The first paragraph of a section's docstring, in one line."""
    return as_markdown((inspect.getdoc(section) or "").split("\n\n")[0])


def documented(described: type) -> dict[str, str]:
    """Attribute → what the docstrings of a class and of those it is made from say of it."""
    found: dict[str, str] = {}
    for each in reversed(described.__mro__):
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "")
        _, begin, attributes = text.partition("Attributes\n----------\n")
        if not begin:
            continue
        for names, said in re.findall(r"^(\w[\w, ]*)\n((?:(?:    .*)?(?:\n|$))+?)(?=\S|\Z)", attributes, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), as_markdown(said))
    return found


def as_markdown(text: str) -> str:
    """A docstring's text in one line, code in single backticks."""
    return re.sub(r"``(.*?)``", r"`\1`", " ".join(text.split()))


def as_yaml(value: Any) -> str:
    """A value on one line, as YAML."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w./-]*|\d+:\d+", value) and value not in ("null", "true", "false")
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_yaml(each)}' for key, each in value.items())}}}"
    return json.dumps(value)


def _entry(section: type[BaseModel], name: str, field: FieldInfo, meaning: str) -> Entry:
    kind, sections = field.annotation, tuple(_sections(field.annotation))
    written = next((_WRITTEN[each] for each in field.metadata if each in _WRITTEN), "") or _written(kind)
    literal = _literal(kind)
    named = NAMED.get("kind of corruption" if section.__name__ == "CorruptionSpec" and name == "kind" else name, ())
    allowed = literal or (tuple(named) if not sections else ())
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return Entry(name, meaning, written + _bounds(field), field.is_required(), default, allowed, sections)


def _written(kind: Any) -> str:
    """How values of a type are written, in words; None is not, which stands for leaving the field out."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "mapping"
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return next((_WRITTEN[each] for each in inside[1:] if each in _WRITTEN), "") or _written(inside[0])
    if origin is Literal:
        return "one name" if all(isinstance(value, str) for value in inside) else " or ".join(map(_code, inside))
    if origin is tuple:
        each = _written(inside[0])
        return f"list of {_MANY.get(each, 'names' if each == 'one name' else each)}"
    if origin is dict:
        return f"mapping of names to {_MANY[_written(inside[1])]}"
    if origin in (Union, types.UnionType):
        parts = dict.fromkeys(_written(part) for part in inside if part is not type(None))
        return " or ".join(parts)
    raise TypeError(f"how values of {kind!r} are written is not known: say so in {__name__}")


def _code(value: Any) -> str:
    return f"`{as_yaml(value)}`"


def _literal(kind: Any) -> tuple[str, ...]:
    """The names of a literal type, also inside a list or an optional one."""
    if get_origin(kind) is Literal:
        return tuple(value for value in get_args(kind) if isinstance(value, str))
    return next((found for part in get_args(kind) if (found := _literal(part))), ())


def _sections(kind: Any) -> Iterable[type[BaseModel]]:
    """The sections that a type is made of."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _sections(part)


def _bounds(field: FieldInfo) -> str:
    """What else must hold of a value, behind how it is written."""
    bounds = {name: getattr(each, name) for each in field.metadata for name in _BOUNDS if hasattr(each, name)}
    found = [f"{said} {bounds[name]}" for name, said in _BOUNDS.items() if name in bounds and said]
    if "max_length" in bounds and bounds["max_length"] == bounds.get("min_length"):
        found.append(f"{bounds['max_length']} of them")
    return f", {' and '.join(found)}" if found else ""
