"""What tuning has tried for one entry, as a table and a chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backpass.experiments.choices import trials_of
from backpass.experiments.point_runs import describe_point
from backpass.experiments.record import Record
from backpass.experiments.reporting.charts import Chart
from backpass.experiments.reporting.notes import end_of
from backpass.experiments.reporting.tuning_charts import tuning_chart
from backpass.experiments.stages import known_results
from backpass.experiments.study import Study, StudyRun
from backpass.experiments.tuning import Choice, Trial

__all__ = ["TuningSection", "trials_so_far", "tuning_section"]


@dataclass(frozen=True)
class TuningSection:
    """What the report shows of one entry.

    Attributes:
        label: name of the entry.
        header: names of the columns.
        rows: one for each point, in the order in which they were tried.
        best: index of the chosen one; ``None``: none yet.
        chosen: the chosen settings as text; empty: none yet.
        at_edge: settings whose chosen value ends its range; empty: none.
        chart: the headline metric over the settings; ``None``: no point was tried.
    """

    label: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int | None
    chosen: str
    at_edge: str
    chart: Chart | None

    @property
    def count(self) -> int:
        """Number of points."""
        return len(self.rows)


def tuning_section(label: str, metric: str, trials: Sequence[Trial], choice: Choice | None = None) -> TuningSection:
    """Return table and chart of what was tried for an entry.

    Args:
        label: name of the entry.
        metric: what the metric that judges is called.
        trials: the points.
        choice: what was chosen of them; ``None``: nothing yet.
    """
    best = None if choice is None else choice.best
    rows = tuple(
        (
            *(value for _, value in trial.point),
            "diverged" if trial.score is None else f"{100 * trial.score:.2f}",
            " ".join(f"{100 * score:.2f}" for _, score in trial.scores),
            "chosen" if number == best else "",
        )
        for number, trial in enumerate(trials)
    )
    names = tuple(name for name, _ in trials[0].point) if trials else ()
    return TuningSection(
        label=label,
        header=(*names, f"held-out {metric}, %", "each seed, %", ""),
        rows=rows,
        best=best,
        chosen="" if choice is None else describe_point(choice.settings),
        at_edge="" if choice is None else ", ".join(choice.at_edge),
        chart=tuning_chart(trials, best, metric),
    )


def trials_so_far(study: Study, records: Sequence[Record], folder: Path) -> dict[str, tuple[Trial, ...]]:
    """Return the points of the first stage with a run that has ended, by key of the entry.

    Args:
        study: with a tuning stage.
        records: of that stage; others are left out.
        folder: of its run folders, which tell which runs diverged.
    """
    scores = {StudyRun(record.entry, record.run): record.score for record in records if record.entry}

    def has_diverged(run: StudyRun) -> bool:
        return run not in scores and end_of(folder / run.folder) == "diverged"

    return {key: trials_of(known) for key, known in known_results(study, scores.get, has_diverged).items()}
