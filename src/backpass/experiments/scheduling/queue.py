"""The runs of a study as trials in one Optuna storage, each handed to one worker at a time.

The queue holds states; what a run has come to stands in its folder. A waiting run is a waiting trial. Claiming sets it
running by compare-and-set in the storage, so that one worker wins. A running run's worker counts beats in the trial;
whoever sees the count stand still for the grace period, by its own clock, fails that trial and puts the run back. The
folder is the same, so the next worker resumes from its checkpoint. The same mechanism serves databases and journal
files, and needs no two machines to agree on the time of day.

A run can have several trials, some failed. Two workers may put the same run back at once; therefore a claimed trial is
used only if no trial of its run is complete and none with a lower number waits or runs. So a run completes once.

The grid is written out as waiting trials because Optuna's ``GridSampler`` can hand one point to two workers.
"""

import itertools
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from backpass.errors import InputError
from backpass.experiments.scheduling.storage import open_storage
from backpass.experiments.serialization import from_json, to_json
from backpass.experiments.study import StudyRun
from backpass.training.recipe import Runtime

__all__ = ["Claim", "LostRunError", "Queue", "RunState"]

_MAX_LOSSES = 10
_LIVE = (TrialState.WAITING, TrialState.RUNNING)
_LOST, _RELEASED, _DUPLICATE = "lost", "released", "duplicate"


class LostRunError(Exception):
    """The run was taken for abandoned and given to another worker."""


@dataclass(frozen=True)
class Claim:
    """A run that this worker, and no other, is to compute; ``trial`` is its id in the storage."""

    run: StudyRun
    trial: int


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        run: the run.
        state: a failed run raised an error, or lost its workers too often.
        worker: host and process of the worker, while it runs.
        error: why it failed.
    """

    run: StudyRun
    state: Literal["waiting", "running", "complete", "failed"]
    worker: str | None = None
    error: str | None = None


class Queue:
    """The runs of one study.

    Args:
        storage: of :func:`backpass.experiments.scheduling.storage.open_storage`.
        name: of the study in it.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self.name = name
        self._storage = storage
        self._study = optuna.load_study(study_name=name, storage=storage)
        self._study_id = storage.get_study_id_from_name(name)
        self._beats = itertools.count()
        self._seen: dict[int, tuple[Any, float]] = {}
        self._looked = 0.0

    @classmethod
    def open(cls, address: str, name: str | None = None) -> "Queue":
        """Return a study that was made earlier.

        Args:
            address: folder, ``journal:PATH`` or database URL.
            name: of the study; may be left out where there is one only.

        Raises:
            InputError: the storage cannot be opened, or holds no such study.
        """
        storage = open_storage(address)
        names = optuna.get_all_study_names(storage)
        if (name is None and len(names) != 1) or (name is not None and name not in names):
            wanted = "one study, or its name" if name is None else f"a study called {name!r}"
            raise InputError(f"expected {wanted} in {address}, found {', '.join(map(repr, names)) or 'no study'}")
        return cls(storage, name or names[0])

    @classmethod
    def create(cls, address: str, name: str, *, folder: Path, runtime: Runtime) -> "Queue":
        """Return the study called ``name``, made now or earlier.

        Args:
            address: folder, ``journal:PATH`` or database URL; missing folders and tables are made.
            name: of the study.
            folder: where the run folders lie; workers use it unless told otherwise.
            runtime: how every worker computes.
        """
        storage = open_storage(address, create=True)
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
        study.set_user_attr("folder", str(folder.resolve()))
        study.set_user_attr("runtime", to_json(runtime))
        return cls(storage, name)

    def close(self) -> None:
        """Close the connections to a database."""
        if isinstance(self._storage, RDBStorage):
            self._storage.remove_session()
            self._storage.engine.dispose()

    @property
    def folder(self) -> Path:
        """Where the run folders lie, as the study's maker saw it."""
        return Path(self._study.user_attrs["folder"])

    @property
    def runtime(self) -> Runtime:
        """How every worker computes."""
        return from_json(Runtime, self._study.user_attrs["runtime"], f"runtime of study {self.name!r}")

    def fill(self, runs: Sequence[StudyRun]) -> None:
        """Let every run wait that neither waits, runs, nor is complete; failed ones get another chance.

        Raises:
            InputError: a run's folder belongs to another run of the study.
        """
        by_folder = self._by_folder()
        new: dict[str, StudyRun] = {}
        for run in runs:
            trials = by_folder.get(run.folder, [])
            if any(_run(trial) != run for trial in trials) or new.get(run.folder, run) != run:
                raise InputError(
                    f"expected {run.folder} to belong to one run of study {self.name!r}, got another with other "
                    "settings; choose another folder"
                )
            if not any(trial.state in (*_LIVE, TrialState.COMPLETE) for trial in trials):
                new[run.folder] = run
        for run in new.values():
            self._add(run.folder, to_json(run), filled=True)

    def claim(self) -> Claim | None:
        """Return the next waiting run, now running; ``None`` if none waits."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            identity = self._id(trial)
            try:
                won = self._storage.set_trial_state_values(identity, TrialState.RUNNING)
            except UpdateFinishedTrialError:
                continue
            if won and self._is_elsewhere(trial):
                self._fail(identity, _DUPLICATE)
            elif won:
                return Claim(_run(trial), identity)
        return None

    def beat(self, claim: Claim) -> None:
        """Record that the run is being computed.

        Raises:
            LostRunError: another worker has it now.
        """
        worker = f"{platform.node()}:{os.getpid()}"
        try:
            self._storage.set_trial_user_attr(claim.trial, "beat", [worker, next(self._beats)])
        except UpdateFinishedTrialError as error:
            raise LostRunError(claim.run.folder) from error

    def finish(self, claim: Claim, accuracy: float) -> None:
        """Record that a claimed run is complete; may be called again when the storage has raised an error.

        Raises:
            LostRunError: another worker has the run now.
        """
        try:
            self._storage.set_trial_state_values(claim.trial, TrialState.COMPLETE, [accuracy])
        except UpdateFinishedTrialError as error:
            # A claim's trial is completed by the claim alone: an earlier try got through, its answer did not.
            if self._storage.get_trial(claim.trial).state != TrialState.COMPLETE:
                raise LostRunError(claim.run.folder) from error

    def fail(self, claim: Claim, error: str) -> None:
        """Record that a claimed run raised an error; it is not tried again before the next :meth:`fill`."""
        self._fail(claim.trial, error)

    def release(self, claim: Claim) -> None:
        """Put a claimed run back, since this worker has been stopped."""
        self._fail(claim.trial, _RELEASED)
        self._put_back()

    def take_over(self, grace: float) -> None:
        """Put back the runs whose workers have shown no beat for ``grace`` seconds of watching.

        Watching starts with the first call that sees the run running, and again when half of ``grace`` has passed since
        the last call, because a worker may have beaten and been silent meanwhile. A run that has lost ten workers since
        it was filled has failed.
        """
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        now = time.monotonic()
        if 0 < grace / 2 < now - self._looked:
            self._seen.clear()
        self._looked = now
        for trial in running:
            beat = trial.user_attrs.get("beat")
            seen, since = self._seen.get(trial.number, (None, now))
            if trial.number not in self._seen or beat != seen:
                self._seen[trial.number] = (beat, now)
            elif now - since > grace:
                self._fail(self._id(trial), _LOST)
        self._put_back()

    def states(self) -> list[RunState]:
        """Return the state of every run, in the order in which they came."""
        return [_state(trials) for trials in self._by_folder().values()]

    def _put_back(self) -> None:
        for trials in self._by_folder().values():
            if _is_abandoned(trials):
                self._add(_folder(trials[0]), trials[0].user_attrs["run"])

    def _add(self, folder: str, run: str, *, filled: bool = False) -> None:
        attributes = {"folder": folder, "run": run, "filled": filled}
        self._study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attributes))

    def _fail(self, trial: int, ending: str) -> None:
        try:
            # The ending comes first: a finished trial takes no more attributes.
            self._storage.set_trial_user_attr(trial, "ending", ending)
            self._storage.set_trial_state_values(trial, TrialState.FAIL)
        except UpdateFinishedTrialError:
            pass

    def _is_elsewhere(self, trial: FrozenTrial) -> bool:
        others = self._by_folder()[_folder(trial)]
        return any(
            other.state == TrialState.COMPLETE or (other.state in _LIVE and other.number < trial.number)
            for other in others
        )

    def _by_folder(self) -> dict[str, list[FrozenTrial]]:
        grouped: dict[str, list[FrozenTrial]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            grouped.setdefault(_folder(trial), []).append(trial)
        return grouped

    def _id(self, trial: FrozenTrial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)


def _folder(trial: FrozenTrial) -> str:
    return str(trial.user_attrs["folder"])


def _run(trial: FrozenTrial) -> StudyRun:
    return from_json(StudyRun, trial.user_attrs["run"], f"run {_folder(trial)} of the study's storage")


def _endings(trials: Sequence[FrozenTrial]) -> list[str]:
    endings = [t.user_attrs.get("ending", _LOST) for t in trials if t.state == TrialState.FAIL]
    return [ending for ending in endings if ending != _DUPLICATE]


def _is_abandoned(trials: Sequence[FrozenTrial]) -> bool:
    """Return whether the run of these trials has lost its worker, and is to be put back."""
    if any(trial.state in (*_LIVE, TrialState.COMPLETE) for trial in trials):
        return False
    ending = _endings(trials)[-1]
    fillings = [number for number, trial in enumerate(trials) if trial.user_attrs.get("filled")]
    losses = _endings(trials[fillings[-1] if fillings else 0 :]).count(_LOST)
    return ending == _RELEASED or (ending == _LOST and losses < _MAX_LOSSES)


def _state(trials: Sequence[FrozenTrial]) -> RunState:
    """Return the state of the run of these trials."""
    run = _run(trials[0])
    for trial in sorted(trials, key=lambda trial: trial.state != TrialState.COMPLETE):
        if trial.state == TrialState.COMPLETE:
            return RunState(run, "complete")
        if trial.state == TrialState.RUNNING:
            return RunState(run, "running", worker=trial.user_attrs.get("beat", [None])[0])
    # An abandoned run waits: failing its trial and putting it back are two steps, and a worker may look in between.
    if _is_abandoned(trials) or any(trial.state == TrialState.WAITING for trial in trials):
        return RunState(run, "waiting")
    last = _endings(trials)[-1]
    return RunState(run, "failed", error=f"its workers died, {_MAX_LOSSES} times in all" if last == _LOST else last)
