"""What positions are: patches against the pixels that reach them, tokens against the tokenizer, groups and roles."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlm_patching as vp
from vlm_patching.inputs import EncodedPair, encode_pair
from vlm_patching.models.layouts import grid, whole
from vlm_patching.pairs.pair import Box
from vlm_patching.positions import overlaps

BUNDLED = ("shapes-blip", "shapes-llava")
SIZES = [(96, 96), (192, 96), (96, 240), (200, 120)]


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return {name: vp.describe_model(name) for name in BUNDLED}


def encoded(description: Any, **changes: Any) -> EncodedPair:
    pair = vp.load_pairs("shapes", n=1, seed=5, questions=["color_choice"], aligned=False)[0]
    return encode_pair(replace(pair, **changes), description, ("clean", "corrupted_text"))


def text_stack(pair: EncodedPair) -> Any:
    return pair.positions["language" if "language" in pair.positions else "question_encoder"]


def picture(size: tuple[int, int], **changes: Any) -> dict[str, Any]:
    """A pair's fields with a grey picture of that size as the clean image."""
    image = Image.new("RGB", size, (128, 128, 128))
    prompts = {
        "clean": vp.Prompt(image, "is the ring red or blue?"),
        "corrupted": vp.Prompt(image, "is the ring red or red?"),
    }
    return {**prompts, "spans": {"answer_option": (12, 15)}, "spans_corrupted": {}, "regions": {}, **changes}


def patch_boxes(size: tuple[int, int], rows: int, columns: int, crop: bool = False) -> list[Box | None]:
    """The boxes of a grid over a picture that is stretched, or whose middle square is cut out."""
    square = {"height": 96, "width": 96}
    processor = SimpleNamespace(do_center_crop=crop, size={"shortest_edge": 96}, crop_size=square)
    return [patch.box for patch in grid(whole(size, processor), rows, columns, size)]


def test_a_stretched_picture_is_cut_into_equal_boxes_that_cover_it() -> None:
    boxes = patch_boxes((200, 100), 2, 4, crop=False)
    assert boxes[0] == (0, 0, 50, 50) and boxes[3] == (150, 0, 200, 50) and boxes[7] == (150, 50, 200, 100)
    for size in ((97, 61), (10, 300)):
        seen = np.zeros(size[::-1], dtype=int)
        for x0, y0, x1, y1 in patch_boxes(size, 4, 4, crop=False):
            seen[y0:y1, x0:x1] += 1
        assert (seen == 1).all()


def test_a_cropped_picture_is_cut_into_boxes_of_its_middle_square() -> None:
    wide, tall = patch_boxes((200, 100), 4, 4, crop=True), patch_boxes((100, 200), 4, 4, crop=True)
    assert wide[0] == (50, 0, 75, 25) and wide[-1] == (125, 75, 150, 100)
    assert tall[0] == (0, 50, 25, 75) and tall[-1] == (75, 125, 100, 150)
    assert patch_boxes((96, 96), 4, 4, crop=True) == patch_boxes((96, 96), 4, 4, crop=False)


def test_boxes_overlap_where_they_share_a_pixel_and_not_where_they_only_touch() -> None:
    assert overlaps((0, 0, 10, 10), (9, 9, 20, 20))
    assert overlaps((0, 0, 10, 10), (2, 2, 3, 3)) and overlaps((2, 2, 3, 3), (0, 0, 10, 10))
    assert not overlaps((0, 0, 10, 10), (10, 0, 20, 10))
    assert not overlaps((0, 0, 10, 10), (0, 10, 10, 20))


def side_of(description: Any) -> int:
    vision = description.config.vision_config
    return int(vision.image_size // vision.patch_size)


def most_changed_patch(description: Any, size: tuple[int, int], box: tuple[int, int, int, int], rows: int) -> int:
    plain, marked = Image.new("RGB", size, (128,) * 3), Image.new("RGB", size, (128,) * 3)
    marked.paste((255, 0, 0), box)
    prepare = description.processor.image_processor
    one, other = (np.asarray(prepare(images=im, return_tensors="np")["pixel_values"][0]) for im in (plain, marked))
    change = np.abs(one - other).sum(0)
    side = change.shape[0] // rows
    return int(change.reshape(rows, side, rows, side).sum((1, 3)).argmax()) if change.any() else -1


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_box_of_a_patch_is_where_the_pixels_that_reach_it_lie(
    described: dict[str, Any], name: str, size: tuple[int, int]
) -> None:
    stack = encoded(described[name], **picture(size)).positions["vision"]
    rows = side_of(described[name])
    patches = [position for position in stack.positions if position.row >= 0]
    assert [(p.row, p.col) for p in patches] == [(r, c) for r in range(rows) for c in range(rows)]
    for i in (0, 1, rows, rows * rows // 2 + 1, rows * rows - 1):
        assert patches[i].box is not None
        assert most_changed_patch(described[name], size, patches[i].box, rows) == i


def test_boxes_are_right_where_the_crop_is_smaller_than_the_resized_picture(described: dict[str, Any]) -> None:
    description = replace(described["shapes-llava"], processor=copy.deepcopy(described["shapes-llava"].processor))
    description.processor.image_processor.size = {"shortest_edge": 288}
    rows = side_of(description)
    try:
        stack = encoded(description, **picture((96, 96))).positions["vision"]
    except vp.SpecError:
        return  # refusing is right too; wrong boxes are not
    patches = [position for position in stack.positions if position.row >= 0]
    found = [most_changed_patch(description, (96, 96), patch.box, rows) for patch in patches if patch.box]
    assert found == list(range(rows * rows))


@pytest.mark.parametrize("name", BUNDLED)
def test_tokens_and_labels_are_those_of_the_models_own_tokenizer(described: dict[str, Any], name: str) -> None:
    description, pair = described[name], encoded(described[name])
    stack, ids = text_stack(pair), pair.inputs["clean"]["input_ids"][0].tolist()
    assert [p.token for p in stack.positions] == description.processor.tokenizer.convert_ids_to_tokens(ids)
    assert [p.label for p in stack.positions] == [str(i) for i in range(len(ids))]
    said = " ".join(stack.positions[i].token for i in stack.groups["question"])
    assert said.replace(" ", "") == pair.pair.clean.text.replace(" ", "")
    for span, (start, end) in pair.pair.spans.items():
        tokens = " ".join(stack.positions[i].token for i in stack.groups[span])
        assert tokens == pair.pair.clean.text[start:end]
    assert pair.inputs["corrupted_text"]["input_ids"].shape[1] == len(ids)


def test_the_language_stack_has_a_position_for_every_patch_of_the_grid(described: dict[str, Any]) -> None:
    pair, side = encoded(described["shapes-llava"]), side_of(described["shapes-llava"])
    stack = pair.positions["language"]
    image = stack.groups["image"]
    assert len(image) == side * side == described["shapes-llava"].config.image_seq_length
    assert list(image) == list(range(image[0], image[0] + len(image)))
    assert [(stack.positions[i].row, stack.positions[i].col) for i in image] == [
        (r, c) for r in range(side) for c in range(side)
    ]
    vision = [p for p in pair.positions["vision"].positions if p.row >= 0]
    assert [stack.positions[i].box for i in image] == [p.box for p in vision]
    assert {p.token for p in (stack.positions[i] for i in image)} == {"<image>"}


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_groups_hold_the_positions_that_they_name(described: dict[str, Any], name: str, kind: str) -> None:
    pair = encoded(described[name])
    stack = pair.positions["vision"] if kind == "vision" else text_stack(pair)
    region, positions = pair.pair.regions["object"], stack.positions
    image = {i for i, p in enumerate(positions) if p.box}
    groups = {group: set(indices) for group, indices in stack.groups.items()}
    if image:
        inside = {i for i in image if overlaps(positions[i].box, region)}
        assert groups["image"] == image
        assert groups["image:object"] == inside and 1 <= len(inside) <= 4
        assert groups["image:regions"] == inside and groups["image:other"] == image - inside
        assert all((positions[i].role == "object") == (i in inside) for i in image)
    else:
        assert not [group for group in groups if group.startswith("image")]
    if kind == "text":
        assert groups["text"] == set(range(len(positions))) - image
        assert groups["last"] == {len(positions) - 1}
        assert groups["question"] < groups["text"]
        assert groups["subject"] | groups["answer_option"] | groups["foil_option"] < groups["question"]
    else:
        assert groups["cls"] == {0}
        assert "text" not in groups


@pytest.mark.parametrize("name", BUNDLED)
def test_selectors_choose_groups_single_positions_and_indices(described: dict[str, Any], name: str) -> None:
    stack = text_stack(encoded(described[name]))
    length = len(stack.positions)
    (group,) = stack.choose("question")
    assert (group.label, group.indices) == ("question", stack.groups["question"])
    assert [c.indices for c in stack.choose("each:question")] == [(i,) for i in stack.groups["question"]]
    assert [c.label for c in stack.choose("each:question")] == [str(i) for i in stack.groups["question"]]
    assert [c.indices for c in stack.choose("all")] == [(i,) for i in range(length)]
    assert [(c.label, c.indices) for c in stack.choose(-1)] == [("-1", (length - 1,))]
    assert [(c.label, c.indices) for c in stack.choose(3)] == [("3", (3,))]
    assert stack.choose(-length)[0].indices == (0,)
    for wrong in (length, -length - 1, "qestion", "each:nothing"):
        with pytest.raises(vp.SpecError, match=str(wrong).removeprefix("each:")):
            stack.choose(wrong)
    with pytest.raises(vp.SpecError, match="Did you mean 'question'"):
        stack.choose("qestion")


def test_a_patch_is_labelled_by_row_and_column_and_the_class_token_by_name(described: dict[str, Any]) -> None:
    for name in BUNDLED:
        labels = [chosen.label for chosen in encoded(described[name]).positions["vision"].choose("all")]
        assert labels[:3] == ["cls", "r0c0", "r0c1"] and labels[-1] == "r3c3" and len(labels) == 17


def test_the_answer_decoder_has_one_position_called_decoding(described: dict[str, Any]) -> None:
    pair = encoded(described["shapes-blip"])
    stack = pair.positions["answer_decoder"]
    assert len(stack.positions) == pair.inputs["clean"]["decoder_input_ids"].shape[1] == 1
    for selector in ("decoding", "last", "all"):
        assert [(c.label, c.indices) for c in stack.choose(selector)] == [("decoding", (0,))]
    (position,) = stack.positions
    assert position.role == "decoding" and position.modality == "text"
    assert "answer_decoder" not in encoded(described["shapes-llava"]).positions


def test_roles_are_the_narrowest_span_else_question_template_or_special(described: dict[str, Any]) -> None:
    for name in BUNDLED:
        pair = encoded(described[name])
        stack = text_stack(pair)
        for i, position in enumerate(stack.positions):
            named = [span for span in pair.pair.spans if i in stack.groups[span]]
            if named:
                assert position.role in named
            elif position.modality == "text":
                in_question = i in stack.groups["question"]
                assert (position.role == "question") == in_question
                assert in_question or position.role in ("template", "special")
    blip, llava = (text_stack(encoded(described[name])).positions for name in BUNDLED)
    assert (blip[0].role, blip[-1].role) == ("special", "special")
    assert llava[-1].role == "template"
    pair = encoded(described["shapes-blip"])
    wide = encoded(described["shapes-blip"], spans={**pair.pair.spans, "whole": (0, len(pair.pair.clean.text))})
    assert [p.role for p in text_stack(wide).positions if p.role == "answer_option"] == ["answer_option"]
    assert "whole" in {p.role for p in text_stack(wide).positions}


def test_a_group_is_described_by_what_its_positions_share(described: dict[str, Any]) -> None:
    stack = encoded(described["shapes-llava"]).positions["language"]
    image = stack.describe(stack.choose("image")[0])
    assert (image.modality, image.role, image.box, image.row) == ("image", "image", (0, 0, 96, 96), -1)
    text = stack.describe(stack.choose("question")[0])
    assert text.modality == "text" and text.box is None and text.token.startswith("is the")
    (one,) = stack.choose(int(stack.groups["image"][5]))
    assert (stack.describe(one).row, stack.describe(one).col) == (1, 1)


def test_a_region_outside_the_cropped_picture_has_no_patches_and_says_so(described: dict[str, Any]) -> None:
    changes = picture((300, 100), regions={"object": (0, 0, 20, 20)})
    llava, blip = (encoded(described[n], **changes).positions["vision"] for n in ("shapes-llava", "shapes-blip"))
    assert blip.groups["image:object"]
    with pytest.raises(vp.SpecError, match="image:object"):
        llava.choose("image:object")


@pytest.mark.parametrize("group", ["last", "question", "text", "image", "all"])
def test_a_span_named_like_a_group_is_refused_or_kept_but_not_dropped(described: dict[str, Any], group: str) -> None:
    try:
        stack = text_stack(encoded(described["shapes-llava"], **picture((96, 96), spans={group: (12, 15)})))
    except vp.SpecError:
        return
    assert [stack.positions[i].token for chosen in stack.choose(group) for i in chosen.indices] == ["red"]


def test_a_region_named_other_is_refused_or_kept_but_not_dropped(described: dict[str, Any]) -> None:
    try:
        stack = encoded(described["shapes-blip"], **picture((96, 96), regions={"other": (0, 0, 24, 24)})).positions[
            "vision"
        ]
    except vp.SpecError:
        return
    assert stack.groups["image:other"] == (1,)


def test_spans_are_found_where_the_template_trims_the_text_or_it_is_refused(described: dict[str, Any]) -> None:
    description = replace(described["shapes-llava"], processor=copy.deepcopy(described["shapes-llava"].processor))
    description.processor.chat_template = description.processor.chat_template.replace(
        "part['text']", "part['text'] | trim"
    )
    text = "  is the ring red or blue? "
    prompts = {side: vp.Prompt(Image.new("RGB", (96, 96)), text) for side in ("clean", "corrupted")}
    spans = {"answer_option": (14, 17), "foil_option": (21, 25)}
    try:
        stack = text_stack(encoded(description, **picture((96, 96), **prompts, spans=spans)))
    except vp.SpecError:
        return
    assert [stack.positions[i].token for i in stack.groups["answer_option"]] == ["red"]
    assert [stack.positions[i].token for i in stack.groups["foil_option"]] == ["blue"]


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("field", ["answer", "foil"])
def test_an_answer_that_the_tokenizer_does_not_know_is_refused(
    described: dict[str, Any], name: str, field: str
) -> None:
    assert described[name].processor.tokenizer.tokenize("zebra") == [described[name].processor.tokenizer.unk_token]
    with pytest.raises(vp.SpecError, match="zebra"):
        encoded(described[name], **{field: "zebra"})
