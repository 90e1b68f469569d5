import json
import os
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from backpass.__main__ import main
from backpass.errors import InputError
from backpass.experiments.progress import Progress
from backpass.experiments.record import read_record
from backpass.experiments.scheduling import worker as workers
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.worker import work
from reference.study_workers import TINY, accuracies, queue_of, run_states, tiny_run


def test_a_failed_run_leaves_its_traceback_and_the_next_is_taken(tmp_path):
    bad = tiny_run("bad", model="nope")
    good = tiny_run("good")
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
    assert "Traceback" in (tmp_path / "bad-seed0" / "error.txt").read_text()
    assert not (tmp_path / "good-seed0" / "error.txt").exists()
    record = read_record(tmp_path / "good-seed0" / "result.json")
    assert (record.run, record.entry) == (good.run, "good")
    assert accuracies(queue) == {"good-seed0": record.score}
    queue.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_grace_in_which_live_workers_are_silent_is_refused(processes, tmp_path, capsys):
    queue_of([tiny_run()], tmp_path).close()
    command = ["worker", "--study", str(tmp_path), "--heartbeat", "10", "--grace", "15", "--processes", str(processes)]
    assert main(command) == 2
    assert "expected a grace of at least two heartbeats, 20 s, got 15 s, in which" in capsys.readouterr().err
    with closing(Queue.open(str(tmp_path))) as queue:
        assert run_states(queue) == ["waiting"]


def test_a_worker_takes_no_tuning_that_diverged_and_no_run_of_another_study_for_a_failure(tmp_path, capsys):
    out = str(tmp_path)
    compare = ["compare", "--epochs", "1", "--seeds", "0", "--runtime.device", "cpu", "--out", out, "--methods"]
    assert main([*compare, "plain", "agc", "--agc.head", "nope"]) == 2
    assert main([*compare, "pgt", "--tune", "lr=0.05,1e30", "--tuning.seeds", "7"]) == 0
    capsys.readouterr()
    assert main(["worker", "--study", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": out, "runs": 3, "failures": {}}


def test_an_interrupted_worker_puts_its_run_back(tmp_path):
    class Stop(Progress):
        def step(self, epoch, step, steps):
            raise KeyboardInterrupt

    queue = queue_of([tiny_run()], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work(queue, tmp_path, progress=Stop())
    assert queue.states()[0].state == "waiting"
    work(queue, tmp_path)
    assert queue.states()[0].state == "complete"
    queue.close()


def test_a_device_that_is_gone_ends_the_worker(tmp_path, let_runs_end):
    let_runs_end(RuntimeError("CUDA error: device-side assert triggered"))
    queue = queue_of([tiny_run(seed=seed) for seed in (0, 1)], tmp_path)
    with pytest.raises(RuntimeError, match="CUDA error"):
        work(queue, tmp_path)
    assert run_states(queue) == ["failed", "waiting"]
    queue.close()


def test_a_worker_drops_a_run_that_was_taken_over(tmp_path):
    queue = queue_of([tiny_run(epochs=500)], tmp_path)
    other = Queue.open(str(tmp_path))
    steps = []

    class Suspended(Progress):
        def step(self, epoch, step, steps_):
            steps.append(step)
            if len(steps) == 1:
                while (claim := other.claim()) is None:
                    other.take_over(grace=-1)
                other.finish(claim, 0.5)
            time.sleep(0.01)

    work(queue, tmp_path, progress=Suspended(), heartbeat=0.1)
    assert 1 <= len(steps) < 500
    assert accuracies(queue) == {"a-seed0": 0.5}
    assert not (tmp_path / "a-seed0" / "result.json").exists()
    other.close()
    queue.close()


def test_a_worker_waits_for_the_first_runs_of_a_study(tmp_path, monkeypatch, make_record, let_runs_end):
    let_runs_end(make_record(TINY, "plain", 0, [0.5]))
    queue = queue_of([], tmp_path)

    def fill(seconds):
        queue.fill([tiny_run()])

    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=fill, monotonic=time.monotonic))
    work(queue, tmp_path)
    assert run_states(queue) == ["complete"]
    queue.close()


def test_a_worker_names_at_once_the_runs_that_it_waits_for(tmp_path, monkeypatch, caplog):
    queue = queue_of([tiny_run(seed=seed) for seed in range(3)], tmp_path)
    dead = Queue.open(str(tmp_path))
    first, second = dead.claim(), dead.claim()
    dead.beat(first)
    third, calls = dead.claim(), []

    def sleep(seconds):
        calls.append(seconds)
        if len(calls) == 2:
            dead.beat(second)
            dead.finish(first, 0.5)
        elif len(calls) == 3:
            dead.finish(third, 0.5)
            dead.finish(second, 0.5)

    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    work(queue, tmp_path, grace=60)
    lines = [record.getMessage() for record in caplog.records if record.name == workers.__name__]
    assert len(lines) == 1
    assert "taking over any that shows no sign of life for 60 s: a-seed0 (" in lines[0]
    assert f":{os.getpid()}), a-seed1 (starting), a-seed2 (starting)" in lines[0]
    dead.close()
    queue.close()


def test_a_worker_of_a_study_without_runs_says_once_that_it_waits(tmp_path, monkeypatch, caplog, let_runs_end):
    let_runs_end(SimpleNamespace(score=0.5))
    queue, calls = queue_of([], tmp_path), []

    def sleep(seconds):
        calls.append(seconds)
        if len(calls) == 3:
            queue.fill([tiny_run()])

    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    work(queue, tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.name == workers.__name__]
    assert lines == ["the study has no runs yet; waiting for the command that adds them"]
    assert run_states(queue) == ["complete"]
    queue.close()


def test_a_worker_names_what_it_waits_for_again_after_a_run_of_its_own(tmp_path, monkeypatch, caplog, make_record):
    queue = queue_of([tiny_run(seed=seed) for seed in range(2)], tmp_path)
    other = Queue.open(str(tmp_path))
    claims = [other.claim(), other.claim()]

    def sleep(seconds):
        if len(claims) == 2:
            other.release(claims.pop())
        elif len(claims) == 1:
            other.finish(claims.pop(), 0.5)

    monkeypatch.setattr(workers, "execute", lambda *arguments, **options: make_record(TINY, "plain", 0, [0.5]))
    monkeypatch.setattr(workers, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    work(queue, tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.name == workers.__name__]
    assert [line.partition(" s: ")[2].count("-seed") for line in lines] == [2, 1]
    other.close()
    queue.close()


def test_a_key_that_leads_out_of_the_folder_ends_the_worker(tmp_path):
    with closing(queue_of([tiny_run()], tmp_path)) as queue:
        text = queue._study.get_trials()[0].user_attrs["run"].replace('"entry": "a"', '"entry": "../../X"')
        queue._add("b-seed0", text)
        with pytest.raises(InputError, match=r"expected an entry's key .*got '\.\./\.\./X'"):
            work(queue, tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a-seed0"]
    assert not (tmp_path.parent / "X-seed0").exists()
