import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace

import pytest

from backpass.errors import StateError
from backpass.experiments import worker as workers
from backpass.experiments.cells import Cell
from backpass.experiments.plan import compare_plan
from backpass.experiments.queue import Queue
from backpass.experiments.recipes import RECIPES
from backpass.experiments.results import read_result
from backpass.experiments.runs import Progress
from backpass.experiments.study import run_study
from backpass.experiments.worker import default_processes, work, work_in_processes
from backpass.training.recipe import DataSettings, Run, Runtime
from reference.study_workers import run_all

CPU = Runtime(device="cpu")
TINY = replace(RECIPES["digits"], epochs=1, data=DataSettings(limit_train=64, limit_test=20))


def queue_of(cells, folder):
    queue = Queue.create(str(folder), "s", folder=folder, runtime=CPU)
    queue.fill(cells)
    return queue


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
    def execute(*arguments, **options):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(workers, "execute", execute)
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


def test_processes_share_the_gpus_in_turn(monkeypatch):
    started = []

    class Started:
        def __init__(self, command, env, stdout):
            started.append((command[-6:], env["CUDA_VISIBLE_DEVICES"]))

        def wait(self):
            return len(started) - 3

    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    work_in_processes(["--study", "x"], 3)
    assert started == [(["backpass", "worker", "--study", "x", "--processes", "1"], gpu) for gpu in ("4", "7", "4")]
    with pytest.raises(StateError, match=r"expected 1 workers to end with status 0, got \[1\]"):
        work_in_processes(["--study", "x"], 1)
    assert default_processes(CPU) == 1


def start_worker(address, folder):
    command = [sys.executable, "-m", "backpass", "worker", "--study", address, "--out", str(folder), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, "--heartbeat", "0.5", "--grace", "6"], env=environment, stdout=subprocess.DEVNULL
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
