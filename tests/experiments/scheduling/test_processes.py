import json
import multiprocessing
import os
from contextlib import closing

import pytest

from backpass.errors import StateError
from backpass.experiments.comparison import compare_study
from backpass.experiments.record import read_record
from backpass.experiments.running import run_study
from backpass.experiments.scheduling import processes as module
from backpass.experiments.scheduling.processes import default_processes, work_in_processes
from reference.study_workers import CPU, TINY, essence, queue_of, run_all, run_states, tiny_run
from reference.worker_endings import end_as_told


@pytest.mark.slow
def test_four_processes_run_every_run_once(tmp_path, processes):
    queue = queue_of([tiny_run(seed=seed) for seed in range(8)], tmp_path)
    answers = processes.SimpleQueue()
    started = [processes.Process(target=run_all, args=(str(tmp_path), str(tmp_path), answers)) for _ in range(4)]
    for process in started:
        process.start()
    ran = sorted(seed for _ in started for seed in answers.get())
    for process in started:
        process.join()
    assert ran == list(range(8))
    assert run_states(queue) == ["complete"] * 8
    queue.close()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Works on a study in processes that do nothing but end as they are told."""
    monkeypatch.setattr(module, "_work", end_as_told)

    def start(*endings, watch=lambda: None):
        for number, ending in enumerate(endings):
            (tmp_path / f"worker {number}").write_text(str(ending))
        try:
            work_in_processes(str(tmp_path), "s", tmp_path, processes=len(endings), heartbeat=0.02, watch=watch)
        finally:
            assert multiprocessing.active_children() == []
        return [json.loads((tmp_path / f"worker {number}.json").read_text()) for number in range(len(endings))]

    return start


def test_processes_share_the_gpus_in_turn_and_the_cores(start, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = str(max(1, os.cpu_count() // 3))
    assert start(0, 0, 0) == [
        {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": threads, "interrupts": False} for gpu in ("4", "7", "4")
    ]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert [environment["OMP_NUM_THREADS"] for environment in start(0, 0)] == ["5", "5"]
    assert default_processes(CPU) == 1


def test_what_the_processes_end_with_counts_only_while_a_run_waits_or_runs(start, tmp_path):
    with closing(queue_of([tiny_run(seed=seed) for seed in (0, 1)], tmp_path)) as queue:
        queue.fail(queue.claim(), "no such thing")
        for live in ("waiting", "running"):
            with pytest.raises(StateError, match=r"expected 2 workers to end with status 0, got \[2, -9\]"):
                start(2, -9)
            if live == "waiting":
                claim = queue.claim()
        queue.finish(claim, 0.5)
        start(2, -9)


def test_processes_end_with_the_call_that_started_them(start, tmp_path, monkeypatch):
    def interrupt():
        if (tmp_path / "worker 1.json").is_file():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start("when terminated", "when terminated", watch=interrupt)

    def environments(processes):
        yield {}
        raise OSError("no memory")

    monkeypatch.setattr(module, "_environments", environments)
    with pytest.raises(OSError, match="no memory"):
        start("when terminated", 0)


def test_a_process_that_does_not_end_when_terminated_is_killed(start, tmp_path, monkeypatch):
    def interrupt():
        if (tmp_path / "worker 0.json").is_file():
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_LAST_WAIT", 0.1)
    with pytest.raises(KeyboardInterrupt):
        start("never", watch=interrupt)


def test_a_process_names_the_error_that_it_ends_with(tmp_path):
    with pytest.raises(SystemExit, match=r"^MainProcess: expected the runs of a study at .*none/study.db, found none"):
        module._work(tmp_path, str(tmp_path / "none"), "s", tmp_path, 1.0, 6.0)


@pytest.mark.slow
def test_the_error_of_a_process_is_on_the_terminal(tmp_path, capfd):
    with closing(queue_of([tiny_run()], tmp_path)) as queue:
        queue._study.set_user_attr("runtime", "{}}")
        with pytest.raises(StateError, match=r"got \[1\]; their errors are above"):
            work_in_processes(str(tmp_path), "s", tmp_path, processes=1)
    printed = capfd.readouterr().err
    assert "worker 0: runtime of study 's': expected a Runtime" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "storage",
    ["sqlite", pytest.param("journal", marks=pytest.mark.slow), pytest.param("postgresql", marks=pytest.mark.slow)],
)
def test_a_study_in_processes_gives_what_one_worker_gives(storage, tmp_path, monkeypatch, request):
    study = compare_study(TINY, ["plain", "pgt"], [0, 1])
    alone = run_study(study, tmp_path / "alone", runtime=CPU)
    address = {"sqlite": lambda: None, "journal": lambda: "journal:runs.log"}.get(
        storage, lambda: request.getfixturevalue("postgresql")
    )()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = (tmp_path / "two").relative_to(tmp_path)
    result = run_study(study, folder, runtime=CPU, storage=address, processes=2)
    assert result.failures == {}
    assert [(record.entry, record.seed) for record in result.records] == [
        ("plain", 0),
        ("pgt", 0),
        ("plain", 1),
        ("pgt", 1),
    ]
    assert {record.environment.threads for record in result.records} == {1}
    assert [essence(record) for record in result.records] == [essence(record) for record in alone.records]
    assert read_record(tmp_path / "two" / "pgt-seed1" / "result.json") == result.records[3]
