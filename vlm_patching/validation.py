"""Text → checked data: YAML and JSON that say what they mean, and pydantic's errors as sentences."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vlm_patching.errors import SpecError, nearest, shown

_KINDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "too_short": "is empty; give at least one",
    "string_too_short": "is empty",
    "bool_type": "must be true or false",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
"""Kind of error → what is said of the bound, and its name in pydantic's context."""

MAX_CHARACTERS = 100_000
"""Of YAML, which is slow to read."""
MAX_TEXT = 4_000
"""Characters of one text in a section."""
_MAX_SENTENCES = 10
_YAML = "tag:yaml.org,2002:"


class Section(BaseModel):
    """A part of a spec: frozen, of exactly the types it names, without a key that it does not."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, str_max_length=MAX_TEXT)

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


class _Loader(yaml.SafeLoader):
    """Safe YAML as version 1.2 reads it: 3:6 and dates are text, 1e-3 and 010 numbers (1.1 makes 186 of the first).

    A key that is given twice is an error, and so are anchors (a few lines of which can stand for more than fits into
    memory) and tags.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None or getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, "anchors and tags are not read here", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for part, _ in node.value:
            if not isinstance(part, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is one word", part.start_mark)
            key = self.construct_object(part)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node: Any) -> int:
        return int(self.construct_scalar(node))


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_YAML) not in ("int", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_YAML}int", _Loader.construct_whole_number)
_Loader.add_implicit_resolver(f"{_YAML}int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    f"{_YAML}float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def read_text(path: Path) -> str:
    """A file's text; `SpecError` where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def parse_yaml(text: str, where: str) -> Any:
    """Plain data out of YAML (or JSON); `SpecError` where it is none, or gives a key twice."""
    if len(text) > MAX_CHARACTERS:
        raise SpecError(f"{where} has {len(text)} characters; at most {MAX_CHARACTERS} of YAML are read.")
    try:
        return _text_in(yaml.load(text, Loader=_Loader))
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # the last: a number of too many digits
        raise SpecError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def parse_json(text: str, where: str) -> Any:
    """Plain data out of JSON; `SpecError` where it is none, or gives a key twice."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = repeated(key for key, _ in items)
        if twice:
            raise SpecError(f"{where}: the key {shown(twice[0])} is given twice.")
        return dict(items)

    def refuse(name: str) -> None:
        raise SpecError(f"{where} is not JSON: {name} is no number of it.")

    try:
        return _text_in(json.loads(text, object_pairs_hook=unique, parse_constant=refuse))
    except SpecError:
        raise
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise SpecError(f"{where} is not JSON: {error.msg} at {line}column {error.colno}.") from error
    except RecursionError as error:
        raise SpecError(f"{where} is not JSON that can be read: it is nested too deeply.") from error
    except ValueError as error:
        raise SpecError(f"{where} is not JSON that can be read: {error}.") from error


def _text_in(data: Any) -> Any:
    """The data, where all text in it is text; `ValueError` where half a surrogate pair stands alone."""
    json.dumps(data, ensure_ascii=False).encode()
    return data


def repeated(values: Iterable[Any]) -> list[Any]:
    """The values that are there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def one_of(what: str, names: Iterable[str]) -> Callable[[str], str]:
    """A validator for a name out of a table."""
    known = tuple(names)

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"{name!r} is no {what}.{nearest(name, known)} Known: {', '.join(known)}.")
        return name

    return check


def explain(
    error: ValidationError, keys_at: Callable[[tuple[Any, ...]], Iterable[str]], kinds: Collection[str] = ()
) -> str:
    """pydantic's errors as sentences: field, value, what is allowed, nearest match.

    Parameters
    ----------
    keys_at
        The keys that the mapping at a location may have.
    kinds
        Where the first section of a location is of one of several kinds, which one of its own fields names: the names
        of the kinds, which pydantic writes into locations, behind the section's.
    """
    found = error.errors()
    inside = {item["loc"][:length] for item in found for length in range(len(item["loc"]))}
    # a list whose entries are wrong is called too short as well
    errors = [item for item in found if item["type"] != "too_short" or item["loc"] not in inside]
    more = [f"And {len(errors) - _MAX_SENTENCES} more."] if len(errors) > _MAX_SENTENCES else []
    return " ".join([*(_sentence(dict(item), keys_at, kinds) for item in errors[:_MAX_SENTENCES]), *more])


def _sentence(
    error: Mapping[str, Any], keys_at: Callable[[tuple[Any, ...]], Iterable[str]], kinds: Collection[str]
) -> str:
    location, kind, value = tuple(error["loc"]), error["type"], error["input"]
    member = location[1] if location[1:2] and location[1] in kinds else None
    parts = location if member is None else (location[0], *location[2:])
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = list(keys_at(location[:-1]))
        owner = "" if member is None else f" of {member!r}"
        return f"Unknown key {shown(where)}{owner}.{nearest(location[-1], known)} Known here: {', '.join(known)}."
    if kind in ("missing", "missing_argument"):
        return f"{where} is missing."
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        field = error["ctx"]["discriminator"].strip("'")
        if isinstance(value, Mapping) and field not in value:
            return f"{where}.{field} is missing."
        named = value.get(field) if isinstance(value, Mapping) else getattr(value, field, value)
        return f"{where}.{field}: {shown(named)} is no {field}.{nearest(named, kinds)} Known: {', '.join(kinds)}."
    if kind in ("model_type", "dataclass_type", "model_attributes_type"):
        return f"{where} must be a mapping with the keys {', '.join(keys_at(location))}, not {shown(value)}."
    if kind == "literal_error":
        allowed = error["ctx"]["expected"]
        match = nearest(value, allowed.replace("'", "").replace(" or ", ", ").split(", "))
        return f"{where}: {shown(value)} is not allowed.{match} Allowed: {allowed}."
    if kind == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    if kind == "json_invalid":
        return f"{error['msg']}."
    if kind in _BOUNDS:
        said, bound = _BOUNDS[kind]
        return f"{where} must be {said} {error['ctx'][bound]}, not {shown(value)}."
    if kind in ("too_short", "too_long") and value:
        bound = (
            f"at least {error['ctx']['min_length']}" if kind == "too_short" else f"at most {error['ctx']['max_length']}"
        )
        return f"{where} must have {bound} entries, not {len(value)}: {shown(value)}."
    if kind in _KINDS:
        return f"{where} {_KINDS[kind]}, not {shown(value)}."
    return f"{where}: {error['msg']}, not {shown(value)}."
