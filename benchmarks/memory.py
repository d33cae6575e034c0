"""Peak memory, each figure in a process of its own, and what more examples cost.

A process loads its model, forgets the peak of loading, works once, and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import naive
import torch
import transformers
from measure import Record, timed
from problem import make_problem
from shapes import SHAPES, SMALL, build
from sweeps import sweeps

import vlm_patching as vp

EXAMPLES = (8, 16, 32, 64)
PRESET = "notice2024_llava_heads"
MIB = 2**20


def sweep_memory(device: str, dtype: str, small: bool) -> Record:
    """Peak memory of sweep llava_heads, and of plain forward passes of one, two and (a layer's heads) 32 rows."""
    heads = (SMALL if small else SHAPES)["llava"].heads
    works = {"sweep": "engine: the whole sweep"}
    works |= {f"forward:{rows}": f"one plain forward pass, batch of {rows}" for rows in (1, 2, heads)}
    rows = [{"what": about, **_in_a_process(work, device, dtype, small)} for work, about in works.items()]
    return {"name": "memory", "about": "llava_heads", "dtype": dtype, "rows": rows, "failures": []}


def example_costs(device: str, dtype: str, small: bool) -> Record:
    """Time and peak memory of a preset on more and more examples of the bundled model."""
    counts = EXAMPLES[:2] if small else EXAMPLES
    rows = [{"examples": n, **_in_a_process(f"examples:{n}", device, dtype, small)} for n in counts]
    return {"name": "examples", "about": f"{PRESET} on shapes-llava", "dtype": dtype, "rows": rows, "failures": []}


def _in_a_process(work: str, device: str, dtype: str, small: bool) -> Record:
    command = [sys.executable, __file__, work, "--device", device, "--dtype", dtype, *(["--small"] if small else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Record = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Do one thing and print what memory it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", help="sweep, forward:ROWS or examples:N")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kind, _, number = arguments.work.partition(":")
    if kind == "examples":
        found = _examples(int(number), arguments.device, arguments.dtype)
    else:
        found = _on_llava(kind, int(number or 0), arguments)
    print(json.dumps(found))


def _on_llava(kind: str, rows: int, arguments: argparse.Namespace) -> Record:
    shape = (SMALL if arguments.small else SHAPES)["llava"]
    with tempfile.TemporaryDirectory() as folder:
        model = build(shape, Path(folder), arguments.device, arguments.dtype)
        problem = make_problem(model, shape, "none")
        sweep = sweeps(arguments.small, arguments.device)["llava_heads"]
        module = model.envoy._module
        inputs = {name: value.expand(rows, *value.shape[1:]) for name, value in problem.inputs["clean"].items()}

        def engine(experiment: vp.Experiment) -> Any:
            return vp.run(experiment, model=model, inputs=[problem.pair], checks=False, progress=False, threads=1)

        if kind == "forward":
            return peak_of(lambda: naive.logits(module, inputs, use_cache=False), arguments.device)
        spec = sweep.spec(folder)
        engine(vp.Experiment.from_dict({**spec, "patch": {**spec["patch"], "layers": [0]}}))  # what is loaded only once
        return peak_of(lambda: engine(vp.Experiment.from_dict(spec)), arguments.device)


def _examples(count: int, device: str, dtype: str) -> Record:
    experiment = vp.Experiment.from_spec(PRESET, {"pairs.n": count})
    transformers.logging.disable_progress_bar()
    model = vp.load_model("shapes-llava", dtype=dtype, device_map=None if device == "cpu" else device)
    pairs = vp.load_pairs("shapes", n=count, seed=0, questions=["color_choice"])

    def work(n: int) -> Any:
        return vp.run(experiment, model=model, inputs=pairs[:n], checks=False, progress=False, threads=1)

    work(1)
    found = peak_of(lambda: int(work(count).attrs["examples_kept"]), device)
    return found | {"seconds_per_example": found["seconds"] / count}


def peak_of(work: Any, device: str) -> Record:
    """Seconds of some work, memory before it and at its peak, in MiB; what it returns if that is a number."""
    gc.collect()
    before = _begin(device)
    value, seconds = timed(work)
    peak = torch.cuda.max_memory_allocated() / MIB if device != "cpu" else _status("VmHWM")
    found: Record = {"seconds": seconds, "before_mib": before, "peak_mib": peak, "added_mib": peak - before}
    return found | ({"kept": value} if isinstance(value, int) else {})


def _begin(device: str) -> float:
    """Memory in use, what was freed given back; from now on the peak is counted anew, where the system can."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory, which would hide the peak
        if trim is not None:
            trim(0)
        clear.write_text("5")
    return _status("VmRSS")


def _status(field: str) -> float:
    """A figure of the kernel's about this process, in MiB; its peak over all time where there is no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
