"""The interpreter: programs of traces as plain data in, nnsight traces inside, tensors out.

Lean on purpose: torch only, plain functions, no classes, no decorators, so that it can be shipped by value and runs the
same on a laptop and inside a remote request. What a program holds is written down in `vlm_patching.backends.plan`.
"""

import copy
from typing import Any

import torch

from vlm_patching.backends.interventions import apply, filled, part_of, perturbed, resolve
from vlm_patching.backends.joining import companies, joined, passes_of, rows_before
from vlm_patching.metrics import METRICS


def run_programs(model: Any, programs: Any) -> list[dict[str, Any]]:
    """Interpret each program inside the session that is open, those that are alike together; their results in order."""
    results: list[dict[str, Any]] = [{} for _ in programs]
    for company in companies(programs):
        found = run_together(model, [programs[number] for number in company])
        for number, result in zip(company, found, strict=True):
            results[number] = result
    return results


def run_together(model: Any, programs: Any) -> list[dict[str, Any]]:
    """Examples whose base runs are alike: their base runs, then the swept runs of those that are kept.

    Returns for each a dict of ``run.metric`` → [row] float32, ``run.top`` → [row] (the most likely token), `attention`
    → [cell, key], and `kept` → bool. Values that later traces need stay in `values`, where the model is. Where whole
    answers are measured, all of it is done once for each of them, teacher-forced. Where memory ran out on the way,
    `unfinished` has the numbers of the cells that are not among the results.
    """
    measured: list[list[dict[str, list[torch.Tensor]]]] = [[] for _ in programs]
    before, kept, passes = rows_before(programs), [], []
    for number in range(len(programs[0]["forced"])):
        forced = [program["forced"][number] for program in programs]
        values: dict[str, Any] = dict(programs[0]["vectors"])
        found: list[dict[str, list[torch.Tensor]]] = [{} for _ in programs]
        for traces in zip(*[program["bases"] for program in programs], strict=True):
            run_trace(model, programs, joined(list(enumerate(traces)), before), forced, values, found)
        if number == 0:
            kept = [is_kept(program, of_one) for program, of_one in zip(programs, found, strict=True)]
            passes = passes_of(programs, [member for member, is_in in enumerate(kept) if is_in])
        passes = sweep(model, programs, passes, before, forced, values, found)
        for of_all, of_one in zip(measured, found, strict=True):
            of_all.append(of_one)
    results = []
    for member, (program, is_in) in enumerate(zip(programs, kept, strict=True)):
        done = [trace for parts in passes for other, step in parts if other == member for trace in step]
        left = unfinished(program, done) if is_in else None
        results.append({"kept": is_in} | result_of(program, measured[member], left))
    return results


def sweep(
    model: Any, programs: Any, passes: Any, before: Any, forced: Any, values: dict[str, Any], found: Any
) -> list[list[tuple[int, list[dict[str, Any]]]]]:
    """Swept runs, examples apart where memory does not suffice for several; those that it sufficed for.

    An example for which it does not suffice is left where it is; it is an error where that is all there is.
    """
    done: list[list[tuple[int, list[dict[str, Any]]]]] = []
    waiting = list(passes)
    while waiting:
        parts = waiting.pop(0)
        try:
            run_pass(model, programs, parts, before, forced, values, found)
        except torch.OutOfMemoryError:
            half, (member, step) = len(parts) // 2, parts[0]
            if half:
                waiting[:0] = [parts[:half], parts[half:]]
                continue
            if "cells" not in step[0] or (len(programs) == 1 and not done):
                raise
            others = [[part for part in parts if part[0] != member] for parts in waiting]
            waiting = [parts for parts in others if parts]
        else:
            done.append(parts)
    return done


def run_pass(
    model: Any, programs: Any, parts: Any, before: Any, forced: Any, values: dict[str, Any], found: Any
) -> None:
    """Steps of several examples, which are alike."""
    for traces in zip(*[step for _, step in parts], strict=True):
        if "fill" in traces[0]:
            fill(traces[0], found[parts[0][0]])
        else:
            together = joined([(member, trace) for (member, _), trace in zip(parts, traces, strict=True)], before)
            run_trace(model, programs, together, forced, values, found)


def unfinished(program: dict[str, Any], done: Any) -> Any:
    """The numbers of the cells whose swept runs are not among those that are done; None where all are."""
    wanted, found = ([trace["cells"] for trace in traces if "cells" in trace] for traces in (program["sweeps"], done))
    if len(wanted) == len(found):
        return None
    cells = torch.cat(wanted).unique()
    return cells[~torch.isin(cells, torch.cat([*found, cells[:0]]))]


def result_of(program: dict[str, Any], measured: list[dict[str, list[torch.Tensor]]], left: Any) -> dict[str, Any]:
    """One example's results, without the cells that are left; `measured` is a dict for each answer that is forced."""
    results: dict[str, Any] = {} if left is None else {"unfinished": left}
    scores: dict[str, list[list[torch.Tensor]]] = {}
    for found in measured:
        in_order(found, left)
        for name in [name for name in found if name.endswith(".score")]:
            scores.setdefault(name.removesuffix(".score"), []).append(found.pop(name))
    results |= {name: torch.cat(tensors) for name, tensors in measured[0].items()}
    for run, candidates in scores.items():
        together = torch.stack([torch.cat(tensors) for tensors in candidates], -1)
        for metric in [name for name in program["metrics"] if "scores" in METRICS[name]]:
            results[run + "." + metric] = METRICS[metric]["of"](together)
    return results


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
    model: Any, programs: Any, trace: dict[str, Any], forced: Any, values: dict[str, Any], found: Any
) -> None:
    """One forward pass of a batch whose rows are cells; its operations are in the order in which the model computes.

    `forced` and `found` have one entry an example; whose rows are in the batch `trace["parts"]` says.
    """
    parts, run = trace["parts"], trace["run"]
    member = parts[0][0]
    program = programs[member]
    inputs, given = joined_inputs(programs, trace, forced, values)
    graded = "gradients" in trace
    values[run + ".rows"] = trace["rows"]
    if trace["eager"]:
        before = attentions_of(model._module.config)
        model._module.set_attn_implementation("eager")
    lensed = None
    with torch.set_grad_enabled(graded):  # noqa: SIM117 - nnsight takes the block of a with statement that is its own
        with model.trace(**inputs):
            for operation in trace["operations"]:
                apply(model, operation, trace["rows"], values, found[member])
            if "lens" in trace:
                lensed = torch.stack([values[key][0, position] for key, position in trace["lens"]["cells"]])
                for path in trace["lens"]["unembed"]:
                    lensed = resolve(model, path)(lensed)
                lensed = bounded(lensed * trace["lens"]["scale"], trace["lens"]["softcap"])
            whole = resolve(model, program["readout"]["path"]).output
            logits = part_of(whole, program["readout"]["part"])
            if trace.get("keeps_cache"):
                values[run + ".cache"] = whole.past_key_values
    if logits.dim() == 2:
        logits = logits[:, None]  # classes, not tokens of a sequence
    if "pack" in trace:
        cells = logits.unflatten(1, (-1, 1 + given))
        logits = cells[trace["pack"]["at_rows"], trace["pack"]["at_columns"]]
    logits = logits[:, -1 - given :].float()
    if trace["eager"]:
        model._module.set_attn_implementation(before)
    if "cells_in_order" in trace:
        found[member]["attention"] = [torch.cat(found[member]["attention"])[trace["cells_in_order"]]]
    measured = []
    if trace["measured"]:
        counts = [len(part.get("cells", range(part["rows"]))) for _, part in parts]
        for (owner, part), share in zip(parts, logits.split(counts), strict=True):
            clean = values.setdefault(f"clean.logits of {owner}", share[:, 0])  # the clean run is always the first
            measured.append((owner, measure(programs[owner], share, forced[owner], clean)))
            measured.append((owner, {"cells": part["cells"]} if "cells" in part else {}))
    clean = values.get(f"clean.logits of {member}")
    if lensed is not None:
        measured.append((member, measure(program, lensed[:, None].float(), None, clean)))
    if graded:
        measured.append((member, estimate(program, trace, logits[:, 0], clean, values, found[member])))
    for owner, numbers in measured:
        for name, tensor in numbers.items():
            found[owner].setdefault(run + "." + name, []).append(tensor)


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


def joined_inputs(
    programs: Any, trace: dict[str, Any], forced: Any, values: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """The forward pass's keyword arguments, and how many tokens of an answer are given behind the prompt."""
    if "pack" in trace:
        first = trace["parts"][0][0]
        return packed_inputs(programs[first], trace, forced[first], values)
    made = [inputs_of(programs[owner], part, forced[owner]) for owner, part in trace["parts"]]
    inputs, given = made[0]
    if len(made) == 1:
        return inputs, given
    names = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]
    return inputs | {name: torch.cat([of_one[name] for of_one, _ in made]) for name in names}, given


def packed_inputs(
    program: dict[str, Any], trace: dict[str, Any], forced: Any, values: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """The forward pass's keyword arguments where it is of query positions over a shared prefix."""
    pack, rows, dtype = trace["pack"], trace["rows"], getattr(torch, program["dtype"])
    prefix, queries, base_rows = pack["prefix"], len(pack["positions"]), pack.get("base_rows", slice(None))
    cache = copy.copy(values[pack["cache"]])
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    for number, layer in enumerate(cache.layers):
        most = slice(None) if number in pack["apart"] else slice(prefix)  # those hold an image's keys, and all of them
        if layer.keys is not None:  # else it was passed over
            layer.keys, layer.values = layer.keys[base_rows, :, most], layer.values[base_rows, :, most]
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
    if pack["needs"] or pack["per_token"]:
        alone, longer = (inputs_of(program, trace, answer)[0] for answer in (None, forced))
        inputs |= {name: alone[name] for name in pack["needs"]}
        inputs |= {name: longer[name][:, positions] for name in pack["per_token"] if name in longer}
    return {**inputs, "past_key_values": cache}, given_of(forced)


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
    given = given_of(forced)
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


def given_of(forced: Any) -> int:
    """How many tokens of an answer are given behind the prompt."""
    return 0 if forced is None else int(forced["given"].shape[1])


def lengthened(inputs: dict[str, Any], others: dict[str, Any], count: int) -> None:
    """What goes with the tokens, for as many more of them: a number, or what it was at the last."""
    for name, value in {"attention_mask": 1, **others}.items():
        if name in inputs:
            more = inputs[name][:, -1:].repeat_interleave(count, 1)
            inputs[name] = torch.cat([inputs[name], more if value == "last" else torch.full_like(more, value)], 1)


def bounded(logits: torch.Tensor, bound: float) -> torch.Tensor:
    """Logits between plus and minus a bound, by tanh; as they are where it is 0."""
    return bound * torch.tanh(logits / bound) if bound else logits


def measure(program: dict[str, Any], logits: torch.Tensor, forced: Any, clean: Any) -> dict[str, torch.Tensor]:
    """Metrics of [row, position, vocabulary]: of the first position, and of a whole answer over all of them."""
    first, found = logits[:, 0], {}
    for metric in program["metrics"]:
        if "scores" not in METRICS[metric]:
            found[metric] = METRICS[metric]["of"](first, program["answer"], program["foil"], clean).cpu()
    tokens = [program["answer"]] if forced is None else forced["tokens"]
    reached = logits[:, : len(tokens)]
    wanted = torch.tensor(tokens, device=logits.device)
    found["top"] = first.argmax(-1).cpu()
    found["right"] = (reached.argmax(-1) == wanted).all(-1).cpu()
    if forced is not None:
        chosen = reached.log_softmax(-1).gather(-1, wanted.expand(len(logits), -1)[..., None])
        found["score"] = chosen[..., 0].sum(-1).cpu()
    return found


def estimate(
    program: dict[str, Any],
    trace: dict[str, Any],
    logits: torch.Tensor,
    clean: Any,
    values: dict[str, Any],
    found: dict[str, Any],
) -> dict[str, torch.Tensor]:
    """Metrics of cells from gradients: the base run's, plus (source - base) · mean gradient over the cell's entries."""
    wanted, estimated = trace["gradients"], {}
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
        estimated[metric] = base + total.cpu()
    return estimated


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
            alone = joined([(0, trace)], rows_before([program]))
            run_trace(model, [program], alone, [None], values, [{}])
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
