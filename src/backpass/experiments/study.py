"""Running a plan: its cells go into one queue, workers take them, and the results come back in order."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from backpass.errors import InputError, StateError
from backpass.experiments.cells import Cell
from backpass.experiments.plan import Plan, compare_plan, write_plan
from backpass.experiments.queue import CellState, Queue
from backpass.experiments.results import RunResult, check_result, read_result, write_result
from backpass.experiments.runs import Progress, load_data
from backpass.experiments.worker import GRACE, HEARTBEAT, work, work_in_processes
from backpass.training.images import ImageData
from backpass.training.recipe import DataSettings, Recipe, Runtime

__all__ = ["Outcome", "compare", "describe_failures", "run_study"]

_SHOWN = 3


@dataclass(frozen=True)
class Outcome:
    """What a study has come to.

    Attributes:
        results: of the complete cells, in the order of the plan.
        failures: error by folder of the cells that failed.
        cells: number of cells.
    """

    results: list[RunResult]
    failures: dict[str, str]
    cells: int

    def check(self) -> None:
        """Raise StateError if a cell failed."""
        if self.failures:
            raise StateError(describe_failures(self.failures, self.cells))


def run_study(
    plan: Plan,
    folder: Path,
    *,
    runtime: Runtime,
    storage: str | None = None,
    processes: int = 1,
    progress: Progress | None = None,
    load: Callable[[DataSettings], ImageData] = load_data,
    heartbeat: float = HEARTBEAT,
    grace: float = GRACE,
) -> Outcome:
    """Run every cell of the plan that is not complete, and return the results of all.

    An interrupted study goes on where it was when it is started again on the same folder; cells that failed are tried
    again. Further workers may be started on the study meanwhile, here or elsewhere.

    Args:
        plan: what to run; kept as ``study.json`` in the folder.
        folder: of the run folders.
        runtime: how every worker computes.
        storage: where the cells are kept (:func:`backpass.experiments.storage.open_storage`); the folder by default.
            In a storage other than the folder, the study has the folder's name.
        processes: workers to start on this machine; one runs in this process.
        progress: is told of the cells that this process runs.
        load: reads images, in this process.
        heartbeat: seconds between a worker's signs of life.
        grace: seconds without one until a cell is taken over.

    Raises:
        InputError: several ranks call this together, the plan has no cell, a run folder belongs to another run, or the
            storage cannot be opened.
        StateError: a worker process ended with an error, and left cells that wait or run.
    """
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(
            f"expected a study to be started by one process, got {ranks} ranks of torchrun or accelerate launch; start "
            f"it without them, with {ranks} workers (processes={ranks}, --processes {ranks})"
        )
    progress = progress or Progress()
    cells = plan.cells()
    if not cells:
        raise InputError("expected a plan with at least one cell, got one without")
    name = "study" if storage is None else folder.resolve().name
    with closing(Queue.create(storage or str(folder), name, folder=folder, runtime=runtime)) as queue:
        queue.fill(cells)
        write_plan(plan, folder)
        progress.start_study(len(cells))
        for result in _results(_states(queue, cells), folder):
            progress.end_run(result)
        if processes == 1:
            work(queue, folder, progress=progress, load=load, heartbeat=heartbeat, grace=grace)
        else:
            where = ["--study", storage or str(folder), "--name", name, "--out", str(folder)]
            times = ["--heartbeat", str(heartbeat), "--grace", str(grace)]
            work_in_processes(queue, [*where, *times], processes)
        states = _states(queue, cells)
    failures = {state.cell.folder: state.error for state in states if state.error is not None}
    return Outcome(_results(states, folder), failures, len(cells))


def compare(
    recipe: Recipe,
    methods: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    runtime: Runtime,
    progress: Progress | None = None,
    load: Callable[[DataSettings], ImageData] = load_data,
) -> list[RunResult]:
    """Return the results of every method with every seed, methods in turn within a seed so that drift is shared.

    Raises:
        InputError: no method or seed, an unknown method, or a run folder that belongs to another run.
        StateError: a run failed.
    """
    plan = compare_plan(recipe, methods, seeds)
    outcome = run_study(plan, folder, runtime=runtime, progress=progress, load=load)
    outcome.check()
    return outcome.results


def describe_failures(failures: dict[str, str], cells: int) -> str:
    """Return a line that names the first failed cells and says how to go on."""
    shown = "; ".join(f"{folder}: {error}" for folder, error in list(failures.items())[:_SHOWN])
    more = f"; and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    return (
        f"{len(failures)} of {cells} cells failed ({shown}{more}); error.txt in their folders has the traceback; start "
        "the same command again to try them again"
    )


def _states(queue: Queue, cells: Sequence[Cell]) -> list[CellState]:
    """Return the states of the cells, in their order; the queue may hold others from an earlier plan."""
    states = {state.cell.folder: state for state in queue.states()}
    return [states[cell.folder] for cell in cells]


def _results(states: Sequence[CellState], folder: Path) -> list[RunResult]:
    """Return the results of complete cells; a result file that another machine has is written here as well."""
    results = []
    for state in states:
        if state.result is None:
            continue
        path = folder / state.cell.folder / "result.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_result(path, check_result(state.result, f"the queue's result of {state.cell.folder}"))
        results.append(read_result(path))
    return results
