"""A family's file for a model that nobody has described yet, guessed from its modules' names and shapes.

What is guessed from little is called uncertain in the file; `vlm-patching doctor` then tries all of it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from vlm_patching.errors import SpecError
from vlm_patching.models.architecture import IMAGE_STACKS
from vlm_patching.models.blank import class_name, class_of, meta_module
from vlm_patching.models.families.values import value_at
from vlm_patching.models.families.writing import written
from vlm_patching.models.layouts import rules
from vlm_patching.models.pictures import layout_of, template_of
from vlm_patching.models.tree import (
    CROSS,
    Tower,
    describe_attention,
    is_norm,
    joined,
    layer_lists,
    out_of,
    post_norm,
    projections,
    root_of,
    sizes,
    width_of,
)

ORDER = ("vision", "qformer", "question_encoder", "answer_decoder", "language")
SECTIONS = {"vision": ("vision_config",), "qformer": ("qformer_config",)}
"""Image stack → where in the configuration it is described; all others are of the text."""
TEXT_SECTIONS = ("text_config", "language_config", "llm_config", "")
LAYERS = ("num_hidden_layers", "depth", "num_layers", "encoder_layers", "decoder_layers")
HEADS = ("num_attention_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
IMAGE_IDS = ("image_token_id", "image_token_index", "media_token_id")
FACTORS = {"logit_scale": "scale", "logits_scaling": "scale", "final_logit_softcapping": "softcap"}
TYPES = {"token_type_ids": "last", "mm_token_type_ids": 0}
"""Inputs that are as long as the prompt → what they are at an answer's tokens."""
_BETWEEN = re.compile(r"projector|connector|merger|aligner|adapter|resampler|abstractor|perceiver|_projection$")
_IMAGE = re.compile(r"vision|visual|image|vit(?![a-z])")
_QFORMER = re.compile(r"q_?former")
_OTHER = re.compile(rf"{_BETWEEN.pattern}|audio|speech|video")


class Proposal:
    """A file in the making: `says` is what it holds, `doubts` (path of keys → why) its comments."""

    def __init__(self, config: PreTrainedConfig, processor: Any) -> None:
        self.config, self.processor = config, processor
        self.model_class = class_name(config)
        self.module = meta_module(self.model_class, config)
        forward = class_of(self.model_class).forward
        self.takes, self.source = inspect.signature(forward).parameters, inspect.getsource(forward)
        self.doubts: dict[tuple[Any, ...], str] = {}
        self.towers = self._towers()
        text = [tower for tower in self.towers if tower.name not in SECTIONS]
        if not text:
            raise SpecError(f"No stack of text layers with attention was found in {self.model_class}.")
        self.text, self.last = text[0], text[-1]
        self.vision = next((tower for tower in self.towers if tower.name == "vision"), None)
        self.mark = next((name for name in IMAGE_IDS if self._value(name) is not None), None)
        self.both_ways = self.vision is not None and "token_type_ids" in self.takes
        for tower in self.towers:
            self._describe(tower)
        readout = self._readout()
        self.says: dict[str, Any] = {
            "matches": self._matches(),
            "model_class": self.model_class,
            "stacks": [tower.says for tower in self.towers],
            "text": self.text.name,
            "tokens": self._path_of(self.module.get_input_embeddings()),
            **readout,
            **({"answer": "decoder"} if self.last.name == "answer_decoder" else {}),
            **(self._image(self.vision) if self.vision else {}),
            "prompt": self._prompt(),
        }
        self._pack()

    def _path_of(self, wanted: nn.Module | None) -> str:
        return next((name for name, part in self.module.named_modules() if part is wanted), "")

    def _value(self, path: str) -> Any:
        return value_at(self.config, path, None)

    def _matches(self) -> dict[str, Any]:
        known = [f"{name}.model_type" for name in (*SECTIONS["vision"], *SECTIONS["qformer"], *TEXT_SECTIONS) if name]
        kinds = {path: self._value(path) for path in known if self._value(path)}
        return {"model_type": self.config.model_type, **kinds}

    def _towers(self) -> list[Tower]:
        """The longest list of layers of each kind."""
        lists = {path: layers for path, layers in layer_lists(self.module) if not _OTHER.search(path)}
        text = [path for path in lists if not _IMAGE.search(path) and not _QFORMER.search(path)]
        halves = any("decoder" in path for path in text) and any("decoder" not in path for path in text)
        found: dict[str, Tower] = {}
        for path, layers in lists.items():
            name = "qformer" if _QFORMER.search(path) else "vision" if path not in text else "language"
            if name == "language" and halves:
                name = "answer_decoder" if "decoder" in path else "question_encoder"
            if name not in found or len(layers) > len(found[name].layers):
                known = SECTIONS.get(name, TEXT_SECTIONS)
                section = next((part for part in known if part and self._value(part) is not None), "")
                found[name] = Tower(name, path, layers, section)
        towers = sorted(found.values(), key=lambda tower: ORDER.index(tower.name))
        for number, tower in enumerate(towers):
            tower.number = number
        return towers

    def _setting(self, tower: Tower, names: tuple[str, ...], fits: Callable[[int], bool]) -> str | None:
        """The path of the first of some settings whose value is a number that fits."""
        for path in (joined(tower.section, name) for name in names):
            value = self._value(path)
            if isinstance(value, int) and not isinstance(value, bool) and fits(value):
                return path
        return None

    def _describe(self, tower: Tower) -> None:
        """All that a layer's modules say of their stack."""
        says, where, layer = tower.says, ("stacks", tower.number), tower.layer
        count = self._setting(tower, LAYERS, lambda value: value == len(tower.layers))
        says |= {"name": tower.name, "layer": f"{tower.path}.{{layer}}", "layers": count or len(tower.layers)}
        width, block = width_of(layer), next(iter(tower.blocks))
        context = sizes(layer.get_submodule(f"{block}.{out_of(layer.get_submodule(block), width)}"))[0]
        heads = self._setting(tower, HEADS, lambda value: context % value == 0)
        says["heads"] = heads or 1
        for key, found in (("layers", count), ("heads", heads)):
            if found is None:
                self.doubts[*where, key] = "the configuration does not seem to say it"
        if tower.name == "vision" and hasattr(self.config, "vision_feature_layer"):
            says["hidden_state"] = "vision_feature_layer"
        if tower.name in IMAGE_STACKS:
            says["skips"] = False  # what else reads its layers, their modules do not say
        tower.causal = tower.name in ("language", "answer_decoder") and not self.both_ways
        for key, crosses in (("attention", False), ("cross_attention", True)):
            name = next((name for name in tower.blocks if bool(CROSS.search(name)) == crosses), None)
            if name is not None:
                tower.crosses |= crosses
                says[key] = self._attention(tower, name, width, (*where, key))
        if self.both_ways and tower is self.text:
            self.doubts[*where, "attention"] = (
                "the class takes token_type_ids, so positions may see later ones; where none does, `causal: true` and "
                "`pack: {}` (with `text_only: true` where images do) make sweeps faster"
            )
        says |= self._mlp(tower, width)
        norms = [name for name, part in layer.named_children() if is_norm(part)]
        if tower.causal and norms:
            says["entry"] = norms[0]
        if len({type(other) for other in tower.layers}) > 1:
            self.doubts[*where, "layer"] = f"its layers are of several classes; layer {tower.typical} was looked at"

    def _attention(self, tower: Tower, name: str, width: int, where: tuple[Any, ...]) -> dict[str, Any]:
        there = tower.blocks[name]
        layer = tower.layers[there[0]]
        says = describe_attention(layer, name, width) | self._layers(tower, there, where)
        if "pattern" in says:
            self.doubts[where] = "its attention probabilities do not seem to come out"
        if "made" in says:
            return says | {"keys": self.text.name if tower.name == "answer_decoder" else "vision"}
        causal = tower.causal and getattr(layer.get_submodule(says["module"]), "is_causal", True)
        return says | ({"causal": True} if causal else {})

    def _layers(self, tower: Tower, there: list[int], where: tuple[Any, ...]) -> dict[str, Any]:
        """Which layers have a block, where not all do."""
        count = len(tower.layers)
        if len(there) == count:
            return {}
        for path in (joined(tower.section, name) for name in ("layer_types", "cross_attention_layers")):
            listed = self._value(path) or []
            if listed == there:
                return {"layers": path}
            if len(listed) == count and [i for i, kind in enumerate(listed) if kind == listed[there[0]]] == there:
                return {"layers": path, "kind": listed[there[0]]}
        self.doubts[where] = f"only layers {there} have it"
        every = there[1] - there[0] if len(there) > 1 else count
        return {"every": every} if list(range(0, count, every)) == there else {}

    def _mlp(self, tower: Tower, width: int) -> dict[str, Any]:
        every = [
            name for layer in tower.layers for name, _ in layer.named_modules() if name.split(".")[-1] == "experts"
        ]
        if every:
            self.doubts["stacks", tower.number, "mlp"] = "all of it: its hidden activations are of each expert"
            return {"mlp": every[0].rpartition(".")[0] or every[0], "neurons": False}
        lasts = [
            name
            for name in projections(tower.layer, width)
            if not any(name.startswith(f"{block}.") for block in tower.blocks)
        ]
        if not lasts:
            raise SpecError(f"No projection of an MLP was found in {tower.path} of {self.model_class}.")
        block = post_norm(tower.layer, lasts[-1])
        return {"mlp": lasts[-1], **({"mlp_block": block} if block else {})}

    def _readout(self) -> dict[str, Any]:
        """The unembedding goes to the last stack; where it is inside of a submodel, so are the logits."""
        tower, head = self.last, self._path_of(self.module.get_output_embeddings())
        rows = getattr(self.module.get_input_embeddings(), "num_embeddings", 0)
        head = head or next(reversed(projections(self.module, rows)), "")
        if not head:
            self.doubts["text",] = "no unembedding was found; `unembed` of the last stack says where it is"
            return {}
        while head.rpartition(".")[0] and not tower.path.startswith(f"{head.rpartition('.')[0]}."):
            head = head.rpartition(".")[0]
        around = tower.path.rpartition(".")[0]
        beside = self.module.get_submodule(around).named_children()
        norms = [joined(around, name) for name, part in beside if is_norm(part) and "embed" not in name]
        tower.says["unembed"] = [*([] if "mlp_block" in tower.says else norms[-1:]), head]
        for name, key in FACTORS.items():
            path = joined(tower.section, name)
            if name in self.source and self._value(path) is not None:
                tower.says[key] = path
                self.doubts["stacks", tower.number, key] = "what is made of the logits"
        inner = head.rpartition(".")[0]
        return {"readout": {"path": inner, "part": "logits"}} if inner else {}

    def _image(self, vision: Tower) -> dict[str, Any]:
        roots = [root_of(tower.path, self.text.path) for tower in self.towers if tower.name in SECTIONS]
        between = [name for name, _ in self.module.named_modules() if _BETWEEN.search(name.split(".")[-1])]
        outside = [name for name in between if not any(f"{name}.".startswith(f"{root}.") for root in roots)]
        says: dict[str, Any]
        if outside:
            shallow = min(name.count(".") for name in outside)
            says = {"embeds": {"path": [name for name in outside if name.count(".") == shallow][-1]}, "bypass": roots}
        else:
            says = {"embeds": {"path": roots[0], "part": "pooler_output" if between else "last_hidden_state"}}
        self.doubts["image", "embeds"] = "what the image side hands to the text side"
        apart, mark = self.text.crosses, self.mark
        says |= {"place": "apart"} if apart else {"place": "marks", "marks": [mark]} if mark else {"place": "before"}
        self.doubts["image", "layout"] = f"which position shows which patch, of the rules {', '.join(rules())}"
        made, tower = getattr(self.processor, "image_processor", None), self.module.get_submodule(roots[0])
        qformer = any(tower.name == "qformer" for tower in self.towers)
        return {"image": says | {"layout": layout_of(self.config, made, tower, vision.section, apart, qformer)}}

    def _prompt(self) -> dict[str, Any]:
        says: dict[str, Any] = {}
        tokenizer, section = getattr(self.processor, "tokenizer", self.processor), self.last.section
        inline = self.vision is not None and not self.text.crosses
        if inline and not getattr(self.processor, "chat_template", None):
            says["template"] = template_of(self.processor, self._value(self.mark) if self.mark else None)
            self.doubts["prompt", "template"] = "the processor has no chat template; this is how a prompt is put"
        if inline and set(TYPES) & set(self.takes):
            says["extends"] = {name: value for name, value in TYPES.items() if name in self.takes}
        begin = [path for name in ("decoder_start_token_id", "bos_token_id") for path in (joined(section, name), name)]
        known = [path for path in begin if self._value(path) is not None] or [tokenizer.pad_token_id]
        if self.last.name == "answer_decoder":
            says["start"] = known[0]
            self.doubts["prompt", "start"] = "the token that an answer begins with"
        elif self.text.crosses and tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
            says["begins"] = joined(section, "bos_token_id")
            self.doubts["prompt", "begins"] = "the token in the place of the tokenizer's own first"
        longest = self._setting(self.text, ("max_position_embeddings",), lambda value: value > 0)
        return says | ({"longest": longest} if longest else {})

    def _pack(self) -> None:
        """Only where a plain causal decoder has all of the prompt in one sequence."""
        tower = self.text
        rope = self._value(joined(tower.section, "rope_parameters")) or {}
        if not tower.causal or tower is not self.last or tower.crosses:
            return
        if tower.mixed or "mrope_section" in rope:
            self.doubts["prompt",] = "no `pack`: its positions (or its layers) are not a plain decoder's"
            return
        window = joined(tower.section, "sliding_window")
        self.says["pack"] = {"window": window} if self._value(window) else {}


def propose(config: PreTrainedConfig, processor: Any) -> str:
    """A family's file, as text, for the model that a configuration describes; `SpecError` where none can be made."""
    made = Proposal(config, processor)
    title = f"{made.model_class}: proposed by `vlm-patching doctor` from names and shapes."
    return written(title, made.says, made.doubts)
