"""The worker: takes the next waiting run, computes it in its folder, and takes the next, until every run has ended."""

import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from backpass.errors import BackpassError
from backpass.experiments.progress import Progress
from backpass.experiments.run import execute, load_data
from backpass.experiments.scheduling.queue import Claim, LostRunError, Queue
from backpass.experiments.scheduling.storage import STORAGE_ERRORS
from backpass.experiments.scheduling.termination import when_terminated
from backpass.training.checkpoint import atomic_write
from backpass.training.images import ImageData
from backpass.training.recipe import DataSettings, Runtime

__all__ = ["GRACE", "HEARTBEAT", "work"]

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
    """Compute waiting runs until every run of the study has ended, here or at another worker.

    A run that raises an error has failed, its traceback is in ``error.txt`` of its folder, and the next is taken. A
    worker that is interrupted puts its run back; the run of one that dies is taken over when it has shown no sign of
    life for ``grace`` seconds. A worker that finds its run taken over, since it had been suspended, drops it. One that
    finds the storage out of reach, or the study without runs so far, tries again until that has changed.

    Args:
        queue: the study.
        folder: of the run folders, shared by all workers.
        progress: receives the events of every run that this worker computes.
        load: reads images; those of the last settings are kept for the next run.
        heartbeat: seconds between signs of life.
        grace: seconds without one until a run is taken over; several times ``heartbeat``.
    """
    runtime = queue.runtime
    progress = progress or Progress()
    load = lru_cache(maxsize=1)(load)
    while True:
        claim = _insist(queue.claim, heartbeat)
        if claim is not None:
            _compute(claim, queue, folder, runtime, progress, load, heartbeat)
            continue
        _insist(lambda: queue.take_over(grace), heartbeat)
        states = {run.state for run in _insist(queue.states, heartbeat)}
        if states and not states & {"waiting", "running"}:
            return
        if "waiting" not in states:
            time.sleep(heartbeat / 4)


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
    """Beats for a claimed run from a thread of its own, and notices when the run is lost."""

    def __init__(self, queue: Queue, claim: Claim, interval: float) -> None:
        self._queue, self._claim, self._interval = queue, claim, interval
        self._stop, self._lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Raise LostRunError if another worker has the run."""
        if self._lost.is_set():
            raise LostRunError(self._claim.run.folder)

    def _beat(self) -> None:
        while not self._stop.is_set():
            try:
                self._queue.beat(self._claim)
            except LostRunError:
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


def _compute(
    claim: Claim,
    queue: Queue,
    folder: Path,
    runtime: Runtime,
    progress: Progress,
    load: Callable[[DataSettings], ImageData],
    heartbeat: float,
) -> None:
    run, own = claim.run.run, folder / claim.run.folder
    with _Heart(queue, claim, heartbeat) as heart:
        try:
            try:
                data = load(run.recipe.data)
                entry = claim.run.entry
                record = execute(run, data, own, runtime=runtime, entry=entry, progress=progress, check=heart.check)
                _insist(lambda: queue.finish(claim, record.accuracy), heartbeat, heart.check)
            except LostRunError:
                raise
            except Exception as error:
                trace = traceback.format_exc()
                text = str(error) if isinstance(error, BackpassError) else f"{type(error).__name__}: {error}"
                _insist(lambda: queue.fail(claim, text), heartbeat, heart.check)
                with suppress(OSError):  # The folder may be what failed.
                    own.mkdir(parents=True, exist_ok=True)
                    atomic_write(own / "error.txt", trace.encode())
                progress.fail_run(run, text)
                if "CUDA error" in text:
                    raise  # No later run could use the device from this process.
                return
        except LostRunError:
            return
        except BaseException:
            # An interrupt from the terminal and SIGTERM may come together. What the storage does not take, grace will.
            with when_terminated(signal.SIG_IGN), suppress(*STORAGE_ERRORS):
                queue.release(claim)
            raise
    with suppress(OSError):
        (own / "error.txt").unlink(missing_ok=True)
