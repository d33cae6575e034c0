"""BLIP for visual question answering, as an NDIF server can load it.

nnsight's `TransformersModel` needs a pipeline task, and BLIP-VQA has none. A model's key names its class, so this file
must be importable, under this very name, where the server runs.
"""

from __future__ import annotations

from typing import Any

from nnsight.modeling.huggingface import HuggingFaceModel


class BlipVqaModel(HuggingFaceModel):
    """A `BlipForQuestionAnswering`."""

    AUTO_CLASS = "BlipForQuestionAnswering"

    def _load_meta(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        from transformers import BlipConfig

        return self._auto()._from_config(BlipConfig.from_pretrained(repo_id, revision=self.revision))

    def trace(self, *inputs: Any, fn: Any = None, **kwargs: Any) -> Any:
        return super().trace(*inputs, fn=fn or self._call, **kwargs)

    def _call(self, *inputs: Any, **kwargs: Any) -> Any:
        return self._module(*inputs, **kwargs)  # a sandbox runs a method of the wrapper, by its name

    def _load(self, repo_id: str, *args: Any, device: str = "cpu", **kwargs: Any) -> Any:
        return super()._load(repo_id, *args, **kwargs).to(device)
