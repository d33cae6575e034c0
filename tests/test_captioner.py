"""A BLIP that continues captions: its sweep is that of plain hooks, one forward pass a cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, BlipForConditionalGeneration

import vlm_patching as vp
from vlm_patching.models import Model

LAYERS, HEADS = 3, 2
PLACES: dict[str, tuple[str, str]] = {
    "attn_out": ("attention.output.dense", "output"),
    "cross_attn_out": ("crossattention.output.dense", "output"),
    "mlp_out": ("output.dense", "output"),
    "resid_post": ("", "output"),
    "attn_head": ("attention.output.dense", "input"),
    "cross_attn_head": ("crossattention.output.dense", "input"),
}


@pytest.fixture(scope="module")
def captioner(model_folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Random weights of the size that the oracle's own random BLIP has."""
    answering = vp.load_model(model_folders["random-blip"]).envoy._module
    config = answering.config
    config.architectures = ["BlipForConditionalGeneration"]
    module = BlipForConditionalGeneration(config)
    module.vision_model.load_state_dict(answering.vision_model.state_dict())
    module.text_decoder.load_state_dict(answering.text_decoder.state_dict())
    folder = tmp_path_factory.mktemp("captioner")
    module.save_pretrained(folder)
    AutoProcessor.from_pretrained(model_folders["random-blip"]).save_pretrained(folder)
    return vp.load_model(str(folder))


@pytest.fixture(scope="module")
def pair(captioner: Model) -> vp.Pair:
    """Answer and foil are what is likeliest in either run, so that effects are large."""
    first = vp.load_pairs("shapes", n=1, seed=3)[0]
    words = []
    for kind in ("clean", "corrupted"):
        inputs = prompt(captioner, first, kind)
        order = captioner.envoy._module(**inputs).logits[0, -1].argsort(descending=True).tolist()
        tokens = captioner.description.processor.tokenizer.convert_ids_to_tokens(order)
        words.append(next(t for t in tokens if t.isalpha() and t not in words))

    return dataclasses.replace(first, answer=words[0], foil=words[1])


def prompt(model: Model, pair: vp.Pair, kind: str) -> dict[str, Any]:
    """What captioning starts with: [bos] and the text's tokens, without an end."""
    chosen = pair.clean if kind == "clean" else pair.corrupted
    processor = model.description.processor
    pixels = processor(images=chosen.picture(), text=pair.clean.text, return_tensors="pt")["pixel_values"]
    words = processor.tokenizer(pair.clean.text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[model.description.config.text_config.bos_token_id, *words]])
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def run_with(module: Any, inputs: dict[str, Any], path: str, end: str, change: Callable[[Any], Any]) -> torch.Tensor:
    """The last position's logits, with one module's input or output changed by a plain hook."""
    target = module.get_submodule(path)
    if end == "input":
        hook = target.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:

        def after(_: Any, args: Any, out: Any) -> Any:
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        hook = target.register_forward_hook(after)
    try:
        with torch.no_grad():
            return module(**inputs).logits[0, -1].double()
    finally:
        hook.remove()


def test_every_site_of_the_decoder_is_that_of_plain_hooks(captioner: Model, pair: vp.Pair) -> None:
    module, tokens = captioner.envoy._module, captioner.description.processor.tokenizer
    answer, foil = (tokens.convert_tokens_to_ids(word) for word in (pair.answer, pair.foil))
    clean, corrupted = prompt(captioner, pair, "clean"), prompt(captioner, pair, "corrupted")
    length, largest = clean["input_ids"].shape[1], 0.0
    for component, (part, end) in PLACES.items():
        spec = vp.Experiment.from_dict(
            {
                "name": component,
                "model": {"name": captioner.description.name},
                "pairs": {"dataset": "shapes", "n": 1, "keep": "all"},
                "corruption": {"kind": "semantic_image_pair"},
                "patch": {"sites": [f"language.{component}"], "positions": "all"},
            }
        )
        ds = vp.run(spec, model=captioner, inputs=[pair], progress=False)
        found = ds["logit_difference"].isel(example=0, site=0)
        assert found.sizes["position"] == length
        base = float(ds["logit_difference_corrupted"].item())
        for layer in range(LAYERS):
            path = f"text_decoder.bert.encoder.layer.{layer}" + (f".{part}" if part else "")
            kept: list[torch.Tensor] = []
            run_with(module, clean, path, end, lambda value, kept=kept: kept.append(value.clone()) or value)
            for position in range(length):
                for head in range(HEADS if component.endswith("head") else 1):
                    width = kept[0].shape[-1] // HEADS
                    columns = slice(head * width, (head + 1) * width) if component.endswith("head") else slice(None)

                    def restore(value: torch.Tensor, at: int = position, columns: slice = columns) -> torch.Tensor:
                        value = value.clone()
                        value[0, at, columns] = kept[0][0, at, columns]  # noqa: B023 - called before the loop goes on
                        return value

                    logits = run_with(module, corrupted, path, end, restore)
                    cell = found.isel(layer=layer, position=position)
                    cell = cell.isel(head=head) if component.endswith("head") else cell
                    assert float(cell) == pytest.approx(float(logits[answer] - logits[foil]), abs=1e-4)
                    largest = max(largest, abs(float(cell) - base))
    assert largest > 100 * 1e-4


@pytest.mark.parametrize(
    "section",
    [
        {"knockout": {"edges": ["image -> last", "question -> last"], "window": [1, 2]}},
        {"ablate": {"sites": ["language.cross_attn_head"], "positions": ["last"], "kind": "mean"}},
        {"lens": {"positions": ["last"]}},
        {"attention": {"sites": ["language.cross_attn_pattern"], "positions": ["last"], "keys": "image"}},
    ],
)
def test_other_methods_are_those_of_one_pass_a_cell(captioner: Model, section: dict[str, Any]) -> None:
    spec = vp.Experiment.from_dict(
        {
            "name": "captions",
            "model": {"name": captioner.description.name},
            "pairs": {"dataset": "shapes", "n": 2, "keep": "all"},
            "metrics": ["probability", "logit_difference"],
            **section,
        }
    )
    fast = vp.run(spec, model=captioner, progress=False)
    naive = vp.run(spec, model=captioner, engine="naive", progress=False)
    for name in fast.data_vars:
        assert float(abs(fast[name] - naive[name]).max()) <= 1e-4
        assert float(fast[name].max() - fast[name].min()) > 1e-6


def test_whole_captions_are_measured_teacher_forced(captioner: Model, pair: vp.Pair) -> None:

    longer = dataclasses.replace(pair, answer=f"{pair.answer} {pair.foil} {pair.answer}")
    spec = vp.Experiment.from_dict(
        {
            "name": "captions",
            "model": {"name": captioner.description.name},
            "pairs": {"dataset": "shapes", "n": 1, "keep": "all"},
            "corruption": {"kind": "semantic_image_pair"},
            "patch": {"sites": ["language.cross_attn_out"], "positions": ["last"]},
            "metrics": ["answer_log_probability"],
        }
    )
    ds = vp.run(spec, model=captioner, inputs=[longer], progress=False)
    inputs = prompt(captioner, pair, "clean")
    words = captioner.description.processor.tokenizer(longer.answer, add_special_tokens=False)["input_ids"]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([words[:-1]])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logp = captioner.envoy._module(**inputs).logits[0, -len(words) :].double().log_softmax(-1)
    wanted = float(logp[torch.arange(len(words)), torch.tensor(words)].sum())
    assert len(words) > 2 and float(ds["answer_log_probability_clean"].item()) == pytest.approx(wanted, abs=1e-4)


def test_a_captioner_is_named_by_what_it_has(captioner: Model) -> None:
    architecture = captioner.description.architecture
    assert [stack.name for stack in architecture.stacks] == ["vision", "language"]
    assert Path(captioner.description.source).is_dir()
    with pytest.raises(vp.SpecError, match="question_encoder"):
        architecture.locate("question_encoder.mlp_out")
