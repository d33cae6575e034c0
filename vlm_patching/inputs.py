"""Pair + model description → tensors, and what every position is. Everything here works without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from vlm_patching.encoding import Encoding
from vlm_patching.errors import SpecError
from vlm_patching.models.architecture import IMAGE_STACKS
from vlm_patching.models.layouts import Patch
from vlm_patching.models.load import ModelDescription
from vlm_patching.pairs import SUBJECT_ROLES, Pair, prompt_for
from vlm_patching.positions import Position, StackPositions, overlaps


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
    ahead
        How many image positions come before all tokens, and are none of `token_embeds`.
    """

    pair: Pair
    inputs: Mapping[str, Mapping[str, torch.Tensor]]
    positions: Mapping[str, StackPositions]
    answer: tuple[int, ...]
    foil: tuple[int, ...]
    alignment: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    text_stacks: tuple[str, ...] = ()
    other: Mapping[str, StackPositions] = field(default_factory=dict)
    ahead: int = 0

    def on(self, kind: str, stack: str, indices: Sequence[int]) -> tuple[int | None, ...]:
        """Where positions of the clean prompt are in another input; None for those without a partner there."""
        if stack not in self.text_stacks or kind not in self.alignment:
            return tuple(indices)
        ahead = self.ahead if stack == "token_embeds" else 0
        found = [self.alignment[kind][i + ahead] for i in indices]
        return tuple(None if i is None else i - ahead for i in found)

    def length(self, kind: str) -> int:
        """Positions of the text stack's sequence in an input, images that no token stands for among them."""
        tokens, clean = (self.inputs[one]["input_ids"].shape[1] for one in (kind, "clean"))
        return int(len(self.positions[self.text_stacks[0]].positions) + tokens - clean)

    def is_aligned(self, kind: str) -> bool:
        """Whether every token of another input has the index of its partner in the clean prompt."""
        same = tuple(range(self.length(kind)))
        return self.alignment.get(kind, same) == same


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
        clean = Encoding(prompt_for(pair, "clean"), description)
        inputs, alignment = {"clean": clean.tensors}, {}
        others: Mapping[str, StackPositions] = {}
        for kind in kinds:
            if kind == "other":
                if other is not None:
                    inputs[kind] = Encoding(prompt_for(other, "clean"), description).tensors
                    others = encode_pair(other, description, (), first_token=False).positions
            elif kind != "clean":
                encoding = Encoding(prompt_for(pair, kind), description)
                inputs[kind] = encoding.tensors
                _check_same_layout(clean, encoding)
                alignment[kind] = _aligned(pair, clean, encoding)
        answer = _tokens(clean, "answer", pair.answer, description)
        foil = _tokens(clean, "foil", pair.foil, description)
        if first_token and answer[0] == foil[0]:
            token = description.tokenizer.convert_ids_to_tokens(answer[0])
            raise SpecError(
                f"answer {pair.answer!r} and foil {pair.foil!r} have the same first token {token!r}, so metrics of the "
                "first token cannot tell them apart; answer_log_probability and answer_log_odds are of whole answers",
                "answer and foil begin with the same token",
            )
        stacks = (description.architecture.text_stack, "token_embeds")
        positions = _positions(pair, clean, description)
        return EncodedPair(pair, inputs, positions, answer, foil, alignment, stacks, others, clean.ahead)
    except SpecError as error:
        raise SpecError(f"Pair {pair.id!r}: {error}", error.reason) from error


def _check_same_layout(clean: Encoding, other: Encoding) -> None:
    """Refuse pictures that become other positions: they could not be exchanged one by one."""
    for name in ("vision", "embeds", "text"):
        here, there = (
            [replace(patch, box=None) for patch in getattr(encoding.layout, name)] for encoding in (clean, other)
        )
        if here != there:
            sizes = [[picture.size for picture in encoding.prompt.pictures()] for encoding in (clean, other)]
            alike = " in other rows and columns" if len(here) == len(there) else ""
            raise SpecError(
                f"the clean image becomes {len(here)} positions and the corrupted one {len(there)}{alike}, as they "
                f"differ in size ({sizes[0]} and {sizes[1]}): bring them to one size (pairs.size)",
                "its images become different positions",
            )


def _aligned(pair: Pair, clean: Encoding, other: Encoding) -> tuple[int | None, ...]:
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
                "with the same number of tokens, or name the part that differs as a span in spans and spans_corrupted.",
                "its texts do not align token by token",
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


def _tokens(clean: Encoding, what: str, word: str, description: ModelDescription) -> tuple[int, ...]:
    """The tokens of a word as the model's answer to the prompt; its number, where answers are classes."""
    architecture, tokenizer = description.architecture, description.tokenizer
    known = architecture.prompting
    if known.classes:
        if word.strip() not in known.classes:
            raise SpecError(f"the {what} {word!r} is none of the {len(known.classes)} answers of {description.name!r}")
        return (known.classes[word.strip()],)
    if architecture.continues and known.begins is None:
        text = clean.text + _between(clean, description) + word.strip()
        longer = tokenizer(text, add_special_tokens=clean.special)["input_ids"]
        length = len(clean.written)
        tokens = longer[length:] if longer[:length] == clean.written else []
    else:
        tokens = tokenizer(word.strip(), add_special_tokens=False)["input_ids"]
    if not tokens:
        raise SpecError(
            f"the {what} {word!r} does not follow the prompt as tokens of its own, so it has no first token"
        )
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens:
        raise SpecError(
            f"the {what} {word!r} is no token of {description.name!r}: its vocabulary lacks it",
            f"the model's vocabulary lacks the {what}",
        )
    taken = len(clean.ids) - clean.ahead if architecture.continues else len(known.start)
    if known.longest is not None and len(tokens) - 1 + taken > known.longest:
        raise SpecError(
            f"the {what} {word!r} does not fit behind the prompt: {description.name!r} takes {known.longest} tokens"
        )
    return tuple(map(int, tokens))


def _between(clean: Encoding, description: ModelDescription) -> str:
    """A space before the answer, but where the prompt ends with one, with a line or with a mark of a turn."""
    ends = clean.text[-1:].isspace() or clean.written[-1] in description.tokenizer.all_special_ids
    return "" if ends else " "


def _positions(pair: Pair, clean: Encoding, description: ModelDescription) -> dict[str, StackPositions]:
    """Every stack's positions, and those of what the image side hands to the text side."""
    architecture, layout = description.architecture, clean.layout
    stacks: dict[str, StackPositions] = {}
    if architecture.image is not None:
        patches = dict.fromkeys(IMAGE_STACKS, layout.vision) | {"qformer": layout.qformer}
        stacks |= {s.name: _images(pair, patches[s.name], s.name) for s in architecture.stacks if s.name in patches}
        stacks["image_embeds"] = _images(pair, layout.embeds, "image_embeds")
    name = architecture.text_stack
    stacks[name] = _text(pair, clean, name, description)
    if not architecture.continues and not architecture.prompting.classes:
        stacks["answer_decoder"] = _begun(description)
    stacks["token_embeds"] = _behind(stacks[name], clean.ahead)
    return stacks


def _begun(description: ModelDescription) -> StackPositions:
    """The positions of a decoder of its own before it has written anything; the answer follows the last one."""
    *before, last = map(str, description.tokenizer.convert_ids_to_tokens(description.architecture.prompting.start))
    begun = [Position(str(i), "text", "special", token) for i, token in enumerate(before)]
    at = (len(before),)
    positions = (*begun, Position("decoding", "text", "decoding", last))
    return StackPositions("answer_decoder", positions, {"decoding": at, "last": at})


def _behind(stack: StackPositions, ahead: int) -> StackPositions:
    """The token embeddings' positions: those of the text stack behind the images that come before all tokens."""
    positions = tuple(replace(position, label=str(i)) for i, position in enumerate(stack.positions[ahead:]))
    groups = {name: tuple(i - ahead for i in indices if i >= ahead) for name, indices in stack.groups.items()}
    return StackPositions("token_embeds", positions, {name: at for name, at in groups.items() if at}, stack.unseen)


def _region_of(box: tuple[int, int, int, int], pair: Pair) -> str:
    inside = [(_area(region), name) for name, region in pair.regions.items() if overlaps(box, region)]
    return min(inside)[1] if inside else "image"


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _image_groups(
    pair: Pair, positions: Sequence[Position], patches: Mapping[int, Patch]
) -> dict[str, tuple[int, ...]]:
    """`image`, `image:<region>` for each region, `image:regions` and `image:other`: patches in any region and in none;
    and, where there are any, `cls`, `separator`, `image:thumbnail`, and `image:0`, `image:1` of several pictures.
    Regions are of the first.
    """
    shown = {i: patch for i, patch in patches.items() if patch.kind in ("patch", "latent")}
    groups = {"image": tuple(shown)}
    boxed = {i: patch for i, patch in shown.items() if patch.kind == "patch"}
    for name, region in pair.regions.items() if boxed else ():
        groups[f"image:{name}"] = tuple(
            i for i, patch in boxed.items() if patch.image == 0 and patch.box and overlaps(patch.box, region)
        )
    if pair.regions and boxed:
        covered = {i for name in pair.regions for i in groups[f"image:{name}"]}
        groups["image:regions"] = tuple(i for i in boxed if i in covered)
        groups["image:other"] = tuple(i for i in boxed if i not in covered)
    for kind, name in (("class", "cls"), ("separator", "separator")):
        groups[name] = tuple(i for i, patch in patches.items() if patch.kind == kind)
    tiles = {patch.tile for patch in boxed.values()}
    if -1 in tiles and len(tiles) > 1:
        groups["image:thumbnail"] = tuple(i for i, patch in boxed.items() if patch.tile == -1)
    pictures = sorted({patch.image for patch in shown.values()})
    if len(pictures) > 1:
        groups |= {f"image:{n}": tuple(i for i, patch in shown.items() if patch.image == n) for n in pictures}
    return {name: indices for name, indices in groups.items() if indices}


def _unseen(pair: Pair, groups: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Groups of regions that no patch covers: they lie where the image processor cuts the picture off."""
    return tuple(f"image:{name}" for name in pair.regions if not groups.get(f"image:{name}"))


def _images(pair: Pair, patches: Sequence[Patch], stack: str) -> StackPositions:
    """The positions of a sequence of images alone."""
    positions = tuple(_image_position(pair, patch, i, patches) for i, patch in enumerate(patches))
    groups = _image_groups(pair, positions, dict(enumerate(patches)))
    return StackPositions(stack, positions, groups, _unseen(pair, groups))


def _image_position(pair: Pair, patch: Patch, index: int, patches: Sequence[Patch]) -> Position:
    """What an image position is; its label says picture and tile where there are several."""
    several = (len({other.image for other in patches}) > 1, len({other.tile for other in patches}) > 1)
    front = (f"i{patch.image}" if several[0] else "") + (f"t{patch.tile}" if several[1] else "")
    if patch.kind == "class":
        return Position(f"{front}cls", "image", "cls", "<cls>", image=patch.image, tile=patch.tile)
    if patch.kind == "padding":
        return Position(f"p{index}", "padding", "padding", "<padding>", image=patch.image, tile=patch.tile)
    if patch.kind != "patch":
        letter, role = {"latent": ("q", "image"), "separator": ("s", "separator")}[patch.kind]
        return Position(f"{letter}{index}", "image", role, f"<{patch.kind}>", image=patch.image, tile=patch.tile)
    role = _region_of(patch.box, pair) if patch.box and patch.image == 0 else "image"
    label = f"{front}r{patch.row}c{patch.column}"
    return Position(label, "image", role, "<patch>", patch.row, patch.column, patch.box, patch.image, patch.tile)


def _around(subject: tuple[int, ...], length: int) -> dict[str, tuple[int, ...]]:
    """The position roles of Meng et al. (2022), but for `last`; a subject of one token is its first and its last."""
    after = range(subject[-1] + 1, length - 1)
    found = (subject[:1], subject[1:-1], subject[-1:], tuple(after[:1]), tuple(after[1:]))
    return dict(zip(SUBJECT_ROLES, found, strict=True))


def _text(pair: Pair, clean: Encoding, stack: str, description: ModelDescription) -> StackPositions:
    """The positions of the text stack's own sequence, images among them."""
    spans = {name: clean.covering(*span) for name, span in pair.spans.items()}
    for name, indices in spans.items():
        if not indices:
            raise SpecError(f"span {name!r} covers no token of {clean.prompt.text!r}")
    question = clean.covering(0, len(clean.prompt.text))
    special = set(description.tokenizer.all_special_ids)
    patches = clean.patches
    positions = []
    for i, token in enumerate(clean.tokens):
        if i in patches:
            shown = _image_position(pair, patches[i], i, clean.layout.text)
            positions.append(replace(shown, label=str(i), token=token))
            continue
        named = [(len(indices), name) for name, indices in spans.items() if i in indices]
        if named:
            role = min(named)[1]
        elif i in question:
            role = "question"
        else:
            role = "special" if clean.ids[i] in special else "template"
        positions.append(Position(str(i), "text", role, token))
    images = _image_groups(pair, positions, patches) if patches else {}
    groups = {
        **spans,
        **(_around(spans["subject"], len(positions)) if "subject" in spans else {}),
        "question": question,
        "text": tuple(i for i in range(len(positions)) if i not in patches),
        "last": (len(positions) - 1,),
        **images,
    }
    unseen = _unseen(pair, groups) if any(patch.kind == "patch" for patch in patches.values()) else ()
    return StackPositions(
        stack, tuple(positions), {name: indices for name, indices in groups.items() if indices}, unseen
    )
