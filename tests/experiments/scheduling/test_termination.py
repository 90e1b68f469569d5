import os
import signal
import subprocess
import threading
import time
from contextlib import closing

import pytest

from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.termination import leave_interrupts_to_starter, when_terminated
from backpass.experiments.scheduling.worker import work
from reference.study_workers import queue_of, run_states, start_command, tiny_run


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


def test_an_interrupt_while_processes_start_is_not_lost():
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with leave_interrupts_to_starter():
            signal.raise_signal(signal.SIGINT)
            started = True
        raise AssertionError("the interrupt was lost")
    assert started
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_sigterm_does_not_cut_short_the_putting_back_of_a_run(tmp_path, monkeypatch, let_runs_end):
    def release(claim):
        signal.raise_signal(signal.SIGTERM)
        real(claim)

    let_runs_end(KeyboardInterrupt())
    queue = queue_of([tiny_run()], tmp_path)
    real = queue.release
    monkeypatch.setattr(queue, "release", release)
    with pytest.raises(KeyboardInterrupt), when_terminated():
        work(queue, tmp_path)
    assert queue.states()[0].state == "waiting"
    queue.close()


def wait_for_epochs(process, folder, runs):
    """Wait until every run has an epoch behind it."""
    while not all((folder / run / "metrics.jsonl").is_file() for run in runs):
        assert process.poll() is None
        time.sleep(0.05)


def endings(queue):
    return [trial.user_attrs.get("ending") for trial in queue._study.get_trials()]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_terminated_worker_puts_its_runs_back(processes, tmp_path):
    runs = [tiny_run(seed=seed, epochs=100_000) for seed in range(processes)]
    queue = queue_of(runs, tmp_path)
    command = ["worker", "--study", tmp_path, "--json", "--processes", processes]
    worker = start_command(*command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_epochs(worker, tmp_path, [run.folder for run in runs])
    finally:
        worker.terminate()
    _, printed = worker.communicate(timeout=120)
    assert worker.returncode == 143
    assert printed == "backpass: terminated; its runs wait again; start the same command again to resume\n"
    assert run_states(queue) == ["waiting"] * processes
    assert endings(queue) == [*["released"] * processes, *[None] * processes]
    queue.close()


COMPARE = ["compare", "--epochs", "100000", "--data.limit-train", "64", "--data.limit-test", "20", "--seeds", "0"]
COMPARE += ["--methods", "plain", "pgt", "--runtime.device", "cpu", "--processes", "2"]


def test_workers_end_with_a_starter_that_is_killed(tmp_path):
    starter = start_command(*COMPARE, "--out", tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for_epochs(starter, tmp_path, ["plain-seed0", "pgt-seed0"])
    finally:
        starter.kill()
    starter.communicate(timeout=120)  # ends when no process has the other end of the pipe any more
    with closing(Queue.open(str(tmp_path))) as queue:
        assert run_states(queue) == ["waiting"] * 2
        assert endings(queue) == ["released", "released", None, None]


def test_an_interrupt_from_the_terminal_ends_all_and_tells_how_to_resume(tmp_path):
    folder = tmp_path / "a study"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    starter = start_command(*COMPARE, "--out", folder, "--json", **options)
    try:
        wait_for_epochs(starter, folder, ["plain-seed0", "pgt-seed0"])
        os.killpg(starter.pid, signal.SIGINT)  # as a terminal does: to every process
        out, err = starter.communicate(timeout=120)
    finally:
        starter.kill()
    assert (starter.returncode, out) == (130, "")
    assert err == f"backpass: interrupted; to resume, give the same command with --out '{folder}'\n"
    with closing(Queue.open(str(folder))) as queue:
        assert run_states(queue) == ["waiting"] * 2
        assert endings(queue) == ["released", "released", None, None]
