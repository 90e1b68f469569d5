"""Several workers on one machine, each a process of its own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path

import optuna
import torch
from accelerate.utils import patch_environment

from backpass.errors import BackpassError, StateError
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.termination import leave_interrupts_to_starter, when_terminated
from backpass.experiments.scheduling.worker import GRACE, HEARTBEAT, check_grace, work
from backpass.training.recipe import Runtime

__all__ = ["default_processes", "work_in_processes"]

_LAST_WAIT = 60.0  # seconds for a worker to put its run back, before it is killed


def default_processes(runtime: Runtime) -> int:
    """Return how many processes suit this machine: one for each visible GPU, one without a GPU."""
    return 1 if runtime.device == "cpu" else max(1, torch.cuda.device_count())


def work_in_processes(
    storage: str,
    name: str,
    folder: Path,
    *,
    processes: int,
    heartbeat: float = HEARTBEAT,
    grace: float = GRACE,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Work on a study in several processes, each with one of the GPUs in turn.

    The processes end with this call, however it ends, and with this process, even if it is killed. One that has failed
    is no error if the runs have ended all the same: the others took its run over.

    Each process is a new interpreter that imports the main module; a script that calls this needs
    ``if __name__ == "__main__":`` around what it does. Without ``OMP_NUM_THREADS``, the processes share the cores.

    Args:
        storage: address of the study (:func:`backpass.experiments.scheduling.storage.open_storage`).
        name: of the study in it.
        folder: of the run folders.
        processes: number of workers.
        heartbeat: seconds between a worker's signs of life.
        grace: seconds without one until a run is taken over.
        watch: called in this process every ``heartbeat`` seconds and at the end.

    Raises:
        InputError: ``grace`` is too short (:func:`backpass.experiments.scheduling.worker.check_grace`).
        StateError: a process ended with an error, and left runs that wait or run.
    """
    check_grace(heartbeat, grace)
    # Started as new interpreters, since a fork would share this one's threads and CUDA state.
    context = multiprocessing.get_context("spawn")
    arguments = (Path.cwd(), storage, name, folder, heartbeat, grace)
    workers = [context.Process(target=_work, args=arguments, name=f"worker {n}") for n in range(processes)]
    resource_tracker.ensure_running()  # Otherwise the first start does so, and unblocks interrupts.
    try:
        for worker, environment in zip(workers, _environments(processes), strict=True):
            with leave_interrupts_to_starter(), patch_environment(**environment):
                worker.start()
        while alive := [worker.sentinel for worker in workers if worker.is_alive()]:
            wait(alive, heartbeat)
            watch()
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            if worker.pid is not None:
                worker.join(_LAST_WAIT)
                worker.kill()  # Does nothing to one that has ended.
                worker.join()
    codes = [worker.exitcode for worker in workers]
    if any(codes):
        with closing(Queue.open(storage, name)) as queue:
            if any(run.state in ("waiting", "running") for run in queue.states()):
                raise StateError(
                    f"expected {processes} workers to end with status 0, got {codes}; their errors are above; start "
                    "the same command again to resume"
                )


def _work(directory: Path, storage: str, name: str, folder: Path, heartbeat: float, grace: float) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.chdir(directory)  # A new interpreter starts where multiprocessing was imported.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with when_terminated(), closing(Queue.open(storage, name)) as queue:
            work(queue, folder, heartbeat=heartbeat, grace=grace)
    except BackpassError as error:
        raise SystemExit(f"{multiprocessing.current_process().name}: {error}") from None


def _end_with_parent() -> None:
    """Terminate this process when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _environments(processes: int) -> Iterator[dict[str, str]]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    for number in range(processes):
        own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        yield {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)} | own
