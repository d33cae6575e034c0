"""What the families' files say of places and positions is so: everything in them is tried on the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from PIL import Image, ImageDraw, ImageOps

from tests.families import all_known, kit

QUESTION = "is the large red circle left or right of the small blue square ?"
SIZES = ((96, 96), (120, 72), (64, 112))


@dataclass(frozen=True)
class Made:
    known: kit.Known
    module: Any
    processor: Any

    def encode(self, *images: Image.Image, text: str = QUESTION) -> kit.Inputs:
        return self.known.encode(self.processor, images, text)


@pytest.fixture(scope="module", params=sorted(all_known()))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    known = all_known()[request.param]
    folder = tmp_path_factory.mktemp(known.name)
    known.build(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    module = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    return Made(known, module, known.processor(folder))


def first_inputs(made: Made, *images: Image.Image) -> kit.Inputs:
    """Inputs with a picture, or without one where the family has none."""
    try:
        return made.encode(*(images or (kit.picture(),)))
    except ValueError:
        return made.encode()


def test_pictures_and_words_decide_the_answer(made: Made) -> None:
    logits = kit.run(made.module, made.known, first_inputs(made))
    assert logits.dim() == 1
    assert 0.3 < logits.std() < 10
    assert logits.softmax(-1).max() < 0.99
    if made.known.embeds is not None:
        other = kit.run(made.module, made.known, first_inputs(made, kit.picture(1)))
        assert (logits - other).abs().max() > 0.05
    words = made.encode(*([kit.picture()] if made.known.embeds else []), text="how many objects are there ?")
    assert (logits - kit.run(made.module, made.known, words)).abs().max() > 0.05


def test_every_place_reaches_the_answer(made: Made) -> None:
    """Changed in any layer that is read, every component changes the answer; in one that is not, none does."""
    inputs = first_inputs(made)
    base = kit.run(made.module, made.known, inputs)
    for name, tower in made.known.towers.items():
        for component, place in tower.places.items():
            for layer in range(tower.layers):
                if not _is_there(made, place.at(layer)):
                    continue  # of a stack whose layers are of two kinds
                edit = (place, layer, lambda value: value.roll(1, -1) * 0.7)
                moved = (kit.run(made.module, made.known, inputs, [edit]) - base).abs().max().item()
                read = layer < (tower.layers if tower.read is None else tower.read)
                assert (moved > 1e-4) == read, f"{name}.{component} layer {layer} moves the answer by {moved}"
    for place in (made.known.embeds, made.known.tokens) if made.known.embeds else (made.known.tokens,):
        moved = kit.run(made.module, made.known, inputs, [(place, 0, lambda value: value.roll(1, -1))]) - base
        assert moved.abs().max() > 1e-3, place


def _is_there(made: Made, place: kit.Place) -> bool:
    try:
        made.module.get_submodule(place.path)
    except AttributeError:
        return False
    return True


def test_parts_of_a_layer_add_up(made: Made) -> None:
    """The context vectors are as wide as all heads together, and components are of the residual stream's width."""
    inputs = first_inputs(made)
    for name, tower in made.known.towers.items():
        there = [c for c, p in tower.places.items() if _is_there(made, p.at(0))]
        values = dict(
            zip(there, kit.read(made.module, made.known, inputs, [(tower.places[c], 0) for c in there]), strict=True)
        )
        width, length = values["resid_post"].shape[-1], len(values["resid_post"])
        for component, value in values.items():
            assert len(value) <= length, f"{name}.{component}"  # of a Q-Former that reads words, the queries' part
            if component.endswith("context"):
                assert value.shape[-1] % tower.heads == 0
            elif component != "mlp_neuron":
                assert value.shape[-1] == width, f"{name}.{component}"


@pytest.mark.parametrize("size", SIZES)
def test_a_painted_patch_moves_the_positions_that_show_it(made: Made, size: tuple[int, int]) -> None:
    """Without attention between patches, paint on the picture moves the image embeddings whose box it is in."""
    if "vision" not in made.known.towers:
        pytest.skip("no image encoder")
    picture = kit.picture(2, size)
    config = made.module.config
    encoders = [tower for name, tower in made.known.towers.items() if name.startswith("vision")]
    inputs = made.encode(picture)
    listed = made.known.patches(inputs, config, [size])
    embeds = listed["image_embeds"]
    apart = [(one.places["attn_out"], layer, torch.zeros_like) for one in encoders for layer in range(one.layers)]
    boxed = [(i, patch.box) for i, patch in embeds if patch.kind == "patch" and patch.box]
    if not boxed:
        assert all(patch.kind != "patch" for _, patch in embeds)
        pytest.skip("every image position sees the whole picture")
    clean = _embeds(made, inputs, apart)
    assert len(clean) == len(embeds)
    step = max(1, len(boxed) // 6)
    for _, box in boxed[::step]:
        x0, y0, x1, y1 = box
        if min(x1, size[0]) - max(x0, 0) < 4 or min(y1, size[1]) - max(y0, 0) < 4:
            continue  # nearly all padding
        middle = (x0 + (x1 - x0) * 0.3, y0 + (y1 - y0) * 0.3, x0 + (x1 - x0) * 0.7, y0 + (y1 - y0) * 0.7)
        painted = _painted(picture, middle)
        moved = (_embeds(made, made.encode(painted), apart) - clean).norm(dim=-1)
        for i, patch in embeds:
            if patch.kind != "patch" or patch.box is None:
                continue
            if _inside(middle, patch.box):
                assert moved[i] > 0.02 * moved.max(), f"{patch} does not see {middle}"
            elif not _near(middle, patch.box):
                assert moved[i] < 0.02 * moved.max(), f"{patch} sees {middle}"


def _embeds(made: Made, inputs: kit.Inputs, edits: list[kit.Edit]) -> torch.Tensor:
    found: list[torch.Tensor] = []
    keep: kit.Edit = (made.known.embeds, 0, lambda value: found.append(value.clone()) or value)
    kit.run(made.module, made.known, inputs, [*edits, keep])
    return found[0]


def _painted(picture: Image.Image, box: tuple[float, ...]) -> Image.Image:
    painted = picture.copy()
    whole = tuple(round(edge) for edge in box)
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).rectangle((whole[0], whole[1], max(whole[0], whole[2] - 1), max(whole[1], whole[3] - 1)), 255)
    painted.paste(ImageOps.invert(picture), mask=mask)
    return painted


def _inside(part: tuple[float, ...], box: tuple[float, ...]) -> bool:
    return box[0] <= part[0] and box[1] <= part[1] and part[2] <= box[2] and part[3] <= box[3]


def _near(part: tuple[float, ...], box: tuple[float, ...]) -> bool:
    """Whether they overlap once the box is a quarter larger on every side: resized pixels look that far."""
    dx, dy = (box[2] - box[0]) / 4 + 1, (box[3] - box[1]) / 4 + 1
    return box[0] - dx < part[2] and part[0] < box[2] + dx and box[1] - dy < part[3] and part[1] < box[3] + dy


def test_image_positions_of_the_text_are_all_listed(made: Made) -> None:
    """Painting the picture moves the text's first layer at image positions, and at no other."""
    if "vision" not in made.known.towers:
        pytest.skip("no image encoder")
    size = SIZES[1]
    text = next((n for n in ("language", "question_encoder") if n in made.known.towers), None)
    clean, other = made.encode(kit.picture(0, size)), made.encode(kit.picture(1, size))
    listed = made.known.patches(clean, made.module.config, [size])
    if text is None or text not in listed:
        pytest.skip("the text's own sequence holds no image")
    places = [(made.known.towers[text].places["resid_pre"], 0)]
    before, after = (kit.read(made.module, made.known, inputs, places)[0] for inputs in (clean, other))
    moved = set((before - after).norm(dim=-1).gt(1e-6).nonzero().flatten().tolist())
    shown = {i for i, patch in listed[text] if patch.kind in ("patch", "latent", "class")}
    assert moved == shown
