"""The worker: takes the next waiting run, computes it in its folder, and takes the next, until every run has ended."""

import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from backpass.errors import BackpassError, DivergedError, InputError
from backpass.experiments.progress import Progress
from backpass.experiments.run import execute, load_data
from backpass.experiments.scheduling.queue import Claim, LostRunError, Queue
from backpass.experiments.scheduling.run_state import RunState
from backpass.experiments.scheduling.storage_errors import STORAGE_ERRORS, StorageLostError, lasting_cause, root_cause
from backpass.experiments.scheduling.termination import when_terminated
from backpass.experiments.stages import next_runs
from backpass.experiments.study import StudyRun, read_study
from backpass.training.checkpoint import atomic_write
from backpass.training.items import Data
from backpass.training.recipe import DataSettings, Runtime

__all__ = ["GRACE", "HEARTBEAT", "check_grace", "work"]

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
    heartbeat: float = HEARTBEAT,
    grace: float = GRACE,
) -> None:
    """Compute waiting runs until every run of the study has ended, here or at another worker, in all of its stages.

    A run that raises an error has failed, its traceback is in ``error.txt`` of its folder, and the next is taken. A
    worker that is interrupted puts its run back; the run of one that dies is taken over when it has shown no sign of
    life for ``grace`` seconds. A worker that finds its run taken over, since it had been suspended, drops it. One that
    finds the storage out of reach tries again for an hour, and one that finds the study without runs waits for them.

    Args:
        queue: the study.
        folder: of the run folders, shared by all workers.
        progress: receives the events of every run that this worker computes.
        heartbeat: seconds between signs of life.
        grace: seconds without one until a run is taken over; several times ``heartbeat``.

    Raises:
        StorageLostError: the storage did not answer for an hour, its disk is full, or its file is gone.
        InputError: the storage holds what is no run of a study, a folder of the next stage belongs to another run, or
            ``grace`` is too short (:func:`check_grace`).
    """
    check_grace(heartbeat, grace)
    runtime = _insist(queue, lambda: queue.runtime, heartbeat)
    progress = progress or Progress()
    load = lru_cache(maxsize=1)(load_data)  # The next run often has the same images.
    awaited: set[str] = set()
    named_empty = False
    while True:
        claim = _insist(queue, queue.claim, heartbeat)
        if claim is not None:
            _compute(claim, queue, folder, runtime, progress, load, heartbeat)
            awaited = set()
            continue
        _insist(queue, lambda: queue.take_over(grace), heartbeat)
        runs = _insist(queue, queue.states, heartbeat)
        states = {run.state for run in runs}
        if states and not states & {"waiting", "running"}:
            new = _next_stage(folder, runs)
            if not new:
                return
            _insist(queue, lambda: queue.fill(new), heartbeat)  # noqa: B023
            continue
        if not states and not named_empty:
            _LOG.warning("the study has no runs yet; waiting for the command that adds them")
            named_empty = True
        if "waiting" not in states:
            awaited = _log_awaited(runs, awaited, grace)
        time.sleep(heartbeat / 4)  # Also with runs that wait: they may need the weights of one that runs.


def check_grace(heartbeat: float, grace: float) -> None:
    """Raise InputError if the runs of workers that live would be taken over.

    Args:
        heartbeat: seconds between signs of life.
        grace: seconds without one until a run is taken over; at least two times ``heartbeat``.
    """
    if grace < 2 * heartbeat:
        raise InputError(
            f"expected a grace of at least two heartbeats, {2 * heartbeat:g} s, got {grace:g} s, in which a worker "
            "that lives may show no sign of life; give a longer --grace or a shorter --heartbeat"
        )


def _next_stage(folder: Path, ended: Sequence[RunState]) -> list[StudyRun]:
    """Return the runs that follow from those that have ended.

    Those that have ended may belong to an earlier study in the folder; which of this one's are missing, its file tells.

    Raises:
        InputError: the folder of one that follows belongs to another run.
    """
    study = read_study(folder)
    if study is None or study.tuning is None:
        return []
    diverged = {run.run for run in ended if run.diverged}
    known = {run.run for run in ended}
    return [run for run in next_runs(study, folder, diverged, ended=True) if run not in known]


def _log_awaited(runs: Sequence[RunState], known: set[str], grace: float) -> set[str]:
    """Log the runs of other workers that this one waits for, if some are not ``known``; return all that are."""
    workers = {run.run.folder: run.worker or "starting" for run in runs if run.state == "running"}
    if not workers.keys() <= known:
        _LOG.warning(
            "no run waits; waiting for the runs of other workers, and taking over any that shows no sign of life for "
            "%g s: %s",
            grace,
            ", ".join(f"{folder} ({worker})" for folder, worker in workers.items()),
        )
    return known | workers.keys()


def _insist(queue: Queue, call: Callable[[], _T], heartbeat: float, check: Callable[[], None] = lambda: None) -> _T:
    """Return what a call to the storage returns, tried for an hour until the storage answers or ``check`` raises.

    Raises:
        StorageLostError: the hour is over, or the error is one that will not pass.
    """
    started, silent = time.monotonic(), True
    while True:
        try:
            return call()
        except BackpassError:
            raise
        except STORAGE_ERRORS as error:
            cause = lasting_cause(error, queue.file)
            if cause is None and time.monotonic() - started > _PATIENCE:
                cause = f"expected the study's storage to answer, got {root_cause(error)} for an hour; mend it"
            if cause is not None:
                raise StorageLostError(f"{cause}, and start the same command again to resume") from error
            if silent:
                reason = root_cause(error)
                _LOG.warning("the storage of the study does not answer, trying again for an hour: %s", reason)
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
    load: Callable[[DataSettings], Data],
    heartbeat: float,
) -> None:
    run, own = claim.run.run, folder / claim.run.folder
    with _Heart(queue, claim, heartbeat) as heart:
        try:
            try:
                data = load(run.recipe.data)
                entry = claim.run.entry
                record = execute(run, data, own, runtime=runtime, entry=entry, progress=progress, check=heart.check)
                _insist(queue, lambda: queue.finish(claim, record.score), heartbeat, heart.check)
            except (LostRunError, StorageLostError):
                raise
            except Exception as error:
                trace = traceback.format_exc()
                text = str(error) if isinstance(error, BackpassError) else f"{type(error).__name__}: {error}"
                diverged = isinstance(error, DivergedError)
                _insist(queue, lambda: queue.fail(claim, text, diverged=diverged), heartbeat, heart.check)
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
