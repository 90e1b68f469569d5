"""Kill training runs at random moments, let them resume, and compare their ends with those of undisturbed runs.

    uv run --extra lab python benchmarks/kills.py                          # 30 kills of each of 16 kinds of run
    uv run --extra lab python benchmarks/kills.py --methods dyrep --kills 5

For each method, precision and number of processes, one run is trained undisturbed. Then runs with the same settings are
killed by SIGKILL, with all their processes, at a moment drawn uniformly over the length of a whole run, and started
again, until the kills are used up. Every run must end with the same weights, byte by byte, the same metrics of every
epoch, ``train_loss`` included, the same scalings and the same files; no epoch that has been recorded is trained again.
Status 1 if one does not. It takes some ten minutes on two cores.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, cast

import torch

from backpass.experiments.progress import Progress
from backpass.experiments.recipes import RECIPES
from backpass.experiments.record import read_record
from backpass.experiments.run import execute, load_data
from backpass.training.recipe import DataSettings, DyRepSettings, Run, Runtime, SgsSettings

__all__ = ["METHODS", "Case", "Tally", "kill_runs"]

METHODS = ("plain", "sgs+pgt", "repvgg", "dyrep")
RECIPE = replace(
    RECIPES["digits"],
    epochs=6,
    batch_size=48,
    data=DataSettings(limit_train=96, limit_test=40),
    sgs=SgsSettings(warmup=1, every=2),
    dyrep=DyRepSettings(every=2, until=6, recalibration_batches=1),
)
Precision = Literal["no", "bf16"]


@dataclass(frozen=True)
class Case:
    """One kind of run.

    Attributes:
        method: a name of ``backpass.training.methods.check_method``.
        precision: of the forward pass; ``no``: float32.
        processes: that train one run together.
    """

    method: str
    precision: Precision
    processes: int


# Forked from a process that has everything imported and no threads, so that a start takes no seconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["backpass.experiments.run", "sklearn.datasets", "torch._dynamo"])


@dataclass
class Tally:
    """What the kills of one case have come to.

    Attributes:
        kills: that hit a run that was training.
        runs: that were trained to their ends.
        problems: differences to the undisturbed run.
    """

    kills: int
    runs: int
    problems: list[str]


class _Begun(Progress):
    """Tells the starter when the first step has been taken."""

    def __init__(self, starter: Connection) -> None:
        self._starter: Connection | None = starter

    def step(self, epoch: int, step: int, steps: int) -> None:
        if self._starter is not None:
            self._starter.send(None)
            self._starter = None


def train(case: Case, folder: Path, rank: int, port: int, starter: Connection) -> None:
    """Train a run, or resume it, as one of the case's processes."""
    torch.set_num_threads(1)
    if case.processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.processes, "MASTER_ADDR": "127.0.0.1"}
        place |= {"MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        os.environ.update({name: str(value) for name, value in place.items()})
    runtime = Runtime(device="cpu", precision=case.precision)
    execute(Run(RECIPE, case.method, 3), load_data(RECIPE.data), folder, runtime=runtime, progress=_Begun(starter))


def kill_runs(case: Case, kills: int, folder: Path, generator: random.Random) -> Tally:
    """Kill runs of a case, compare their ends with an undisturbed one, and return what was found.

    Args:
        case: the kind of run.
        kills: number of kills.
        folder: of the run folders.
        generator: draws the moments.
    """
    whole = folder / "undisturbed"
    seconds = cast(float, _start(case, whole, None))  # nothing kills it
    tally = Tally(kills=0, runs=0, problems=[])
    while tally.kills < kills:
        killed, recorded = folder / f"killed-{tally.runs}", []
        while tally.kills < kills and _start(case, killed, generator.uniform(0, seconds)) is None:
            tally.kills += 1
            recorded.append(_metrics(killed))
        _start(case, killed, None)  # Reads the record if the last start has reached the end.
        tally.runs += 1
        tally.problems += [f"{case}: {problem}" for problem in differences(whole, killed, recorded)]
        shutil.rmtree(killed)
    return tally


def _start(case: Case, folder: Path, moment: float | None) -> float | None:
    """Train a run, or resume it, and kill it ``moment`` seconds after its first step.

    Returns:
        The seconds from its first step to its end; ``None`` if it was killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    ranks = [_CONTEXT.Process(target=train, args=(case, folder, rank, port, sender)) for rank in range(case.processes)]
    for process in ranks:
        process.start()
    sender.close()
    with suppress(EOFError):
        receiver.recv()
    begun = time.monotonic()
    ranks[0].join(moment)
    seconds = time.monotonic() - begun
    if killed := ranks[0].is_alive():
        for process in ranks:
            process.kill()
    for process in ranks:
        process.join()
    codes = {process.exitcode for process in ranks}
    if not killed and codes != {0}:
        raise RuntimeError(f"expected {case} to end with status 0, got {codes}; its errors are above")
    return None if killed else seconds


def differences(whole: Path, killed: Path, recorded: Sequence[str]) -> list[str]:
    """Return in what a run folder differs from that of the undisturbed run.

    Args:
        whole: folder of the undisturbed run.
        killed: folder of the run that was killed.
        recorded: content of its ``metrics.jsonl`` at each kill.
    """
    found = []
    files, expected = ({path.name for path in folder.iterdir()} for folder in (killed, whole))
    if files != expected:
        found.append(f"expected the files {sorted(expected)}, got {sorted(files)}")
    own, other = (read_record(folder / "result.json") for folder in (killed, whole))
    for epoch, (record, undisturbed) in enumerate(zip(own.history, other.history, strict=True)):
        names = [n for n in undisturbed if not n.endswith("_seconds") and record.get(n) != undisturbed[n]]
        found += [f"expected {n} of epoch {epoch} to be {undisturbed[n]}, got {record.get(n)}" for n in names]
    if own.scalings != other.scalings:
        found.append("expected the scalings of the undisturbed run, got others")
    if (killed / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes():
        found.append("expected the weights of the undisturbed run, got others")
    final = _metrics(killed)
    if not all(final.startswith(part) for part in recorded):
        found.append("expected every epoch that was recorded at a kill to be kept, got some that were trained again")
    return found


def _metrics(folder: Path) -> str:
    path = folder / "metrics.jsonl"
    return path.read_text() if path.is_file() else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return 1 if a run differs from the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="kills of each kind of run")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--precisions", nargs="+", default=["no", "bf16"], choices=["no", "bf16"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_args(arguments)
    problems = []
    print("method      precision  processes  kills  runs  differences")
    for case in map(
        Case, *zip(*itertools.product(options.methods, options.precisions, options.processes), strict=True)
    ):
        generator = random.Random(f"{options.seed} {case}")
        with tempfile.TemporaryDirectory() as folder:
            tally = kill_runs(case, options.kills, Path(folder), generator)
        precision = "fp32" if case.precision == "no" else case.precision
        print(
            f"{case.method:<11} {precision:<10} {case.processes:>9}  {tally.kills:>5}  {tally.runs:>4}  "
            f"{len(tally.problems):>11}",
            flush=True,
        )
        problems += tally.problems
    print(*problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
