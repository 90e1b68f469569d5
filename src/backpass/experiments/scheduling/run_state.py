"""The state of a run, as its trials in the storage tell it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from backpass.experiments.serialization import from_json
from backpass.experiments.study import StudyRun

__all__ = [
    "DROPPED",
    "DUPLICATE",
    "LIVE",
    "LOST",
    "RELEASED",
    "RunState",
    "folder_of",
    "is_abandoned",
    "is_dropped",
    "is_marked",
    "run_of",
    "state_of",
]

LIVE = (TrialState.WAITING, TrialState.RUNNING)
# How a trial failed, if not by an error of the run: its worker was silent, was stopped, or another trial has the run.
LOST, RELEASED, DUPLICATE = "lost", "released", "duplicate"
DROPPED = "dropped"  # Marks the trials of runs that the study which was started last does not have.
_MAX_LOSSES = 10


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        run: the run.
        state: a failed run raised an error, or lost its workers too often.
        worker: host and process of the worker, while it runs.
        error: why it failed.
        diverged: whether it failed because its loss did not stay finite.
    """

    run: StudyRun
    state: Literal["waiting", "running", "complete", "failed"]
    worker: str | None = None
    error: str | None = None
    diverged: bool = False


def folder_of(trial: FrozenTrial) -> str:
    """Return the folder of a trial's run, which identifies the run."""
    return str(trial.user_attrs["folder"])


def run_of(trial: FrozenTrial) -> StudyRun:
    """Return a trial's run.

    Raises:
        InputError: the storage holds no run that this version can read, or one whose key leads out of the folder.
    """
    return from_json(StudyRun, trial.user_attrs["run"], f"run {folder_of(trial)!r} of the study's storage")


def is_marked(trial: FrozenTrial) -> bool:
    """Return whether the trial was marked as one of a run that is dropped."""
    return bool(trial.user_attrs.get(DROPPED))


def is_dropped(trials: Sequence[FrozenTrial]) -> bool:
    """Return whether the run of these trials was dropped, and neither runs nor is complete."""
    if any(trial.state in (TrialState.RUNNING, TrialState.COMPLETE) for trial in trials):
        return False
    return all(map(is_marked, [trial for trial in trials if trial.state in LIVE] or trials[-1:]))


def is_abandoned(trials: Sequence[FrozenTrial]) -> bool:
    """Return whether the run of these trials has lost its worker and is to be put back."""
    if any(trial.state in (*LIVE, TrialState.COMPLETE) for trial in trials) or is_dropped(trials):
        return False
    ending = _endings(trials)[-1]
    fillings = [number for number, trial in enumerate(trials) if trial.user_attrs.get("filled")]
    losses = _endings(trials[fillings[-1] if fillings else 0 :]).count(LOST)
    return ending == RELEASED or (ending == LOST and losses < _MAX_LOSSES)


def state_of(trials: Sequence[FrozenTrial]) -> RunState:
    """Return the state of the run of these trials."""
    run = run_of(trials[0])
    for trial in sorted(trials, key=lambda trial: trial.state != TrialState.COMPLETE):
        if trial.state == TrialState.COMPLETE:
            return RunState(run, "complete")
        if trial.state == TrialState.RUNNING:
            return RunState(run, "running", worker=trial.user_attrs.get("beat", [None])[0])
    # An abandoned run waits: failing its trial and putting it back are two steps, and a worker may look in between.
    if is_abandoned(trials) or any(trial.state == TrialState.WAITING for trial in trials):
        return RunState(run, "waiting")
    last = _endings(trials)[-1]
    error = f"its workers died, {_MAX_LOSSES} times in all" if last == LOST else last
    diverged = any(trial.user_attrs.get("diverged") and trial.user_attrs.get("ending") == last for trial in trials)
    return RunState(run, "failed", error=error, diverged=diverged)


def _endings(trials: Sequence[FrozenTrial]) -> list[str]:
    endings = [t.user_attrs.get("ending", LOST) for t in trials if t.state == TrialState.FAIL]
    return [ending for ending in endings if ending != DUPLICATE]
