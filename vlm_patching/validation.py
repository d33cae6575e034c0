"""Text → checked data: YAML and JSON that say what they mean, and pydantic's errors as sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vlm_patching.errors import SpecError, nearest

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


class _Loader(yaml.SafeLoader):
    """Safe YAML as version 1.2 reads it: 3:6 is text and 1e-3 a number (1.1 makes 186 and text of them).

    A key that is given twice is an error.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
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
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise SpecError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def parse_json(text: str, where: str) -> Any:
    """Plain data out of JSON; `SpecError` where it is none, or gives a key twice."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        repeated = next((key for key in keys if keys.count(key) > 1), None)
        if repeated is not None:
            raise SpecError(f"{where}: the key {repeated!r} is given twice.")
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise SpecError(f"{where} is not JSON: {error.msg} at {line}column {error.colno}.") from error
    except RecursionError as error:
        raise SpecError(f"{where} is not JSON that can be read: it is nested too deeply.") from error


def one_of(what: str, names: Iterable[str]) -> Callable[[str], str]:
    """A validator for a name out of a table."""
    known = tuple(names)

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"{name!r} is no {what}.{nearest(name, known)} Known: {', '.join(known)}.")
        return name

    return check


def explain(error: ValidationError, keys_at: Callable[[tuple[Any, ...]], Iterable[str]]) -> str:
    """pydantic's errors as sentences: field, value, what is allowed, nearest match.

    Parameters
    ----------
    keys_at
        The keys that the mapping at a location may have.
    """
    return " ".join(_sentence(dict(item), keys_at) for item in error.errors())


def _sentence(error: Mapping[str, Any], keys_at: Callable[[tuple[Any, ...]], Iterable[str]]) -> str:
    location, kind, value = tuple(error["loc"]), error["type"], error["input"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = list(keys_at(location[:-1]))
        return f"Unknown key {where!r}.{nearest(location[-1], known)} Known here: {', '.join(known)}."
    if kind in ("missing", "missing_argument"):
        return f"{where} is missing."
    if kind in ("model_type", "dataclass_type"):
        return f"{where} must be a mapping with the keys {', '.join(keys_at(location))}, not {value!r}."
    if kind == "literal_error":
        allowed = error["ctx"]["expected"]
        match = nearest(value, allowed.replace("'", "").replace(" or ", ", ").split(", "))
        return f"{where}: {value!r} is not allowed.{match} Allowed: {allowed}."
    if kind == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    if kind in _KINDS:
        return f"{where} {_KINDS[kind]}, not {value!r}."
    return f"{where}: {error['msg']}, not {value!r}."
