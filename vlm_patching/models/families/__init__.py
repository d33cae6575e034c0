"""One short data file a family, found by the configurations that it matches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedConfig

from vlm_patching.errors import SpecError, nearest
from vlm_patching.models.architecture import Architecture
from vlm_patching.models.families.schema import FamilyFile, keys_at
from vlm_patching.validation import MAX_CHARACTERS, explain, parse_yaml, read_text

REFUSED = {
    "vilt": "ViLT draws the order of a picture's patches anew in every forward pass, so that a position shows another "
    "patch in each run and cannot be patched from one into another",
    "phi4_multimodal": "Phi-4-multimodal's image encoder attends causally where no picture of a batch has padding and "
    "both ways where one has, each picture is projected in a call of its own, and what the model has learned of "
    "pictures is in an adapter beside its weights",
}
"""Model types that no file can be right about, and why."""


class UnknownFamilyError(SpecError):
    """A model that no file of the package is of."""


@dataclass(frozen=True)
class Family:
    """A family's file.

    Attributes
    ----------
    name
        The file's, without its ending.
    text
        All of it.
    file
        What it says.
    path
        The user's own file; None of one that ships inside the package.
    """

    name: str
    text: str
    file: FamilyFile
    path: Path | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def describe(self, config: PreTrainedConfig) -> Architecture:
        """The map of the model that a configuration describes; `SpecError` where it is not of this family."""
        _check_refused(config)
        where = self.name if self.path is None else str(self.path)
        mismatch = self.file.mismatch(config)
        if mismatch:
            raise SpecError(f"A {config.model_type} model, but it is no {where}: {mismatch}.")
        try:
            return self.file.describe(self.name, config)
        except (ValueError, TypeError, AttributeError) as error:  # a SpecError, or a setting of another kind
            raise SpecError(f"This {config.model_type} model does not fit the family {where}: {error}") from error


@cache
def families() -> dict[str, Family]:
    """The families that ship inside the package, by the names of their files."""
    folder = Path(str(resources.files("vlm_patching.models") / "families"))
    return {path.stem: parse_family(path.stem, read_text(path)) for path in sorted(folder.glob("*.yaml"))}


def read_family(path: str | Path) -> Family:
    """A user's own file; `SpecError` that names the file, the key and what is allowed where it is not sound."""
    path = Path(path)
    try:
        found, size = path.is_file(), path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError):  # a name that no file can have
        found, size = False, 0
    if not found:
        raise SpecError(f"model.family: the file {str(path)!r} does not exist.")
    if size > 4 * MAX_CHARACTERS:  # bytes of a character, at most
        raise SpecError(f"model.family: {path} has {size} bytes; at most {MAX_CHARACTERS} characters are read.")
    return parse_family(path.stem, read_text(path), path)


def parse_family(name: str, text: str, path: Path | None = None) -> Family:
    """A family out of a file's text; `SpecError` that names the file, the key and what is allowed."""
    where = str(path or f"{name}.yaml")
    try:
        return Family(name, text, FamilyFile.model_validate(parse_yaml(text, where)), path)
    except ValidationError as error:
        raise SpecError(f"{where}: {explain(error, keys_at)}") from error


def find_family(config: PreTrainedConfig) -> Family:
    """The first of the package's families that a model is of; `UnknownFamilyError` where there is none."""
    _check_refused(config)
    files = families()
    mismatches = {name: family.file.mismatch(config) for name, family in files.items()}
    found = next((name for name, why in mismatches.items() if not why), None)
    if found is not None:
        return files[found]
    kind = config.model_type
    proposes = "`vlm-patching doctor MODEL` proposes a file for it, which --family takes."
    close = [f"it is no {name}: {why}" for name, why in mismatches.items() if _is_of(files[name].file, kind)]
    if close:
        raise UnknownFamilyError(f"A {kind} model, but {'; '.join(close)}. {proposes}")
    raise UnknownFamilyError(
        f"unknown model family {kind!r}.{nearest(kind, files)} Known: {', '.join(files)}. {proposes}"
    )


def _check_refused(config: PreTrainedConfig) -> None:
    if config.model_type in REFUSED:
        raise SpecError(f"{config.model_type} models are not supported: {REFUSED[config.model_type]}.")


def _is_of(file: FamilyFile, model_type: str) -> bool:
    known = file.matches.get("model_type")
    return model_type in (known if isinstance(known, tuple) else (known,))
