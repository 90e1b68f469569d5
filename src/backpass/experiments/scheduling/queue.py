"""The runs of a study as trials in one Optuna storage, each handed to one worker at a time.

The queue holds states; the record of a run is in its folder. A waiting run is a waiting trial. Claiming sets it
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from backpass.errors import InputError
from backpass.experiments.scheduling.run_state import (
    DROPPED,
    DUPLICATE,
    LIVE,
    LOST,
    RELEASED,
    RunState,
    folder_of,
    is_abandoned,
    is_dropped,
    is_marked,
    run_of,
    state_of,
)
from backpass.experiments.scheduling.silence import SilenceWatch
from backpass.experiments.scheduling.stored_study import StoredStudy
from backpass.experiments.serialization import to_json
from backpass.experiments.study import StudyRun

__all__ = ["Claim", "LostRunError", "Queue"]


class LostRunError(Exception):
    """The run was taken for abandoned and given to another worker."""


@dataclass(frozen=True)
class Claim:
    """A run that this worker, and no other, is to compute; ``trial`` is its id in the storage."""

    run: StudyRun
    trial: int


class Queue(StoredStudy):
    """The runs of one study; arguments as those of :class:`StoredStudy`."""

    def __init__(self, storage: BaseStorage, name: str) -> None:
        super().__init__(storage, name)
        self._study_id = storage.get_study_id_from_name(name)
        self._beats = itertools.count()
        self._watch = SilenceWatch()

    def fill(self, runs: Sequence[StudyRun]) -> None:
        """Let every run wait that neither waits, runs, nor is complete; failed ones get another chance.

        Raises:
            InputError: a run's folder belongs to another run of the study.
        """
        by_folder = self._by_folder()
        new: dict[str, StudyRun] = {}
        for run in runs:
            trials = by_folder.get(run.folder, [])
            if any(run_of(trial) != run for trial in trials) or new.get(run.folder, run) != run:
                raise InputError(
                    f"expected {run.folder} to belong to one run of study {self.name!r}, got another with other "
                    "settings; choose another folder"
                )
            self._set_dropped([trial for trial in trials if is_marked(trial)], False)
            if not any(trial.state in (*LIVE, TrialState.COMPLETE) for trial in trials):
                new[run.folder] = run
        for run in new.values():
            self._add(run.folder, to_json(run), filled=True)

    def drop_others(self, runs: Sequence[StudyRun]) -> None:
        """Let every other run wait no more; one that runs is not put back if its worker stops.

        A run that was dropped is not among the :meth:`states`, until :meth:`fill` lets it wait again.
        """
        own = {run.folder for run in runs}
        live = self._study.get_trials(deepcopy=False, states=LIVE)
        self._set_dropped([trial for trial in live if folder_of(trial) not in own and not is_marked(trial)], True)

    def claim(self) -> Claim | None:
        """Return the next waiting run, now running; ``None`` if none waits, or each waits for another run's weights.

        A run that starts from the weights of another run of the study is given out when that one is complete, and fails
        when that one has failed.

        Raises:
            InputError: the storage holds what is no run of a study.
        """
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if is_marked(trial):
                continue
            run, identity = run_of(trial), self._id(trial)
            first = None if run.needs is None else self._state(run.needs)
            if first in ("waiting", "running"):
                continue
            try:
                won = self._storage.set_trial_state_values(identity, TrialState.RUNNING)
            except UpdateFinishedTrialError:
                continue
            if won and self._is_elsewhere(trial):
                self._fail(identity, DUPLICATE)
            elif won and run.needs is not None and first != "complete":
                found = "which has failed" if first == "failed" else "which is not in the study"
                self._fail(identity, f"expected the trained weights of {run.needs}, {found}; run it first")
            elif won:
                return Claim(run, identity)
        return None

    def beat(self, claim: Claim) -> None:
        """Record that the run is being computed.

        Raises:
            LostRunError: another worker has it now.
        """
        worker = f"{platform.node()}:{os.getpid()}"
        with self._unless_lost(claim):
            self._storage.set_trial_user_attr(claim.trial, "beat", [worker, next(self._beats)])

    def finish(self, claim: Claim, accuracy: float) -> None:
        """Record that a claimed run is complete; may be called again when the storage has raised an error.

        Raises:
            LostRunError: another worker has the run now.
        """
        with self._unless_lost(claim):
            self._storage.set_trial_state_values(claim.trial, TrialState.COMPLETE, [accuracy])

    @contextmanager
    def _unless_lost(self, claim: Claim) -> Iterator[None]:
        try:
            yield
        except UpdateFinishedTrialError as error:
            # A claim's trial is completed by the claim alone: it got through, even if its answer did not.
            if self._storage.get_trial(claim.trial).state != TrialState.COMPLETE:
                raise LostRunError(claim.run.folder) from error

    def fail(self, claim: Claim, error: str, *, diverged: bool = False) -> None:
        """Record that a claimed run raised an error; it is not tried again before the next :meth:`fill`.

        Args:
            claim: of the run.
            error: why it failed.
            diverged: whether its loss did not stay finite, which a stage that tries settings takes for an answer.
        """
        with suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(claim.trial, "diverged", diverged)
        self._fail(claim.trial, error)

    def release(self, claim: Claim) -> None:
        """Put a claimed run back, since this worker has been stopped.

        Other abandoned runs are left to :meth:`take_over`: workers that are stopped together would put back each
        other's.
        """
        self._fail(claim.trial, RELEASED)
        self._put_back(self._by_folder()[claim.run.folder])

    def take_over(self, grace: float) -> None:
        """Put back the runs whose workers have shown no beat for ``grace`` seconds of watching.

        See :class:`~backpass.experiments.scheduling.silence.SilenceWatch`. A run that has lost ten workers since it was
        filled has failed.
        """
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in self._watch.silent(running, grace):
            self._fail(self._id(trial), LOST)
        for trials in self._by_folder().values():
            self._put_back(trials)

    def states(self) -> list[RunState]:
        """Return the state of every run that was not dropped, in the order in which they came."""
        return [state_of(trials) for trials in self._by_folder().values() if not is_dropped(trials)]

    def _state(self, folder: str) -> str | None:
        """Return the state of a run, ``None`` if the study has none in this folder."""
        trials = self._by_folder().get(folder)
        return None if trials is None else state_of(trials).state

    def _put_back(self, trials: Sequence[FrozenTrial]) -> None:
        if is_abandoned(trials):
            self._add(folder_of(trials[0]), trials[0].user_attrs["run"])

    def _add(self, folder: str, run: str, *, filled: bool = False) -> None:
        attributes = {"folder": folder, "run": run, "filled": filled}
        self._study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attributes))

    def _set_dropped(self, trials: Sequence[FrozenTrial], dropped: bool) -> None:
        for trial in trials:
            with suppress(UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(self._id(trial), DROPPED, dropped)

    def _fail(self, trial: int, ending: str) -> None:
        with suppress(UpdateFinishedTrialError):
            # The ending comes first: a finished trial takes no more attributes.
            self._storage.set_trial_user_attr(trial, "ending", ending)
            self._storage.set_trial_state_values(trial, TrialState.FAIL)

    def _is_elsewhere(self, trial: FrozenTrial) -> bool:
        others = self._by_folder()[folder_of(trial)]
        return any(
            other.state == TrialState.COMPLETE or (other.state in LIVE and other.number < trial.number)
            for other in others
        )

    def _by_folder(self) -> dict[str, list[FrozenTrial]]:
        grouped: dict[str, list[FrozenTrial]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            grouped.setdefault(folder_of(trial), []).append(trial)
        return grouped

    def _id(self, trial: FrozenTrial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
