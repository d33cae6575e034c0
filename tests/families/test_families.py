"""The package on every family, against plain hooks at the places that the family's own file here says.

Each model is small and random; its two prompts differ in the picture (in the question, where there is none). One cell
is one forward pass with hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import AutoConfig

import vlm_patching as vp
from tests.families import all_known, kit
from vlm_patching.backends.kernels import attentions_of
from vlm_patching.doctor.engine import engine_rows, fusion
from vlm_patching.inputs import EncodedPair, encode_pair
from vlm_patching.models import IMAGE_STACKS, Attention, Model, Stack, describe_model, load_model
from vlm_patching.models.families import find_family
from vlm_patching.models.load import ModelDescription, describe_source
from vlm_patching.models.sources import Source
from vlm_patching.pairs import Pair, Prompt
from vlm_patching.positions import StackPositions

QUESTION = "is the large red circle left or right of the small blue square ?"
OTHER = "is the small blue square left or right of the large red circle ?"
WORDS = ("left", "right", "red", "blue", "green", "yellow", "circle", "square", "one", "two", "three", "four")
SIZE = (96, 96)
TOLERANCE = 1e-4
KEYS = ("question", "last", "image", "image+cls", "all")


@dataclass(frozen=True)
class Tried:
    """A family's model as the package has it, and its own file's view of one pair."""

    known: kit.Known
    model: Model
    pair: Pair
    encoded: EncodedPair
    clean: kit.Inputs
    corrupted: kit.Inputs

    @property
    def module(self) -> Any:
        return self.model.envoy._module

    def difference(self, inputs: kit.Inputs, edits: list[kit.Edit] | None = None) -> float:
        """The logit difference of one forward pass with hooks."""
        logits = kit.run(self.module, self.known, inputs, edits or [])
        return float(logits[self.encoded.answer[0]] - logits[self.encoded.foil[0]])

    def run(self, section: dict[str, Any], pair: Pair | None = None, **more: Any) -> xr.Dataset:
        """What the package gives."""
        spec = {"name": "family", "model": {"name": self.model.description.name}, "metrics": ["logit_difference"]}
        spec |= {"pairs": {"dataset": "folder", "path": ".", "keep": "all"}, **section}
        corruption = "semantic_image_pair" if self.has_image else "symmetric_token_replacement"
        if "patch" in section:
            spec.setdefault("corruption", {"kind": corruption})
        experiment = vp.Experiment.from_dict(spec)
        return vp.run(experiment, model=self.model, inputs=[pair or self.pair], progress=False, **more)

    @property
    def has_image(self) -> bool:
        return self.known.embeds is not None


@pytest.fixture(scope="module", params=sorted(all_known()))
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    known = all_known()[request.param]
    folder = tmp_path_factory.mktemp(known.name)
    known.build(folder)
    model = load_model(_described(known, folder))
    images = (kit.picture(0, SIZE), kit.picture(1, SIZE)) if known.embeds else (None, None)
    texts = (QUESTION, QUESTION) if images[0] else (QUESTION, OTHER)
    spans = {"subject": (QUESTION.index("large"), QUESTION.index(" left"))}
    pair = Pair("0", Prompt(images[0], texts[0]), Prompt(images[1], texts[1]), "left", "right", spans, dict(spans))
    processor = model.description.processor
    sides = [known.encode(processor, [image] if image else [], text) for image, text in zip(images, texts, strict=True)]
    logits = [kit.run(model.envoy._module, known, inputs) for inputs in sides]
    pair = _far_apart(pair, model, logits[0] - logits[1])
    kinds = ("clean", "corrupted")
    return Tried(known, model, pair, encode_pair(pair, model.description, kinds), sides[0], sides[1])


def _described(known: kit.Known, folder: Path) -> ModelDescription:
    if not known.handed:
        return describe_model(str(folder))
    config = AutoConfig.from_pretrained(folder)
    source = Source(str(folder), None, str(folder), config, known.processor(folder))
    return describe_source(source, find_family(config))


def _far_apart(pair: Pair, model: Model, moved: torch.Tensor) -> Pair:
    """The pair with those of the words as answer and foil between which the two runs differ most."""
    classes = model.description.architecture.prompting.classes
    effects: dict[str, float] = {}
    for word in classes or WORDS:
        other = next(other for other in classes or WORDS if other != word)
        named = replace(pair, answer=word, foil=other)
        effects[word] = float(moved[encode_pair(named, model.description, (), first_token=False).answer[0]])
    answer, foil = max(effects, key=lambda w: effects[w]), min(effects, key=lambda w: effects[w])
    return replace(pair, answer=answer, foil=foil)


def test_the_package_gives_the_model_what_its_processor_gives(tried: Tried) -> None:
    for kind, inputs in (("clean", tried.clean), ("corrupted", tried.corrupted)):
        given = dict(tried.encoded.inputs[kind])
        for name, tensor in given.items():
            assert torch.equal(tensor, inputs[name]), name
        assert {name for name in inputs if name not in given} <= {"labels", "offset_mapping"}


def test_every_stack_and_site_is_there(tried: Tried, record_property: Callable[[str, object], None]) -> None:
    architecture = tried.model.description.architecture
    reused = [row["reuse"] for row in engine_rows(architecture, None) if row["here"] == "on"]
    about = {
        "class": architecture.model_class,
        "file": f"{architecture.family}.yaml",
        "stacks": ", ".join(stack.name for stack in architecture.stacks),
        "image": fusion(architecture),
        "reuses": ", ".join(reused),
    }
    for name, value in about.items():  # for docs/models.md
        record_property(name, value)
    assert {stack.name for stack in architecture.stacks} == set(tried.known.towers)
    for stack in architecture.stacks:
        tower = tried.known.towers[stack.name]
        assert (stack.layers, stack.heads) == (tower.layers, tower.heads), stack.name
        assert set(tower.places) == {c for c in stack.taps if not c.endswith("_block_out")}, stack.name


def _positions(tried: Tried, stack: str) -> list[int]:
    """A few positions of a stack: the first, one of an image and one of the text in the middle, the last."""
    found = tried.encoded.positions[stack].positions
    image = [i for i, position in enumerate(found) if position.modality == "image"]
    text = [i for i, position in enumerate(found) if position.modality == "text"]
    chosen = {0, len(found) - 1} | {some[len(some) // 2] for some in (image, text) if some}
    return sorted(chosen)


def _replaced(source: torch.Tensor, position: int, columns: slice) -> kit.Edit | Any:
    def change(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[position, columns] = source[position, columns]
        return value

    return change


def _cells(tried: Tried, stack: str, component: str) -> Iterator[tuple[int, int, int | None, float]]:
    """Layer, position, head and what one forward pass with hooks gives, for a component and its heads."""
    tower = tried.known.towers[stack]
    by_head = component.endswith("head")
    place = tower.places[component.replace("head", "context")]
    layers = [layer for layer in range(tower.layers) if _is_there(tried, place.at(layer))]
    sources = dict(
        zip(
            layers,
            kit.read(tried.module, tried.known, tried.clean, [(place, layer) for layer in layers]),
            strict=True,
        )
    )
    heads = [0, tower.heads - 1] if by_head else [None]
    for layer, position, head in product(layers, _positions(tried, stack), heads):
        width = sources[layer].shape[-1] // tower.heads
        columns = slice(None) if head is None else slice(head * width, (head + 1) * width)
        edit = (place, layer, _replaced(sources[layer], position, columns))
        yield layer, position, head, tried.difference(tried.corrupted, [edit])


def _is_there(tried: Tried, place: kit.Place) -> bool:
    try:
        tried.module.get_submodule(place.path)
    except AttributeError:
        return False
    return True


def test_every_site_is_that_of_plain_hooks(tried: Tried) -> None:
    total = tried.difference(tried.clean) - tried.difference(tried.corrupted)
    assert abs(total) > 500 * TOLERANCE
    for stack, tower in tried.known.towers.items():
        components = [*tower.places, *(c.replace("context", "head") for c in tower.places if c.endswith("context"))]
        effects = []
        for component in components:
            ds = tried.run({"patch": {"sites": [f"{stack}.{component}"], "positions": _positions(tried, stack)}})
            base = float(ds["logit_difference_corrupted"].item())
            assert base == pytest.approx(tried.difference(tried.corrupted), abs=TOLERANCE)
            found = ds["logit_difference"].isel(example=0, site=0)
            layers = set()
            for layer, position, head, wanted in _cells(tried, stack, component):
                at = {"layer": layer, "position": _label(tried, stack, position)}
                cell = found.sel(at | ({} if head is None else {"head": head}))
                assert float(cell.item()) == pytest.approx(wanted, abs=TOLERANCE), (
                    f"{stack}.{component} {at} head {head}"
                )
                layers.add(layer)
                effects.append(abs(wanted - base))
            missing = [layer for layer in range(tower.layers) if layer not in layers]
            assert np.isnan(found.sel(layer=missing)).all()
        assert max(effects) > 100 * TOLERANCE, f"{stack}: effects under {max(effects)} could not show an error"


def _label(tried: Tried, stack: str, position: int) -> str:
    return tried.encoded.positions[stack].choose(position)[0].label


def test_entries_are_those_of_plain_hooks(tried: Tried) -> None:
    """The image embeddings, and (the two texts differ there) the token embeddings, position by position."""
    words = replace(tried.pair, corrupted=Prompt(tried.pair.clean.image, OTHER))
    entries = [("token_embeds", tried.known.tokens, words, "symmetric_token_replacement")]
    if tried.known.embeds is not None:
        entries.append(("image_embeds", tried.known.embeds, tried.pair, "semantic_image_pair"))
    for site, place, pair, kind in entries:
        images = [pair.corrupted.picture()] if pair.corrupted.images else []
        corrupted = tried.known.encode(tried.model.description.processor, images, pair.corrupted.text)
        subject = [i for i in tried.encoded.positions[site].groups.get("subject", ())]
        places = sorted({*_positions(tried, site), *subject})
        ds = tried.run({"patch": {"sites": [site], "positions": places}, "corruption": {"kind": kind}}, pair)
        source, base = kit.read(tried.module, tried.known, tried.clean, [(place, 0)])[0], tried.difference(corrupted)
        effects = []
        for position in places:
            cell = float(ds["logit_difference"].sel(position=_label(tried, site, position)).item())
            wanted = tried.difference(corrupted, [(place, 0, _replaced(source, position, slice(None)))])
            assert cell == pytest.approx(wanted, abs=TOLERANCE), f"{site} {position}"
            effects.append(abs(wanted - base))
        assert max(effects) > 100 * TOLERANCE, f"{site}: effects under {max(effects)} could not show an error"


@pytest.mark.parametrize("size", [SIZE, (120, 72), (64, 112)])
def test_image_positions_are_where_the_family_has_them(tried: Tried, size: tuple[int, int]) -> None:
    if not tried.has_image:
        pytest.skip("a model of text alone")
    counts = [1, 2] if _takes_several(tried) else [1]
    for count in counts:
        pictures = tuple(kit.picture(seed, size) for seed in range(count))
        image: Any = pictures if count > 1 else pictures[0]
        pair = replace(tried.pair, clean=Prompt(image, QUESTION), corrupted=Prompt(image, QUESTION))
        encoded = encode_pair(pair, tried.model.description, ())
        inputs = tried.known.encode(tried.model.description.processor, pictures, QUESTION)
        listed = tried.known.patches(inputs, tried.module.config, [size] * count)
        for stack, patches in listed.items():
            _same_positions(encoded.positions[stack], patches, stack)


def _takes_several(tried: Tried) -> bool:
    try:
        tried.known.encode(tried.model.description.processor, [kit.picture(0), kit.picture(1)], QUESTION)
    except ValueError:
        return False
    return True


def _same_positions(found: StackPositions, wanted: list[tuple[int, kit.Patch]], stack: str) -> None:
    kinds = {"cls": "class", "separator": "separator"}
    images = {i: p for i, p in enumerate(found.positions) if p.modality == "image"}
    shown = {i: patch for i, patch in wanted if patch.kind != "separator" or i in images}
    assert list(images) == sorted(shown), stack
    for i, patch in shown.items():
        position = images[i]
        kind = kinds.get(position.role, "latent" if position.row < 0 else "patch")
        assert kind == patch.kind, f"{stack} {i}"
        assert position.image == patch.image, f"{stack} {i}"
        if patch.kind == "patch":
            assert (position.tile, position.row, position.col) == (patch.tile, patch.row, patch.column), f"{stack} {i}"
            if patch.box is None:
                assert position.box is None
            else:
                assert position.box == pytest.approx(patch.box, abs=1.01), f"{stack} {i}"


def test_everything_that_is_reused_changes_nothing(tried: Tried) -> None:
    """Windows, a span, all image positions together, noise, upper layers of image encoders: one forward pass a cell."""
    text = tried.model.description.architecture.text_stack
    positions = ["subject", "question", "last", *(["image"] if "image" in tried.encoded.positions[text].groups else [])]
    sections: list[dict[str, Any]] = [
        {"patch": {"sites": [f"{text}.attn_out", f"{text}.mlp_out"], "positions": positions, "window": [1, 2]}},
        {"patch": {"sites": [f"{text}.attn_head"], "positions": ["last"], "direction": "noise"}},
        {"ablate": {"sites": [f"{text}.resid_post"], "positions": ["subject"], "kind": "zero"}},
    ]
    if tried.has_image:
        sections.append(
            {
                "corruption": {"kind": "gaussian_noise", "draws": 2, "std": 0.5},
                "patch": {"sites": [f"{text}.resid_post"], "positions": ["subject", "last"]},
            }
        )
    for stack in [s for s in tried.model.description.architecture.stacks if s.name in IMAGE_STACKS]:
        upper = {"sites": [f"{stack.name}.resid_pre"], "layers": [stack.last_layer]}
        sections.append({"patch": upper | {"positions": [0, "image"]}})
    for section in sections:
        fast, naive = tried.run(section), tried.run(section, engine="naive")
        assert set(fast.data_vars) == set(naive.data_vars)
        here, there = fast["logit_difference"], naive["logit_difference"]
        assert float(abs(here - there).max()) <= TOLERANCE, section
        assert float(here.max() - here.min()) > 100 * TOLERANCE, section


def test_knockout_is_that_of_plain_hooks(tried: Tried) -> None:
    """The mask is made of what is attended to at all, less what is blocked; a query without any key gets nothing."""
    blocks = [block for block in _attentions(tried) if block[2].mask is not None]
    if not blocks:
        pytest.skip("its edges cannot be blocked")
    for stack, pattern, attention in blocks:
        keys, queries = _groups(tried, attention.keys), _groups(tried, stack.name)
        known = [names for names in KEYS if all(name in keys for name in names.split("+"))]
        edges = [*(f"{names} -> last" for names in known), "all -> all"]
        ds = tried.run({"knockout": {"sites": [f"{stack.name}.{pattern}"], "edges": edges}})
        layers, spread = [layer for layer in range(stack.layers) if stack.has(pattern, layer)], []
        context = tried.known.towers[stack.name].places[pattern.replace("pattern", "context")]
        for layer, allowed in zip(layers, _attended(tried, attention, layers), strict=True):
            for edge in edges:
                source, target = edge.split(" -> ")
                sources = torch.tensor([i for name in source.split("+") for i in keys[name]])
                kept = allowed.clone()
                kept[..., torch.tensor(queries[target])[:, None], sources] = False
                mask = torch.where(kept, 0.0, torch.finfo(torch.float32).min)
                silent = ~kept.any(-1)[0, 0]
                edits: list[kit.Edit] = [
                    (context, layer, partial(torch.Tensor.masked_fill, mask=silent[:, None], value=0.0))
                ]
                wanted = _with_mask(tried, attention, layer, mask, edits)
                cell = ds["logit_difference"].sel(layer=layer, edges=edge).isel(example=0)
                assert float(cell.item()) == pytest.approx(wanted, abs=TOLERANCE), f"{pattern} {layer} {edge}"
                spread.append(wanted)
        assert np.ptp(spread) > 100 * TOLERANCE


def _groups(tried: Tried, stack: str) -> dict[str, tuple[int, ...]]:
    found = tried.encoded.positions[stack]
    return {**found.groups, "all": tuple(range(len(found.positions)))}


def _attended(tried: Tried, attention: Attention, layers: list[int]) -> list[torch.Tensor]:
    """Which keys each query of each layer attends to at all, [1, 1, query, key]."""
    found: list[torch.Tensor] = []

    def keep(_: Any, args: Any, out: Any) -> None:
        found.append((out[attention.part] > 0).any(1, keepdim=True))

    before = attentions_of(tried.module.config)
    if attention.eager:
        tried.module.set_attn_implementation("eager")
    modules = [tried.module.get_submodule(attention.path.format(layer=layer)) for layer in layers]
    handles = [module.register_forward_hook(keep) for module in modules]
    kit.run(tried.module, tried.known, tried.clean)
    for handle in handles:
        handle.remove()
    tried.module.set_attn_implementation(before)
    return found


def _with_mask(tried: Tried, attention: Attention, layer: int, mask: torch.Tensor, edits: list[kit.Edit]) -> float:
    """One forward pass with a layer's mask in the place of its own."""

    def before(_: Any, args: Any, named: dict[str, Any]) -> Any:
        if isinstance(attention.mask, int):
            return (*args[: attention.mask], mask, *args[attention.mask + 1 :]), named
        return args, {**named, str(attention.mask): mask}

    module = tried.module.get_submodule(attention.path.format(layer=layer))
    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        return tried.difference(tried.clean, edits)
    finally:
        handle.remove()


def test_the_lens_ends_in_the_models_own_logits(tried: Tried) -> None:
    """Read through the final norm and the unembedding, the last layer says what the model says: at the last position,
    and of classes at the first."""
    for stack in tried.model.description.architecture.stacks:
        if not stack.unembed:
            continue
        position = 0 if tried.model.description.architecture.prompting.classes else "last"
        ds = tried.run({"lens": {"sites": [f"{stack.name}.resid_post"], "positions": [position]}})
        last = float(ds["logit_difference"].isel(example=0, layer=-1).item())
        assert last == pytest.approx(tried.difference(tried.clean), abs=TOLERANCE)
        assert float(ds["logit_difference"].max() - ds["logit_difference"].min()) > 100 * TOLERANCE


def test_answers_of_several_tokens_are_given_behind_the_prompt(tried: Tried) -> None:
    """Whole answers, forced one after the other, have the probability that one token after the other gives."""
    architecture = tried.model.description.architecture
    if architecture.prompting.classes:
        pytest.skip("answers are classes")
    words = ("large red circle", "small blue square")
    pair = replace(tried.pair, answer=words[0], foil=words[1])
    tokens = encode_pair(pair, tried.model.description, (), first_token=False).answer
    assert len(tokens) > 1
    text = architecture.text_stack
    section = {"patch": {"sites": [f"{text}.mlp_out"], "positions": ["last"]}, "metrics": ["answer_log_probability"]}
    fast, naive = tried.run(section, pair), tried.run(section, pair, engine="naive")
    assert float(abs(fast["answer_log_probability"] - naive["answer_log_probability"]).max()) <= TOLERANCE
    wanted, given = 0.0, list[int]()
    for token in tokens:
        wanted += float(_after(tried, given).log_softmax(-1)[token])
        given.append(token)
    assert float(fast["answer_log_probability_clean"].item()) == pytest.approx(wanted, abs=TOLERANCE)


def _after(tried: Tried, given: list[int]) -> torch.Tensor:
    """The logits behind the prompt and some tokens of an answer."""
    inputs, more = dict(tried.clean), torch.tensor([given], dtype=torch.long)
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    length = inputs[name].shape[1]
    inputs[name] = torch.cat([inputs[name], more], 1)
    if name == "input_ids":
        known = {"attention_mask": 1} | tried.known.behind
        for other, value in known.items():
            if other in inputs:
                last = inputs[other][:, length - 1 : length]
                added = last if value == "last" else torch.full_like(last, value)
                inputs[other] = torch.cat([inputs[other], *[added] * len(given)], 1)
    return kit.run(tried.module, tried.known, inputs)


def test_prompts_without_an_image(tried: Tried) -> None:
    """They run where the family runs them, and are refused where not."""
    if not tried.has_image:
        pytest.skip("no prompt of it has one")
    pair = replace(tried.pair, clean=Prompt(None, QUESTION), corrupted=Prompt(None, OTHER))
    text = tried.model.description.architecture.text_stack
    section = {
        "patch": {"sites": [f"{text}.mlp_out"], "positions": ["last"]},
        "corruption": {"kind": "symmetric_token_replacement"},
    }
    try:
        inputs = tried.known.encode(tried.model.description.processor, [], QUESTION)
    except ValueError:
        with pytest.raises(vp.SpecError):
            tried.run(section, pair)
        return
    ds = tried.run(section, pair)
    assert float(ds["logit_difference_clean"].item()) == pytest.approx(tried.difference(inputs), abs=TOLERANCE)
    naive = tried.run(section, pair, engine="naive")
    assert float(abs(ds["logit_difference"] - naive["logit_difference"]).max()) <= TOLERANCE


def test_attention_patterns_are_those_of_eager_attention(tried: Tried) -> None:
    """What a plain hook sees of the probabilities, at the last position of every stack that reads text."""
    before = attentions_of(tried.module.config)
    for stack, pattern, attention in _attentions(tried):
        groups = _groups(tried, attention.keys)
        keys = next(name for name in ("image", "question", "all") if name in groups)
        section = {"sites": [f"{stack.name}.{pattern}"], "positions": ["last"], "keys": keys}
        ds = tried.run({"attention": section, "metrics": ["probability"]})
        indices = list(groups[keys])
        if attention.eager:
            tried.module.set_attn_implementation("eager")
        for layer in [layer for layer in range(stack.layers) if stack.has(pattern, layer)]:
            found: list[torch.Tensor] = []

            def keep(_: Any, args: Any, out: Any, part: int = attention.part, found: Any = found) -> None:
                found.append(out[part])

            handle = tried.module.get_submodule(attention.path.format(layer=layer)).register_forward_hook(keep)
            kit.run(tried.module, tried.known, tried.clean)
            handle.remove()
            here = ds["attention"].sel(layer=layer).isel(example=0, site=0, position=0).transpose("head", "key").values
            assert here[:, : len(indices)] == pytest.approx(found[0][0, :, -1, indices].numpy(), abs=1e-5)
            assert np.isnan(here[:, len(indices) :]).all()
        tried.module.set_attn_implementation(before)
        assert np.nanmax(ds["attention"].values) > 0.01


def _attentions(tried: Tried) -> list[tuple[Stack, str, Attention]]:
    """Every attention block of the stacks that read text, with its stack and its name."""
    stacks = [stack for stack in tried.model.description.architecture.stacks if stack.name not in IMAGE_STACKS]
    return [(stack, name, attention) for stack in stacks for name, attention in stack.attentions.items()]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_padding_changes_nothing(tried: Tried, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs are run one by one, or with others of the same length: no token is ever padded."""
    monkeypatch.setattr(tried.model.description.tokenizer, "padding_side", side)
    encoded = encode_pair(tried.pair, tried.model.description, ())
    for name, tensor in encoded.inputs["clean"].items():
        assert torch.equal(tensor, tried.encoded.inputs["clean"][name]), name
