"""The interpreter: programs of traces as plain data in, nnsight traces inside, tensors out.

Lean on purpose: torch only, plain functions, no classes, no decorators, so that it can be shipped by value and runs the
same on a laptop and inside a remote request. What a program holds is written down in `vlm_patching.backends.plan`.
"""

import copy
from typing import Any

import torch

from vlm_patching.metrics import METRICS


def run_programs(model: Any, programs: Any) -> list[dict[str, Any]]:
    """Interpret each program inside the session that is open; returns their results in order."""
    return [run_program(model, program) for program in programs]


def run_program(model: Any, program: dict[str, Any]) -> dict[str, Any]:
    """One example: its base runs, then, if the example is kept, its swept run.

    Returns a dict of ``run.metric`` → [row] float32, ``run.top`` → [row] (the most likely token) and `kept` → bool.
    Values that later traces need stay in `values`, where the model is.
    """
    values: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for trace in program["bases"]:
        run_trace(model, program, trace, values, results)
    results["kept"] = is_kept(program, results)
    if results["kept"]:
        for trace in program["sweeps"]:
            run_trace(model, program, trace, values, results)
    return {name: torch.cat(parts) if isinstance(parts, list) else parts for name, parts in results.items()}


def is_kept(program: dict[str, Any], results: dict[str, Any]) -> bool:
    """Whether the base runs answer as the program's rule wants it."""
    clean = bool((results["clean.top"][0] == program["answer"]).all())
    corrupted = bool((results["corrupted.top"][0] == program["answer"]).all())
    return {
        "all": True,
        "clean_correct": clean,
        "clean_correct_corrupted_wrong": clean and not corrupted,
    }[program["keep"]]


def run_trace(
    model: Any, program: dict[str, Any], trace: dict[str, Any], values: dict[str, Any], results: dict[str, Any]
) -> None:
    """One forward pass of a batch whose rows are cells; its operations are in the order in which the model computes."""
    rows, readout, inputs = trace["rows"], program["readout"], {}
    weight = next(model._module.parameters())
    for name, tensor in program["inputs"][trace["on"]].items():
        reused = name == "pixel_values" and trace["reuses_image"]
        inputs[name] = tensor.to(weight.device) if reused else tensor.to(weight.device).expand(rows, *tensor.shape[1:])
    if trace["pixels"] is not None:
        inputs["pixel_values"] = perturbed(inputs["pixel_values"], trace["pixels"])
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(weight.dtype)
    with torch.no_grad():  # noqa: SIM117 - nnsight takes the block of a with statement that is its own
        with model.trace(**inputs, **program["constants"]):
            for operation in trace["operations"]:
                apply(model, operation, values)
            whole = resolve(model, readout["path"]).output
            logits = part_of(whole, readout["part"])[:, -1].float()
    clean = values.setdefault("clean.logits", logits)  # the clean run is always the first
    for metric in program["metrics"]:
        measured = METRICS[metric]["of"](logits, program["answer"], program["foil"], clean).cpu()
        results.setdefault(trace["run"] + "." + metric, []).append(measured)
    results.setdefault(trace["run"] + ".top", []).append(logits.argmax(-1).cpu())


def apply(model: Any, operation: dict[str, Any], values: dict[str, Any]) -> None:
    """Keep, replace or perturb the value at one place, or skip a module: it gives what it gave in an earlier run."""
    module = resolve(model, operation["path"])
    if operation["do"] == "skip":
        saved = values[operation["name"]]
        if operation["index"] is not None:
            saved = with_part(saved, operation["part"], part_of(saved, operation["part"])[operation["index"]])
        module.skip(saved)
        return
    whole = module.input if operation["end"] == "input" else module.output
    if operation["do"] == "keep_whole":
        values[operation["name"]] = whole
        return
    value = part_of(whole, operation["part"])
    if operation["do"] == "read":
        values[operation["name"]] = value.clone()  # some models go on to change it in place
        return
    value = replaced(value, operation, values) if operation["do"] == "replace" else perturbed(value, operation)
    whole = with_part(whole, operation["part"], value)
    if operation["end"] == "input":
        module.input = whole
    else:
        module.output = whole


def replaced(value: torch.Tensor, operation: dict[str, Any], values: dict[str, Any]) -> torch.Tensor:
    """A copy with the listed (row, position[, head]) entries taken from what another run has read."""
    value, source = value.clone(), values[operation["source"]]
    rows, positions, source_rows = operation["at_rows"], operation["at_positions"], operation["source_rows"]
    if operation["at_heads"] is None:
        value[rows, positions] = source[source_rows, positions]
        return value
    heads, split = operation["at_heads"], (operation["heads"], -1)
    value.unflatten(-1, split)[rows, positions, heads] = source.unflatten(-1, split)[source_rows, positions, heads]
    return value


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


def moments(model: Any, programs: Any) -> torch.Tensor:
    """Sum, sum of squares and count of the clean values that noise is relative to, over all programs, in float64."""
    total = torch.zeros(3, dtype=torch.float64)
    for program in programs:
        values: dict[str, Any] = {}
        run_trace(model, program, program["bases"][0], values, {})
        value, positions = values["reference"].double().cpu(), program["positions"]
        value = value if positions is None else value[:, positions]
        total += torch.tensor([value.sum(), value.square().sum(), value.numel()], dtype=torch.float64)
    return total


def resolve(model: Any, path: str) -> Any:
    """A module of the wrapped tree; one that is called "output" goes by nnsight's other name for it."""
    module = model
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, "E_output" if part == "output" else part)
    return module


def part_of(whole: Any, part: str | None) -> Any:
    """A field of a record, the first of a tuple, or the tensor itself."""
    if part is not None:
        return getattr(whole, part)
    return whole[0] if isinstance(whole, tuple) else whole


def with_part(whole: Any, part: str | None, value: torch.Tensor) -> Any:
    """What `part_of` reads, exchanged; the original is left as it was."""
    if part is not None:
        whole = copy.copy(whole)
        setattr(whole, part, value)
        return whole
    return (value, *whole[1:]) if isinstance(whole, tuple) else value
