import signal
import time
from contextlib import closing
from dataclasses import replace

import pytest

from backpass.experiments import run_study
from backpass.experiments.comparison import compare_study
from backpass.experiments.record import read_record
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.stages import next_runs
from backpass.experiments.study import write_study
from backpass.experiments.tuning import Tuning, parse_space
from backpass.training.recipe import DataSettings
from reference.study_workers import CPU, TINY, accuracies, essence, queue_of, start_command


def start_worker(address, folder):
    return start_command("worker", "--study", address, "--out", folder, "--json", "--heartbeat", "0.5", "--grace", "6")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The runs of a study and the folder in which one worker has computed them alone."""
    recipe = replace(TINY, epochs=25, data=DataSettings(limit_train=256, limit_test=60))
    runs = compare_study(recipe, ["plain", "sgs"], [0, 1, 2, 3]).runs()
    folder = tmp_path_factory.mktemp("undisturbed")
    queue = queue_of(runs, folder)
    assert start_worker(folder, folder).wait(300) == 0
    queue.close()
    return runs, folder


@pytest.mark.parametrize(
    "storage", ["sqlite", *(pytest.param(name, marks=pytest.mark.slow) for name in ("postgresql", "journal"))]
)
def test_two_of_four_workers_are_killed_and_nothing_shows(storage, undisturbed, tmp_path, request):
    runs, alone = undisturbed
    folder = tmp_path / "four"
    address = {"sqlite": lambda: str(folder), "journal": lambda: f"journal:{tmp_path / 'runs.log'}"}.get(
        storage, lambda: request.getfixturevalue("postgresql")
    )()
    with closing(Queue.create(address, "s", folder=folder, runtime=CPU)) as queue:
        queue.fill(runs)
        started = [start_worker(address, folder) for _ in range(4)]
        by_process = {str(process.pid): process for process in started}
        killed = {}
        while len(killed) < 2:
            assert any(process.poll() is None for process in started), "the workers ended before two could be killed"
            for state in queue.states():
                metrics = folder / state.run.folder / "metrics.jsonl"
                process = by_process.get((state.worker or "").rpartition(":")[2])
                if process is None or len(killed) == 2 or not metrics.is_file():
                    continue
                if 2 <= len(metrics.read_text().splitlines()) <= 15:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed[state.run.folder] = metrics.read_text().splitlines()
                    by_process.pop(str(process.pid))
            time.sleep(0.05)
        assert sorted(process.wait(300) for process in started) == [-9, -9, 0, 0]

        assert sorted(accuracies(queue)) == sorted(run.folder for run in runs)
        trials = queue._study.get_trials()
        lost = [trial.user_attrs["folder"] for trial in trials if trial.user_attrs.get("ending") == "lost"]
        assert set(killed) <= set(lost)
        # The killed runs were resumed, not begun again: their first epochs are those of the killed worker.
        for name, lines in killed.items():
            assert (folder / name / "metrics.jsonl").read_text().splitlines()[: len(lines)] == lines

        for run in runs:
            ours, theirs = (read_record(place / run.folder / "result.json") for place in (folder, alone))
            assert essence(ours) == essence(theirs)
            assert ours.entry == run.entry


@pytest.mark.slow
def test_a_worker_is_killed_in_each_stage_of_a_tuned_study_and_nothing_shows(tmp_path):
    recipe = replace(TINY, epochs=25, data=DataSettings(limit_train=256, limit_test=60))
    space, tuning = parse_space(["lr=0.01,0.05"]), Tuning(seeds=(7,))
    study = compare_study(recipe, ["plain", "sgs"], [0, 1], space=space, tuning=tuning)

    def start(folder, workers):
        queue = Queue.create(str(folder), "study", folder=folder, runtime=CPU)
        queue.fill(next_runs(study, folder))
        write_study(study, folder)
        return queue, [start_worker(folder, folder) for _ in range(workers)]

    queue, (worker,) = start(tmp_path / "alone", 1)
    assert worker.wait(300) == 0
    queue.close()
    alone = run_study(study, tmp_path / "alone", runtime=CPU)
    folder = tmp_path / "three"
    queue, started = start(folder, 3)
    with closing(queue):
        by_process = {str(process.pid): process for process in started}
        for stage in ("validation", "test"):
            killed = False
            while not killed:
                assert any(process.poll() is None for process in started), f"the workers ended before a kill in {stage}"
                for state in queue.states():
                    metrics = folder / state.run.folder / "metrics.jsonl"
                    process = by_process.get((state.worker or "").rpartition(":")[2])
                    lines = metrics.read_text().splitlines() if process and metrics.is_file() else []
                    if not killed and 2 <= len(lines) <= 15 and f"{stage}_accuracy" in lines[0]:
                        process.kill()
                        process.wait()
                        by_process.pop(str(process.pid))
                        killed = True
                time.sleep(0.05)
        assert sorted(process.wait(300) for process in started) == [-9, -9, 0]
        assert {state.state for state in queue.states()} == {"complete"}
    again = run_study(study, folder, runtime=CPU)
    assert again.choices == alone.choices
    assert [essence(record) for record in again.records] == [essence(record) for record in alone.records]
