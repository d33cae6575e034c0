"""The interpreter's other half: what one operation does at one place of a model, inside an nnsight trace.

Lean on purpose, as `vlm_patching.backends.kernels` is: torch only, plain functions, no classes, no decorators.
"""

import copy
from typing import Any

import torch

SHUT = -9000.0
"""What masks add where nothing is to be seen is below: -10000 in older models, else the least number, or -inf."""


def apply(model: Any, operation: dict[str, Any], rows: int, values: dict[str, Any], found: dict[str, Any]) -> None:
    """Keep, change or block the value at one place, or skip a module: it gives what it gave in an earlier run.

    Values are seen as [row, position, width], whatever they are in the model: [row · tile, position, width] in some
    image encoders, [row · position, width] in others.
    """
    module, do = resolve(model, operation["path"]), operation["do"]
    if do == "skip":
        module.skip(again(operation, values))
        return
    if do == "fold":
        arguments, named = module.inputs
        kept = {**named, operation["keys"]: named[operation["keys"]][: operation["groups"]]}
        module.inputs = ((arguments[0].reshape(operation["groups"], -1, arguments[0].shape[-1]), *arguments[1:]), kept)
        return
    ends_in, part = operation["end"] == "input", operation["part"]
    if do == "block":
        mask, shut = blocked(argument_of(module.inputs, part), hidden_of(module.inputs), rows, operation)
        module.inputs = with_argument(module.inputs, part, mask)
        values[operation["name"]] = shut
        return
    argument = ends_in and part is not None
    whole = argument_of(module.inputs, part) if argument else module.input if ends_in else module.output
    if do == "keep_whole":
        values[operation["name"]] = copied(whole)
        return
    value = whole if argument else part_of(whole, part)
    if do == "keep_as_is":
        values[operation["name"]] = value.clone()
        return
    if do == "pattern":
        found.setdefault("attention", []).append(attended(value, operation))
        return
    seen = value.reshape(rows, -1, value.shape[-1])
    if do == "read":
        values[operation["name"]] = seen.clone()  # some models go on to change it in place
        values[operation["name"] + ".shape"] = value.shape
        return
    if do == "delta":
        values[operation["name"]] = torch.zeros_like(seen, requires_grad=True)
    made = changed(seen, operation, values)
    made = made if do == "unfold" else made.reshape(value.shape)
    if argument:
        module.inputs = with_argument(module.inputs, part, made)
    elif ends_in:
        module.input = made
    else:
        module.output = with_part(whole, part, made)


def again(operation: dict[str, Any], values: dict[str, Any]) -> Any:
    """What a module gave in an earlier run, for the listed rows of it; as it was where none are listed."""
    name, index = operation["name"], operation["index"]
    saved, rows = values[name], values[name.split(".")[0] + ".rows"]
    if index is None:
        return copied(saved)
    carried = operation.get("carried", [])
    fields = {field: part_of(saved, field) for field in carried}
    value = part_of(saved, operation["part"])
    shape = values.get(name + ".shape", value.shape)
    made = in_rows(value, shape, rows, operation)
    whole = with_part(saved, operation["part"], made.clone() if operation.get("own") else made)
    for field, part in fields.items():
        parts = [in_rows(each, each.shape, rows, operation) for each in part]
        whole = with_part(whole, field, type(part)(parts))
    return whole


def in_rows(value: torch.Tensor, shape: Any, rows: int, operation: dict[str, Any]) -> torch.Tensor:
    """The listed rows of a value that has the given shape in a run of so many rows."""
    made = taken(value.reshape(rows, -1, value.shape[-1]), operation)
    if operation.get("joined"):
        return made.reshape(1, -1, made.shape[-1])
    if operation.get("positions") is not None or (len(shape) == 3 and shape[0] == rows):
        return made
    return made.reshape(shape[0] // rows * len(made), *shape[1:])


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
    if do == "silence":
        shut = values[operation["source"]].transpose(1, 2)[..., None]
        return value.unflatten(-1, (operation["heads"], -1)).masked_fill(shut, 0).flatten(-2)
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


def blocked(mask: Any, hidden: torch.Tensor, rows: int, operation: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """An attention block's additive mask [row, head, query, key]: the listed edges are shut, and all that was before.

    The least finite number stands for -inf: the softmax gives exactly 0 for it as long as any key is left. Which of the
    listed queries are left without any is told besides, [row, head, query]: there is nothing that they could attend to.
    Positions are counted through all tiles of a row, as everywhere, and edges between two tiles there are none.
    """
    tiles, length, least = hidden.shape[0] // rows, hidden.shape[1], torch.finfo(hidden.dtype).min
    count = mask.shape[-1] if mask is not None else operation["length"] // tiles or length
    if mask is None:
        mask = torch.zeros(1, 1, length, count, dtype=hidden.dtype, device=hidden.device)
        if operation["causal"]:
            mask = mask.masked_fill(torch.ones_like(mask, dtype=torch.bool).triu(1), least)
    elif mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~mask, least)
    heads = operation["heads"] if any(cell["heads"] is not None for cell in operation["cells"]) else 1
    mask = mask.expand(rows * tiles, heads, length, count).clone()
    shut = torch.zeros(rows, heads, tiles * length, dtype=torch.bool, device=hidden.device)
    for cell in operation["cells"]:
        chosen = torch.arange(heads) if cell["heads"] is None else torch.tensor(cell["heads"])
        for tile in range(tiles):
            queries = cell["queries"][cell["queries"] // length == tile]
            keys = cell["keys"][cell["keys"] // count == tile] - tile * count
            of_tile, inside = mask[cell["row"] * tiles + tile], queries - tile * length
            of_tile[chosen[:, None, None], inside[:, None], keys] = least
            shut[cell["row"]][chosen[:, None], queries] = (of_tile[chosen[:, None], inside] < SHUT).all(-1)
    return mask, shut


def attended(pattern: torch.Tensor, operation: dict[str, Any]) -> torch.Tensor:
    """Attention of each cell's head from its queries (their mean) to its keys, in float32; NaN behind the last key."""
    cells = operation["cells"]
    rows = torch.full((len(cells), operation["width"]), float("nan"))
    for row, cell in zip(rows, cells, strict=True):
        whole = torch.block_diag(*pattern[:, cell["head"]].float())  # tiles do not attend to each other
        row[: len(cell["keys"])] = whole[cell["queries"]].mean(0)[cell["keys"]].cpu()
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


def filled(pixels: torch.Tensor) -> torch.Tensor:
    """Which pixels are of tiles that there are: those that a picture does not have are 0 all over, and stay so."""
    if pixels.dim() < 5:
        return torch.ones_like(pixels, dtype=torch.bool)
    return (pixels != 0).flatten(-3).any(-1)[..., None, None, None].expand_as(pixels)


def gaussian(seeds: list[int], shape: Any) -> torch.Tensor:
    """Standard normal noise, one draw a seed: [seed, *shape]; made on the CPU, the same on every device."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def resolve(model: Any, path: str) -> Any:
    """A module of the wrapped tree; one that is called "output" goes by nnsight's other name for it."""
    module = model
    for part in path.split(".") if path else []:
        module = module[int(part)] if part.isdigit() else getattr(module, "E_output" if part == "output" else part)
    return module


def argument_of(inputs: Any, part: Any) -> Any:
    """What a module is given by position or by keyword; None where it is given nothing by that keyword."""
    arguments, named = inputs
    return arguments[part] if isinstance(part, int) else named.get(part)


def with_argument(inputs: Any, part: Any, value: torch.Tensor) -> Any:
    """What `argument_of` reads, exchanged."""
    arguments, named = inputs
    return (with_part(arguments, part, value), named) if isinstance(part, int) else (arguments, {**named, part: value})


def hidden_of(inputs: Any) -> torch.Tensor:
    """The hidden states that a module is given."""
    arguments, named = inputs
    return arguments[0] if arguments else named["hidden_states"]


def part_of(whole: Any, part: Any) -> Any:
    """A field of a record, a numbered part of a tuple (the first where none is named), or the tensor itself."""
    if isinstance(part, int):
        return whole[part]
    if part is not None:
        return getattr(whole, part)
    return whole[0] if isinstance(whole, tuple) else whole


def copied(whole: Any) -> Any:
    """A copy of a record, as some models go on to change its fields in place; a tensor as it is."""
    return whole if isinstance(whole, torch.Tensor) else copy.copy(whole)


def with_part(whole: Any, part: Any, value: torch.Tensor) -> Any:
    """What `part_of` reads, exchanged; the original is left as it was."""
    if isinstance(part, str):
        whole = copy.copy(whole)
        setattr(whole, part, value)
        return whole
    at = part or 0
    return (*whole[:at], value, *whole[at + 1 :]) if isinstance(whole, tuple) else value
