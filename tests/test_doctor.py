"""`vlm-patching doctor MODEL`: what it prints, what it finds wrong; exit codes: 0 usable, 1 not, 2 unreadable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import vlm_patching as vp
from tests.families import all_known
from tests.test_cli import Command, command, is_one_paragraph  # noqa: F401 - the fixture
from tests.test_loading import own_file
from vlm_patching import doctor
from vlm_patching.doctor import engine
from vlm_patching.models import describe_model, families
from vlm_patching.models.families import keys
from vlm_patching.models.layouts import square
from vlm_patching.sections import ModelSpec

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reports() -> dict[str, doctor.Report]:
    return {name: doctor.examine(ModelSpec(name=name)) for name in vp.bundled_models()}


def report_of(path: Path, **more: Any) -> doctor.Report:
    return doctor.examine(ModelSpec(name="shapes-llava", family=str(path)), **more)


@pytest.mark.parametrize("name", vp.bundled_models())
def test_a_bundled_model_is_found_usable_and_every_site_is_shown(reports: dict[str, doctor.Report], name: str) -> None:
    found, architecture = reports[name], describe_model(name).architecture
    assert found.usable and "can be used" in found.verdict
    assert [row["site"] for row in found.sites] == [*architecture.sites(), *architecture.pattern_sites()]
    assert all(row["there"] == "found" and row["shape"] for row in found.sites)
    tried = {(row["site"], row["method"]) for row in found.checks}
    assert {(site, "patch") for site in architecture.sites()} <= tried
    assert {(site, "attention") for site in architecture.pattern_sites()} <= tried
    assert all(row["passed"] for row in found.checks)
    assert {row["stack"] for row in found.positions} >= {stack.name for stack in architecture.stacks}


def test_every_trust_check_is_among_them(reports: dict[str, doctor.Report]) -> None:
    held = " ".join(row["checks"] for row in reports["shapes-llava"].checks)
    for check in ("nothing", "itself", "everything in vision", "everything in language", "one forward pass a cell"):
        assert check in held
    for check in ("read apart", "unembedding", "earlier positions"):
        assert check in held


def test_the_shapes_are_those_of_the_model(reports: dict[str, doctor.Report]) -> None:
    shapes = {row["site"]: row["shape"] for row in reports["shapes-llava"].sites}
    assert shapes["language.resid_post"] == "1×28×64" and shapes["image_embeds"] == "1×16×64"
    assert shapes["language.attn_pattern"] == "1×4×28×28"


def test_the_engine_says_what_is_off_and_why(reports: dict[str, doctor.Report]) -> None:
    rows = {row["reuse"]: (row["here"], row["why"]) for row in reports["shapes-llava"].engine}
    assert rows["cells packed over a prefix"][0] == "on"
    assert rows["cross-attention keys once"] == ("off", "there is no cross-attention")
    assert "skips: false" in rows["lower layers skipped"][1]
    rows = {row["reuse"]: (row["here"], row["why"]) for row in reports["shapes-blip"].engine}
    assert rows["cross-attention keys once"][0] == "on" and "question_encoder" in rows["cross-attention keys once"][1]
    assert rows["cells packed over a prefix"][0] == "off"


def test_a_long_run_of_image_positions_is_shortened(reports: dict[str, doctor.Report]) -> None:
    rows = [row for row in reports["shapes-llava"].positions if row["stack"] == "language"]
    assert [row["index"] for row in rows if row["modality"] == "image"] == [3, 4, 17, 18]
    (left_out,) = (row for row in rows if row["index"] == "…")
    assert left_out["label"] == "16 in all"
    assert rows[-1]["index"] == 27 and rows[3]["box"] == [0, 0, 24, 24]


def test_without_weights_the_tree_alone_is_looked_at(command: Command) -> None:  # noqa: F811 - the fixture
    said = command("doctor", "shapes-blip", "--weights", "none")
    assert said.code == 0, said.err
    assert "Linear 64×64" in said.out and "No check was run" in said.out


def test_random_weights_hold_every_check(command: Command) -> None:  # noqa: F811 - the fixture
    said = command("doctor", "shapes-blip", "--weights", "random", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["usable"] and len(found["checks"]) > 30
    assert any(float(row["effect"] or 0) > 0.01 for row in found["checks"])


def test_what_is_printed_ends_with_one_line_of_verdict(command: Command) -> None:  # noqa: F811 - the fixture
    said = command("doctor", "shapes-llava")
    assert said.code == 0, said.err
    assert said.out.strip().splitlines()[-1].startswith("shapes-llava can be used: ")
    for part in ("family: llava (of the package", "stacks", "sites", "engine", "positions", "checks", "Pillow"):
        assert part in said.out


WRONG: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda data: data["stacks"][1]["attention"].update(out="self_attn.q_proj"), "goes into attention"),
    (lambda data: data["stacks"][1].update(mlp="mlp.up_proj"), "mlp_out is 192 wide"),
    (lambda data: data["stacks"][1].update(heads=2), "not of 2 heads"),
    (lambda data: data["stacks"][1].update(unembed=["lm_head"]), "lens"),
    (lambda data: data["stacks"][1]["attention"].update(mask="nonsense"), "blocking keys changes nothing"),
    (lambda data: data["stacks"][1]["attention"].update(part=0), "language.attn_pattern"),
    (lambda data: data["image"]["layout"].pop("class_token"), "everything in vision"),
    (lambda data: data["image"].update(embeds={"path": "model.vision_tower"}, bypass=[]), "image_embeds is no tensor"),
    (lambda data: data.update(readout={"path": "", "part": "nonsense"}), "nonsense"),
    (lambda data: data.update(tokens="model.language_model.norm"), "token_embeds"),
    (lambda data: data["stacks"][1].update(mlp="mlp.fc2"), "no 'fc2'"),
    (lambda data: data["stacks"][1].update(layers=5), "one more"),
    (lambda data: data["stacks"][1].update(layers=7), "no '6'"),
]


@pytest.mark.parametrize(("change", "part"), WRONG, ids=[part for _, part in WRONG])
def test_a_wrong_map_is_found_out(tmp_path: Path, change: Callable[[dict[str, Any]], object], part: str) -> None:
    found = report_of(own_file(tmp_path, change))
    assert not found.usable and "cannot be used" in found.verdict
    assert any(part in problem for problem in found.problems), found.problems


def test_attention_both_ways_is_not_taken_for_causal(tmp_path: Path) -> None:
    known = all_known()["paligemma"]
    (tmp_path / "model").mkdir()
    known.build(tmp_path / "model")
    data = yaml.safe_load(families.families()["paligemma"].text)
    data["stacks"][1]["attention"]["causal"] = True
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    found = doctor.examine(ModelSpec(name=str(tmp_path / "model"), family=str(path)))
    assert any("causal: true" in problem for problem in found.problems)


def test_positions_in_the_wrong_order_are_found_by_paint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = square.layout

    def turned(*given: Any, **settings: Any) -> Any:
        made = right(*given, **settings)
        first, *patches = made.vision
        return type(made)((first, *reversed(patches)), made.embeds, made.text)

    monkeypatch.setattr(square, "layout", turned)
    found = report_of(own_file(tmp_path))
    assert any("paint there moves" in problem for problem in found.problems), found.problems


def test_a_failed_check_is_shown_and_is_exit_code_1(tmp_path: Path, command: Command) -> None:  # noqa: F811
    path = own_file(tmp_path, lambda data: data["stacks"][1].update(unembed=["lm_head"]))
    said = command("doctor", "shapes-llava", "--family", path)
    assert said.code == 1
    assert "FAILED" in said.out and said.out.strip().splitlines()[-1].startswith("shapes-llava cannot be used")
    assert command("doctor", "shapes-llava", "--family", path, "--json").code == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("shapes-lava",), ("shapes-lava", "Did you mean 'shapes-llava'")),
        (("shapes-llava", "--family", "nowhere.yaml"), ("nowhere.yaml", "does not exist")),
        (("shapes-llava", "--dtype", "float8"), ("dtype", "float8", "float32")),
        (("shapes-llava", "--quantization", "3bit"), ("quantization", "3bit", "4bit")),
        (("shapes-llava", "--attn-implementation", "a/b"), ("attn_implementation", "a/b", "eager")),
        (("shapes-llava", "--backend", "ndif"), ("--backend", "MODEL")),
        (("shapes-llava", "--weights", "random", "--dtype", "float16"), ("dtype", "loaded")),
        (("--family", "x.yaml"), ("--family", "MODEL")),
        (("--backend", "moon"), ("moon", "local")),
    ],
)
def test_bad_arguments_are_one_paragraph_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,  # noqa: F811 - the fixture
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("doctor", *arguments)
    assert said.code == 2 and is_one_paragraph(said.err), said
    assert all(part in said.err for part in parts), said.err


def test_an_unknown_key_is_one_paragraph_and_exit_code_2(tmp_path: Path, command: Command) -> None:  # noqa: F811
    path = own_file(tmp_path, lambda data: data["stacks"][1].update(headz=4))
    for arguments in (("doctor", "shapes-llava"), ("graph", "palit2023"), ("plan", "palit2023"), ("run", "palit2023")):
        said = command(*arguments, "--family", path)
        assert said.code == 2 and is_one_paragraph(said.err), said
        assert str(path) in said.err and "stacks[1].headz" in said.err and "'heads'" in said.err


def test_family_is_the_same_as_set(tmp_path: Path, command: Command) -> None:  # noqa: F811 - the fixture
    path = own_file(tmp_path)
    for name in ("graph", "plan"):
        one = command(name, "notice2024_llava_heads", "--family", path, "--set", "pairs.n=1", "--json")
        other = command(name, "notice2024_llava_heads", "--set", f"model.family={path}", "--set", "pairs.n=1", "--json")
        assert one.code == 0 and one == other


def test_an_unknown_family_is_proposed_for_by_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,  # noqa: F811 - the fixture
) -> None:
    monkeypatch.setattr(families, "families", dict)
    monkeypatch.chdir(tmp_path)
    said = command("doctor", "shapes-llava")
    assert said.code == 0, said.err
    assert "with --family llava.yaml" in said.out and "note: uncertain is layout" in said.out
    assert command("doctor", "shapes-llava").code == 2  # the file is there
    assert command("doctor", "shapes-llava", "--family", "llava.yaml", "--weights", "none").code == 0


def test_what_attention_without_masks_switches_off() -> None:
    description = describe_model("shapes-llava", attn_implementation="flex_attention")
    rows = {row["reuse"]: row for row in engine.engine_rows(description.architecture, "flex_attention")}
    assert rows["cells packed over a prefix"]["here"] == "off"
    assert "flex_attention" in rows["cells packed over a prefix"]["why"]


def test_models_lists_families(command: Command) -> None:  # noqa: F811 - the fixture
    found = json.loads(command("models", "--json").out)
    assert [row["family"] for row in found["families"]] == list(families.families())
    assert {"class", "stacks", "image", "matches"} <= set(found["families"][0])
    assert "LlavaForConditionalGeneration" in command("models").out


def test_every_key_is_documented_and_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")
    assert keys.filled(page) == page, (
        "make it anew: python -m vlm_patching.models.families.keys docs/adding-a-family.md"
    )
    assert "\n| `folds` |" in page and "| `anyres` |" in page
