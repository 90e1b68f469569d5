"""The events of runs and studies, for those who show them."""

from backpass.experiments.record import Record
from backpass.training.outcome import EpochRecord
from backpass.training.recipe import Run

__all__ = ["Progress"]


class Progress:
    """Receives what a study reports while it runs; every hook does nothing unless overridden."""

    def start_study(self, runs: int) -> None:
        """``runs`` runs are about to start."""

    def start_run(self, run: Run) -> None:
        """One run starts."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Step ``step`` of ``steps`` of epoch ``epoch`` is done."""

    def end_epoch(self, record: EpochRecord) -> None:
        """One epoch has ended."""

    def end_run(self, record: Record) -> None:
        """One run has ended, now or in an earlier, interrupted study."""

    def fail_run(self, run: Run, error: str) -> None:
        """One run raised an error."""
