"""Tiny studies, and what the worker processes of a test do; here, since a started process must be able to import it."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from optuna.trial import TrialState

from backpass.experiments.recipes import RECIPES
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.worker import work
from backpass.experiments.study import StudyRun
from backpass.training.recipe import DataSettings, Recipe, Run, Runtime

CPU = Runtime(device="cpu")
TINY = replace(RECIPES["digits"], epochs=1, data=DataSettings(limit_train=64, limit_test=20))

THREE_RUNS = [StudyRun("plain", Run(Recipe(epochs=1), "plain", seed)) for seed in range(3)]


def tiny_run(entry="a", seed=0, **changes):
    """Return a run of the entry with that key: plain training on a few digits, but for what is changed."""
    return StudyRun(entry, Run(replace(TINY, **changes), "plain", seed))


def queue_of(runs, folder):
    """Return a queue of these runs in a SQLite file of the folder."""
    queue = Queue.create(str(folder), "s", folder=folder, runtime=CPU)
    queue.fill(runs)
    return queue


def run_states(queue):
    """Return the states of all runs of a queue."""
    return [state.state for state in queue.states()]


def accuracies(queue):
    """Return the accuracies with which runs were completed, by folder; each run completes once."""
    complete = [trial for trial in queue._study.get_trials() if trial.state == TrialState.COMPLETE]
    found = {trial.user_attrs["folder"]: trial.value for trial in complete}
    assert len(found) == len(complete)
    return found


def run_all(address, folder, answers):
    """Work until every run has ended; answer with the seeds of the runs that were trained here."""
    ran = []

    class Log:
        def __getattr__(self, name):
            return lambda *arguments: ran.append(arguments[0].seed) if name == "end_run" else None

    queue = Queue.open(address)
    work(queue, Path(folder), progress=Log(), heartbeat=0.5, grace=30)
    answers.put(ran)


def start_command(*words, **options):
    """Start ``backpass`` with these words in a process of its own, on the CPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "backpass", *map(str, words)]
    defaults = {"env": environment, "stdout": subprocess.DEVNULL, "preexec_fn": _hear_interrupts}
    return subprocess.Popen(command, **(defaults | options))


def _hear_interrupts():
    """Undo what a shell does to commands in its background, whose processes ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def essence(record):
    """Return what must not depend on who computed the run."""
    return record.run, [(r["train_loss"], r["test_accuracy"]) for r in record.history], record.scalings
