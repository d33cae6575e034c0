"""The interpreter's other half: what one operation does at one place of a model, inside an nnsight trace.

Lean on purpose, as `vlm_patching.backends.kernels` is: torch only, plain functions, no classes, no decorators.
"""

import copy
from typing import Any

import torch


def apply(model: Any, operation: dict[str, Any], values: dict[str, Any], found: dict[str, Any]) -> None:
    """Keep, change or block the value at one place, or skip a module: it gives what it gave in an earlier run."""
    module, do = resolve(model, operation["path"]), operation["do"]
    if do == "skip":
        saved = values[operation["name"]]
        if operation["index"] is not None:
            part = taken(part_of(saved, operation["part"]), operation)
            saved = with_part(saved, operation["part"], part)
        module.skip(saved)
        return
    if do == "fold":
        arguments, named = module.inputs
        kept = {**named, operation["keys"]: named[operation["keys"]][: operation["groups"]]}
        module.inputs = ((arguments[0].reshape(operation["groups"], -1, arguments[0].shape[-1]), *arguments[1:]), kept)
        return
    if do == "block":
        arguments, named = module.inputs
        hidden = arguments[0] if arguments else named["hidden_states"]
        module.inputs = (
            arguments,
            {**named, operation["part"]: blocked(named.get(operation["part"]), hidden, operation)},
        )
        return
    whole = module.input if operation["end"] == "input" else module.output
    if do == "keep_whole":
        values[operation["name"]] = whole
        return
    value = part_of(whole, operation["part"])
    if do == "read":
        values[operation["name"]] = value.clone()  # some models go on to change it in place
        return
    if do == "pattern":
        found.setdefault("attention", []).append(attended(value, operation))
        return
    if do == "delta":
        values[operation["name"]] = torch.zeros_like(value, requires_grad=True)
    whole = with_part(whole, operation["part"], changed(value, operation, values))
    if operation["end"] == "input":
        module.input = whole
    else:
        module.output = whole


def taken(saved: torch.Tensor, operation: dict[str, Any]) -> torch.Tensor:
    """The listed rows of a kept value, and of them the listed positions (all where none are)."""
    index = operation["index"]
    rows = saved.expand(len(index), *saved.shape[1:]) if len(saved) == 1 else saved[index]
    return rows if operation.get("positions") is None else rows[:, operation["positions"]]


def changed(value: torch.Tensor, operation: dict[str, Any], values: dict[str, Any]) -> torch.Tensor:
    """What an operation makes of a value; the value itself is left as it was."""
    do = operation["do"]
    if do == "unfold":
        return value.reshape(operation["rows"], -1, value.shape[-1])
    if do == "perturb":
        return perturbed(value, operation)
    if do == "hold":
        return taken(values[operation["source"]], operation)
    if do == "delta":
        return value + values[operation["name"]]
    if do == "interpolate":
        return interpolated(value, operation, values)
    return edited(value, operation, values)


def edited(value: torch.Tensor, operation: dict[str, Any], values: dict[str, Any]) -> torch.Tensor:
    """A copy with the listed (row, position[, head]) entries replaced by, added to or multiplied."""
    value, do = value.clone(), operation["do"]
    split = (operation["heads"], -1)
    at: Any = (operation["at_rows"], operation["at_positions"])
    target = value
    if operation["at_heads"] is not None:
        at, target = (*at, operation["at_heads"]), value.unflatten(-1, split)
    factors = operation["factors"].to(value.device, value.dtype)[:, None]
    if do == "multiply":
        target[at] = target[at] * factors
        return value
    source = values[operation["source"]].to(value.device, value.dtype)
    from_where: Any = (operation["source_rows"], operation["source_positions"])
    if operation["at_heads"] is not None:
        from_where, source = (*from_where, operation["at_heads"]), source.unflatten(-1, split)
    target[at] = source[from_where] if do == "replace" else target[at] + factors * source[from_where]
    return value


def interpolated(value: torch.Tensor, operation: dict[str, Any], values: dict[str, Any]) -> torch.Tensor:
    """A copy whose listed rows are part of the way from the base run's value to the other run's."""
    value = value.clone()
    base, source = values[operation["base"]][operation["base_rows"]], values[operation["source"]]
    here = operation["at_positions"]
    parts = operation["parts"].to(value.device, value.dtype)[:, None, None]
    there = source[operation["source_rows"]][:, operation["source_positions"]]
    base[:, here] = base[:, here] + parts * (there - base[:, here])
    value[operation["at_rows"]] = base
    return value


def blocked(mask: Any, hidden: torch.Tensor, operation: dict[str, Any]) -> torch.Tensor:
    """An attention block's additive mask [row, head, query, key]: the listed edges are shut, and all that was before.

    The least finite number stands for -inf: the softmax gives exactly 0 for it as long as any key is left.
    """
    rows, length, least = hidden.shape[0], hidden.shape[1], torch.finfo(hidden.dtype).min
    keys = mask.shape[-1] if mask is not None else operation["length"] or length
    if mask is None:
        mask = torch.zeros(1, 1, length, keys, dtype=hidden.dtype, device=hidden.device)
        if operation["causal"]:
            mask = mask.masked_fill(torch.ones_like(mask, dtype=torch.bool).triu(1), least)
    elif mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~mask, least)
    heads = operation["heads"] if any(cell["heads"] is not None for cell in operation["cells"]) else 1
    mask = mask.expand(rows, heads, length, keys).clone()
    for cell in operation["cells"]:
        chosen = slice(None) if cell["heads"] is None else torch.tensor(cell["heads"])[:, None, None]
        mask[cell["row"]][chosen, cell["queries"][:, None], cell["keys"]] = least
    return mask


def attended(pattern: torch.Tensor, operation: dict[str, Any]) -> torch.Tensor:
    """Attention of each cell's head from its queries (their mean) to its keys, in float32; NaN behind the last key."""
    cells = operation["cells"]
    rows = torch.full((len(cells), operation["width"]), float("nan"))
    for row, cell in zip(rows, cells, strict=True):
        mean = pattern[0, cell["head"]].float()[cell["queries"]].mean(0)
        row[: len(cell["keys"])] = mean[cell["keys"]].cpu()
    return rows


def perturbed(value: torch.Tensor, operation: dict[str, Any]) -> torch.Tensor:
    """A copy with noise added to, or multiplied into, the listed positions (all where none are); row by draw."""
    positions = operation["positions"]
    part = value if positions is None else value[:, positions]
    if operation["kind"] == "scale":
        part = part * operation["mean"]
    else:
        noise = gaussian(operation["seeds"], part.shape[1:]).to(value.device, value.dtype)[operation["index"]]
        spread = operation["std"] * noise
        part = part + spread if operation["kind"] == "add_noise" else part * (operation["mean"] + spread)
    if positions is None:
        return part
    value = value.clone()
    value[:, positions] = part
    return value


def gaussian(seeds: list[int], shape: Any) -> torch.Tensor:
    """Standard normal noise, one draw a seed: [seed, *shape]; made on the CPU, the same on every device."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def resolve(model: Any, path: str) -> Any:
    """A module of the wrapped tree; one that is called "output" goes by nnsight's other name for it."""
    module = model
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, "E_output" if part == "output" else part)
    return module


def part_of(whole: Any, part: Any) -> Any:
    """A field of a record, a numbered part of a tuple (the first where none is named), or the tensor itself."""
    if isinstance(part, int):
        return whole[part]
    if part is not None:
        return getattr(whole, part)
    return whole[0] if isinstance(whole, tuple) else whole


def with_part(whole: Any, part: Any, value: torch.Tensor) -> Any:
    """What `part_of` reads, exchanged; the original is left as it was."""
    if part is not None:
        whole = copy.copy(whole)
        setattr(whole, part, value)
        return whole
    return (value, *whole[1:]) if isinstance(whole, tuple) else value
