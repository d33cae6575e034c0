"""A model's processor, also where torchvision is not installed: pictures are then made ready by Pillow."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available


def load_processor(source: str, revision: str | None, config: PreTrainedConfig) -> Any:
    """What transformers' `AutoProcessor` gives; without torchvision the same processor, less its videos.

    Processors of models that also take videos want torchvision for those alone, and so does the module of Pixtral's
    processor, for a function that the Pillow image processor has as well. SmolVLM's wants num2words for them besides.
    """
    kind = _class_name(source, revision, config)
    with _without_words(kind):
        if kind is None or is_torchvision_available():
            return AutoProcessor.from_pretrained(source, revision=revision)
        found = _class(kind)
        if "video_processor" not in inspect.signature(found.__init__).parameters:
            return found.from_pretrained(source, revision=revision)
        return _without_videos(found).from_pretrained(source, revision=revision)


def _class_name(source: str, revision: str | None, config: PreTrainedConfig) -> str | None:
    """The processor's class; None where there is none, as of a model of text alone."""
    try:
        known, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
    except OSError:  # an older checkpoint, which says it nowhere
        known = {}
    named = known.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(config.model_type)
    return str(named) if named else None


def _class(name: str) -> Any:
    if name != "PixtralProcessor":
        return getattr(importlib.import_module("transformers"), name)
    wanted = "transformers.models.pixtral.image_processing_pixtral"
    before = sys.modules.get(wanted)
    sys.modules[wanted] = importlib.import_module("transformers.models.pixtral.image_processing_pil_pixtral")
    try:
        return importlib.import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    finally:
        if before is None:
            del sys.modules[wanted]
        else:
            sys.modules[wanted] = before


@contextlib.contextmanager
def _without_words(kind: str | None) -> Iterator[None]:
    """SmolVLM's processor can be made although num2words, which writes out the lengths of videos, is not there."""
    if kind != "SmolVLMProcessor":
        yield
        return
    module: Any = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
    before = module.num2words
    module.num2words = before or str
    try:
        yield
    finally:
        module.num2words = before


class _NoVideos(dict[str, Any]):
    """In the place of a video processor: SmolVLM's template is put with its defaults, also where there is no video."""

    num_frames = fps = None
    model_input_names = ()


def _without_videos(family: Any) -> Any:
    """The processor's class, which has nothing where it wants a video processor; it bears the same name."""
    parts = family.get_attributes()
    place = parts.index("video_processor")

    class Loaded(family):
        """What of it is loaded."""

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [*parts[:place], *parts[place + 1 :]]

    class Processor(family):
        @classmethod
        def _get_arguments_from_pretrained(cls, *given: Any, **named: Any) -> list[Any]:
            found = Loaded._get_arguments_from_pretrained(*given, **named)
            return [*found[:place], _NoVideos(), *found[place:]]

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return argument_name == "video_processor" or super().check_argument_for_proper_class(
                argument_name, argument
            )

    Processor.__name__ = family.__name__
    return Processor
