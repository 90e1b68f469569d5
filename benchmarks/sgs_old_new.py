"""Question: did a change to SGS make it slower or larger? Compares two source trees, in turn, in fresh processes.

    git worktree add ../old COMMIT
    python benchmarks/sgs_old_new.py --old ../old/src --commits COMMIT $(git rev-parse --short HEAD)

Measures what ``sgs.py`` does, on VGG-16-BN for CIFAR: ``update`` on 2 and 20 batches of 128 images, the memory that it
adds, and ``scale_gradients`` at batch 128. By default in CPU seconds of one thread, which other load disturbs least.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools import environment_of, spread

HERE = Path(__file__).parent
ROUNDS = {("update", 2): 5, ("step", 128): 5, ("memory", 2): 2, ("update", 20): 3, ("memory", 20): 1}
REPETITIONS = {"update": 1, "memory": 1, "step": 5}  # in each process


def measure(source: str, kind: str, size: int, clock: str) -> dict[str, Any]:
    environ = os.environ | {"PYTHONPATH": source}
    environ |= {"MALLOC_MMAP_THRESHOLD_": "1000000"} if kind == "memory" else {}  # see sgs.py
    command = [sys.executable, str(HERE / "sgs.py"), "--clock", clock]
    command += ["--measure", kind, str(size), str(REPETITIONS[kind])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    return json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="src folder of the old tree")
    parser.add_argument("--new", default=str(HERE.parent / "src"), help="src folder of the new tree")
    parser.add_argument("--commits", nargs=2, metavar=("OLD", "NEW"), required=True)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="cpu")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "sgs-old-new.json")
    options = parser.parse_args()
    sources = {"old": options.old, "new": options.new}
    rows: list[dict[str, Any]] = []
    for (kind, size), rounds in ROUNDS.items():
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sources}
        for number in range(rounds):
            for side in list(sources)[:: 1 if number % 2 == 0 else -1]:
                found[side].append(measure(sources[side], kind, size, options.clock))
        rows.append({"kind": kind, "size": size, **found})
        key = {"update": "update", "memory": "memory_mb", "step": "scale"}[kind]
        values = {side: [value for m in runs for value in m[key]] for side, runs in found.items()}
        ratios = [new / old for old, new in zip(values["old"], values["new"], strict=True)]
        unit, digits = (1e-3, 2) if kind == "step" else (1.0, 2)
        texts = {
            side: spread(v, unit, digits) if len(v) > 1 else f"{v[0] / unit:.{digits}f}" for side, v in values.items()
        }
        print(f"{kind} {size}: {texts}, new / old {statistics.median(ratios):.3f}, n = {len(ratios)}", flush=True)
        content = {"environment": environment_of(), "clock": options.clock, "rows": rows}
        content |= {"commits": dict(zip(sources, options.commits, strict=True))}
        options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
