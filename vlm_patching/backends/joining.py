"""Passes of several examples made one: the rows of one example behind those of another, where the passes are alike.

Lean on purpose, as `vlm_patching.backends.kernels` is: torch only, plain functions, no classes, no decorators. Which
examples are kept is known only where the base runs are, so it is there that passes are joined.
"""

from typing import Any

import torch

PER_ROW = ("index", "seeds", "cells", "rows", "groups", "factors")
PER_ROW_TOO = ("at_rows", "at_positions", "at_heads", "source_rows", "source_positions")
"""What operations say row by row, or entry by entry: it may differ between passes that are joined."""


def companies(programs: Any) -> list[list[int]]:
    """Numbers of programs whose base runs are joined: they are alike, and no more than their `joins` says."""
    found: list[list[int]] = []
    open_at: dict[Any, int] = {}
    for number, program in enumerate(programs):
        shape = shape_of_bases(program) if program["joins"] > 1 else None
        at = open_at.get(shape) if shape is not None else None
        if at is None or len(found[at]) >= program["joins"]:
            at = len(found)
            found.append([])
            open_at[shape] = at
        found[at].append(number)
    return found


def steps_of(program: Any) -> list[list[dict[str, Any]]]:
    """Swept runs of a program; one that only hands something on, with the next one, which takes it."""
    steps: list[list[dict[str, Any]]] = []
    handed_on = False
    for trace in program["sweeps"]:
        if handed_on:
            steps[-1].append(trace)
        else:
            steps.append([trace])
        handed_on = trace["run"] == "sender"
    return steps


def passes_of(programs: Any, members: Any) -> list[list[tuple[int, list[dict[str, Any]]]]]:
    """The swept runs of these of the programs, (number, step) by (number, step); those of one list are joined."""
    found: list[list[tuple[int, list[dict[str, Any]]]]] = []
    open_at: dict[Any, int] = {}
    for member in members:
        for step in steps_of(programs[member]):
            most = min(trace.get("most", 0) for trace in step)
            if len(members) == 1 or most <= step[0].get("rows", most):
                found.append([(member, step)])
                continue
            shape = tuple(shape_of(trace) for trace in step)
            at = open_at.get(shape)
            if at is None or sum(other[0]["rows"] for _, other in found[at]) + step[0]["rows"] > most:
                at = len(found)
                found.append([])
                open_at[shape] = at
            found[at].append((member, step))
    return found


def shape_of_bases(program: Any) -> Any:
    """Equal where base runs can be joined."""
    shapes = [shape_of(trace) for trace in program["bases"]]
    inputs = [
        (kind, name, tuple(tensor.shape[1:]))
        for kind, tensors in program["inputs"].items()
        for name, tensor in tensors.items()
    ]
    given = [None if forced is None else forced["given"].shape[1] for forced in program["forced"]]
    return plain([shapes, inputs, given])


def shape_of(trace: dict[str, Any]) -> Any:
    """Equal where passes can be joined: operations of the same kinds at the same places, queries laid out alike."""
    names = ("run", "on", "reuses_image", "eager", "keeps_cache")
    pack = trace.get("pack", {})
    layout = [pack.get(name) for name in ("prefix", "starts", "cells", "positions", "ends")]
    noise = None if trace["pixels"] is None else shape_of_operation(trace["pixels"])
    operations = [shape_of_operation(operation) for operation in trace["operations"]]
    return plain([[trace.get(name) for name in names], layout, noise, operations])


def shape_of_operation(operation: dict[str, Any]) -> Any:
    """Equal where operations can be joined."""
    folded = operation["rows"] // operation["groups"] if "groups" in operation else None
    absent = [name for name, value in operation.items() if value is None]
    per_row = (*PER_ROW, *PER_ROW_TOO)
    return [folded, absent, [(name, value) for name, value in operation.items() if name not in per_row]]


def plain(value: Any) -> Any:
    """Lists and tensors as tuples, which can be compared at once."""
    if isinstance(value, torch.Tensor):
        return tuple(value.tolist())
    return tuple([plain(item) for item in value]) if isinstance(value, list | tuple) else value


def joined(parts: Any, before: Any) -> dict[str, Any]:
    """One pass whose rows are those of all parts.

    Parameters
    ----------
    parts
        (number of the example, its pass), of one shape.
    before
        `rows_before` of all examples whose base runs are joined.
    """
    first = {**parts[0][1], "parts": parts}
    if len(before) == 1:
        return first
    traces = [trace for _, trace in parts]
    starts = [sum(trace["rows"] for trace in traces[:number]) for number in range(len(traces))]
    shifts = [{**before[member], "sender": start} for (member, _), start in zip(parts, starts, strict=True)]
    together = zip(*[trace["operations"] for trace in traces], strict=True)
    first["operations"] = [joined_operation(operations, starts, shifts) for operations in together]
    first["rows"] = sum(trace["rows"] for trace in traces)
    if "cells" in first:
        first["cells"] = torch.cat([trace["cells"] for trace in traces])
    if "pack" in first:
        run = first["pack"]["cache"].split(".")[0]
        packs = [trace["pack"] for trace in traces]
        of_base = [torch.arange(trace["rows"]) + shift[run] for trace, shift in zip(traces, shifts, strict=True)]
        at_rows = [pack["at_rows"] + start for pack, start in zip(packs, starts, strict=True)]
        first["pack"] = {
            **first["pack"],
            "base_rows": in_one_piece(torch.cat(of_base)),
            "at_rows": torch.cat(at_rows),
            "at_columns": torch.cat([pack["at_columns"] for pack in packs]),
        }
    return first


def in_one_piece(rows: torch.Tensor) -> Any:
    """A slice where rows follow each other, so that what it takes is not copied."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if torch.equal(rows, torch.arange(first, last + 1)) else rows


def rows_before(programs: Any) -> list[dict[str, int]]:
    """For each example base run → how many rows of it are those of examples before, where base runs are joined."""
    before, total = [], {trace["run"]: 0 for trace in programs[0]["bases"]}
    for program in programs:
        before.append(dict(total))
        for trace in program["bases"]:
            total[trace["run"]] += trace["rows"]
    return before


def joined_operation(operations: Any, starts: Any, shifts: Any) -> dict[str, Any]:
    """One operation on the rows of all, where those of each example begin at `starts`, and in base runs at `shifts`."""
    first = operations[0]
    run = str(first.get("source", first.get("name"))).split(".")[0]
    of_source = [shift.get(run, 0) for shift in shifts]
    if first["do"] == "perturb":  # which of the seeds
        of_source = [sum(len(other["seeds"]) for other in operations[:number]) for number in range(len(operations))]
    found = dict(first)
    for name in [name for name in (*PER_ROW, *PER_ROW_TOO) if first.get(name) is not None]:
        values = [operation[name] for operation in operations]
        if name in ("rows", "groups"):
            found[name] = sum(values)
        elif name == "seeds":
            found[name] = [seed for seeds in values for seed in seeds]
        elif name == "cells":
            if first["do"] == "block":
                shifted = zip(values, starts, strict=True)
                found[name] = [{**cell, "row": cell["row"] + start} for cells, start in shifted for cell in cells]
        else:
            by = starts if name == "at_rows" else of_source if name in ("index", "source_rows") else [0] * len(starts)
            found[name] = torch.cat([value + start for value, start in zip(values, by, strict=True)])
    return found
