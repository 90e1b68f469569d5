import shutil
import threading
from contextlib import closing
from dataclasses import replace

import pytest

from backpass.errors import InputError, StateError
from backpass.experiments import running
from backpass.experiments.comparison import compare_study
from backpass.experiments.run import Progress
from backpass.experiments.running import run_study
from backpass.experiments.scheduling import worker as workers
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.study import read_study
from backpass.training.recipe import SgsSettings
from reference.study_workers import CPU, TINY

TINY = replace(TINY, sgs=SgsSettings(warmup=0))
STUDY = compare_study(TINY, ["plain", "sgs"], [0, 1])


@pytest.mark.parametrize("processes", [0, -1])
def test_a_study_needs_a_process(processes, tmp_path):
    with pytest.raises(InputError, match=f"at least one process to work, got {processes}"):
        run_study(STUDY, tmp_path / "s", runtime=CPU, processes=processes)
    assert not (tmp_path / "s").exists()


class Log(Progress):
    def __init__(self):
        self.events = []

    def start_study(self, runs):
        self.events.append(runs)

    def end_epoch(self, record):
        self.events.append("epoch")

    def end_run(self, record):
        self.events.append((record.method, record.seed))

    def fail_run(self, run, error):
        self.events.append((run.method, run.seed, error))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, run_study(STUDY, folder, runtime=CPU).records


def test_methods_come_in_turn_within_a_seed(compared):
    folder, records = compared
    assert [(r.method, r.seed) for r in records] == [("plain", 0), ("sgs", 0), ("plain", 1), ("sgs", 1)]
    assert [r.entry for r in records] == ["plain", "sgs"] * 2
    assert read_study(folder) == STUDY


def test_a_finished_study_is_read_and_not_run_again(compared):
    folder, records = compared
    log = Log()
    assert run_study(STUDY, folder, runtime=CPU, progress=log).records == records
    assert log.events == [4, ("plain", 0), ("sgs", 0), ("plain", 1), ("sgs", 1)]


def test_more_seeds_run_what_is_missing_alone(compared):
    folder, records = compared
    log = Log()
    more = run_study(compare_study(TINY, ["plain"], [0, 1, 2]), folder, runtime=CPU, progress=log).records
    assert log.events == [3, ("plain", 0), ("plain", 1), "epoch", ("plain", 2)]
    assert more[:2] == records[::2]


def test_other_settings_in_the_same_folder_are_refused(compared):
    folder, _ = compared
    refusal = r"plain-seed0 to belong to one run of study 'study', got another with other settings; choose another fold"
    with pytest.raises(InputError, match=refusal):
        run_study(compare_study(replace(TINY, epochs=3), ["plain"], [0]), folder, runtime=CPU)


def test_an_interrupted_study_resumes(compared, tmp_path):
    _, records = compared

    class Stop(Log):
        def end_epoch(self, record):
            super().end_epoch(record)
            if self.events.count("epoch") == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(STUDY, tmp_path, runtime=CPU, progress=Stop())
    log = Log()
    again = run_study(STUDY, tmp_path, runtime=CPU, progress=log).records
    # The first is read, the second had its only epoch behind it and is last in the queue now.
    assert log.events == [4, ("plain", 0), "epoch", ("plain", 1), "epoch", ("sgs", 1), ("sgs", 0)]
    assert [r.history[0]["train_loss"] for r in again] == [r.history[0]["train_loss"] for r in records]


def test_waiting_runs_of_an_earlier_study_are_left_until_a_study_has_them(tmp_path, monkeypatch, make_record):
    with closing(Queue.create(str(tmp_path), "study", folder=tmp_path, runtime=CPU)) as queue:
        queue.fill(STUDY.runs())  # and interrupted
    trained = []

    def execute(run, data, folder, *, entry, **options):
        trained.append(folder.name)
        record = make_record(run.recipe, run.method, run.seed, [0.5], entry=entry)
        folder.mkdir()
        record.write(folder / "result.json")
        return record

    monkeypatch.setattr(workers, "execute", execute)
    run_study(compare_study(TINY, ["plain"], [0, 1]), tmp_path, runtime=CPU)
    assert trained == ["plain-seed0", "plain-seed1"]
    assert len(run_study(STUDY, tmp_path, runtime=CPU).records) == 4
    assert trained[2:] == ["sgs-seed0", "sgs-seed1"]


def test_runs_that_another_study_in_the_folder_has_dropped_are_named(tmp_path, monkeypatch):
    def drop(queue, folder, **options):
        queue.drop_others(STUDY.runs()[:3])

    monkeypatch.setattr(running, "work", drop)
    with pytest.raises(StateError, match=r"the 4 runs .*, got 1 that wait no more, such as sgs-seed1, since"):
        run_study(STUDY, tmp_path, runtime=CPU)


def test_a_study_moves_with_its_folder(compared, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "moved")
    assert run_study(STUDY, folder, runtime=CPU).records == compared[1]


def test_a_study_without_runs_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"expected a study with at least one run, got none \(no entry or no seed\); choose other"
    ):
        run_study(replace(STUDY, seeds=()), tmp_path, runtime=CPU)
    assert list(tmp_path.iterdir()) == []


def test_failures_are_told_after_all_runs_have_ended_and_tried_again(tmp_path):
    study = compare_study(replace(TINY, model="nope"), ["plain", "sgs"], [0, 1])
    result = run_study(study, tmp_path, runtime=CPU, progress=Log())
    assert (result.records, list(result.failures), result.runs) == ([], [run.folder for run in study.runs()], 4)
    with pytest.raises(
        StateError, match=r"^4 of 4 runs failed \(plain-seed0: unknown model 'nope'.*; and 1 more\); those"
    ):
        result.check()
    assert run_study(study, tmp_path, runtime=CPU) == result


def test_a_complete_run_without_its_record_is_named(compared, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "copy")
    shutil.rmtree(folder / "sgs-seed0")  # as if another machine had computed it in a folder of its own
    with pytest.raises(
        InputError,
        match=rf"expected the record of a complete run at {folder}/sgs-seed0/result.json, found none; let all workers "
        "share one folder, or give the folder that holds the runs with --out",
    ):
        run_study(STUDY, folder, runtime=CPU)


def test_the_ends_of_runs_in_other_processes_are_shown(tmp_path, monkeypatch, make_record):
    study = compare_study(TINY, ["plain", "pgt"], [0])
    record = make_record(TINY, "plain", 0, [0.5], entry="plain")

    def end_both(storage, name, folder, *, processes, heartbeat, grace, watch):
        assert (storage, name, folder, processes) == (str(tmp_path), "study", tmp_path, 2)
        queue = running.Queue.open(storage, name)
        queue.finish(queue.claim(), 0.5)
        watch()  # The record is not yet there.
        assert log.events == [2]
        (folder / "plain-seed0").mkdir()
        record.write(folder / "plain-seed0" / "result.json")
        watch()
        assert log.events == [2, ("plain", 0)]
        queue.fail(queue.claim(), "no such thing")
        watch()
        queue.close()

    monkeypatch.setattr(running, "work_in_processes", end_both)
    log = Log()
    result = run_study(study, tmp_path, runtime=CPU, processes=2, progress=log)
    assert log.events == [2, ("plain", 0), ("pgt", 0, "no such thing")]
    assert result.records == [record]
    assert result.failures == {"pgt-seed0": "no such thing"}


def test_a_new_study_started_twice_at_once_is_run_once(tmp_path, monkeypatch, make_record):
    study = compare_study(TINY, ["plain", "pgt"], [0, 1])
    computed, results, barrier = [], [], threading.Barrier(2)

    def execute(run, data, folder, *, entry, **options):
        computed.append(folder.name)
        folder.mkdir()
        record = make_record(run.recipe, run.method, run.seed, [0.5], entry=entry)
        record.write(folder / "result.json")
        return record

    def start(folder):
        barrier.wait(60)
        results.append(run_study(study, folder, runtime=CPU, heartbeat=0.1))

    monkeypatch.setattr(workers, "execute", execute)
    for number in range(5):
        starters = [threading.Thread(target=start, args=(tmp_path / str(number),)) for _ in range(2)]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join()
    assert sorted(computed) == sorted([run.folder for run in study.runs()] * 5)
    assert len(results) == 10
    assert [record.score for record in results[0].records] == [0.5] * 4


def test_a_folder_may_be_given_as_text(tmp_path):
    study = compare_study(TINY, ("plain",), (0,))
    result = run_study(study, str(tmp_path / "a"), runtime=CPU)
    assert result.records == run_study(study, tmp_path / "a", runtime=CPU).records
    assert read_study(str(tmp_path / "a")) == study
