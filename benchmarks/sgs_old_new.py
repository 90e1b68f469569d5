"""Question: did a change make SGS slower or larger? Compares two source trees, in turn, each in a process of its own.

    git worktree add ../old COMMIT
    python benchmarks/sgs_old_new.py --old ../old/src --commits COMMIT NEW_COMMIT

On VGG-16-BN for CIFAR: ``update`` on 2 and 20 batches of 128 images, the memory that it adds, ``scale_gradients`` after
a backward pass, and whole training steps of 32 images with it (forward, backward, scaling, SGD with momentum). In CPU
seconds of one thread by default, which other load disturbs least.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import backpass
from tools import BATCH, Meter, environment_of, smooth_images, spread, warmed_up, write_json

ROUNDS = {"update 2": 5, "scale 32": 10, "step 32": 15}
ROUNDS |= {"memory 2": 1, "update 20": 3, "memory 20": 1}


def serve(clock: str) -> None:
    """Measure what each line of the standard input names, and answer with one number a line."""
    if clock == "cpu":
        torch.set_num_threads(1)
    meter = Meter("cpu", clock)
    model = warmed_up("vgg16_small", "cpu")
    sgs = backpass.SpatialGradientScaling(model)
    sgs.update([smooth_images(2, 0)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(count: int) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(smooth_images(count, 0)), torch.arange(count) % 10).backward()
        sgs.scale_gradients()
        optimizer.step()

    for line in sys.stdin:
        kind, size = line.split()
        if kind == "step":
            print(meter.seconds(partial(step, int(size))), flush=True)
            continue
        if kind == "scale":
            model.zero_grad()
            F.cross_entropy(model(smooth_images(int(size), 0)), torch.arange(int(size)) % 10).backward()
            print(meter.seconds(sgs.scale_gradients), flush=True)
            continue
        images = [smooth_images(BATCH, seed) for seed in range(int(size))]
        measure: Callable[..., float] = meter.seconds if kind == "update" else meter.added_memory
        print(measure(partial(sgs.update, images)), flush=True)


class Side:
    """A process that measures one source tree."""

    def __init__(self, source: str, clock: str, **environ: str) -> None:
        command = [sys.executable, __file__, "--serve", "--clock", clock]
        environ = os.environ | {"PYTHONPATH": source} | environ
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)

    def measure(self, what: str) -> float:
        """Return one measurement, such as of ``update 20``."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("expected a process with pipes, got one without")
        print(what, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", help="src folder of the old tree")
    parser.add_argument("--new", default=str(Path(__file__).parents[1] / "src"), help="src folder of the new tree")
    parser.add_argument("--commits", nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("--clock", choices=["wall", "cpu"], default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sgs-old-new.json")
    parser.add_argument("--serve", action="store_true", help="measure in this process")
    parser.add_argument("--only", nargs="+", metavar="WHAT", help=f"of {', '.join(ROUNDS)}; other rows are kept")
    options = parser.parse_args()
    if options.serve:
        serve(options.clock)
        return
    sources = {"old": options.old, "new": options.new}
    timing = {name: Side(source, options.clock) for name, source in sources.items()}
    # Without the threshold, glibc's malloc keeps freed maps, and the peak would be a record of its habits.
    sizing = {name: Side(source, options.clock, MALLOC_MMAP_THRESHOLD_="1000000") for name, source in sources.items()}
    asked = {what: rounds for what, rounds in ROUNDS.items() if what in (options.only or ROUNDS)}
    kept = json.loads(options.output.read_text())["rows"] if options.only and options.output.is_file() else []
    rows: list[dict[str, Any]] = [row for row in kept if row["what"] not in asked]
    for what, rounds in asked.items():
        sides = sizing if what.startswith("memory") else timing
        found: dict[str, list[float]] = {name: [] for name in sides}
        loads = []
        for number in range(rounds):
            for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                loads.append(os.getloadavg()[0])
                found[name].append(sides[name].measure(what))
        ratios = [new / old for old, new in zip(found["old"], found["new"], strict=True)]
        rows.append({"what": what, **found, "ratios": ratios, "loads": loads})
        unit, digits = (1e-3, 2) if what.startswith("scale") else (1.0, 2)
        texts = [f"{name} {spread(v * 2 if len(v) == 1 else v, unit, digits)}" for name, v in found.items()]
        print(f"{what}: {', '.join(texts)}, new / old {statistics.median(ratios):.3f}, n = {rounds}", flush=True)
        content = {"environment": environment_of(), "clock": options.clock, "rows": rows}
        content |= {"commits": dict(zip(sources, options.commits, strict=True))}
        write_json(options.output, content)


if __name__ == "__main__":
    main()
