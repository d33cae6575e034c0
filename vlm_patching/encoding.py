"""One prompt as a model gets it: tensors, tokens with their places in the user's text, and what its images became."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError

from vlm_patching.errors import SpecError
from vlm_patching.models.layouts import ImageLayout, Patch, Seen
from vlm_patching.models.load import ModelDescription
from vlm_patching.pairs import Prompt

Offsets = list[tuple[int, int]]
PLACE = "<patch>"
"""What is shown of a position whose token, if there is one, does not say that it holds an image's place."""


class Encoding:
    """One prompt's tensors, tokens and their character ranges in the text that the tokenizer saw.

    Attributes
    ----------
    tensors
        The forward pass's arguments, batch of one.
    text, special, written
        What the tokenizer saw, whether it was to put special tokens around it, and what it made of it.
    tokens, ids, offsets
        Of the text stack's sequence; image positions that no token of their own stands for have the id -1.
    layout
        What the images' positions show.
    ahead
        How many of them come before all tokens, without any that stands for them.
    """

    def __init__(self, prompt: Prompt, description: ModelDescription) -> None:
        self.prompt, self.description = prompt, description
        architecture, tokenizer = description.architecture, description.tokenizer
        pictures = prompt.pictures()
        if pictures and architecture.image is None:
            raise SpecError(f"{description.name!r} is a model of text alone, and the prompt has an image")
        if architecture.image is not None and architecture.image.single and len(pictures) > 1:
            raise SpecError(f"{description.name!r} takes one image in a prompt, and the prompt has {len(pictures)}")
        if architecture.image is not None and architecture.image.needed and not pictures:
            raise SpecError(f"{description.name!r} takes no prompt without an image, and the prompt has none")
        listening, heard = _listening(description.processor)
        try:
            templated = self._templated(prompt.text)
            given: dict[str, Any] = {"images": [list(pictures)]} if pictures else {}  # all of one prompt
            if tokenizer.bos_token and templated.replace(self._mark, "").startswith(tokenizer.bos_token):
                given["add_special_tokens"] = False  # the template has put them in
            encoded = listening(text=templated, return_tensors="pt", **given)
        except (ValueError, TypeError, KeyError, IndexError, TemplateError) as error:
            raise SpecError(f"the processor of {description.name!r} cannot take {prompt.text!r}: {error}") from error
        tensors = {name: value for name, value in encoded.items() if isinstance(value, torch.Tensor)}
        self.tensors = {name: value for name, value in tensors.items() if name in architecture.takes}
        self.tensors.pop("labels", None)
        ids = self._ids()
        self.text, self.special, self.written, self.offsets = self._heard(heard, ids)
        if architecture.prompting.start:
            self.tensors["decoder_input_ids"] = torch.tensor([architecture.prompting.start])
        if architecture.prompting.begins is not None:
            ids = self._begun(ids, architecture.prompting.begins)
        self.ids: list[int] = ids
        self.tokens = [PLACE if token == -1 else str(tokenizer.convert_ids_to_tokens(token)) for token in ids]
        self.start = self._start_of_users_text(templated)
        self.layout = self._layout(pictures)
        self.ahead = self._make_room()
        longest = architecture.prompting.longest
        if longest is not None and len(ids) > longest:
            raise SpecError(
                f"the prompt has {len(ids)} tokens and {description.name!r} takes {longest}: {prompt.text[:80]!r}"
            )

    @property
    def patches(self) -> dict[int, Patch]:
        """Which positions of the text stack's sequence are of images, and what they show."""
        image = self.description.architecture.image
        if image is None or not image.inline:
            return {}
        marked = [i for i, token in enumerate(self.ids) if token in (-1, *image.marks)]
        return dict(zip(marked, self.layout.text, strict=True))

    def covering(self, start: int, end: int) -> tuple[int, ...]:
        """Indices of the tokens that share a character with a range of the user's text."""
        start, end = start + self.start, end + self.start
        return tuple(i for i, (a, b) in enumerate(self.offsets) if a < end and start < b)

    @property
    def _mark(self) -> str:
        """What stands for one image in the template."""
        processor = self.description.processor
        mark = self.description.architecture.prompting.mark or getattr(processor, "image_token", None) or ""
        return str(getattr(mark, "content", mark))

    def _templated(self, text: str) -> str:
        """The user's text inside the model's chat template, or its family's."""
        description, count = self.description, len(self.prompt.images)
        processor, known = description.processor, description.architecture.prompting
        image, mark = description.architecture.image, self._mark
        if mark and mark in self.prompt.text:
            raise SpecError(f"the text holds the image mark {mark!r}, which is put in by the model's template")
        if getattr(processor, "chat_template", None):
            parts = [*[{"type": "image"}] * count, {"type": "text", "text": text}]
            content = parts if image is not None else text
            turns = [{"role": "user", "content": content}]
            return str(processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        if image is not None and image.place == "marks" and not known.template:
            raise SpecError(f"model {description.name!r} has no chat template that says where its image goes")
        template = (known.template if count else known.alone or known.template) or "{text}"
        return template.replace("{images}", mark * count).replace("{text}", text)

    def _ids(self) -> list[int]:
        """The prompt's tokens; -1 for those of which an input of its own says that an image comes in their place."""
        image, ids = self.description.architecture.image, self.tensors["input_ids"][0].tolist()
        if image is None or image.mask not in self.tensors:
            return list(ids)
        return [-1 if held else token for token, held in zip(ids, self.tensors[image.mask][0].tolist(), strict=True)]

    def _heard(self, heard: Sequence[str], ids: list[int]) -> tuple[str, bool, list[int], Offsets]:
        """Which of the texts that the tokenizer was given became the prompt, whether it put special tokens around it,
        its tokens, and every position's place in it (an empty range for images before all of it)."""
        tokenizer: Any = self.description.tokenizer
        image = self.description.architecture.image
        marks = image.marks if image else ()
        front = next((i for i, token in enumerate(ids) if token not in marks), 0)
        if not tokenizer.is_fast:
            raise SpecError(f"{self.description.name!r} has a slow tokenizer, which does not say what its tokens cover")
        tried = [(text, special) for text in dict.fromkeys(heard) for special in (True, False)]
        for text, special in tried:
            again = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
            places = [tuple(place) for place in again["offset_mapping"]]
            for before in (0, front):
                if _same(again["input_ids"], ids[before:]):
                    return text, special, again["input_ids"], [(0, 0)] * before + places
        raise SpecError("the processor's tokens are not its tokenizer's, so spans cannot be found in them")

    def _begun(self, ids: list[int], begins: int) -> list[int]:
        """A caption's beginning: the decoder's own first token in the place of the tokenizer's, and no end."""
        tokenizer: Any = self.description.tokenizer
        if ids[0] != tokenizer.cls_token_id or ids[-1] != tokenizer.sep_token_id:
            raise SpecError(
                f"the tokenizer of {self.description.name!r} does not put {tokenizer.cls_token} and "
                f"{tokenizer.sep_token} around a text, so a caption cannot be begun with it"
            )
        ids = [begins, *ids[1:-1]]
        self.offsets.pop()
        self.tensors["input_ids"] = torch.tensor([ids])
        self.tensors["attention_mask"] = self.tensors["attention_mask"][:, :-1]
        return ids

    def _start_of_users_text(self, templated: str) -> int:
        """Where the user's text begins in what the tokenizer saw; `SpecError` where the template changes the text.

        What stands for images has been written out by then, so places are counted from the end.
        """
        mark, text = "\u27e6text\u27e7", self.prompt.text
        before = self._templated(mark).split(mark)[0]
        places = _places(templated, text)
        if not templated[len(before) :].startswith(text):
            raise SpecError(
                f"the model's chat template changes the text {text!r} (it may trim spaces), so spans cannot be found "
                "in it"
            )
        behind = len(places) - places.index(len(before))
        found = _places(self.text, text)
        if len(found) < behind:
            raise SpecError(f"the processor changes the text {text!r}, so spans cannot be found in it")
        return found[-behind]

    def _layout(self, pictures: Sequence[Any]) -> ImageLayout:
        image = self.description.architecture.image
        if image is None or not pictures:
            return ImageLayout((), ())
        processor = getattr(self.description.processor, "image_processor", None)
        sizes = [picture.size for picture in pictures]
        try:
            return image.layout(Seen(self.description.config, processor, self.tensors, sizes))
        except (TypeError, ArithmeticError, LookupError, AttributeError) as error:
            family = self.description.architecture.family
            raise SpecError(f"image.layout of the family {family} does not fit the prompt: {error}") from error

    def _make_room(self) -> int:
        """Positions for images that no token stands for; how many. `SpecError` where others have not their marks."""
        image = self.description.architecture.image
        count = len(self.layout.text)
        if image is None or image.place == "apart":
            return 0
        if image.place == "marks":
            marked = sum(token in (-1, *image.marks) for token in self.ids)
            if marked != count:
                raise SpecError(
                    f"{marked} image positions in the prompt, but its images have {count} by the map of the family "
                    f"{self.description.architecture.family}"
                )
            return 0
        self.ids, self.tokens = [-1] * count + self.ids, [PLACE] * count + self.tokens
        self.offsets = [(0, 0)] * count + self.offsets
        return count


def _places(text: str, part: str) -> list[int]:
    """Where a part begins in a text, each place."""
    return [i for i in range(len(text) - len(part) + 1) if text.startswith(part, i)]


def _same(written: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether tokens are those of a prompt, wherever it does not have an image in their place."""
    return len(written) == len(ids) and all(b in (a, -1) for a, b in zip(written, ids, strict=True))


def _listening(processor: Any) -> tuple[Any, list[str]]:
    """A copy of a processor, and the texts that it will have handed to its tokenizer, once it is called."""
    heard: list[str] = []
    tokenizer = getattr(processor, "tokenizer", processor)

    class Listener:
        """The tokenizer, and who writes down what it is called with."""

        def __call__(self, text: Any = None, *rest: Any, **named: Any) -> Any:
            heard.extend([text] if isinstance(text, str) else text)
            return tokenizer(text, *rest, **named)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __len__(self) -> int:
            return len(tokenizer)

    if processor is tokenizer:
        return Listener(), heard
    copied = copy.copy(processor)
    copied.tokenizer = Listener()
    return copied, heard
