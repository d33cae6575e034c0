"""Records of measurements → JSON files in a folder → one Markdown page."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from measure import Record

PACKAGES = ("torch", "transformers", "nnsight", "vlm-patching")
GPU_COMMAND = (
    "python benchmarks/run.py --device cuda --dtype bfloat16 --only llava7b_heads llava7b_modules   # 7B, bfloat16\n"
    "python benchmarks/run.py --device cuda --only llava_heads llava_modules llava_regions llava_knockout\n"
)
HEADER = """# The engine against the naive loop

Written by `make bench` (`python benchmarks/run.py`). Every sweep is one example. *naive*: plain PyTorch hooks, one
full forward pass of the model a cell, image included; timed on a few random cells and multiplied out, with its base
runs. *engine*: `vp.run` whole, median after a warm-up run, loading left out. *bound*: naive over the time of the base
runs that the method needs, as if all cells cost nothing. *by hand*: the sweep written out in plain PyTorch for this one
model and method. *difference*: largest between the engine and the naive cells (and, where there is one, all cells by
hand), in log-probability and in probability. Weights are random and scaled so that patching matters: *effect* is the
largest (the median) change of log-probability.
"""

PAIRS = "pairs"
PAIRS_HEADER = """# Pairs from a dataset's files

Written by `python benchmarks/pairs.py`: SVO-Probes' format, generated; some of the rows as pairs, or all of them.
Wanted are 2,000 rows a second, and memory that does not grow with the rows where some of them are drawn.

"""


def machine(threads: int, device: str) -> dict[str, str]:
    """What it ran on."""
    found = {
        "machine": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} cores visible, {threads} torch thread",
        "GPU": torch.cuda.get_device_name() if device != "cpu" else "none used",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {_version(p)}" for p in PACKAGES)]),
        "commit": _commit(),
    }
    return found


def now() -> dict[str, Any]:
    """When, and how busy the machine was: other work makes every figure worse."""
    return {"date": datetime.date.today().isoformat(), "load_average": round(os.getloadavg()[0], 2)}


def write(folder: Path, record: Record) -> None:
    """Keep a record under its name, in place of an older one of the same kind of device and dtype."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [record["name"], *(["gpu"] if record["machine"]["GPU"] != "none used" else [])]
    parts += [record["dtype"]] if record["dtype"] != "float32" else []
    (folder / f"{'.'.join(parts)}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def render(folder: Path, order: Sequence[str]) -> str:
    """The page about all records in a folder, machine by machine."""
    records: list[Record] = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    records.sort(key=lambda r: [*order, r["name"]].index(r["name"]))
    reading = [record for record in records if record["name"] == PAIRS]
    records = [record for record in records if record["name"] != PAIRS]
    machines: list[dict[str, str]] = []
    for record in records:
        if record["machine"] not in machines:
            machines.append(record["machine"])
    parts = [HEADER]
    for one in machines:
        parts.append(_section(one, [record for record in records if record["machine"] == one]))
    if all(one["GPU"] == "none used" for one in machines):
        parts.append(f"## GPU\n\nNo GPU was at hand. Where there is one:\n\n```sh\n{GPU_COMMAND}```\n")
    parts += [PAIRS_HEADER + _section(record["machine"], [record], "###") for record in reading]
    return "\n".join(parts)


def line(record: Record) -> str:
    """A record in one line, for the terminal."""
    if "rows" in record:
        return f"{record['name']}: " + "; ".join(" ".join(row) for row in _cells(record))
    return " | ".join(_row(record)).replace("**", "")


def _section(one: dict[str, str], records: Sequence[Record], level: str = "##") -> str:
    days = sorted({record["date"] for record in records})
    busy = [record["load_average"] for record in records]
    lines = [f"{level} {one['processor'].split(',')[0] if one['GPU'] == 'none used' else one['GPU']}", ""]
    lines += [f"- {name}: {value}" for name, value in one.items()]
    lines += [f"- date: {', '.join(days)}", f"- load average: {min(busy)} to {max(busy)}", ""]
    timed = [record for record in records if "engine" in record]
    if timed:
        lines += [*_table(COLUMNS, [_row(record) for record in timed]), *_notes(timed)]
    for record in records:
        if "rows" in record:
            lines += [TITLES[record["name"]].format(**record), "", *_table(HEADS[record["name"]], _cells(record)), ""]
    return "\n".join(lines)


COLUMNS = (
    "sweep",
    "cells",
    "naive, s",
    "engine, s",
    "faster",
    "target",
    "bound",
    "by hand, s",
    "engine / by hand",
    "difference",
    "effect",
)
TITLES = {
    "memory": "Peak memory of sweep {about}, each figure in a process of its own, loading left out:",
    "examples": "More examples, preset {about}, each figure in a process of its own:",
    "pairs": "Each figure in a process of its own:",
}
HEADS = {
    "memory": ("what", "before, MiB", "peak, MiB", "added, MiB"),
    "examples": ("examples", "kept", "s", "ms an example", "peak, MiB", "added, MiB"),
    "pairs": ("pairs", "s", "rows a second", "pairs a second", "peak, MiB", "added, MiB"),
}


def _row(record: Record) -> list[str]:
    hand = record.get("optimum")
    engine = record["engine"]["seconds"]
    differences = [record[by]["difference"] for by in ("naive", "optimum") if by in record]
    worst = [max(d[metric] for d in differences) for metric in ("log_probability", "probability")]
    return [
        record["name"],
        f"{record['cells']:,}",
        _number(record["naive"]["seconds"]),
        _number(engine),
        f"**{_number(record['speedup'])}×**",
        _verdict(record["target"], record["speedup"]),
        f"{_number(record['bound'])}×",
        _number(hand["seconds"]) if hand else "",
        _number(engine / hand["seconds"]) if hand else "",
        ("**FAILED** " if record["failures"] else "") + ", ".join(f"{value:.1g}" for value in worst),
        f"{_number(record['largest_effect'])} ({_number(record['median_effect'])})",
    ]


def _notes(records: Sequence[Record]) -> list[str]:
    shapes = dict.fromkeys(record["shape"] for record in records)
    lines = [""]
    lines += [f"- {', '.join(r['name'] for r in records if r['shape'] == shape)}: {shape}" for shape in shapes]
    lines.append("")
    for record in records:
        lines.append(f"- {record['name']}: {record['about']}. {_timings(record)}{_against_notice(record)}")
        lines += [f"  - **FAILED**: {failure}" for failure in record["failures"]]
    return [*lines, ""]


def _timings(record: Record) -> str:
    loop, base, engine = record["naive"], record["base"], record["engine"]["all_seconds"]
    return (
        f"{record['positions']} positions, {record['dtype']}; naive {_number(loop['seconds_per_cell'])} s a cell "
        f"(median of {loop['cells_timed']}); base run {_number(base['seconds_per_run'])} s × {base['runs']}; engine "
        f"{len(engine)} repeats, {_number(min(engine))} to {_number(max(engine))} s."
    )


def _against_notice(record: Record) -> str:
    if record["notice_target"] is None:
        return ""
    notice = record["notice"]
    return (
        f" NOTICE's own loop, modelled as three image encodings a cell ({_number(notice['seconds_per_image'])} s "
        f"each): {_number(notice['seconds'])} s, **{_number(notice['speedup'])}×** "
        f"({_verdict(record['notice_target'], notice['speedup'])})."
    )


def _verdict(target: float | None, reached: float) -> str:
    return "" if target is None else f"≥ {target:g}×: {'met' if reached >= target else '**missed**'}"


def _cells(record: Record) -> list[list[str]]:
    rows = record["rows"]
    memory = [[_number(row["peak_mib"]), _number(row["added_mib"])] for row in rows]
    if record["name"] == "memory":
        return [[row["what"], _number(row["before_mib"]), *two] for row, two in zip(rows, memory, strict=True)]
    if record["name"] == PAIRS:
        rates = [[_number(row["rows_per_second"]), _number(row["kept"] / row["seconds"])] for row in rows]
        named = [[row["what"], _number(row["seconds"]), *rate] for row, rate in zip(rows, rates, strict=True)]
        return [[*one, *two] for one, two in zip(named, memory, strict=True)]
    return [
        [
            str(row["examples"]),
            str(row["kept"]),
            _number(row["seconds"]),
            _number(1000 * row["seconds_per_example"]),
            *two,
        ]
        for row, two in zip(rows, memory, strict=True)
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit that is timed, and whether the files are as it has them."""

    def git(*arguments: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "../vlm_patching")
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
