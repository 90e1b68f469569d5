"""The worker: takes the next waiting cell, runs it in its folder, and takes the next, until every cell has ended."""

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import torch
from optuna.exceptions import StorageInternalError

from backpass.errors import BackpassError, StateError
from backpass.experiments.queue import Claim, LostCellError, Queue
from backpass.experiments.runs import Progress, execute, load_data
from backpass.training.checkpoint import atomic_write
from backpass.training.images import ImageData
from backpass.training.recipe import DataSettings, Runtime

__all__ = ["GRACE", "HEARTBEAT", "default_processes", "work", "work_in_processes"]

HEARTBEAT = 10.0
GRACE = 60.0


def work(
    queue: Queue,
    folder: Path,
    *,
    progress: Progress | None = None,
    load: Callable[[DataSettings], ImageData] = load_data,
    heartbeat: float = HEARTBEAT,
    grace: float = GRACE,
) -> None:
    """Run waiting cells until every cell of the study has ended, here or at another worker.

    A cell that raises an error has failed, its traceback is in ``error.txt`` of its folder, and the next is taken. A
    worker that is interrupted puts its cell back; the cell of one that dies is taken over when it has shown no sign of
    life for ``grace`` seconds. A worker that finds its cell taken over, since it had been suspended, drops it.

    Args:
        queue: the study.
        folder: where the run folders lie.
        progress: is told of every cell that this worker runs.
        load: reads images; those of the last settings are kept for the next cell.
        heartbeat: seconds between signs of life.
        grace: seconds without one until a cell is taken over; several times ``heartbeat``.
    """
    runtime = queue.runtime
    progress = progress or Progress()
    load = lru_cache(maxsize=1)(load)
    while True:
        claim = queue.claim()
        if claim is not None:
            _run_cell(claim, queue, folder, runtime, progress, load, heartbeat)
            continue
        queue.take_over(grace)
        states = {cell.state for cell in queue.states()}
        if not states & {"waiting", "running"}:
            return
        if "waiting" not in states:
            time.sleep(heartbeat / 4)


def default_processes(runtime: Runtime) -> int:
    """Return how many processes suit this machine: one for each visible GPU, one without a GPU."""
    return 1 if runtime.device == "cpu" else max(1, torch.cuda.device_count())


def work_in_processes(arguments: Sequence[str], processes: int) -> None:
    """Run ``backpass worker`` with ``arguments`` in several processes, each with one of the GPUs in turn.

    Raises:
        StateError: a process ended with an error.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    command = [sys.executable, "-m", "backpass", "worker", *arguments, "--processes", "1"]
    workers = []
    for number in range(processes):
        own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        surroundings = {"OMP_NUM_THREADS": threads} | dict(os.environ) | own
        workers.append(subprocess.Popen(command, env=surroundings, stdout=subprocess.DEVNULL))
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise StateError(f"expected {processes} workers to end with status 0, got {codes}; their errors are above")


class _Heart:
    """Beats for a claimed cell from a thread of its own, and notices when the cell is lost."""

    def __init__(self, queue: Queue, claim: Claim, interval: float) -> None:
        self._queue, self._claim, self._interval = queue, claim, interval
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Raise LostCellError if another worker has the cell."""
        if self._lost.is_set():
            raise LostCellError(self._claim.cell.folder)

    def _beat(self) -> None:
        while not self._stop.is_set():
            try:
                self._queue.beat(self._claim)
            except LostCellError:
                self._lost.set()
                return
            except StorageInternalError:
                pass  # The storage may come back before the grace period is over.
            self._stop.wait(self._interval)

    def __enter__(self) -> "_Heart":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def _run_cell(
    claim: Claim,
    queue: Queue,
    folder: Path,
    runtime: Runtime,
    progress: Progress,
    load: Callable[[DataSettings], ImageData],
    heartbeat: float,
) -> None:
    cell = claim.cell
    own = folder / cell.folder
    with _Heart(queue, claim, heartbeat) as heart:
        try:
            data = load(cell.run.recipe.data)
            result = execute(cell.run, data, own, runtime=runtime, progress=progress, check=heart.check)
            queue.finish(claim, result.accuracy, asdict(result))
        except LostCellError:
            return
        except Exception as error:
            own.mkdir(parents=True, exist_ok=True)
            atomic_write(own / "error.txt", traceback.format_exc().encode())
            text = str(error) if isinstance(error, BackpassError) else f"{type(error).__name__}: {error}"
            queue.fail(claim, text)
            progress.fail_run(cell.run, text)
            if "CUDA error" in text:
                raise  # No later cell could use the device from this process.
            return
        except BaseException:
            queue.release(claim)
            raise
    (own / "error.txt").unlink(missing_ok=True)
