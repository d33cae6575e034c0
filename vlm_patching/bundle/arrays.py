"""The results in a bundle: a zarr store that any zarr reader opens, and that is read here without one.

One chunk an array and no compression (the zip has its own), so that what metadata says can be held against the bytes
that are there: nothing is allocated on a stranger's word, and no codec of theirs is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from vlm_patching.bundle.archive import decoded
from vlm_patching.errors import SpecError
from vlm_patching.graph import DIMENSIONS
from vlm_patching.validation import parse_json

STORE = "results.zarr"
_NUMBERS = {"float32": "<f4", "float64": "<f8", "int64": "<i8", "bool": "|b1"}
_TEXT = "string"
_CODECS = {
    **{kind: {"name": "bytes", "configuration": {"endian": "little"}} for kind in _NUMBERS},
    "bool": {"name": "bytes"},
    _TEXT: {"name": "vlen-utf8", "configuration": {}},
}
_FILLS = ("NaN", "", 0, False)
_NAN = "AAAAAAAA+H8="
"""How zarr.json writes the float64 NaN."""
_KNOWN_DIMENSIONS = ("example", *DIMENSIONS, "key", "corner")
_MAX_LABELS = 20_000_000


def write_results(ds: xr.Dataset, folder: Path) -> None:
    """Write a dataset as the bundle's store, its variables and attributes in order."""
    plain = ds.drop_encoding()
    variables, coordinates = (
        {name: part[name].variable for name in sorted(map(str, part))} for part in (plain.data_vars, plain.coords)
    )
    ordered = xr.Dataset(variables, coordinates, dict(sorted(plain.attrs.items())))
    encoding = {
        name: {"compressors": None, "chunks": variable.shape, "write_empty_chunks": True}
        for name, variable in ordered.variables.items()
    }
    ordered.to_zarr(folder / STORE, mode="w", zarr_format=3, consolidated=False, encoding=encoding)


def read_results(files: Mapping[str, bytes]) -> xr.Dataset:
    """Read the bundle's store back.

    Parameters
    ----------
    files
        Name in the bundle → bytes.

    Raises
    ------
    SpecError
        Metadata that `write_results` does not write, or that the bytes do not agree with.
    """
    stored = {name for name in files if name.startswith(f"{STORE}/")}
    attributes = _attributes(_metadata(files, STORE))
    used = {f"{STORE}/zarr.json"}
    variables: dict[str, xr.Variable] = {}
    coordinates = set(str(attributes.pop("coordinates", "")).split())  # xarray's, of those that no array shares
    for name in sorted({name.split("/")[1] for name in stored - used}):
        where = f"{STORE}/{name}"
        array = _metadata(files, where)
        _check_array(array, where)
        chunk = "/".join((where, "c", *["0"] * len(array["shape"])))
        if chunk not in files:
            raise SpecError(f"{where} lacks the one chunk of its shape {array['shape']}.")
        values = _values(files[chunk], array["shape"], array["data_type"], where)
        variables[name] = xr.Variable(array["dimension_names"], values)
        coordinates |= {*array["attributes"].get("coordinates", "").split(), *array["dimension_names"]}
        used |= {f"{where}/zarr.json", chunk}
    if stored != used:
        raise SpecError(f"{min(stored - used)} is no chunk of its array, which has one chunk.")
    try:
        return xr.Dataset(
            {name: variable for name, variable in variables.items() if name not in coordinates},
            {name: variable for name, variable in variables.items() if name in coordinates},
            attributes,
        )
    except ValueError as error:
        raise SpecError(f"{STORE}: its arrays do not belong together: {error}") from error


def _metadata(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    name = f"{where}/zarr.json"
    if name not in files:
        raise SpecError(f"{where} has no zarr.json.")
    metadata = parse_json(decoded(files[name], name), name)
    if not isinstance(metadata, dict):
        raise SpecError(f"{name} is no mapping.")
    return metadata


def _attributes(group: dict[str, Any]) -> dict[str, str | int | float]:
    """What the results say of themselves: text and numbers."""
    attributes = group.pop("attributes", None)
    if group != {"zarr_format": 3, "node_type": "group"} or not isinstance(attributes, dict):
        raise SpecError(f"{STORE}/zarr.json is not that of a group, of zarr's third format, with attributes alone.")
    for name, value in attributes.items():
        if type(value) not in (str, int, float):
            raise SpecError(f"{STORE}: attribute {name!r} is neither text nor a number.")
    return attributes


def _check_array(array: dict[str, Any], where: str) -> None:
    """Refuse metadata of an array that is not, key for key, what `write_results` writes for its shape and type."""
    shape, kind, names = array.get("shape"), array.get("data_type"), array.get("dimension_names", [])
    if not isinstance(kind, str) or kind not in _CODECS:
        raise SpecError(f"{where}: data_type {kind!r} is none of {', '.join(_CODECS)}.")
    if not isinstance(shape, list) or not all(type(length) is int and 1 <= length < 2**40 for length in shape):
        raise SpecError(f"{where}: shape {shape!r} is no list of lengths from 1 to 2**40.")
    known = isinstance(names, list) and all(name in _KNOWN_DIMENSIONS for name in names)
    if not known or len(names) != len(shape) or len({*names}) < len(names):
        raise SpecError(f"{where}: dimension_names are {names!r}, for shape {shape}.")
    wanted = {
        "codecs": [_CODECS[kind]],
        "zarr_format": 3,
        "node_type": "array",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "storage_transformers": [],
    }
    for key, value in wanted.items():
        if array.get(key) != value:
            raise SpecError(f"{where}: {key} must be {value}, not {array.get(key)!r}.")
    fill, attributes = array.get("fill_value"), array.get("attributes")
    if fill not in _FILLS:
        raise SpecError(f"{where}: fill_value {fill!r} is none of {_FILLS}.")
    if not isinstance(attributes, dict) or not attributes.keys() <= {"coordinates", "_FillValue"}:
        raise SpecError(f"{where}: attributes {attributes!r} are other than coordinates and _FillValue.")
    if not isinstance(attributes.get("coordinates", ""), str) or attributes.get("_FillValue", _NAN) != _NAN:
        raise SpecError(f"{where}: attributes {attributes!r} are not names of coordinates and NaN.")
    odd = array.keys() - wanted.keys() - {"shape", "data_type", "dimension_names", "fill_value", "attributes"}
    if odd:
        raise SpecError(f"{where}: unknown key {min(odd)!r}.")


def _values(content: bytes, shape: list[int], kind: str, where: str) -> np.ndarray:
    count = math.prod(shape)
    if kind == _TEXT:
        return np.array(_texts(content, count, where), dtype=object).reshape(shape)
    dtype = np.dtype(_NUMBERS[kind])
    if len(content) != count * dtype.itemsize:
        raise SpecError(
            f"{where}: shape {shape} of {kind} has {count * dtype.itemsize} bytes, and there are {len(content)}."
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _texts(content: bytes, count: int, where: str) -> list[str]:
    """Texts as zarr's vlen-utf8 has them: their number, then each one's length and bytes."""
    wrong = SpecError(f"{where}: its bytes are not {count} texts.")
    if count > _MAX_LABELS or len(content) < 4 + 4 * count or int.from_bytes(content[:4], "little") != count:
        raise wrong
    texts, at = [], 4
    for _ in range(count):
        start = at + 4
        at = start + int.from_bytes(content[at:start], "little")
        try:
            texts.append(content[start:at].decode())
        except UnicodeDecodeError as error:
            raise wrong from error
    if at != len(content):
        raise wrong
    return texts
