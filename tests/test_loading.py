"""How a model is loaded: by a family's file of one's own, in a dtype, an attention, a quantization; and what a result
says of it."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vlm_patching as vp
from tests.refusals import BLIP, LLAVA, MISSING, changed, refusal, refused, says
from tests.test_bundle_safety import remade
from vlm_patching.bundle.contents import opened
from vlm_patching.models import load
from vlm_patching.models.families import families, parse_family, read_family
from vlm_patching.models.load import describe_source, weights_digest
from vlm_patching.models.sources import read_source
from vlm_patching.results.checks import precision

TINY = {"pairs.n": 1, "patch.layers": [0]}


def own_file(folder: Path, change: Callable[[dict[str, Any]], object] = lambda data: None, name: str = "mine") -> Path:
    """The shipped LLaVA file, changed, as one's own."""
    data = yaml.safe_load(families()["llava"].text)
    change(data)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def with_family(path: Path, **more: Any) -> dict[str, Any]:
    return changed(LLAVA, {**TINY, "model.family": str(path), **more})


# a family's file of one's own


def test_a_file_of_ones_own_gives_the_same_numbers_and_is_in_the_attributes(tmp_path: Path) -> None:
    path = own_file(tmp_path)
    mine = vp.run(vp.Experiment.from_dict(with_family(path)), progress=False)
    shipped = vp.run(vp.Experiment.from_dict(changed(LLAVA, TINY)), progress=False)
    assert (mine["probability"] == shipped["probability"]).all()
    assert (mine.attrs["family"], mine.attrs["family_file"]) == ("mine", path.read_text())
    assert mine.attrs["family_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (shipped.attrs["family"], shipped.attrs["family_file"]) == ("llava", families()["llava"].text)


def test_a_graph_is_that_of_the_file(tmp_path: Path) -> None:
    path = own_file(tmp_path, lambda data: data["stacks"][1].update(mlp="mlp", neurons=False))
    spec = with_family(path, **{"patch.sites": ["language.mlp_neuron"]})
    says(refusal(vp.Experiment.from_dict(spec).graph), "mlp_neuron", "mine")


BAD: list[tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = [
    (lambda data: data["stacks"][1].update(headz=4), ("stacks[1].headz", "Did you mean 'heads'", "Known here")),
    (lambda data: data["image"].update(place="inside"), ("image.place", "'inside'", "'marks'", "'apart'")),
    (lambda data: data.pop("tokens"), ("tokens is missing",)),
    (lambda data: data["stacks"][1].update(layers="text_config.depth"), ("stacks[1] (language)", "text_config.depth")),
    (lambda data: data["stacks"][1].update(layers="_name"), ("stacks[1] (language)", "_name")),
    (lambda data: data["stacks"][1].update(layers="text_config._x"), ("stacks[1] (language)", "text_config._x")),
    (lambda data: data["stacks"][1].update(heads=0), ("stacks[1] (language)", "0 heads")),
    (lambda data: data["stacks"][1].update(layers=10**9), ("stacks[1] (language)", "1000000000 layers")),
    (lambda data: data.update(text="vision"), ("text", "'vision'", "language")),
    (lambda data: data["stacks"].append(copy.deepcopy(data["stacks"][1])), ("stacks", "each once")),
    (lambda data: data["matches"].update(model_type="llama"), ("model_type is 'llava', not 'llama'",)),
    (lambda data: data["image"]["layout"].update(rule="sqare"), ("layout rule 'sqare'", "Did you mean 'square'")),
    (lambda data: data["image"]["layout"].update(side=3), ("layout rule 'square'", "side")),
    (lambda data: data["image"]["layout"].update(image_size=10**9), ("image.layout.image_size", "too large")),
    (lambda data: data["stacks"][1]["attention"].update(every=0), ("mine.yaml", "zero")),
    (lambda data: data["prompt"].update(classes="model_type"), ("mine.yaml", "items")),
]


@pytest.mark.parametrize(("change", "parts"), BAD, ids=[str(parts[0]) for _, parts in BAD])
def test_a_bad_file_is_refused_before_any_weights_are_loaded(
    tmp_path: Path,
    weights_stay_where_they_are: None,
    change: Callable[[dict[str, Any]], object],
    parts: tuple[str, ...],
) -> None:
    path = own_file(tmp_path, change)
    says(refused(with_family(path)), str(path), *parts)


def test_a_layout_of_more_patches_than_fit_anywhere_is_refused(tmp_path: Path) -> None:
    path = own_file(tmp_path, lambda data: data["image"]["layout"].update(image_size=10**6, patch_size=1))
    says(refused(with_family(path)), "shapes-0-0", "1000000 × 1000000 patches")


@pytest.mark.parametrize("name", ["nowhere.yaml", "a\0b", "x" * 5000])
def test_a_file_that_is_not_there_is_refused(
    tmp_path: Path, weights_stay_where_they_are: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    says(refusal(lambda: vp.describe_model("shapes-llava", family=name)), "model.family", "does not exist")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b"a: &x 1\nb: *x", "anchors"),
        (b"- 1", "must be a mapping"),
        (b"a: [", "not YAML"),
        (b"#" * 500_000, "500000 bytes"),
    ],
)
def test_what_is_no_familys_file_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    says(refusal(lambda: read_family(path)), str(path), part)


@pytest.mark.parametrize("name", ["pipeline", "AutoModel", "LlamaTokenizer", "Nothing", "utils"])
def test_only_a_model_class_can_be_named(name: str) -> None:
    source = read_source("shapes-llava")
    source.config.architectures = None
    data = yaml.safe_load(families()["llava"].text) | {"model_class": name}
    family = parse_family("mine", yaml.safe_dump(data))
    says(refusal(lambda: describe_source(source, family)), "model_class", name)


def test_modules_that_are_not_there_are_refused_with_what_is(tmp_path: Path) -> None:
    path = own_file(tmp_path, lambda data: data["stacks"][1].update(mlp="mlp.fc2"))
    says(refused(with_family(path)), "language.mlp_neuron", "no 'fc2'", "down_proj")
    path = own_file(tmp_path, lambda data: data["stacks"][1].update(layers=5))
    says(refused(with_family(path)), "language has 5 layers", "one more")


def test_a_store_is_not_gone_on_with_by_another_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_file(tmp_path)
    experiment, store = vp.Experiment.from_dict(with_family(path)), tmp_path / "a.zarr"
    vp.run(experiment, store=store, progress=False)
    path.write_text(path.read_text() + "# changed\n")
    says(refusal(lambda: vp.run(experiment, store=store, progress=False)), "another map", "mine")


# bundles


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of results that a file of one's own was used for; the file is gone."""
    folder = tmp_path_factory.mktemp("shared")
    path = own_file(folder)
    experiment = vp.Experiment.from_dict(with_family(path))
    bundle = vp.bundle.save(experiment, vp.run(experiment, progress=False), folder / "a.vlmp.zip", figures={})
    path.unlink()
    return bundle


def test_a_bundle_carries_the_file_and_replay_uses_it(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    describe = load.describe_model
    monkeypatch.setattr(
        vp.models,
        "describe_model",
        lambda name, **options: asked.append(options["family"]) or describe(name, **options),
        raising=False,
    )
    assert vp.bundle.replay(shared, progress=False).ok
    assert asked[0].name == "mine" and asked[0].file == families()["llava"].file
    assert vp.bundle.verify(shared).agrees
    says(vp.bundle.show(shared), "family   mine, a file of its own")


def test_a_bundle_of_a_shipped_family_carries_none(tmp_path: Path) -> None:
    experiment = vp.Experiment.from_dict(changed(LLAVA, TINY))
    ds = vp.run(experiment, progress=False)
    with opened(vp.bundle.save(experiment, ds, tmp_path / "a.zip", figures={})) as contents:
        assert contents.family is None
    ds.attrs["family_file"] += "# as it once was\n"
    ds.attrs["family_sha256"] = hashlib.sha256(ds.attrs["family_file"].encode()).hexdigest()
    with opened(vp.bundle.save(experiment, ds, tmp_path / "b.zip", figures={})) as contents:
        assert contents.family is not None and contents.family.text == ds.attrs["family_file"]


def test_a_bundles_file_is_checked(shared: Path, tmp_path: Path) -> None:
    def other(files: dict[str, bytes]) -> None:
        files["family.yaml"] += b"# more\n"

    def bad(files: dict[str, bytes]) -> None:
        files["family.yaml"] = b"stacks: 3"

    def none(files: dict[str, bytes]) -> None:
        del files["family.yaml"]

    def huge(files: dict[str, bytes]) -> None:
        files["family.yaml"] += b"#" * 2**18

    parts = {other: "family_", bad: "mine.yaml", none: "lacks family.yaml", huge: "family.yaml"}
    for change, part in parts.items():
        says(refusal(lambda change=change: vp.bundle.verify(remade(shared, tmp_path / "b.zip", change))), part)


def test_a_bundle_from_before_family_files_still_opens(tmp_path: Path) -> None:
    experiment = vp.Experiment.from_dict(changed(LLAVA, TINY))
    ds = vp.run(experiment, progress=False)
    for name in ("family", "family_file", "family_sha256", "image_backend", "attn_implementation", "quantization"):
        del ds.attrs[name]
    bundle = vp.bundle.save(experiment, ds, tmp_path / "a.zip", figures={})
    assert vp.bundle.replay(bundle, progress=False).ok


# loading options


def test_the_attributes_say_how_the_model_was_loaded() -> None:
    spec = changed(BLIP, {**TINY, "model.attn_implementation": "eager"})
    found = vp.run(vp.Experiment.from_dict(spec), progress=False).attrs
    assert (found["dtype"], found["attn_implementation"], found["quantization"]) == ("float32", "eager", "")
    made = read_source("shapes-blip").processor.image_processor
    assert found["image_processor"] == type(made).__name__
    assert found["image_backend"] == ("Pillow" if made.backend == "pil" else made.backend)


def test_attention_by_eager_gives_what_sdpa_gives() -> None:
    eager = vp.load_model("shapes-llava", attn_implementation="eager")
    sdpa = vp.load_model("shapes-llava", attn_implementation="sdpa")
    assert (eager.attn_implementation, sdpa.attn_implementation) == ("eager", "sdpa")
    spec = vp.Experiment.from_dict(changed(LLAVA, TINY))
    results = [vp.run(spec, model=model, progress=False)["logit_difference"] for model in (eager, sdpa)]
    assert float(abs(results[0] - results[1]).max()) < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_is_checked_as_finely_as_its_dtype_allows(dtype: str) -> None:
    spec = changed(LLAVA, {"model.dtype": dtype, "patch": MISSING, "corruption": MISSING})
    attention = {"attention": {"sites": ["language.attn_pattern"], "positions": ["last"], "keys": "all"}}
    found = vp.run(vp.Experiment.from_dict({**spec, **attention}), progress=False)
    assert json.loads(found.attrs["checks"])["passed"]


def test_attention_without_masks_blocks_nothing_and_packs_nothing() -> None:
    description = vp.describe_model("shapes-llava", attn_implementation="flex_attention")
    assert description.architecture.packs == ""
    spec = changed(LLAVA, {"model.attn_implementation": "flex_attention", "patch": MISSING, "corruption": MISSING})
    knockout = {"knockout": {"edges": ["image -> last"], "sites": ["language.attn_pattern"]}}
    says(refusal(vp.Experiment.from_dict({**spec, **knockout}).graph), "cannot be blocked")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"attn_implementation": "flash_attention_2"}, ("flash_attention_2", "float16")),
        ({"attn_implementation": "kernels-community/x"}, ("attn_implementation", "kernels-community/x", "eager")),
        ({"quantization": "3bit"}, ("quantization", "3bit", "4bit")),
        ({"dtype": "float8"}, ("dtype", "float8")),
    ],
)
def test_options_that_there_are_not_are_refused(options: dict[str, str], parts: tuple[str, ...]) -> None:
    says(refusal(lambda: vp.load_model("shapes-llava", **options)), *parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["attn_implementation", "quantization"])
def test_a_spec_names_no_other_code(key: str) -> None:
    says(refusal(lambda: vp.Experiment.from_dict(changed(LLAVA, {f"model.{key}": "a/b"}))), f"model.{key}", "a/b")


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_attention_that_transformers_refuses_is_refused_in_its_words() -> None:
    says(
        refusal(lambda: vp.load_model("shapes-llava", dtype="float16", attn_implementation="flash_attention_2")),
        "attn_implementation flash_attention_2",
        "shapes-llava",
    )


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantization_without_bitsandbytes_says_what_to_install() -> None:
    says(refused(changed(LLAVA, {"model.quantization": "4bit"})), "pip install", "bitsandbytes")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize(("kind", "dtype"), [("4bit", "float32"), ("8bit", "float16")])
def test_a_quantized_model_has_a_digest_of_its_own_and_holds_every_check(kind: str, dtype: str) -> None:
    options = {"model.quantization": kind, "model.dtype": dtype}
    found = vp.run(vp.Experiment.from_dict(changed(LLAVA, {**TINY, **options})), progress=False).attrs
    assert (found["quantization"], found["dtype"]) == (kind, dtype)
    assert found["weights_sha256"] != vp.load_model("shapes-llava", dtype=dtype).digest
    checks = json.loads(found["checks"])
    assert checks["passed"] and checks["tolerance"]["probability"] == 1e-2


def test_tolerances_of_quantized_weights_are_those_of_float16() -> None:
    assert precision("float32", "") == precision("float32", None) == "float32"
    assert precision("float32", "4bit") == "float16" and precision("bfloat16", "4bit") == "bfloat16"


def test_quantization_in_eight_bits_is_of_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    says(refusal(lambda: vp.load_model("shapes-llava", quantization="8bit")), "float16")


def test_a_digest_is_of_everything_that_a_quantized_layer_keeps() -> None:
    module = torch.nn.Linear(2, 2)
    module.register_buffer("scale", torch.tensor(1.0))
    before = weights_digest(module)
    module.get_buffer("scale").fill_(2.0)
    assert weights_digest(module) != before
    module.weight = torch.nn.Parameter(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)
    assert weights_digest(module) != before


def test_numbers_are_in_what_floats_are_in() -> None:
    model = vp.load_model("shapes-llava", dtype="bfloat16")
    first = next(iter(model.envoy._module.parameters()))
    first.data = first.data.to(torch.uint8)
    assert model.dtype == "bfloat16"


@pytest.mark.parametrize("key", ["attn_implementation", "quantization"])
def test_a_server_is_not_told_how_to_load(key: str) -> None:
    value = {"attn_implementation": "eager", "quantization": "4bit"}[key]
    spec = changed(LLAVA, {**TINY, f"model.{key}": value})
    says(refused(spec, backend="ndif", host="http://localhost:1"), f"model.{key}", "NDIF")


def test_a_bundle_brings_no_attention_that_is_somebodys_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = changed(LLAVA, TINY)
    experiment = vp.Experiment.from_dict(spec)
    bundle = vp.bundle.save(experiment, vp.run(experiment, progress=False), tmp_path / "a.zip", figures={})
    given: list[Any] = []
    with opened(bundle) as contents:
        flash = experiment.model.model_copy(update={"attn_implementation": "flash_attention_2"})
        other = replace(contents, experiment=experiment.model_copy(update={"model": flash}))
        given.append(vp.bundle._spec(other, "shapes-llava", None))
    assert given[0].attn_implementation is None


def test_a_hub_model_that_is_not_here_is_one_sentence_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    if not load.not_cached("someone/no-such-model", None, "config.json"):
        pytest.skip("online")
    said = refusal(lambda: vp.describe_model("someone/no-such-model"))
    says(said, "someone/no-such-model", "cache", "HF_HUB_OFFLINE")


def test_the_file_of_a_bundle_is_data_of_its_zip(shared: Path) -> None:
    with zipfile.ZipFile(shared) as bundle:
        assert yaml.safe_load(bundle.read("family.yaml"))["model_class"] == "LlavaForConditionalGeneration"
