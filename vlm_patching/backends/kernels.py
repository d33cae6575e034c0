"""The interpreter: programs of traces as plain data in, nnsight traces inside, tensors out.

Lean on purpose: torch only, plain functions, no classes, no decorators, so that it can be shipped by value and runs the
same on a laptop and inside a remote request. What a program holds is written down in `vlm_patching.backends.plan`.
"""

import copy
from typing import Any

import torch

from vlm_patching.backends.interventions import apply, filled, part_of, perturbed, resolve
from vlm_patching.metrics import METRICS


def run_programs(model: Any, programs: Any) -> list[dict[str, Any]]:
    """Interpret each program inside the session that is open; returns their results in order."""
    return [run_program(model, program) for program in programs]


def run_program(model: Any, program: dict[str, Any]) -> dict[str, Any]:
    """One example: its base runs, then, if the example is kept, its swept runs.

    Returns a dict of ``run.metric`` → [row] float32, ``run.top`` → [row] (the most likely token), `attention` →
    [cell, key], and `kept` → bool. Values that later traces need stay in `values`, where the model is. Where whole
    answers are measured, all of it is done once for each of them, teacher-forced. Where memory ran out on the way,
    `unfinished` has the numbers of the cells that are not among the results.
    """
    results: dict[str, Any] = {}
    measured: list[dict[str, list[torch.Tensor]]] = []
    reached = len(program["sweeps"])
    for number, forced in enumerate(program["forced"]):
        values: dict[str, Any] = dict(program["vectors"])
        found: dict[str, list[torch.Tensor]] = {}
        for trace in program["bases"]:
            run_trace(model, program, trace, forced, values, found)
        if number == 0:
            results["kept"] = is_kept(program, found)
        if results["kept"]:
            reached = sweep(model, program, reached, forced, values, found)
        measured.append(found)
    left = [trace["cells"] for trace in program["sweeps"][reached:]]
    if left:
        results["unfinished"] = torch.cat(left).unique()
    scores: dict[str, list[list[torch.Tensor]]] = {}
    for found in measured:
        in_order(found, results.get("unfinished"))
        for name in [name for name in found if name.endswith(".score")]:
            scores.setdefault(name.removesuffix(".score"), []).append(found.pop(name))
    results |= {name: torch.cat(tensors) for name, tensors in measured[0].items()}
    for run, candidates in scores.items():
        together = torch.stack([torch.cat(tensors) for tensors in candidates], -1)
        for metric in [name for name in program["metrics"] if "scores" in METRICS[name]]:
            results[run + "." + metric] = METRICS[metric]["of"](together)
    return results


def sweep(
    model: Any, program: dict[str, Any], most: int, forced: Any, values: dict[str, Any], found: dict[str, Any]
) -> int:
    """The first `most` swept runs; how many of them memory sufficed for (it is an error where not for the first)."""
    for number, trace in enumerate(program["sweeps"][:most]):
        try:
            if "fill" in trace:
                fill(trace, found)
            else:
                run_trace(model, program, trace, forced, values, found)
        except torch.OutOfMemoryError:
            if number == 0 or "cells" not in trace:
                raise
            return number
    return most


def is_kept(program: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether the base runs answer as the program's rule wants it."""
    clean = bool(found["clean.right"][0].all())
    corrupted = any(bool(right.all()) for right in found.get("corrupted.right", []))
    return {
        "all": True,
        "clean_correct": clean,
        "clean_correct_corrupted_wrong": clean and not corrupted,
    }[program["keep"]]


def run_trace(
    model: Any,
    program: dict[str, Any],
    trace: dict[str, Any],
    forced: Any,
    values: dict[str, Any],
    found: dict[str, Any],
) -> None:
    """One forward pass of a batch whose rows are cells; its operations are in the order in which the model computes."""
    inputs, given = packed_inputs(program, trace, forced, values)
    graded = "gradients" in trace
    values[trace["run"] + ".rows"] = trace["rows"]
    if trace["eager"]:
        before = attentions_of(model._module.config)
        model._module.set_attn_implementation("eager")
    lensed = None
    with torch.set_grad_enabled(graded):  # noqa: SIM117 - nnsight takes the block of a with statement that is its own
        with model.trace(**inputs):
            for operation in trace["operations"]:
                apply(model, operation, trace["rows"], values, found)
            if "lens" in trace:
                lensed = torch.stack([values[key][0, position] for key, position in trace["lens"]["cells"]])
                for path in trace["lens"]["unembed"]:
                    lensed = resolve(model, path)(lensed)
                lensed = bounded(lensed * trace["lens"]["scale"], trace["lens"]["softcap"])
            whole = resolve(model, program["readout"]["path"]).output
            logits = part_of(whole, program["readout"]["part"])
            if trace.get("keeps_cache"):
                values[trace["run"] + ".cache"] = whole.past_key_values
    if logits.dim() == 2:
        logits = logits[:, None]  # classes, not tokens of a sequence
    if "pack" in trace:
        cells = logits.unflatten(1, (-1, 1 + given))
        logits = cells[trace["pack"]["at_rows"], trace["pack"]["at_columns"]]
    logits = logits[:, -1 - given :].float()
    if trace["eager"]:
        model._module.set_attn_implementation(before)
    if "cells_in_order" in trace:
        found["attention"] = [torch.cat(found["attention"])[trace["cells_in_order"]]]
    if "cells" in trace and trace["measured"]:
        found.setdefault(trace["run"] + ".cells", []).append(trace["cells"])
    if trace["measured"]:
        measure(program, trace["run"], logits, forced, values, found)
    if lensed is not None:
        measure(program, trace["run"], lensed[:, None].float(), None, values, found)
    if graded:
        estimate(program, trace, logits[:, 0], values, found)


def attentions_of(config: Any) -> dict[str, Any]:
    """How a model attends, and each of its parts, as `set_attn_implementation` takes it."""
    parts = {name: getattr(config, name) for name in config.sub_configs if getattr(config, name) is not None}
    return {"": config._attn_implementation, **{name: attentions_of(part) for name, part in parts.items()}}


def fill(trace: dict[str, Any], found: dict[str, Any]) -> None:
    """Cells that are what the base run is: its metrics, row by row."""
    if not trace["measured"]:
        return
    base, run = trace["fill"] + ".", trace["run"] + "."
    for name in [name for name in found if name.startswith(base)]:
        found.setdefault(run + name.removeprefix(base), []).append(torch.cat(found[name])[trace["base_rows"]])
    found.setdefault(run + "cells", []).append(trace["cells"])


def in_order(found: dict[str, Any], unfinished: Any) -> None:
    """Put what was measured cell by cell into the order of the sweep, whatever passes it was measured in.

    Cells that are unfinished (a part of their runs, or of their answers, is missing) are left out.
    """
    for name in [name for name in found if name.endswith(".cells")]:
        run, cells = name.removesuffix("cells"), torch.cat(found.pop(name))
        order = cells.argsort()
        if unfinished is not None:
            order = order[~torch.isin(cells[order], unfinished)]
        for other in [other for other in found if other.startswith(run)]:
            found[other] = [torch.cat(found[other])[order]]


def packed_inputs(
    program: dict[str, Any], trace: dict[str, Any], forced: Any, values: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """The forward pass's keyword arguments: of a batch of rows, or of query positions over a shared prefix."""
    if "pack" not in trace:
        return inputs_of(program, trace, forced)
    pack, rows, dtype = trace["pack"], trace["rows"], getattr(torch, program["dtype"])
    prefix, queries = pack["prefix"], len(pack["positions"])
    cache = copy.copy(values[pack["cache"]])
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    for number, layer in enumerate(cache.layers):
        if number not in pack["apart"]:  # those hold an image's keys, and all of them
            layer.keys, layer.values = layer.keys[:, :, :prefix], layer.values[:, :, :prefix]
    positions, cells = pack["positions"], pack["cells"]
    before = torch.arange(prefix) < pack["starts"][:, None]
    own = (cells[:, None] == cells) & (positions[:, None] >= positions)
    mask = torch.zeros(queries, prefix + queries, dtype=dtype)
    mask = mask.masked_fill(~torch.cat([before, own], 1), torch.finfo(dtype).min)
    ids = (positions - pack["ahead"]).expand(rows, queries)
    if "rotary" in pack:  # [axis, row, position]
        ids = values[pack["rotary"]].cpu()[:, :, positions].expand(-1, rows, -1)
    inputs = {
        "input_ids": torch.full((rows, queries), program["answer"]),
        "position_ids": ids,
        "attention_mask": mask.expand(rows, 1, queries, prefix + queries),
        "logits_to_keep": pack["ends"],
    }
    alone, _ = inputs_of(program, trace, None)
    longer, given = inputs_of(program, trace, forced)
    inputs |= {name: alone[name] for name in pack["needs"]}
    inputs |= {name: longer[name][:, positions] for name in pack["per_token"] if name in longer}
    return {**inputs, "past_key_values": cache}, given


def inputs_of(program: dict[str, Any], trace: dict[str, Any], forced: Any) -> tuple[dict[str, Any], int]:
    """The forward pass's keyword arguments, and how many tokens of an answer are given behind the prompt.

    They are where the program is: nnsight moves them to the model.
    """
    rows, inputs = trace["rows"], {}
    for name, tensor in program["inputs"][trace["on"]].items():
        tensor = tensor.to(getattr(torch, program["dtype"])) if tensor.is_floating_point() else tensor
        if len(tensor) == 1 and tensor.dim() in (4, 6) and tensor.is_floating_point():  # pictures, which are not copied
            inputs[name] = tensor.expand(rows, *tensor.shape[1:])
        else:  # of a prompt's patches, or tiles, those of all rows one after the other, which some models count through
            inputs[name] = tensor.repeat(rows, *[1] * (tensor.dim() - 1))
    for name, other in program["indexes"].items():
        if name in inputs:
            counted = program["inputs"][trace["on"]][other].shape[:-1].numel()
            ahead = counted * torch.arange(rows).repeat_interleave(len(inputs[name]) // rows)[:, None]
            inputs[name] = torch.where(inputs[name] < 0, inputs[name], inputs[name] + ahead)
    if trace["pixels"] is not None:
        pixels = program["inputs"][trace["on"]]["pixel_values"]
        noisy = perturbed(pixels.reshape(1, -1, pixels.shape[-1]).expand(rows, -1, -1), trace["pixels"])
        noisy = noisy.reshape(rows, *pixels.shape).masked_fill(~filled(pixels), 0)
        inputs["pixel_values"] = noisy.reshape(inputs["pixel_values"].shape).to(inputs["pixel_values"].dtype)
    given = 0 if forced is None else forced["given"].shape[1]
    if given:
        name = program["extends"]
        more = forced["given"].expand(rows, -1)
        inputs[name] = torch.cat([inputs[name], more], 1)
        if name == "input_ids":
            lengthened(inputs, program["lengthens"], given)
    if program["keeps_logits"]:
        last = torch.arange(-1 - given, 0)  # for a number of them some models leave positions out of upper layers
        inputs |= {"logits_to_keep": last, "use_cache": bool(trace.get("keeps_cache"))}
    return inputs, given


def lengthened(inputs: dict[str, Any], others: dict[str, Any], count: int) -> None:
    """What goes with the tokens, for as many more of them: a number, or what it was at the last."""
    for name, value in {"attention_mask": 1, **others}.items():
        if name in inputs:
            more = inputs[name][:, -1:].repeat_interleave(count, 1)
            inputs[name] = torch.cat([inputs[name], more if value == "last" else torch.full_like(more, value)], 1)


def bounded(logits: torch.Tensor, bound: float) -> torch.Tensor:
    """Logits between plus and minus a bound, by tanh; as they are where it is 0."""
    return bound * torch.tanh(logits / bound) if bound else logits


def measure(
    program: dict[str, Any], run: str, logits: torch.Tensor, forced: Any, values: dict[str, Any], found: dict[str, Any]
) -> None:
    """Metrics of [row, position, vocabulary]: of the first position, and of a whole answer over all of them."""
    first = logits[:, 0]
    clean = values.setdefault("clean.logits", first)  # the clean run is always the first
    for metric in program["metrics"]:
        if "scores" not in METRICS[metric]:
            measured = METRICS[metric]["of"](first, program["answer"], program["foil"], clean).cpu()
            found.setdefault(run + "." + metric, []).append(measured)
    tokens = [program["answer"]] if forced is None else forced["tokens"]
    reached = logits[:, : len(tokens)]
    wanted = torch.tensor(tokens, device=logits.device)
    found.setdefault(run + ".top", []).append(first.argmax(-1).cpu())
    found.setdefault(run + ".right", []).append((reached.argmax(-1) == wanted).all(-1).cpu())
    if forced is not None:
        chosen = reached.log_softmax(-1).gather(-1, wanted.expand(len(logits), -1)[..., None])
        found.setdefault(run + ".score", []).append(chosen[..., 0].sum(-1).cpu())


def estimate(
    program: dict[str, Any], trace: dict[str, Any], logits: torch.Tensor, values: dict[str, Any], found: dict[str, Any]
) -> None:
    """Metrics of cells from gradients: the base run's, plus (source - base) · mean gradient over the cell's entries."""
    wanted, clean = trace["gradients"], values["clean.logits"]
    deltas = {term["delta"]: values[term["delta"]] for term in wanted["terms"]}
    for metric in program["metrics"]:
        total = torch.zeros(wanted["cells"], device=logits.device)
        measured = METRICS[metric]["of"](logits, program["answer"], program["foil"], clean).sum()
        if measured.requires_grad:  # else nothing reads any of these places
            found_slopes = torch.autograd.grad(measured, list(deltas.values()), retain_graph=True, allow_unused=True)
            slopes = dict(zip(deltas, found_slopes, strict=True))
            for term in wanted["terms"]:
                slope = slopes[term["delta"]]
                if slope is not None:  # what nothing reads has no effect
                    effects = products(slope, term, values, wanted["steps"])
                    total.index_add_(0, term["of_cell"].to(total.device), effects)
        base = found[wanted["base"] + "." + metric][0][wanted["base_rows"]]
        found.setdefault(trace["run"] + "." + metric, []).append(base + total.cpu())


def products(slope: torch.Tensor, term: dict[str, Any], values: dict[str, Any], steps: int) -> torch.Tensor:
    """(source - base) · gradient, one number for each of a term's entries."""
    slope = slope.unflatten(0, (-1, steps)).mean(1)
    source, base = values[term["source"]], values[term["base"]]
    here, there = term["at_positions"], term["source_positions"]
    moved = (source[term["source_rows"], there] - base[term["base_rows"], here]).float()
    slope = slope[term["at_rows"], here].float()
    if term["at_heads"] is None:
        return (moved * slope).sum(-1)
    entries = torch.arange(len(here))
    moved, slope = (part.unflatten(-1, (term["heads"], -1))[entries, term["at_heads"]] for part in (moved, slope))
    return (moved * slope).sum(-1)


def summarize(model: Any, programs: Any) -> dict[str, torch.Tensor]:
    """Over all programs, in float64: name → sum, sum of squares and count of what was read, [3, width]."""
    totals: dict[str, torch.Tensor] = {}
    for program in programs:
        values: dict[str, Any] = {}
        for trace in program["bases"]:
            run_trace(model, program, trace, None, values, {})
        for wanted in program["summaries"]:
            value = values[wanted["value"]].double().cpu()
            value = value if wanted["positions"] is None else value[:, wanted["positions"]]
            if "minus" in wanted:
                value = value - values[wanted["minus"]].double().cpu()[:, wanted["minus_positions"]]
            if "center" in wanted:
                value = (value - wanted["center"]) / wanted["scale"]
            value = value.flatten(0, -2)
            count = torch.full_like(value[0], len(value))
            found = torch.stack([value.sum(0), value.square().sum(0), count])
            totals[wanted["name"]] = totals.get(wanted["name"], 0) + found
    return totals
