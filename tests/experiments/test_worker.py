import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from backpass.experiments.cells import Cell
from backpass.experiments.plan import compare_plan
from backpass.experiments.queue import LostCellError, Queue
from backpass.experiments.results import read_result
from backpass.experiments.runs import Progress
from backpass.experiments.worker import default_processes, when_terminated, work, work_in_processes
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from backpass.errors import InputError, StateError
from backpass.experiments import study as studies
from backpass.experiments import worker as workers
from backpass.experiments.recipes import RECIPES
from backpass.experiments.study import run_study
from backpass.training.recipe import DataSettings, Run, Runtime
from reference.study_workers import run_all

CPU = Runtime(device="cpu")
TINY = replace(RECIPES["digits"], epochs=1, data=DataSettings(limit_train=64, limit_test=20))


def queue_of(cells, folder):
    queue = Queue.create(str(folder), "s", folder=folder, runtime=CPU)
    queue.fill(cells)
    return queue


def let_cells_end(monkeypatch, ending):
    """Let every cell end at once, with this result or with this error."""

    def execute(*arguments, **options):
        if isinstance(ending, BaseException):
            raise ending
        return ending

    monkeypatch.setattr(workers, "execute", execute)


def test_a_failed_cell_leaves_its_traceback_and_the_next_is_taken(tmp_path):
    bad = Cell(Run(replace(TINY, model="nope"), "plain", 0), "bad")
    good = Cell(Run(TINY, "plain", 0), "good")
    failed = []

    class Log(Progress):
        def fail_run(self, run, error):
            failed.append((run, error))

    queue = queue_of([bad, good], tmp_path)
    work(queue, tmp_path, progress=Log())
    first, second = queue.states()
    assert (first.state, second.state) == ("failed", "complete")
    assert first.error.startswith("unknown model 'nope'")
    assert failed == [(bad.run, first.error)]
    assert "Traceback" in (tmp_path / "bad" / "error.txt").read_text()
    assert not (tmp_path / "good" / "error.txt").exists()
    assert second.result["history"] == read_result(tmp_path / "good" / "result.json").history
    queue.close()


def test_an_interrupted_worker_puts_its_cell_back(tmp_path):
    class Stop(Progress):
        def step(self, epoch, step, steps):
            raise KeyboardInterrupt

    queue = queue_of([Cell(Run(TINY, "plain", 0), "a")], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work(queue, tmp_path, progress=Stop())
    assert queue.states()[0].state == "waiting"
    work(queue, tmp_path)
    assert queue.states()[0].state == "complete"
    queue.close()


def test_a_device_that_is_gone_ends_the_worker(tmp_path, monkeypatch):
    let_cells_end(monkeypatch, RuntimeError("CUDA error: device-side assert triggered"))
    queue = queue_of([Cell(Run(TINY, "plain", seed), f"s{seed}") for seed in (0, 1)], tmp_path)
    with pytest.raises(RuntimeError, match="CUDA error"):
        work(queue, tmp_path)
    assert [state.state for state in queue.states()] == ["failed", "waiting"]
    queue.close()


def test_a_worker_drops_a_cell_that_was_taken_over(tmp_path):
    queue = queue_of([Cell(Run(replace(TINY, epochs=500), "plain", 0), "a")], tmp_path)
    other = Queue.open(str(tmp_path))
    steps = []

    class Suspended(Progress):
        def step(self, epoch, step, steps_):
            steps.append(step)
            if len(steps) == 1:
                while (claim := other.claim()) is None:
                    other.take_over(grace=-1)
                other.finish(claim, 0.5, {"by": "the other"})
            time.sleep(0.01)

    work(queue, tmp_path, progress=Suspended(), heartbeat=0.1)
    assert 1 <= len(steps) < 500
    assert queue.states()[0].result == {"by": "the other"}
    other.close()
    queue.close()


ERRORS = [
    StorageInternalError("the server has closed the connection"),
    OSError("stale file handle"),
    RuntimeError("Error: did not possess lock"),
    json.JSONDecodeError("a line that is half written", "{", 1),
]


def disturb(queue, monkeypatch, error, state, *, answers=True):
    """Let the setting of ``state`` raise before it is done, then after it is done, and then, or never, answer."""
    real, calls = queue._storage.set_trial_state_values, []

    def set_trial_state_values(trial, new, values=None):
        if new != state:
            return real(trial, new, values)
        calls.append(new)
        if len(calls) == 1 or not answers:
            raise error
        done = real(trial, new, values)
        if len(calls) == 2:
            raise error
        return done

    monkeypatch.setattr(queue._storage, "set_trial_state_values", set_trial_state_values)
    return calls


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_trained_cell_is_complete_however_the_storage_fails(error, tmp_path, monkeypatch, make_result):
    result = make_result(TINY, "plain", 0, [0.5])
    let_cells_end(monkeypatch, result)
    queue = queue_of([Cell(Run(TINY, "plain", 0), "a")], tmp_path)
    calls = disturb(queue, monkeypatch, error, TrialState.COMPLETE)
    work(queue, tmp_path, heartbeat=0.02)
    assert len(calls) == 2  # the third try finds the trial finished before it comes to this
    assert (queue.states()[0].state, queue.states()[0].result["history"]) == ("complete", result.history)
    assert not (tmp_path / "a").exists()
    queue.close()


def test_a_failed_cell_is_failed_however_storage_and_disk_fail(tmp_path, monkeypatch):
    let_cells_end(monkeypatch, InputError("no such thing"))
    queue = queue_of([Cell(Run(TINY, "plain", seed), f"s{seed}") for seed in (0, 1)], tmp_path)
    disturb(queue, monkeypatch, ERRORS[0], TrialState.FAIL)
    (tmp_path / "s0").write_text("in the place of the run folder")
    work(queue, tmp_path, heartbeat=0.02)
    assert [(state.state, state.error) for state in queue.states()] == [("failed", "no such thing")] * 2
    assert "InputError" in (tmp_path / "s1" / "error.txt").read_text()
    queue.close()


def test_an_interrupt_is_not_replaced_by_an_error_of_the_storage(tmp_path, monkeypatch):
    let_cells_end(monkeypatch, KeyboardInterrupt())
    queue = queue_of([Cell(Run(TINY, "plain", 0), "a")], tmp_path)
    calls = disturb(queue, monkeypatch, ERRORS[1], TrialState.FAIL, answers=False)
    with pytest.raises(KeyboardInterrupt):
        work(queue, tmp_path)
    assert calls == [TrialState.FAIL]
    queue.close()


def test_a_worker_stops_recording_a_result_when_the_cell_is_lost(tmp_path, monkeypatch, make_result):
    result = make_result(TINY, "plain", 0, [0.5])
    let_cells_end(monkeypatch, result)
    queue = queue_of([Cell(Run(TINY, "plain", 0), "a")], tmp_path)
    other = Queue.open(str(tmp_path))

    def finish(*arguments):
        while "complete" not in [state.state for state in other.states()]:
            other.take_over(grace=-1)
            if (claim := other.claim()) is not None:
                other.finish(claim, 0.25, {"by": "the other"})
        raise OSError("stale file handle")

    monkeypatch.setattr(queue, "finish", finish)
    work(queue, tmp_path, heartbeat=0.02)
    assert queue.states()[0].result == {"by": "the other"}
    other.close()
    queue.close()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["claim", "take_over", "states"])
def test_a_worker_outlives_errors_of_the_storage_between_cells(call, error, tmp_path, monkeypatch, make_result):
    let_cells_end(monkeypatch, make_result(TINY, "plain", 0, [0.5]))
    queue = queue_of([Cell(Run(TINY, "plain", 0), "a")], tmp_path)
    real, calls = getattr(queue, call), []

    def failing(*arguments):
        calls.append(call)
        if len(calls) <= 2:
            raise error
        return real(*arguments)

    monkeypatch.setattr(queue, call, failing)
    work(queue, tmp_path, heartbeat=0.02)
    assert len(calls) > 2
    monkeypatch.undo()
    assert queue.states()[0].state == "complete"
    queue.close()


def test_a_storage_that_stays_away_ends_the_worker_in_the_end(tmp_path, monkeypatch, caplog):
    queue = queue_of([Cell(Run(TINY, "plain", 0), "a")], tmp_path)

    def gone():
        raise OSError("stale file handle")

    monkeypatch.setattr(queue, "claim", gone)
    monkeypatch.setattr(workers, "_PATIENCE", 0.1)
    with pytest.raises(OSError, match="stale file handle"):
        work(queue, tmp_path, heartbeat=0.02)
    assert [record.getMessage() for record in caplog.records if record.name == workers.__name__] == [
        "the storage of the study does not answer, trying again for an hour: stale file handle"
    ]
    queue.close()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_heart_beats_on_after_errors_of_the_storage(error):
    beats = [error, error, None, LostCellError("a")]

    class Disturbed:
        def beat(self, claim):
            if (answer := beats.pop(0)) is not None:
                raise answer

    claim = SimpleNamespace(cell=SimpleNamespace(folder="a"))
    with workers._Heart(Disturbed(), claim, 0.01) as heart:
        heart._thread.join(60)
        with pytest.raises(LostCellError):
            heart.check()
    assert beats == []


def test_a_worker_waits_for_the_first_cells_of_a_study(tmp_path, monkeypatch, make_result):
    let_cells_end(monkeypatch, make_result(TINY, "plain", 0, [0.5]))
    queue = queue_of([], tmp_path)

    def fill(seconds):
        queue.fill([Cell(Run(TINY, "plain", 0), "a")])

    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=fill, monotonic=time.monotonic))
    work(queue, tmp_path)
    assert [state.state for state in queue.states()] == ["complete"]
    queue.close()


@pytest.mark.slow
def test_four_processes_run_every_cell_once(tmp_path, processes):
    cells = [Cell(Run(TINY, "plain", seed), f"seed{seed}") for seed in range(8)]
    queue = queue_of(cells, tmp_path)
    answers = processes.SimpleQueue()
    started = [processes.Process(target=run_all, args=(str(tmp_path), str(tmp_path), answers)) for _ in range(4)]
    for process in started:
        process.start()
    ran = sorted(seed for _ in started for seed in answers.get())
    for process in started:
        process.join()
    assert ran == list(range(8))
    assert [state.state for state in queue.states()] == ["complete"] * 8
    queue.close()


class Process:
    """A started process that ends with the status it is given, or an error of the system in the place of one."""

    def __init__(self, code):
        self.code, self.calls = code, []

    def terminate(self):
        self.calls.append("terminate")

    def wait(self):
        self.calls.append("wait")
        if self.code is None and "terminate" not in self.calls:
            raise KeyboardInterrupt
        return self.code


def start_in_turn(monkeypatch, processes):
    """Let the starting of a process answer with these in turn; returns how each was started."""
    started = []

    def start(command, env, stdout):
        started.append((command[-6:], env["CUDA_VISIBLE_DEVICES"]))
        process = processes[len(started) - 1]
        if isinstance(process, OSError):
            raise process
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    return started


def test_processes_share_the_gpus_in_turn(tmp_path, monkeypatch):
    started = start_in_turn(monkeypatch, [Process(0) for _ in range(3)])
    queue = queue_of([Cell(Run(TINY, "plain", 0), "a")], tmp_path)
    work_in_processes(queue, ["--study", "x"], 3)
    assert started == [(["backpass", "worker", "--study", "x", "--processes", "1"], gpu) for gpu in ("4", "7", "4")]
    assert default_processes(CPU) == 1
    queue.close()


def test_what_the_processes_end_with_counts_only_while_a_cell_waits_or_runs(tmp_path, monkeypatch):
    queue = queue_of([Cell(Run(TINY, "plain", seed), f"s{seed}") for seed in (0, 1)], tmp_path)
    queue.fail(queue.claim(), "no such thing")
    for live in ("waiting", "running"):
        start_in_turn(monkeypatch, [Process(2), Process(-9)])
        with pytest.raises(StateError, match=r"expected 2 workers to end with status 0, got \[2, -9\]"):
            work_in_processes(queue, ["--study", "x"], 2)
        if live == "waiting":
            claim = queue.claim()
    queue.finish(claim, 0.5, {})
    start_in_turn(monkeypatch, [Process(2), Process(-9)])
    work_in_processes(queue, ["--study", "x"], 2)
    queue.close()


@pytest.mark.parametrize(("last", "error"), [(Process(None), KeyboardInterrupt), (OSError("no memory"), OSError)])
def test_processes_end_with_the_one_that_started_them(last, error, tmp_path, monkeypatch):
    first = Process(0)
    start_in_turn(monkeypatch, [first, last])
    queue = queue_of([Cell(Run(TINY, "plain", 0), "a")], tmp_path)
    with pytest.raises(error):
        work_in_processes(queue, ["--study", "x"], 2)
    for process in (first, last):
        if isinstance(process, Process):
            assert process.calls[-2:] == ["terminate", "wait"]
    queue.close()


def test_a_study_in_processes_comes_to_the_same_as_in_one(tmp_path, monkeypatch, make_result):
    plan = compare_plan(TINY, ["plain", "pgt"], [0])

    def end_both(queue, arguments, processes):
        queue.finish(queue.claim(), 0.5, asdict(make_result(TINY, "plain", 0, [0.5])))
        queue.fail(queue.claim(), "no such thing")
        work_in_processes(queue, arguments, processes)

    monkeypatch.setattr(studies, "work_in_processes", end_both)
    start_in_turn(monkeypatch, [Process(2), Process(2)])
    outcome = run_study(plan, tmp_path, runtime=CPU, processes=2)
    assert [result.method for result in outcome.results] == ["plain"]
    assert outcome.failures == {"pgt-seed0": "no such thing"}


def test_sigterm_stops_the_main_thread_and_is_handled_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, when_terminated():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    handlers = []

    def run():
        with when_terminated():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_sigterm_does_not_cut_short_the_putting_back_of_a_cell(tmp_path, monkeypatch):
    def release(claim):
        signal.raise_signal(signal.SIGTERM)
        real(claim)

    let_cells_end(monkeypatch, KeyboardInterrupt())
    queue = queue_of([Cell(Run(TINY, "plain", 0), "a")], tmp_path)
    real = queue.release
    monkeypatch.setattr(queue, "release", release)
    with pytest.raises(KeyboardInterrupt), when_terminated():
        work(queue, tmp_path)
    assert queue.states()[0].state == "waiting"
    queue.close()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_terminated_worker_puts_its_cells_back(processes, tmp_path):
    cells = [Cell(Run(replace(TINY, epochs=100_000), "plain", seed), f"s{seed}") for seed in range(processes)]
    queue = queue_of(cells, tmp_path)
    worker = start_worker(str(tmp_path), tmp_path, "--processes", str(processes))
    try:
        while not all((tmp_path / cell.folder / "metrics.jsonl").is_file() for cell in cells):
            assert worker.poll() is None
            time.sleep(0.05)
    finally:
        worker.terminate()
    assert worker.wait(120) == 143
    assert [state.state for state in queue.states()] == ["waiting"] * processes
    assert [trial.user_attrs.get("ending") for trial in queue._study.get_trials()] == [
        *["released"] * processes,
        *[None] * processes,
    ]
    queue.close()


def start_worker(address, folder, *options):
    command = [sys.executable, "-m", "backpass", "worker", "--study", address, "--out", str(folder), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, "--heartbeat", "0.5", "--grace", "6", *options], env=environment, stdout=subprocess.DEVNULL
    )


def essence(result):
    """Return what must not depend on who computed it."""
    return result.run, [(r["train_loss"], r["test_accuracy"]) for r in result.history], result.scalings


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A plan and the folder in which one worker has run it alone."""
    recipe = replace(TINY, epochs=25, data=DataSettings(limit_train=256, limit_test=60))
    plan = compare_plan(recipe, ["plain", "sgs"], [0, 1, 2, 3])
    folder = tmp_path_factory.mktemp("undisturbed")
    queue = queue_of(plan.cells(), folder)
    assert start_worker(str(folder), folder).wait(300) == 0
    queue.close()
    return plan, folder


@pytest.mark.parametrize("storage", ["sqlite", "postgresql", pytest.param("journal", marks=pytest.mark.slow)])
def test_two_of_four_workers_are_killed_and_nothing_shows(storage, undisturbed, tmp_path, request):
    plan, alone = undisturbed
    folder = tmp_path / "four"
    address = {"sqlite": lambda: str(folder), "journal": lambda: f"journal:{tmp_path / 'cells.log'}"}.get(
        storage, lambda: request.getfixturevalue("postgresql")
    )()
    with closing(Queue.create(address, "s", folder=folder, runtime=CPU)) as queue:
        queue.fill(plan.cells())
        started = [start_worker(address, folder) for _ in range(4)]
        by_process = {str(process.pid): process for process in started}
        killed = {}
        while len(killed) < 2:
            assert any(process.poll() is None for process in started), "the workers ended before two could be killed"
            for state in queue.states():
                metrics = folder / state.cell.folder / "metrics.jsonl"
                process = by_process.get((state.worker or "").rpartition(":")[2])
                if process is None or len(killed) == 2 or not metrics.is_file():
                    continue
                if 2 <= len(metrics.read_text().splitlines()) <= 15:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed[state.cell.folder] = metrics.read_text().splitlines()
                    by_process.pop(str(process.pid))
            time.sleep(0.05)
        assert sorted(process.wait(300) for process in started) == [-9, -9, 0, 0]

        trials = queue._study.get_trials()
        complete = [trial.user_attrs["cell"]["folder"] for trial in trials if trial.state.name == "COMPLETE"]
        assert sorted(complete) == sorted(cell.folder for cell in plan.cells())
        lost = [trial.user_attrs["cell"]["folder"] for trial in trials if trial.user_attrs.get("ending") == "lost"]
        assert set(killed) <= set(lost)
        # The killed cells were gone on with, not begun again: their first epochs are those of the killed worker.
        for name, lines in killed.items():
            assert (folder / name / "metrics.jsonl").read_text().splitlines()[: len(lines)] == lines

        for cell in plan.cells():
            ours, theirs = (read_result(place / cell.folder / "result.json") for place in (folder, alone))
            assert essence(ours) == essence(theirs)


@pytest.mark.slow
def test_a_study_in_several_processes_on_postgresql_brings_its_results_home(tmp_path, postgresql):
    plan = compare_plan(TINY, ["plain", "pgt"], [0, 1])
    folder = tmp_path / "study"
    outcome = run_study(plan, folder, runtime=CPU, storage=postgresql, processes=2)
    assert [(result.method, result.seed) for result in outcome.results] == [
        ("plain", 0),
        ("pgt", 0),
        ("plain", 1),
        ("pgt", 1),
    ]
    shutil.rmtree(folder / "pgt-seed0")  # as if another machine had run it in a folder of its own
    again = run_study(plan, folder, runtime=CPU, storage=postgresql, progress=None)
    assert again == outcome
    assert (folder / "pgt-seed0" / "result.json").is_file()
