"""Pair + model description → tensors, and what every position is. Everything here works without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jinja2 import TemplateError

from vlm_patching.errors import SpecError
from vlm_patching.models.load import ModelDescription
from vlm_patching.pairs import SUBJECT_ROLES, Pair, Prompt, prompt_for
from vlm_patching.positions import Position, StackPositions, overlaps, patch_boxes


@dataclass(frozen=True)
class EncodedPair:
    """A pair as a model gets it.

    Attributes
    ----------
    pair
        What was encoded.
    inputs
        Kind of input (`clean`, `corrupted_image`, ...) → the forward pass's tensors, batch of one.
    positions
        Stack (or `image_embeds`, `token_embeds`) → its positions, of the clean prompt.
    answer, foil
        Their tokens, as they follow the prompt.
    alignment
        Kind of input → for every text position of the clean prompt its index in that one, None where it has no partner.
    text_stacks
        The stacks whose positions `alignment` is about.
    other
        Positions of the other pair that the kind `other` is, where it was asked for.
    """

    pair: Pair
    inputs: Mapping[str, Mapping[str, torch.Tensor]]
    positions: Mapping[str, StackPositions]
    answer: tuple[int, ...]
    foil: tuple[int, ...]
    alignment: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    text_stacks: tuple[str, ...] = ()
    other: Mapping[str, StackPositions] = field(default_factory=dict)

    def on(self, kind: str, stack: str, indices: Sequence[int]) -> tuple[int | None, ...]:
        """Where positions of the clean prompt are in another input; None for those without a partner there."""
        if stack not in self.text_stacks or kind not in self.alignment:
            return tuple(indices)
        return tuple(self.alignment[kind][i] for i in indices)

    def is_aligned(self, kind: str) -> bool:
        """Whether every token of another input has the index of its partner in the clean prompt."""
        length = self.inputs[kind]["input_ids"].shape[1]
        return self.alignment.get(kind, tuple(range(length))) == tuple(range(length))


def encode_pair(
    pair: Pair,
    description: ModelDescription,
    kinds: tuple[str, ...],
    other: Pair | None = None,
    first_token: bool = True,
) -> EncodedPair:
    """Process a pair's prompts with the model's own processor and find its positions.

    Parameters
    ----------
    pair
        What to encode.
    description
        The model, without weights.
    kinds
        Which inputs the runs need: `clean`, `corrupted`, `corrupted_image`, `corrupted_text`, `other`.
    other
        The pair whose clean prompt the kind `other` is.
    first_token
        Whether answer and foil must differ in their first token.

    Raises
    ------
    SpecError
        Clean and corrupted prompt that cannot be aligned, or answer and foil with the same first token.
    """
    try:
        clean = _Encoding(prompt_for(pair, "clean"), description)
        inputs, alignment = {"clean": clean.tensors}, {}
        others: Mapping[str, StackPositions] = {}
        for kind in kinds:
            if kind == "other":
                if other is not None:
                    inputs[kind] = _Encoding(prompt_for(other, "clean"), description).tensors
                    others = encode_pair(other, description, (), first_token=False).positions
            elif kind != "clean":
                encoding = _Encoding(prompt_for(pair, kind), description)
                inputs[kind] = encoding.tensors
                alignment[kind] = _aligned(pair, clean, encoding)
        answer = _tokens(clean, "answer", pair.answer, description)
        foil = _tokens(clean, "foil", pair.foil, description)
        if first_token and answer[0] == foil[0]:
            token = description.processor.tokenizer.convert_ids_to_tokens(answer[0])
            raise SpecError(
                f"answer {pair.answer!r} and foil {pair.foil!r} have the same first token {token!r}, so metrics of the "
                "first token cannot tell them apart; answer_log_probability and answer_log_odds are of whole answers"
            )
        stacks = (description.architecture.text_stack, "token_embeds")
        positions = _positions(pair, clean, description)
        return EncodedPair(pair, inputs, positions, answer, foil, alignment, stacks, others)
    except SpecError as error:
        raise SpecError(f"Pair {pair.id!r}: {error}") from error


class _Encoding:
    """One prompt's tensors, tokens and their character ranges in the text that the tokenizer saw."""

    def __init__(self, prompt: Prompt, description: ModelDescription) -> None:
        processor = description.processor
        self.prompt = prompt
        self.picture = prompt.picture()
        self.image_token = getattr(processor, "image_token", None) if description.architecture.image.inline else None
        if self.image_token and self.image_token in prompt.text:
            raise SpecError(
                f"the text holds the image mark {self.image_token!r}, which is put in by the model's template"
            )
        try:
            templated = _templated(prompt.text, description)
            encoded = processor(images=self.picture, text=templated, return_tensors="pt")
        except (ValueError, TypeError, KeyError, TemplateError) as error:
            raise SpecError(f"the processor of {description.name!r} cannot take {prompt.text!r}: {error}") from error
        self.tensors = {name: encoded[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        text = description.config.text_config
        if not description.architecture.continues:
            self.tensors["decoder_input_ids"] = torch.tensor([[text.bos_token_id]])
        ids = encoded["input_ids"][0].tolist()
        self.text = templated
        if self.image_token:
            image_id = processor.tokenizer.convert_tokens_to_ids(self.image_token)
            self.text = templated.replace(self.image_token, self.image_token * ids.count(image_id))
        again = processor.tokenizer(self.text, return_offsets_mapping=True)
        if again["input_ids"] != ids:
            raise SpecError("the processor's tokens are not its tokenizer's, so spans cannot be found in them")
        self.offsets: list[tuple[int, int]] = [tuple(o) for o in again["offset_mapping"]]
        if description.architecture.continues and not description.architecture.image.inline:
            ids = self._begun(ids, description)
        self.ids: list[int] = ids
        self.tokens: list[str] = processor.tokenizer.convert_ids_to_tokens(ids)
        self.start = self._start_of_users_text(description)
        longest = text.max_position_embeddings
        if len(ids) > longest:
            raise SpecError(
                f"the prompt has {len(ids)} tokens and {description.name!r} takes {longest}: {prompt.text[:80]!r}"
            )

    def _begun(self, ids: list[int], description: ModelDescription) -> list[int]:
        """A caption's beginning: the decoder's own first token in the place of the tokenizer's, and no end."""
        tokenizer, bos = description.processor.tokenizer, description.config.text_config.bos_token_id
        if ids[0] != tokenizer.cls_token_id or ids[-1] != tokenizer.sep_token_id:
            raise SpecError(
                f"the tokenizer of {description.name!r} does not put {tokenizer.cls_token} and "
                f"{tokenizer.sep_token} around a text, so a caption cannot be begun with it"
            )
        ids = [bos, *ids[1:-1]]
        self.offsets.pop()
        self.tensors["input_ids"] = torch.tensor([ids])
        self.tensors["attention_mask"] = self.tensors["attention_mask"][:, :-1]
        return ids

    def _start_of_users_text(self, description: ModelDescription) -> int:
        """Where the user's text begins in what the tokenizer saw; `SpecError` where the template changes the text."""
        mark = "\u27e6text\u27e7"
        before = _templated(mark, description).split(mark)[0]
        if self.image_token:
            count = self.text.count(self.image_token) // max(1, before.count(self.image_token))
            before = before.replace(self.image_token, self.image_token * count)
        if not self.text[len(before) :].startswith(self.prompt.text):
            raise SpecError(
                f"the model's chat template changes the text {self.prompt.text!r} (it may trim spaces), so spans "
                "cannot be found in it"
            )
        return len(before)

    def covering(self, start: int, end: int) -> tuple[int, ...]:
        """Indices of the tokens that share a character with a range of the user's text."""
        start, end = start + self.start, end + self.start
        return tuple(i for i, (a, b) in enumerate(self.offsets) if a < end and start < b)


def _templated(text: str, description: ModelDescription) -> str:
    """The user's text inside the model's chat template, where it has one."""
    processor = description.processor
    if not getattr(processor, "chat_template", None):
        if description.architecture.image.inline:
            raise SpecError(f"model {description.name!r} has no chat template that says where its image goes")
        return text
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def _aligned(pair: Pair, clean: _Encoding, other: _Encoding) -> tuple[int | None, ...]:
    """For every token of the clean prompt its index in another one.

    Tokens outside of the spans whose text differs are paired in order; inside such a span they are paired from its end,
    so that last meets last, and what is left over at its front has no partner.
    """
    spans: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for name in sorted(pair.spans, key=lambda name: pair.spans[name][1] - pair.spans[name][0]):
        if name not in pair.spans_corrupted:
            continue
        here, there = clean.covering(*pair.spans[name]), other.covering(*pair.spans_corrupted[name])
        overlapping = any(set(here) & set(range(start, stop)) for (start, stop), _ in spans)
        if here and there and len(here) != len(there) and not overlapping:
            spans.append(((here[0], here[-1] + 1), (there[0], there[-1] + 1)))
    if other.prompt.text == clean.prompt.text or not spans:
        if len(other.tokens) != len(clean.tokens):
            raise SpecError(
                f"clean and corrupted prompt must align token by token, but have {len(clean.tokens)} and "
                f"{len(other.tokens)} tokens: {clean.prompt.text!r} and {other.prompt.text!r}. Choose a replacement "
                "with the same number of tokens, or name the part that differs as a span in spans and spans_corrupted."
            )
        return tuple(range(len(clean.tokens)))
    aligned: list[int | None] = [None] * len(clean.tokens)
    position, shift = 0, 0
    for (start, stop), (start_there, stop_there) in sorted(spans):
        if start + shift != start_there:
            raise SpecError(
                f"clean and corrupted prompt differ outside of their spans, so their tokens cannot be aligned: "
                f"{clean.prompt.text!r} and {other.prompt.text!r}."
            )
        for i in range(position, start):
            aligned[i] = i + shift
        shift = stop_there - stop
        for i in range(max(start, start_there - shift), stop):
            aligned[i] = i + shift
        position = stop
    if len(clean.tokens) + shift != len(other.tokens):
        raise SpecError(
            f"clean and corrupted prompt differ in length outside of their spans, so their tokens cannot be aligned: "
            f"{clean.prompt.text!r} and {other.prompt.text!r}."
        )
    for i in range(position, len(clean.tokens)):
        aligned[i] = i + shift
    return tuple(aligned)


def _tokens(clean: _Encoding, what: str, word: str, description: ModelDescription) -> tuple[int, ...]:
    """The tokens of a word as the model's answer to the prompt."""
    tokenizer: Any = description.processor.tokenizer
    inline = description.architecture.image.inline
    if inline:
        longer = tokenizer(f"{clean.text} {word.strip()}")["input_ids"]
        tokens = longer[len(clean.ids) :] if longer[: len(clean.ids)] == clean.ids else []
    else:
        tokens = tokenizer(word.strip(), add_special_tokens=False)["input_ids"]
    if not tokens:
        raise SpecError(
            f"the {what} {word!r} does not follow the prompt as tokens of its own, so it has no first token"
        )
    if tokenizer.unk_token_id in tokens:
        raise SpecError(f"the {what} {word!r} is no token of {description.name!r}: its vocabulary lacks it")
    longest = description.config.text_config.max_position_embeddings
    if len(tokens) - 1 + (len(clean.ids) if description.architecture.continues else 1) > longest:
        raise SpecError(
            f"the {what} {word!r} does not fit behind the prompt: {description.name!r} takes {longest} tokens"
        )
    return tuple(map(int, tokens))


def _positions(pair: Pair, clean: _Encoding, description: ModelDescription) -> dict[str, StackPositions]:
    entry = description.architecture.image
    boxes = patch_boxes(clean.picture.size, entry.rows, entry.columns, _crop(description))
    patches = [
        Position(f"r{row}c{col}", "image", _region_of(box, pair), "<patch>", row, col, box)
        for (row, col), box in zip(
            [(r, c) for r in range(entry.rows) for c in range(entry.columns)], boxes, strict=True
        )
    ]
    stacks = {"vision": _vision(pair, patches, entry.class_token)}
    marks = [i for i, token in enumerate(clean.tokens) if token == clean.image_token] if entry.inline else []
    if entry.inline and len(marks) != len(patches):
        raise SpecError(
            f"{len(marks)} image positions in the prompt, but a grid of {entry.rows} × {entry.columns} patches"
        )
    name = description.architecture.text_stack
    stacks[name] = _text(pair, clean, name, dict(zip(marks, patches, strict=False)), description)
    if not description.architecture.continues:
        start = clean.tensors["decoder_input_ids"][0].tolist()
        token = description.processor.tokenizer.convert_ids_to_tokens(start)[0]
        decoding = Position("decoding", "text", "decoding", token)
        stacks["answer_decoder"] = StackPositions("answer_decoder", (decoding,), {"decoding": (0,), "last": (0,)})
    handed = _vision(pair, patches, entry.class_token and not entry.inline)
    stacks["image_embeds"] = replace(handed, stack="image_embeds")
    stacks["token_embeds"] = replace(stacks[name], stack="token_embeds")
    return stacks


def _crop(description: ModelDescription) -> tuple[float, float] | None:
    """Width and height that the processor cuts out, in lengths of the shorter side; None where it stretches."""
    processor = description.processor.image_processor
    if not getattr(processor, "do_center_crop", False):
        return None
    shorter = processor.size.get("shortest_edge") or min(processor.size["height"], processor.size["width"])
    cut = processor.crop_size["width"] / shorter, processor.crop_size["height"] / shorter
    if max(cut) > 1:
        raise SpecError(f"the image processor pads pictures (crops {max(cut):.2g} of the shorter side): not supported")
    return cut


def _region_of(box: tuple[int, int, int, int], pair: Pair) -> str:
    inside = [(_area(region), name) for name, region in pair.regions.items() if overlaps(box, region)]
    return min(inside)[1] if inside else "image"


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _image_groups(pair: Pair, patches: Mapping[int, Position]) -> dict[str, tuple[int, ...]]:
    """`image`, `image:<region>` for each region, and `image:other`: patches outside every region."""
    groups = {"image": tuple(patches)}
    for name, region in pair.regions.items():
        groups[f"image:{name}"] = tuple(i for i, patch in patches.items() if patch.box and overlaps(patch.box, region))
    if pair.regions:
        covered = {i for name in pair.regions for i in groups[f"image:{name}"]}
        groups["image:other"] = tuple(i for i in patches if i not in covered)
    return {name: indices for name, indices in groups.items() if indices}


def _unseen(pair: Pair, groups: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Groups of regions that no patch covers: they lie where the image processor cuts the picture off."""
    return tuple(f"image:{name}" for name in pair.regions if not groups.get(f"image:{name}"))


def _vision(pair: Pair, patches: list[Position], class_token: bool) -> StackPositions:
    front = [Position("cls", "image", "cls", "<cls>")] if class_token else []
    groups = _image_groups(pair, {i + len(front): patch for i, patch in enumerate(patches)})
    if class_token:
        groups["cls"] = (0,)
    return StackPositions("vision", (*front, *patches), groups, _unseen(pair, groups))


def _around(subject: tuple[int, ...], length: int) -> dict[str, tuple[int, ...]]:
    """The position roles of Meng et al. (2022), but for `last`; a subject of one token is its first and its last."""
    after = range(subject[-1] + 1, length - 1)
    found = (subject[:1], subject[1:-1], subject[-1:], tuple(after[:1]), tuple(after[1:]))
    return dict(zip(SUBJECT_ROLES, found, strict=True))


def _text(
    pair: Pair, clean: _Encoding, stack: str, patches: Mapping[int, Position], description: ModelDescription
) -> StackPositions:
    spans = {name: clean.covering(*span) for name, span in pair.spans.items()}
    for name, indices in spans.items():
        if not indices:
            raise SpecError(f"span {name!r} covers no token of {clean.prompt.text!r}")
    question = clean.covering(0, len(clean.prompt.text))
    special = set(description.processor.tokenizer.all_special_ids)
    positions = []
    for i, token in enumerate(clean.tokens):
        if i in patches:
            patch = patches[i]
            positions.append(Position(str(i), "image", patch.role, token, patch.row, patch.col, patch.box))
            continue
        named = [(len(indices), name) for name, indices in spans.items() if i in indices]
        if named:
            role = min(named)[1]
        elif i in question:
            role = "question"
        else:
            role = "special" if clean.ids[i] in special else "template"
        positions.append(Position(str(i), "text", role, token))
    groups = {
        **spans,
        **(_around(spans["subject"], len(positions)) if "subject" in spans else {}),
        "question": question,
        "text": tuple(i for i in range(len(positions)) if i not in patches),
        "last": (len(positions) - 1,),
        **_image_groups(pair, patches),
    }
    unseen = _unseen(pair, groups) if patches else ()
    return StackPositions(
        stack, tuple(positions), {name: indices for name, indices in groups.items() if indices}, unseen
    )
