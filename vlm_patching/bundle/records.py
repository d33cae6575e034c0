"""The JSON files that a bundle has of its own, and their JSON Schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from vlm_patching.errors import SpecError
from vlm_patching.experiment import Experiment
from vlm_patching.graph import InterventionGraph
from vlm_patching.sections import DTYPE_NAMES, Quantization
from vlm_patching.validation import Section, explain, one_of, parse_json

VERSION: Literal[1] = 1
"""Of a bundle. It is in every manifest, and no other is read."""
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Record = TypeVar("Record", bound="_Record")


class _Record(Section):
    def to_json(self) -> str:
        return json.dumps(self.model_dump(exclude_none=True), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_data(cls, data: Any, where: str) -> Self:
        """Check a mapping and make the record of it; `SpecError` names the key, the value and what is allowed."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(f"{where}: {explain(error, lambda at: _keys_at(cls, at))}") from error


class FileRecord(_Record):
    """One file of a bundle: the SHA-256 of its bytes, and how many they are."""

    sha256: Digest
    size: int = Field(ge=0)


class Manifest(_Record):
    """What is in a bundle: every other file of it.

    Attributes
    ----------
    version
        Of the bundle.
    name
        The experiment's, or the graph's.
    created_at
        When the results were begun.
    files
        Path in the bundle → its record.
    """

    version: Literal[1] = VERSION
    name: str
    created_at: str
    files: dict[str, FileRecord]

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`; `SpecError` where the text is no manifest, or one of another version."""
        data = parse_json(text, "manifest.json")
        version = data.get("version") if isinstance(data, dict) else VERSION
        if type(version) is not int or version != VERSION:
            raise SpecError(f"manifest.json: version is {version!r}; version {VERSION} is the one that is read here.")
        return cls.from_data(data, "manifest.json")


class Environment(_Record):
    """What the results were made with.

    Attributes
    ----------
    model, model_revision
        As the experiment names them.
    weights_sha256
        Digest of the weights; empty where the backend does not tell.
    image_processor, image_backend
        The class that made pixels of pictures, and the library that it uses; empty of a model of text alone.
    family_sha256
        Digest of the file that says where the model's sites are.
    attn_implementation, quantization
        How attention was computed, and how the weights were quantized (empty: not at all); left out where the backend
        does not tell.
    git_commit, git_dirty
        Of the checkout that vlm_patching ran from, and whether it had changes; left out where it was none.
    versions
        Package → version, and python's.
    """

    model: str = Field(min_length=1)
    model_revision: str
    weights_sha256: str = Field(pattern="^([0-9a-f]{64})?$")
    image_processor: str
    image_backend: str | None = None
    family_sha256: Digest | None = None
    attn_implementation: str | None = None
    quantization: Quantization | Literal[""] | None = None
    dtype: str
    device: str
    backend: str
    versions: dict[str, str]
    git_commit: str | None = None
    git_dirty: bool | None = None

    _dtype = field_validator("dtype")(one_of("dtype", DTYPE_NAMES))

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Environment:
        """What a dataset's attributes say."""
        names = [name for name in cls.model_fields if name in attributes]
        data = {name: attributes[name] for name in names} | {"weights_sha256": attributes.get("weights_sha256", "")}
        if isinstance(data.get("versions"), str):
            data["versions"] = parse_json(data["versions"], "attribute versions")
        if data.get("git_dirty") in (0, 1):
            data["git_dirty"] = bool(data["git_dirty"])
        return cls.from_data(data, "attributes of the results")

    @classmethod
    def from_json(cls, text: str) -> Environment:
        """The inverse of `to_json`."""
        return cls.from_data(parse_json(text, "environment.json"), "environment.json")


def _keys_at(record: type[_Record], location: tuple[Any, ...]) -> list[str]:
    return list(FileRecord.model_fields if "files" in location else record.model_fields)


SCHEMAS: dict[str, Any] = {
    "experiment": Experiment,
    "graph": InterventionGraph,
    "manifest": Manifest,
    "environment": Environment,
}


def schema(name: str) -> str:
    """The JSON Schema of one of `SCHEMAS`, as it is kept in docs/schema."""
    content = {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(SCHEMAS[name]).json_schema()}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> None:
    """Write every schema into a folder, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS:
        (folder / f"{name}.json").write_text(schema(name), encoding="utf-8")
