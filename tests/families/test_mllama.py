"""Llama 3.2 Vision: tiles that are empty, pictures that do not see each other, a model without a chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import vlm_patching as vp
from tests.families import kit
from tests.families.mllama import KNOWN
from vlm_patching.inputs import encode_pair
from vlm_patching.models import Model, describe_model, load_model
from vlm_patching.pairs import Pair, Prompt

QUESTION = "how many objects are there ?"
CLEAN, CORRUPTED = ((kit.picture(seed, (96, 48)), kit.picture(seed + 1, (96, 48))) for seed in (0, 2))
PAIR = Pair("0", Prompt(CLEAN, QUESTION), Prompt(CORRUPTED, QUESTION), "one", "two")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("mllama")
    KNOWN.build(folder)
    yield load_model(describe_model(str(folder)))


def run(model: Model, pair: Pair = PAIR, **sections: Any) -> Any:
    spec = {"name": "mllama", "model": {"name": model.description.name}, "metrics": ["logit_difference"], **sections}
    spec["pairs"] = {"dataset": "folder", "path": ".", "keep": "all"}
    return vp.run(vp.Experiment.from_dict(spec), model=model, inputs=[pair], progress=False)


def test_a_model_without_a_chat_template_gets_its_first_token_once(model: Model) -> None:
    described = model.description
    template, described.processor.chat_template = described.processor.chat_template, None
    tokenizer = described.tokenizer
    for pair, marks in ((PAIR, ["<|image|>"] * 2), (Pair("1", Prompt(None, QUESTION), PAIR.clean, "one", "two"), [])):
        ids = encode_pair(pair, described, ()).inputs["clean"]["input_ids"][0].tolist()
        begun = [*marks, tokenizer.bos_token]
        assert tokenizer.convert_ids_to_tokens(ids[: len(begun)]) == begun
        assert ids.count(tokenizer.bos_token_id) == 1
    described.processor.chat_template = template


@pytest.mark.parametrize("stack", ["vision", "vision_global"])
def test_edges_between_the_patches_of_one_of_two_pictures(model: Model, stack: str) -> None:
    """Each picture is a row of its own in the image encoder; both are one sequence to whoever names positions."""
    encoded = encode_pair(PAIR, model.description, ())
    positions = encoded.positions[stack]
    length = len(positions.positions) // 2
    second = torch.tensor(positions.groups["image:1"]) - length
    edges = ["image:1 -> image:1", "image:0 -> image:1"]
    ds = run(model, knockout={"sites": [f"{stack}.attn_pattern"], "edges": edges})
    attention = model.description.architecture.stack(stack).attentions["attn_pattern"]

    def shut(_: Any, args: Any, named: dict[str, Any]) -> Any:
        mask = named["attention_mask"].expand(2, 1, length, length).clone()
        mask[1, 0, second[:, None], second] = torch.finfo(mask.dtype).min
        return args, {**named, "attention_mask": mask}

    module = model.envoy._module
    inputs = KNOWN.encode(model.description.processor, PAIR.clean.pictures(), QUESTION)
    for layer in range(2):
        handle = module.get_submodule(attention.path.format(layer=layer)).register_forward_pre_hook(
            shut, with_kwargs=True
        )
        logits = kit.run(module, KNOWN, inputs)
        handle.remove()
        found = ds["logit_difference"].isel(example=0).sel(layer=layer)
        wanted = float(logits[encoded.answer[0]] - logits[encoded.foil[0]])
        assert float(found.sel(edges=edges[0]).item()) == pytest.approx(wanted, abs=1e-4)
        clean = float(ds["logit_difference_clean"].item())
        assert abs(wanted - clean) > 1e-3
        assert float(found.sel(edges=edges[1]).item()) == pytest.approx(clean, abs=1e-5)


def test_attention_within_pictures_is_read_where_they_are(model: Model) -> None:
    for keys, least in (("image:1", 0.1), ("image:0", 0.0)):
        section: dict[str, Any] = {"sites": ["vision.attn_pattern"], "positions": ["image:1"], "keys": keys}
        found = run(model, attention=section, metrics=["probability"])["attention"].sum("key")
        assert float(found.min()) > least if least else float(found.max()) == 0


def test_noise_on_pixels_leaves_tiles_empty_that_are_so(model: Model) -> None:
    seen: list[torch.Tensor] = []
    encoder = model.envoy._module.model.vision_model

    def keep(_: Any, args: Any, named: dict[str, Any]) -> None:
        seen.append(named["pixel_values"])

    handle = encoder.register_forward_pre_hook(keep, with_kwargs=True)
    corruption = {"kind": "gaussian_noise", "draws": 2, "std": 0.5, "site": "pixels"}
    run(model, corruption=corruption, patch={"sites": ["language.mlp_out"], "positions": ["last"]})
    handle.remove()
    clean, noisy = seen[0], next(pixels for pixels in seen if len(pixels) == 2)
    empty = (clean == 0).flatten(-3).all(-1)[0]
    assert empty.any() and not empty.all()
    assert (noisy[:, empty] == 0).all()
    assert (noisy[:, ~empty] != clean[:, ~empty]).all()
