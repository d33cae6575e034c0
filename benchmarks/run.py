"""Time the sweep engine against the naive loop:  python benchmarks/run.py

With nothing said, everything: six sweeps, memory, more examples. What is named (--only, --memory, --examples) runs
alone; results of earlier runs stay in the page. Each sweep is one example, run by `vp.run` on a model of random
weights; a sweep whose numbers are not those of the naive loop ends the command with an error. On a GPU:

    python benchmarks/run.py --device cuda --dtype bfloat16 --only llava7b_heads llava7b_modules
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from measure import TOLERANCE, Record, Settings, measure
from memory import example_costs, sweep_memory
from problem import Problem, make_problem
from report import line, machine, now, render, write
from shapes import SHAPES, SMALL, build
from sweeps import Sweep, sweeps

import vlm_patching
from vlm_patching.models import Model

HERE = Path(__file__).resolve().parent
THREADS = 1


def main() -> None:
    """Run what was asked for; leave JSON and Markdown."""
    arguments = parse()
    torch.set_num_threads(THREADS)
    known = sweeps(arguments.small, arguments.device)
    out = arguments.out or (Path("results/benchmarks/small") if arguments.small else HERE / "results")
    page, order, failed = out.parent / "RESULTS.md", [*known, "memory", "examples"], []
    for make in work(arguments, known):
        record = make() | {"machine": machine(THREADS, arguments.device), **now()}
        write(out, record)
        page.write_text(render(out, order))
        print(line(record), flush=True)
        failed += [f"{record['name']}: {failure}" for failure in record["failures"]]
    print(f"\n{page.read_text()}\n{page}, {out}")
    if failed:
        sys.exit("FAILED\n" + "\n".join(failed))


def parse() -> argparse.Namespace:
    """Arguments that can be followed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--small", action="store_true", help="tiny models, seconds: does the harness work?")
    add("--only", nargs="+", default=[], metavar="NAME", help="sweeps to time: " + ", ".join(sweeps(False, "cpu")))
    add("--memory", action="store_true", help="peak memory of llava_heads against plain forward passes")
    add("--examples", action="store_true", help="time and memory of 8 to 64 examples of a preset")
    add("--repeats", type=int, default=5, help="of the engine (5); 2 where one takes over a minute, 1 over five")
    add("--cells", type=int, default=8, help="cells on which the naive loop is timed and compared (8)")
    add("--out", type=Path, help="folder of the JSON files (benchmarks/results); RESULTS.md is put beside it")
    add("--device", default="cpu", help="cpu or cuda")
    add("--dtype", default="float32", choices=list(TOLERANCE))
    arguments = parser.parse_args()
    for name in arguments.only:
        if name not in sweeps(False, "cpu"):
            parser.error(f"unknown sweep {name!r}; known: {', '.join(sweeps(False, 'cpu'))}")
    if min(arguments.repeats, arguments.cells) < 1:
        parser.error("--repeats and --cells are at least 1")
    if Path(vlm_patching.__file__).parents[1] != HERE.parent:
        parser.error(f"vlm_patching is imported from {Path(vlm_patching.__file__).parent}, not from {HERE.parent}")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error("no GPU is at hand: torch.cuda.is_available() is False")
    return arguments


def work(arguments: argparse.Namespace, known: dict[str, Sweep]) -> Iterator[Callable[[], Record]]:
    """What is asked for, each as a call that gives its record."""
    everything = not (arguments.only or arguments.memory or arguments.examples)
    names = [name for name, sweep in known.items() if (everything and not sweep.on_request) or name in arguments.only]
    where = (arguments.device, arguments.dtype, arguments.small)
    if everything or arguments.memory:
        yield partial(sweep_memory, *where)
    if everything or arguments.examples:
        yield partial(example_costs, *where)
    for shape in dict.fromkeys(known[name].shape for name in names):
        yield from timings([known[name] for name in names if known[name].shape == shape], shape, arguments)


def timings(chosen: list[Sweep], name: str, arguments: argparse.Namespace) -> Iterator[Callable[[], Record]]:
    """Sweeps on one model, which is there while they are run."""
    shape = (SMALL if arguments.small else SHAPES)[name]
    settings = Settings(arguments.repeats, arguments.cells)
    with tempfile.TemporaryDirectory() as folder:
        model = build(shape, Path(folder), arguments.device, arguments.dtype)
        for sweep in chosen:
            problem = make_problem(model, shape, sweep.regions)
            yield partial(_measured, sweep, model, problem, settings, str(shape))


def _measured(sweep: Sweep, model: Model, problem: Problem, settings: Settings, shape: str) -> Record:
    return measure(sweep, model, problem, settings) | {"shape": shape}


if __name__ == "__main__":
    main()
