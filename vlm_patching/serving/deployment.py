"""What a server is asked to deploy: a model's name → the key that NDIF knows it by, and how large it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlm_patching.errors import SpecError, nearest
from vlm_patching.models.load import bundled_models

STOCK_CLASS = "nnsight.modeling.transformers.TransformersModel"
WRAPPED_CLASSES = {"BlipForQuestionAnswering": "vlm_patching_blip.BlipVqaModel"}
"""Model classes without a pipeline task → the class in `wrappers` that loads them."""


@dataclass(frozen=True)
class Deployment:
    """A model to be deployed.

    Attributes
    ----------
    name
        As the user gave it.
    checkpoint
        Folder or hub id; part of the key.
    model_key
        What a request says to be routed to this model.
    size_bytes
        Of its weights. The server places a model by it; left to itself, it would ask the hub, which knows no folders.
    """

    name: str
    checkpoint: str
    model_key: str
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The entry in the file that `ndif deploy -f` takes."""
        return {
            "checkpoint": self.checkpoint,
            "model_key": self.model_key,
            "size_bytes": self.size_bytes,
            "dtype": "float32",
            "pinned": True,
        }


def resolve_deployment(name: str, wrappers: bool = False) -> Deployment:
    """What to deploy for a bundled name, a local folder or a hub id; a hub id's files are downloaded where needed.

    Raises
    ------
    SpecError
        There is no such model, or the server cannot load it.
    """
    bundled = bundled_models()
    if name in bundled:
        checkpoint, folder = str(bundled[name]), bundled[name]
    elif Path(name).is_dir():
        folder = Path(name).resolve()
        checkpoint = str(folder)
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        checkpoint, folder = name, _download(name)
    else:
        raise SpecError(
            f"Unknown model {name!r}.{nearest(name, bundled)} It is neither a bundled model ({', '.join(bundled)}), "
            "nor a folder that exists, nor a hub id ('owner/name')."
        )
    try:
        classes = json.loads((folder / "config.json").read_text()).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise SpecError(f"Model {name!r}: {folder / 'config.json'} could not be read: {error}.") from error
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not weights:
        raise SpecError(f"Model {name!r}: there are no weights (*.safetensors) in {folder}.")
    return Deployment(
        name, checkpoint, _model_key(name, checkpoint, classes, wrappers), sum(w.stat().st_size for w in weights)
    )


def _model_key(name: str, checkpoint: str, classes: list[str], wrappers: bool) -> str:
    identity: dict[str, Any] = {"repo_id": checkpoint, "revision": None}
    if set(classes) & set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()):
        return f"{STOCK_CLASS}:{json.dumps(identity | {'task': 'image-text-to-text'})}"
    known = [WRAPPED_CLASSES[c] for c in classes if c in WRAPPED_CLASSES]
    if known and wrappers:
        return f"{known[0]}:{json.dumps(identity)}"
    raise SpecError(
        f"Model {name!r} holds a {' / '.join(classes) or 'model of unnamed class'}, which transformers has no pipeline "
        "task for, so NDIF cannot load it as it is."
        + (" With --with-wrappers the server also gets the class that loads it." if known else "")
    )


def _download(name: str) -> Path:
    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise SpecError(f"Model {name!r} could not be downloaded: {str(error).strip().splitlines()[0]}") from error
