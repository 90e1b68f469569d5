"""The worker: takes the next waiting cell, runs it in its folder, and takes the next, until every cell has ended."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

import torch

from backpass.errors import BackpassError, StateError
from backpass.experiments.queue import Claim, LostCellError, Queue
from backpass.experiments.runs import Progress, execute, load_data
from backpass.experiments.storage import STORAGE_ERRORS
from backpass.training.checkpoint import atomic_write
from backpass.training.images import ImageData
from backpass.training.recipe import DataSettings, Runtime

__all__ = ["GRACE", "HEARTBEAT", "default_processes", "when_terminated", "work", "work_in_processes"]

HEARTBEAT = 10.0
GRACE = 60.0

_PATIENCE = 3600.0
_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


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
    life for ``grace`` seconds. A worker that finds its cell taken over, since it had been suspended, drops it. One that
    finds the storage out of reach, or the study without cells so far, tries again until that has changed.

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
        claim = _insist(queue.claim, heartbeat)
        if claim is not None:
            _run_cell(claim, queue, folder, runtime, progress, load, heartbeat)
            continue
        _insist(lambda: queue.take_over(grace), heartbeat)
        states = {cell.state for cell in _insist(queue.states, heartbeat)}
        if states and not states & {"waiting", "running"}:
            return
        if "waiting" not in states:
            time.sleep(heartbeat / 4)


def default_processes(runtime: Runtime) -> int:
    """Return how many processes suit this machine: one for each visible GPU, one without a GPU."""
    return 1 if runtime.device == "cpu" else max(1, torch.cuda.device_count())


def work_in_processes(queue: Queue, arguments: Sequence[str], processes: int) -> None:
    """Run ``backpass worker`` with ``arguments`` in several processes, each with one of the GPUs in turn.

    The processes end with this call, however it ends. One that has failed is no error if the cells have ended all the
    same: the others took its cell over, or it told of failed cells, whose errors the queue has.

    Raises:
        StateError: a process ended with an error, and left cells that wait or run.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    command = [sys.executable, "-m", "backpass", "worker", *arguments, "--processes", "1"]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(processes):
            own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
            surroundings = {"OMP_NUM_THREADS": threads} | dict(os.environ) | own
            workers.append(subprocess.Popen(command, env=surroundings, stdout=subprocess.DEVNULL))
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.terminate()  # Does nothing to one that has ended.
        for worker in workers:
            worker.wait()
    if any(codes) and any(cell.state in ("waiting", "running") for cell in queue.states()):
        raise StateError(f"expected {processes} workers to end with status 0, got {codes}; their errors are above")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # as a shell reports the signal


@contextmanager
def when_terminated(handler: Callable[[int, FrameType | None], Any] | signal.Handlers = _stop) -> Iterator[None]:
    """Handle SIGTERM, by which schedulers and service managers end a process, in the main thread; elsewhere do nothing.

    By default it raises SystemExit with status 143, so that :func:`work` puts its cell back and
    :func:`work_in_processes` ends its processes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def _insist(call: Callable[[], _T], heartbeat: float, check: Callable[[], None] = lambda: None) -> _T:
    """Return what a call to the storage returns, tried for an hour until the storage answers or ``check`` raises."""
    started, silent = time.monotonic(), True
    while True:
        try:
            return call()
        except BackpassError:
            raise
        except STORAGE_ERRORS as error:
            if time.monotonic() - started > _PATIENCE:
                raise
            if silent:
                _LOG.warning("the storage of the study does not answer, trying again for an hour: %s", error)
                silent = False
            time.sleep(heartbeat / 4)
            check()


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
            except STORAGE_ERRORS:
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
            try:
                data = load(cell.run.recipe.data)
                result = execute(cell.run, data, own, runtime=runtime, progress=progress, check=heart.check)
                _insist(lambda: queue.finish(claim, result.accuracy, asdict(result)), heartbeat, heart.check)
            except LostCellError:
                raise
            except Exception as error:
                trace = traceback.format_exc()
                text = str(error) if isinstance(error, BackpassError) else f"{type(error).__name__}: {error}"
                _insist(lambda: queue.fail(claim, text), heartbeat, heart.check)
                with suppress(OSError):  # The folder may be what failed.
                    own.mkdir(parents=True, exist_ok=True)
                    atomic_write(own / "error.txt", trace.encode())
                progress.fail_run(cell.run, text)
                if "CUDA error" in text:
                    raise  # No later cell could use the device from this process.
                return
        except LostCellError:
            return
        except BaseException:
            # An interrupt from the terminal and SIGTERM may come together. What the storage does not take, grace will.
            with when_terminated(signal.SIG_IGN), suppress(*STORAGE_ERRORS):
                queue.release(claim)
            raise
    with suppress(OSError):
        (own / "error.txt").unlink(missing_ok=True)
