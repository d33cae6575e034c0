"""SmolVLM 2: built as Idefics 3 is, with a processor of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil, SmolVLMProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from tests.families import idefics3, kit
from tests.families.kit import Place

TEMPLATE = "<|im_start|>" + idefics3.TURNS.replace(
    "{% endif %}{% endfor %}<end", "{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}<end"
)
MARKS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>")


def build(folder: Path) -> None:
    tokenizer = kit.byte_pairs(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *idefics3.ROWS_AND_COLUMNS, *MARKS),
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
    )
    pictures = SmolVLMImageProcessorPil(
        size={"longest_edge": 3 * idefics3.TILE}, max_image_size={"longest_edge": idefics3.TILE}
    )
    processor = Pictures(pictures, tokenizer, idefics3.POSITIONS, TEMPLATE)
    config = SmolVLMConfig(
        text_config=idefics3.text(tokenizer).to_dict(),
        vision_config=SmolVLMVisionConfig(**idefics3.vision()).to_dict(),
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = SmolVLMForConditionalGeneration(config)
    kit.randomise(model, seed=14)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


class Pictures(SmolVLMProcessor):
    """Less the video processor, which needs torchvision, and num2words, which writes a video's length in words."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, image_seq_len: int = 169, chat_template: str | None = None
    ) -> None:
        with mock.patch.object(processing_smolvlm, "num2words", str):
            super().__init__(image_processor, tokenizer, None, image_seq_len, chat_template)


Pictures.__name__ = SmolVLMProcessor.__name__  # what is saved names the class


def encode(processor: Any, images: Sequence[Image.Image], text: str) -> kit.Inputs:
    said = ":" + "<image>" * len(images) if images else ": "
    prompt = f"<|im_start|>User{said}{text}<end_of_utterance>\nAssistant:"
    return dict(processor(images=[list(images)] if images else None, text=prompt, return_tensors="pt"))


KNOWN = kit.Known(
    name="smolvlm",
    build=build,
    processor=Pictures.from_pretrained,
    encode=encode,
    towers=idefics3.TOWERS,
    embeds=Place("model.connector"),
    tokens=Place("model.text_model.embed_tokens"),
    patches=idefics3.patches,
)
