"""The progress of a study as two bars on the terminal, with a line for each run that ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from backpass.experiments.progress import Progress
from backpass.experiments.record import Record
from backpass.experiments.reporting.metrics import label_of
from backpass.training.recipe import Run

__all__ = ["progress_bars"]


class _BarProgress(Progress):
    """Two bars: runs of the study, steps of the run."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.all_runs = bars.add_task("runs", total=None)
        self.this_run = bars.add_task("", total=None)
        self.epochs = 0

    def start_study(self, runs: int) -> None:
        self.bars.update(self.all_runs, total=runs)

    def start_run(self, run: Run) -> None:
        self.epochs = run.recipe.epochs
        self.bars.reset(self.this_run, description=f"{run.method}, seed {run.seed}")

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.bars.update(self.this_run, completed=epoch * steps + step, total=self.epochs * steps)

    def end_run(self, record: Record) -> None:
        self.bars.advance(self.all_runs)
        score = f"{label_of(record.metric)} {100 * record.score:6.2f} %"
        self.bars.console.print(
            f"{record.method:<10} seed {record.seed}  {score}  {record.seconds:7.1f} s", highlight=False
        )

    def fail_run(self, run: Run, error: str) -> None:
        self.bars.console.print(f"{run.method:<10} seed {run.seed}  failed: {error}", highlight=False, markup=False)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Progress]:
    """Show bars on the terminal, or nothing."""
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, disable=quiet, console=Console(stderr=True, quiet=quiet)) as bars:
        yield _BarProgress(bars)
