"""The zarr store is the checkpoint: every example in it is whole or absent, and a killed run resumes from it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from vlm_patching.errors import RunError, SpecError
from vlm_patching.experiment import DESCRIPTIVE
from vlm_patching.graph import DIMENSIONS
from vlm_patching.results.dataset import KEPT, NOT_RUN, WRITTEN_LABELS

_DIMENSIONS = ("example", *DIMENSIONS, "key", "corner")


class MemoryStore:
    """Results that are only returned, with the same methods as `ZarrStore`."""

    def __init__(self, blank: xr.Dataset) -> None:
        self._dataset = blank.copy(deep=True)

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(self._dataset.attrs)

    def done(self) -> list[bool]:
        """Which examples are written."""
        return [kept != NOT_RUN for kept in self._dataset["kept"].values]

    def write(self, index: int, values: Mapping[str, Any], kept: str) -> None:
        """Put in one example's arrays and whether it was kept."""
        for name, array in values.items():
            self._dataset[name][index] = array
        self._dataset["kept"][index] = kept

    def annotate(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes."""
        self._dataset.attrs.update(attributes)

    def forget(self, attribute: str) -> None:
        """Take an attribute out, where it is there."""
        self._dataset.attrs.pop(attribute, None)

    def load(self) -> xr.Dataset:
        """The dataset as it now is."""
        return self._dataset


class StoreAttributes:
    """What a store says of itself."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(zarr.open_group(self.path, mode="r").attrs)

    def annotate(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes."""
        try:
            zarr.open_group(self.path, mode="r+").attrs.update(attributes)
        except OSError as error:
            raise RunError(
                f"Attributes could not be written to {self.path}: {error}. The examples in the store are whole; make "
                "room and give the same command again."
            ) from error

    def forget(self, attribute: str) -> None:
        """Take an attribute out, where it is there."""
        attributes = zarr.open_group(self.path, mode="r+").attrs
        if attribute in attributes:
            del attributes[attribute]


class ZarrStore(StoreAttributes):
    """A zarr folder that takes one example at a time.

    An example's arrays are written first and its `kept` label last, so a label is there only where the arrays are. All
    of them are written, those that are nothing but NaN too: an example one of whose files is missing has lost it, as
    where a copy of the store was cut off, and runs again.

    Parameters
    ----------
    path
        Folder; made if it does not exist, resumed if it holds the same experiment.
    blank
        The dataset before anything has run, with the experiment's attributes.

    Raises
    ------
    SpecError
        The folder holds something else, or another experiment; what differs is named.
    """

    def __init__(self, path: str | Path, blank: xr.Dataset) -> None:
        super().__init__(path)
        if self.path.exists():
            check_resumable(self.path, blank.attrs)
        else:
            self._create(blank)
        self._count = blank.sizes["example"]
        lost = [str(name) for name in blank.variables if name not in self._arrays]
        if lost:
            raise SpecError(f"The store {self.path} is not whole: it has lost its array {lost[0]}. Name another one.")
        self._written = _written_names(blank)

    def _create(self, blank: xr.Dataset) -> None:
        part = self.path.with_name(f"{self.path.name}.part-{os.getpid()}")
        encoding: dict[Any, Any] = {
            name: {"chunks": (1, *variable.shape[1:])}
            for name, variable in blank.variables.items()
            if name in blank.data_vars or name in WRITTEN_LABELS
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            blank.to_zarr(part, mode="w", encoding=encoding, zarr_format=3, consolidated=False)
            part.rename(self.path)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise RunError(f"The store {self.path} could not be made: {error}. Nothing has been run.") from error

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array]:
        with zarr.config.set({"array.write_empty_chunks": True}):
            return dict(zarr.open_group(self.path, mode="r+").arrays())

    def done(self) -> list[bool]:
        """Which examples are written."""
        lost = _lost(self.path, self._written)
        return [str(kept) != NOT_RUN and i not in lost for i, kept in enumerate(np.asarray(self._arrays[KEPT][:]))]

    def write(self, index: int, values: Mapping[str, Any], kept: str) -> None:
        """Write one example's arrays, then its label; `RunError` (and nothing lost) where the disk does not take it."""
        try:
            for name, array in values.items():
                self._arrays[name][index] = array
            self._arrays[KEPT][index] = kept
        except OSError as error:
            written = sum(self.done())
            raise RunError(
                f"Example {index + 1} could not be written to {self.path}: {error}. {written} of {self._count} "
                "examples are in the store, whole; make room and give the same command again to go on from there."
            ) from error

    def load(self) -> xr.Dataset:
        """The dataset as it now is, in memory."""
        return load_results(self.path)


def _written_names(ds: xr.Dataset) -> list[str]:
    """The arrays that hold something of every example that has run, if only NaN."""
    return [str(name) for name in (*ds.data_vars, *(name for name in WRITTEN_LABELS if name in ds.coords))]


def _lost(path: Path, names: Sequence[str]) -> dict[int, str]:
    """Examples that were written, and have lost a file since: number → which array's."""
    lost: dict[int, str] = {}
    ran = np.flatnonzero(np.asarray(zarr.open_array(path / KEPT, mode="r")[:]) != NOT_RUN).tolist()
    for name in names:
        array = zarr.open_array(path / name, mode="r")
        for index in ran:  # a run's store has a file for each; a bundle's, one for all
            chunk = [str(index // array.chunks[0]), *["0"] * (array.ndim - 1)]
            if not path.joinpath(name, "c", *chunk).is_file():
                lost.setdefault(index, name)
    return lost


def load_results(path: str | Path) -> xr.Dataset:
    """Open a store that `vp.run` has written.

    Parameters
    ----------
    path
        The zarr folder.

    Raises
    ------
    SpecError
        There is none, it is not of a run, or it has lost what a run had written.
    """
    path = Path(path)
    loaded = _read(path)
    lost = _lost(path, _written_names(loaded))
    if lost:
        index, name = min(lost.items())
        raise SpecError(
            f"The store {path} has lost files of {len(lost)} of its {loaded.sizes['example']} examples, such as "
            f"{name} of example {index} ({str(loaded['example'].values[index])!r}): a copy that was cut off, perhaps. "
            "The same run, on this store, goes on with these; the others are whole."
        )
    return loaded


def _read(path: Path) -> xr.Dataset:
    """A store's dataset, as it is."""
    if not path.exists():
        raise SpecError(f"Store {path} does not exist.")
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as dataset:
            loaded = dataset.load()
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"{path} is not a zarr store of results: {error}") from error
    except RuntimeError as error:  # of what decompresses
        raise _broken(path, error) from error
    if "experiment_id" not in loaded.attrs:
        raise SpecError(
            f"{path} is a zarr store, but not one that a run has written (no experiment_id in its attributes)."
        )
    missing = [name for name in ("example", KEPT) if name not in loaded.coords]
    if missing:
        raise SpecError(f"The store {path} is not whole: it has lost its array {missing[0]}. Run it anew, in another.")
    for name, variable in loaded.variables.items():
        if variable.dtype.kind in "TU":  # zarr gives its own string type; one kind of label everywhere
            loaded[name] = (variable.dims, np.array(variable.values.tolist(), dtype=object), variable.attrs)
    variables = {name: loaded[name] for name in sorted(loaded.data_vars, key=_metric_first)}
    ordered = xr.Dataset(variables, loaded.coords, loaded.attrs)
    return ordered.transpose(*_DIMENSIONS, missing_dims="ignore")


def _broken(path: Path, error: RuntimeError) -> SpecError:
    """Which example's file of a store cannot be read, as where the disk was full or the machine went down."""
    arrays = dict(zarr.open_group(path, mode="r").arrays())
    for name, array in arrays.items():
        each = name in WRITTEN_LABELS or (array.ndim > 0 and array.chunks[0] == 1)
        for index in range(array.shape[0]) if each else [...]:
            try:
                array[index]
            except RuntimeError:
                if index is ...:
                    return SpecError(f"The store {path} is broken: its array {name} cannot be read ({error}).")
                files = " and ".join(str(path / part / "c" / str(index)) for part in dict.fromkeys((name, KEPT)))
                return SpecError(
                    f"The store {path} is broken: {name} of example {index} cannot be read ({error}), as where a disk "
                    f"was full. Remove {files}, and the same run goes on with that example; the others are whole."
                )
    return SpecError(f"{path} is not a zarr store of results: {error}")


def _metric_first(name: Any) -> tuple[str, str]:
    metric = str(name)
    for suffix in ("_clean", "_corrupted", "_placebo", "_exact"):
        metric = metric.removesuffix(suffix)
    return metric, str(name)


def check_resumable(path: str | Path, attributes: Mapping[str, Any]) -> None:
    """Refuse a store that is not of this experiment, or not of these weights; says what differs."""
    found = _read(Path(path)).attrs
    if found["experiment_id"] != attributes["experiment_id"]:
        raise SpecError(
            f"Store {path} belongs to another experiment (id {found['experiment_id']}, this one is "
            f"{attributes['experiment_id']}): {_differences(found, attributes)}. Name another store, or remove this "
            "one."
        )
    _check_same_vector(path, found, attributes)
    family = attributes["family_sha256"]
    if found.get("family_sha256", family) != family:
        raise SpecError(
            f"Store {path} was begun with another map of the model (family {found.get('family')}, sha256 "
            f"{str(found['family_sha256'])[:12]}; now {attributes['family']}, {family[:12]}). Name another store, or "
            "remove this one."
        )
    if found.get("pairs_sha256") != attributes["pairs_sha256"]:
        then, now = str(found.get("pairs_sha256"))[:12], attributes["pairs_sha256"][:12]
        raise SpecError(
            f"Store {path} belongs to the same experiment on other pairs: their texts, answers, pictures, number or "
            f"order have changed (sha256 {then}, now {now}). Name another store, or remove this one."
        )


def _check_same_vector(path: str | Path, found: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    then, now = (str(a.get("vector_sha256", ""))[:12] for a in (found, attributes))
    if then != now:
        raise SpecError(
            f"Store {path} was begun with other vectors in the same file (sha256 {then}, now {now}). Name another "
            "store, or remove this one."
        )


def check_same_model(path: str | Path, found: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on in a store that was begun with other weights, or on another backend."""
    if found.get("backend", now["backend"]) != now["backend"]:
        raise SpecError(
            f"Store {path} was begun on the backend {found['backend']!r}, this run is on {now['backend']!r}. Name "
            "another store, or remove this one."
        )
    digest = now.get("weights_sha256")
    if found.get("weights_sha256", digest) != digest:
        raise SpecError(
            f"Store {path} was begun with other weights of this model (sha256 {found['weights_sha256'][:12]}, now "
            f"{str(digest)[:12]}). Name another store, or remove this one."
        )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    mine, theirs = (_flat(json.loads(a.get("experiment", a["graph"]))) for a in (wanted, found))
    deciding = (k for k in sorted({*mine, *theirs}) if k.split(".")[0] not in DESCRIPTIVE)
    keys = [k for k in deciding if repr(mine.get(k)) != repr(theirs.get(k))]  # 1 and 1.0 differ
    shown = [f"{key} is {theirs.get(key)!r} there and {mine.get(key)!r} here" for key in keys[:3]]
    return "; ".join(shown) + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, Mapping):
        return {k: v for key, value in data.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): data}
