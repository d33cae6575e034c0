"""What a model's modules are, by their names and shapes: projections, norms, attention blocks, lists of layers."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vlm_patching.errors import SpecError

INPUTS = re.compile(r"(^|_)(q|k|v|qkv|query|key|value)(_|$)|c_attn|in_proj")
"""Names of projections that go into attention."""
KEYS_AND_VALUES = re.compile(r"(^|_)(k|v|key|value)(_|$)")
CROSS = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
_ATTENTION = re.compile(r"att", re.IGNORECASE)
_RECURRENT = re.compile(r"linear|mamba|conv", re.IGNORECASE)


@dataclass
class Tower:
    """A stack in the making.

    Attributes
    ----------
    path, layers
        Its list of layers.
    section
        Where the configuration describes it.
    number
        Its own, in order of execution.
    says
        What a family's file says of it.
    causal, crosses
        Whether no position sees later ones, and whether it cross-attends.
    """

    name: str
    path: str
    layers: nn.ModuleList
    section: str
    number: int = 0
    says: dict[str, Any] = field(default_factory=dict)
    causal: bool = False
    crosses: bool = False

    def __post_init__(self) -> None:
        every = [attentions(layer) for layer in self.layers]
        names = dict.fromkeys(name for found in every for name in found)
        self.blocks = {name: [i for i, found in enumerate(every) if name in found] for name in names}
        self.typical = next(iter(self.blocks.values()))[0]

    @property
    def layer(self) -> nn.Module:
        """The first that has attention."""
        return self.layers[self.typical]

    @property
    def mixed(self) -> bool:
        """Whether there are layers without attention to their own stack."""
        return not any(len(there) == len(self.layers) for name, there in self.blocks.items() if not CROSS.search(name))


def sizes(part: Any) -> tuple[int, int]:
    """Into and out of a projection; zeros of any other module."""
    if hasattr(part, "in_features") and hasattr(part, "out_features"):
        return int(part.in_features), int(part.out_features)
    return (int(part.nx), int(part.nf)) if type(part).__name__ == "Conv1D" else (0, 0)


def is_norm(part: nn.Module) -> bool:
    """Whether a module normalises, by its class's name."""
    return "norm" in type(part).__name__.lower()


def layer_lists(module: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The outermost lists whose members have attention blocks."""
    found: list[str] = []
    for path, part in module.named_modules():
        inside = any(path.startswith(f"{other}.") for other in found)
        if isinstance(part, nn.ModuleList) and not inside and any(attentions(layer) for layer in part):
            found.append(path)
            yield path, part


def attentions(layer: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules of a layer that are attention by their names, and have several projections."""
    found: dict[str, nn.Module] = {}
    for name, part in layer.named_modules():
        last = name.split(".")[-1]
        if any(name.startswith(f"{other}.") for other in found) or not _ATTENTION.search(last):
            continue
        if not _RECURRENT.search(last) and sum(sizes(inner) != (0, 0) for inner in part.modules()) > 1:
            found[name] = part
    return found


def width_of(layer: Any) -> int:
    """Of the residual stream: of most norms that are the layer's own, or of any in it."""
    for parts in (layer.children(), layer.modules()):
        widths = [part.weight.numel() for part in parts if is_norm(part) and getattr(part, "weight", None) is not None]
        if widths:
            return int(Counter(widths).most_common(1)[0][0])
    raise SpecError(f"{type(layer).__name__} has no norm that would say how wide its residual stream is.")


def projections(part: nn.Module, width: int) -> list[str]:
    """The projections of a module that come out so wide, in its order."""
    return [name.removesuffix(".linear") for name, inner in part.named_modules() if sizes(inner)[1] == width]


def out_of(attention: nn.Module, width: int) -> str:
    """The output projection: as wide as the residual stream, and neither query, key nor value."""
    outs = [name for name in projections(attention, width) if not INPUTS.search(name.split(".")[-1])]
    if not outs:
        raise SpecError(f"No output projection was found in {type(attention).__name__}.")
    return outs[-1]


def describe_attention(layer: nn.Module, name: str, width: int) -> dict[str, Any]:
    """What a family's file says of an attention block, as far as its modules and its code say it."""
    top, cross = layer.get_submodule(name), bool(CROSS.search(name))
    out = joined(name, out_of(top, width))
    paths = [joined(name, path) for path, part in top.named_modules() if sizes(part)[0]]
    inputs = [path for path in paths if INPUTS.search(path.split(".")[-1])]
    module = inputs[0].rpartition(".")[0] if inputs else name
    says: dict[str, Any] = {"module": module, "out": out}
    if post_norm(layer, out):
        says["block"] = post_norm(layer, out)
    forward = type(layer.get_submodule(module)).forward
    source, takes = inspect.getsource(forward), list(inspect.signature(forward).parameters)
    masks = [key for key in takes if "mask" in key and key != "head_mask"]
    mask = "encoder_attention_mask" if cross and "encoder_attention_mask" in masks else next(iter(masks), None)
    says |= {} if mask == "attention_mask" else {"mask": mask}
    says |= {} if re.search(r"return \(?[^\n]+,", source) else {"pattern": False}
    says |= {} if "ALL_ATTENTION_FUNCTIONS" in source else {"eager": False}
    if cross:
        states = [key for key in takes if re.search(r"(encoder|cross|key_value|attention).*states", key)]
        says |= {"source": states[0]} if states else {}
        says["made"] = [path for path in inputs if KEYS_AND_VALUES.search(path.split(".")[-1])]
    return says


def post_norm(layer: nn.Module, path: str) -> str:
    """The module around a projection that adds and normalises, as BERT's `output` does; "" where none does."""
    around = path.rpartition(".")[0]
    ends = around.split(".")[-1].startswith("output")
    return around if ends and any(is_norm(part) for part in layer.get_submodule(around).children()) else ""


def root_of(path: str, other: str) -> str:
    """The outermost module around a path that is not around another."""
    parts = path.split(".")
    roots = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return next((root for root in roots if not f"{other}.".startswith(f"{root}.")), path)


def joined(*parts: str) -> str:
    """A path out of parts, those that are empty left out."""
    return ".".join(filter(None, parts))
