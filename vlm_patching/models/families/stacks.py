"""What a family's file says of a stack, and the taps that it gives of one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedConfig

from vlm_patching.errors import SpecError
from vlm_patching.models.architecture import IMAGE_STACKS, Attention, Stack, Tap
from vlm_patching.models.families.values import resolved, value_at, whole_number

if TYPE_CHECKING:
    from vlm_patching.models.families.schema import AttentionFile, StackFile

MAX_LAYERS, MAX_HEADS = 10_000, 10_000


def checked_stack(number: int, file: StackFile, config: PreTrainedConfig) -> Stack:
    """A stack; `SpecError` names its section."""
    try:
        layers, heads = whole_number(config, file.layers), whole_number(config, file.heads)
        if not (1 <= layers <= MAX_LAYERS and 1 <= heads <= MAX_HEADS):
            raise SpecError(f"{layers} layers of {heads} heads cannot be")
        return _stack(file, config)
    except SpecError as error:
        raise SpecError(f"stacks[{number}] ({file.name}): {error}") from error


def _stack(file: StackFile, config: PreTrainedConfig) -> Stack:
    """A stack's taps in the order in which a layer computes them."""
    layer, count = file.layer, whole_number(config, file.layers)
    taps = {"resid_pre": Tap(layer, "input")}
    attentions: dict[str, Attention] = {}
    only: dict[str, tuple[int, ...]] = {}
    for prefix, block in (("attn", file.attention), ("cross_attn", file.cross_attention)):
        if block is None:
            continue
        made = {
            f"{prefix}_context": Tap(f"{layer}.{block.out}", "input"),
            f"{prefix}_out": Tap(f"{layer}.{block.out}", "output"),
        }
        if block.block:
            made[f"{prefix}_block_out"] = Tap(f"{layer}.{block.block}", "output")
        taps |= made
        if block.pattern:
            attentions[f"{prefix}_pattern"] = Attention(
                f"{layer}.{block.module}",
                block.mask,
                block.keys or file.name,
                block.causal,
                block.eager,
                block.source,
                block.folds,
                block.part,
            )
        there = _layers_with(block, config, count)
        if len(there) < count:
            only |= dict.fromkeys([*made, f"{prefix}_pattern"], there)
    if file.cross_attention and file.cross_attention.layers and file.attention and not file.attention.layers:
        crossed = only["cross_attn_out"]  # a layer cross-attends in the place of attending to itself
        apart = tuple(number for number in range(count) if number not in crossed)
        only |= {name: apart for name in ("attn_context", "attn_out", "attn_block_out", "attn_pattern")}
    mlp = Tap(file.mlp, "output") if isinstance(file.mlp, str) else file.mlp.tap()
    if file.neurons:
        taps["mlp_neuron"] = Tap(f"{layer}.{mlp.path}", "input")
    taps["mlp_out"] = Tap(f"{layer}.{mlp.path}", mlp.end, mlp.part)
    if file.mlp_block:
        taps["mlp_block_out"] = Tap(f"{layer}.{file.mlp_block}", "output")
    taps["resid_post"] = Tap(layer, "output")
    complete = file.complete and (file.hidden_state is None or len(_states(file, config, count)) == 1)
    return Stack(
        name=file.name,
        layers=count,
        heads=whole_number(config, file.heads),
        taps=taps,
        last_layer=_last_read(file, config, count),
        attentions=attentions,
        unembed=file.unembed,
        whole=file.whole.tap() if file.whole else None,
        image_keys=tuple(f"{layer}.{name}" for name in (file.cross_attention.made if file.cross_attention else ())),
        skips=file.skips and (complete or file.name not in IMAGE_STACKS),
        entry=Tap(f"{layer}.{file.entry}", "input") if file.entry else None,
        scale=float(resolved(config, file.scale)),
        softcap=float(resolved(config, file.softcap) or 0),
        complete=complete,
        only={name: layers for name, layers in only.items() if name in taps or name in attentions},
        imaged=tuple(int(number) % count for number in value_at(config, file.imaged)) if file.imaged else (),
    )


def _layers_with(block: AttentionFile, config: PreTrainedConfig, count: int) -> tuple[int, ...]:
    """The layers that have an attention block."""
    if block.layers is None:
        return tuple(range(0, count, whole_number(config, block.every)))
    listed = value_at(config, block.layers)
    if block.kind is not None:
        return tuple(number for number, kind in enumerate(listed) if kind == block.kind)
    return tuple(int(number) % count for number in listed)


def _last_read(file: StackFile, config: PreTrainedConfig, layers: int) -> int:
    """The highest layer whose output anything reads; hidden state 0 is what enters layer 0."""
    if file.hidden_state is None:
        return layers - 1
    return max(state % (layers + 1) - 1 for state in _states(file, config, layers))


def _states(file: StackFile, config: PreTrainedConfig, layers: int) -> list[int]:
    """The hidden states that are read, one or several."""
    given = resolved(config, file.hidden_state)
    states = given if isinstance(given, list | tuple) else [given]
    for state in states:
        if not isinstance(state, int) or not -layers <= state <= layers or state == 0:
            raise SpecError(f"{file.hidden_state} {state} is no output of this model's {layers} {file.name} layers.")
    return list(states)
