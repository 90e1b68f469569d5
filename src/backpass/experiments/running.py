"""Running a study: its runs go into one queue, workers take them, and the records are read from the run folders."""

import os
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from backpass._internal.paths import AnyPath
from backpass.errors import InputError, StateError
from backpass.experiments.progress import Progress
from backpass.experiments.record import RECORD_FILE, Record, read_record
from backpass.experiments.scheduling.processes import work_in_processes
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.run_state import RunState
from backpass.experiments.scheduling.storage_errors import STORAGE_ERRORS, naming_lost_storage
from backpass.experiments.scheduling.worker import GRACE, HEARTBEAT, work
from backpass.experiments.stages import check_second_stage, count_runs, last_stage, next_runs
from backpass.experiments.study import Study, StudyRun, write_study
from backpass.experiments.tuning import Choice
from backpass.training.recipe import Runtime

__all__ = ["StudyResult", "describe_failures", "failures_of", "own_states", "run_study"]

_SHOWN = 3


@dataclass(frozen=True)
class StudyResult:
    """What a study has come to.

    Attributes:
        study: that the records are of: with tuning, its second stage.
        choices: what the first stage has chosen; empty without tuning, and before it has ended.
        records: of the complete runs of that study, in its order.
        failures: error by folder of the runs that failed.
        runs: number of runs.
    """

    study: Study
    choices: list[Choice]
    records: list[Record]
    failures: dict[str, str]
    runs: int

    def check(self) -> None:
        """Raise StateError if a run failed."""
        if self.failures:
            raise StateError(describe_failures(self.failures, self.runs))


def run_study(
    study: Study,
    folder: AnyPath,
    *,
    runtime: Runtime | None = None,
    storage: str | None = None,
    processes: int = 1,
    progress: Progress | None = None,
    heartbeat: float = HEARTBEAT,
    grace: float = GRACE,
) -> StudyResult:
    """Compute every run of the study that is not complete, and return the records of all.

    With ``study.tuning``, each of its entries first tries the points of its space on held-out training images; the best
    are then trained, with the study's own seeds. A point that diverges is out; another failure ends the study before
    its second stage.

    An interrupted study resumes when it is started again on the same folder; runs that failed are tried again. Runs of
    an earlier study in the folder that are not this one's wait no more; they come back with a study that has them.
    Further workers may be started on the study meanwhile, here or elsewhere; all of them share the folder.

    Args:
        study: what to run; kept as ``study.json`` in the folder.
        folder: of the run folders.
        runtime: how every worker computes.
        storage: where the states of the runs are kept (:func:`backpass.experiments.scheduling.storage.open_storage`);
            default: the folder. In a storage other than the folder, the study has the name that the folder's path
            ends with.
        processes: workers to start on this machine; one works in this process.
        progress: receives the events of the runs that this process computes; of those that other processes compute,
            their ends.
        heartbeat: seconds between a worker's signs of life.
        grace: seconds without one until a run is taken over.

    Raises:
        InputError: several ranks call this together, there is no process to work, the study has no run, a run folder
            belongs to another run, one of the second stage is taken before anything is chosen, the storage cannot be
            opened, or its study of this name is that of another folder.
        StorageLostError: the storage cannot be written to, or does not answer.
        StateError: a worker process ended with an error and left runs that wait or run, or without a choice of settings
            although no run of the tuning stage failed; or another study was started in the folder meanwhile.
    """
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(
            f"expected a study to be started by one process, got {ranks} ranks of torchrun or accelerate launch; start "
            f"it without them, with {ranks} workers (processes={ranks}, --processes {ranks})"
        )
    if processes < 1:
        raise InputError(f"expected at least one process to work, got {processes}; give a number above 0")
    progress, folder = progress or Progress(), Path(folder)
    runs = next_runs(study, folder)
    if not runs:
        notes = "; ".join(dict.fromkeys(entry.note for entry in study.entries if entry.note)) or "no entry or no seed"
        raise InputError(f"expected a study with at least one run, got none ({notes}); choose other entries or seeds")
    name = "study" if storage is None else folder.resolve().name
    address = storage or str(folder)
    with closing(Queue.create(address, name, folder=folder, runtime=runtime or Runtime())) as queue:
        shown: set[str] = set()
        with naming_lost_storage(queue.file):
            check_second_stage(study, folder, {state.run.folder: state.run.run for state in queue.states()})
            queue.fill(runs)
            write_study(study, folder)
            queue.drop_others(next_runs(study, folder))  # After the file, by which workers let missing runs wait.
            progress.start_study(count_runs(study))
            _show_ended(queue, study, folder, progress, shown)
        if processes == 1:
            work(queue, folder, progress=progress, heartbeat=heartbeat, grace=grace)
        else:

            def watch() -> None:
                with suppress(*STORAGE_ERRORS):  # The workers name an error that lasts.
                    _show_ended(queue, study, folder, progress, shown)

            work_in_processes(address, name, folder, processes=processes, heartbeat=heartbeat, grace=grace, watch=watch)
        with naming_lost_storage(queue.file):
            every = queue.states()
    runs, states = _known_runs(study, folder, every), own_states(study, folder, every)
    if missing := set(runs) - {state.run for state in states}:
        raise StateError(
            f"expected the {len(runs)} runs of the study to have ended, got {len(missing)} that wait no more, such as "
            f"{min(run.folder for run in missing)}, since another study was started in {folder} meanwhile or has a run "
            "of this name; start the same command again"
        )
    final, choices = last_stage(study, folder)
    own = set(final.runs())
    records = [_record(state, folder) for state in states if state.state == "complete" and state.run in own]
    failures = failures_of(study, folder, states)
    if study.tuning is not None and not choices and not failures:
        raise StateError(
            "expected the first stage of the study to end with a choice for every entry, got none, although no run of "
            "it failed; see the errors of the workers above, and start the same command again to resume"
        )
    return StudyResult(final, choices, records, failures, len(states))


def own_states(study: Study | None, folder: Path, states: Sequence[RunState]) -> list[RunState]:
    """Return the states of the runs of a study that are known by now, in their order.

    Args:
        study: of the folder; ``None``: not known, so that every run is taken for its own.
        folder: of the study.
        states: of all runs of the queue, which may hold others of an earlier study in this folder.
    """
    if study is None:
        return list(states)
    by_run = {state.run: state for state in states}
    return [by_run[run] for run in _known_runs(study, folder, states) if run in by_run]


def failures_of(study: Study | None, folder: Path, states: Sequence[RunState]) -> dict[str, str]:
    """Return the errors of the runs that failed, by folder; a point of a tuning that diverged is an answer.

    Args:
        study: of the folder; ``None``: not known, so that every run counts.
        folder: of the study.
        states: of its runs (:func:`own_states`).
    """
    last = {state.run for state in states} if study is None else set(last_stage(study, folder)[0].runs())
    failed = [state for state in states if state.run in last or not state.diverged]
    return {state.run.folder: state.error for state in failed if state.error is not None}


def describe_failures(
    failures: dict[str, str], runs: int, next_step: str = "start the same command again to try them again"
) -> str:
    """Return a line that names the first failed runs and what to do."""
    shown = "; ".join(f"{folder}: {error}" for folder, error in list(failures.items())[:_SHOWN])
    more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    return (
        f"{len(failures)} of {runs} runs failed ({shown}{more}); those that started have a traceback in error.txt in "
        f"their folders; {next_step}"
    )


def _known_runs(study: Study, folder: Path, states: Sequence[RunState]) -> list[StudyRun]:
    return next_runs(study, folder, {state.run for state in states if state.diverged})


def _show_ended(queue: Queue, study: Study, folder: Path, progress: Progress, shown: set[str]) -> None:
    """Show the runs that have ended and are not in ``shown``, and add them to it."""
    for state in own_states(study, folder, queue.states()):
        if state.run.folder in shown or state.state not in ("complete", "failed"):
            continue
        if state.error is None:
            progress.end_run(_record(state, folder))
        else:
            progress.fail_run(state.run.run, state.error)
        shown.add(state.run.folder)


def _record(state: RunState, folder: Path) -> Record:
    """Return the record of a complete run, from its folder."""
    path = folder / state.run.folder / RECORD_FILE
    if not path.is_file():
        raise InputError(
            f"expected the record of a complete run at {path}, found none; let all workers share one folder, or give "
            "the folder that holds the runs with --out; to train removed runs again, remove the study's storage "
            "(study.db) too: the other records are kept"
        )
    return read_record(path)
