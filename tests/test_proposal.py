"""A file is proposed for a model whose family is not known: it loads, its places are the shipped file's, it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoProcessor, BlipForConditionalGeneration

import vlm_patching as vp
from tests.families import all_known, kit
from tests.refusals import refusal, says
from vlm_patching import doctor
from vlm_patching.models import Architecture, describe_model, families
from vlm_patching.models.families import UnknownFamilyError, find_family, parse_family, writing
from vlm_patching.models.proposal import propose
from vlm_patching.models.sources import read_source
from vlm_patching.sections import ModelSpec

SAME = ("llava", "llava_siglip", "paligemma", "gemma3", "llama", "gpt2", "qwen2", "gemma2", "phi")
"""Of these, every place that the shipped file names is found; of more, most are."""
PLAIN = ("llava", "llama", "gpt2", "qwen2")
"""And all else that the shipped file says."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, str]) -> dict[str, Path]:
    """Small random models with their processors."""
    root = tmp_path_factory.mktemp("known")
    for name in SAME:
        (root / name).mkdir()
        all_known()[name].build(root / name)
    captioner = root / "captioner"
    config = AutoConfig.from_pretrained(model_folders["random-blip"])
    config.architectures = ["BlipForConditionalGeneration"]
    module = BlipForConditionalGeneration(config)
    kit.randomise(module)
    module.save_pretrained(captioner)
    AutoProcessor.from_pretrained(model_folders["random-blip"]).save_pretrained(captioner)
    return {name: root / name for name in (*SAME, "captioner")}


@pytest.fixture
def withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """No family is known."""
    monkeypatch.setattr(families, "families", dict)


def proposed(folder: Path) -> Architecture:
    source = read_source(str(folder))
    return parse_family("proposed", propose(source.config, source.processor)).describe(source.config)


def places(architecture: Architecture) -> dict[str, object]:
    """Every place of a map, and its stacks' sizes."""
    found: dict[str, object] = {"tokens": architecture.token_embeds, "logits": architecture.readout}
    for stack in architecture.stacks:
        found |= {f"{stack.name}.{component}": tap for component, tap in stack.taps.items()}
        found |= {f"{stack.name} {what}": getattr(stack, what) for what in ("layers", "heads", "last_layer", "unembed")}
        found |= {f"{stack.name}.{pattern}": block.path for pattern, block in stack.attentions.items()}
    if architecture.image is not None:
        found |= {what: getattr(architecture.image, what) for what in ("embeds", "bypass", "place", "marks")}
    return found


@pytest.mark.parametrize("name", [*SAME, "captioner"])
def test_the_places_of_a_proposal_are_those_of_the_shipped_file(folders: dict[str, Path], name: str) -> None:
    shipped = describe_model(str(folders[name])).architecture
    assert places(proposed(folders[name])) == places(shipped)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_decoders_proposal_reuses_as_much_as_the_shipped_file(folders: dict[str, Path], name: str) -> None:
    shipped, found = describe_model(str(folders[name])).architecture, proposed(folders[name])
    assert (found.packs, found.packs_up_to, found.continues) == (shipped.packs, shipped.packs_up_to, shipped.continues)
    assert {s.name: (s.skips, s.entry) for s in found.stacks} == {s.name: (s.skips, s.entry) for s in shipped.stacks}


@pytest.mark.parametrize("name", ["llava", "paligemma", "gemma3", "llama", "gpt2", "qwen2", "captioner"])
def test_a_model_of_no_known_family_is_usable_with_what_is_proposed(
    folders: dict[str, Path], withheld: None, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UnknownFamilyError):
        find_family(AutoConfig.from_pretrained(folders[name]))
    file = tmp_path / "mine.yaml"
    found = doctor.examine(ModelSpec(name=str(folders[name])), propose_to=file)
    assert found.usable, found.problems
    assert found.checks and all(row["passed"] for row in found.checks)
    assert f"--family {file}" in found.verdict and "uncertain" in found.verdict
    model = vp.load_model(str(folders[name]), family=file)
    assert model.description.family.path == file


def test_what_is_guessed_is_marked_and_shown(folders: dict[str, Path], withheld: None, tmp_path: Path) -> None:
    found = doctor.examine(ModelSpec(name=str(folders["paligemma"])), "none", tmp_path / "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    assert text.count(writing.MARK) == len(found.notes) >= 3
    assert "mlp: mlp.down_proj" in text and "{layer}" in text


def test_a_proposal_does_not_replace_a_file(folders: dict[str, Path], withheld: None, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("not mine")
    says(refusal(lambda: doctor.examine(ModelSpec(name=str(folders["llama"])), "none", file)), str(file), "--family")
    assert file.read_text() == "not mine"


def test_a_proposal_is_made_without_weights(folders: dict[str, Path], withheld: None, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for file in folders["llava"].iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    found = doctor.examine(ModelSpec(name=str(folder)), "random", tmp_path / "mine.yaml")
    assert found.usable, found.problems
    assert "random weights" in found.verdict


def test_a_model_that_answers_nothing_gets_no_proposal(tmp_path: Path, withheld: None) -> None:
    config = AutoConfig.for_model("vit", num_hidden_layers=2)
    says(refusal(lambda: propose(config, None)), "vit", "no class")


def test_comments_stand_above_what_they_are_about() -> None:
    says_it = {"a": {"b": 1, "c": [1, 2]}, "stacks": [{"name": "x", "mlp": "y"}], "d": {"e": None}}
    text = writing.written("title", says_it, {("a", "c"): "why", ("stacks", 0, "mlp"): "because"})
    assert text.splitlines() == [
        "# title",
        "a:",
        "  b: 1",
        f"  # {writing.MARK}: why",
        "  c: [1, 2]",
        "stacks:",
        "  - name: x",
        f"    # {writing.MARK}: because",
        "    mlp: y",
        "d: {e: null}",
    ]
    assert writing.doubts(text) == ["uncertain is c: [1, 2]: why", "uncertain is mlp: y: because"]
