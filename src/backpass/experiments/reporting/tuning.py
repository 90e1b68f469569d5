"""What tuning has tried for one entry, as a table and a chart."""

from collections.abc import Sequence
from dataclasses import dataclass

from backpass.experiments.reporting.charts import Chart
from backpass.experiments.reporting.tuning_charts import tuning_chart
from backpass.experiments.tuning import Choice, Trial

__all__ = ["TuningSection", "tuning_section", "unfinished_section"]


@dataclass(frozen=True)
class TuningSection:
    """What the report shows of one entry.

    Attributes:
        label: of the entry.
        header: names of the columns.
        rows: one for each point, in the order in which they were tried.
        best: index of the chosen one; ``None``: none yet.
        chosen: the chosen settings as text; empty: none yet.
        at_edge: settings whose chosen value ends its range; empty: none.
        chart: accuracy over the settings; ``None``: no point was tried.
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


def tuning_section(choice: Choice, label: str) -> TuningSection:
    """Return table and chart of what was tried for an entry called ``label``."""
    chosen = ", ".join(f"{name} = {value}" for name, value in choice.settings)
    return _section(label, choice.trials, choice.best, chosen, ", ".join(choice.at_edge))


def unfinished_section(trials: Sequence[Trial], label: str) -> TuningSection:
    """Return the same of a stage that has not ended: nothing is chosen yet."""
    return _section(label, trials, None, "", "")


def _section(label: str, trials: Sequence[Trial], best: int | None, chosen: str, at_edge: str) -> TuningSection:
    rows = tuple(
        (
            *(value for _, value in trial.point),
            "diverged" if trial.accuracy is None else f"{100 * trial.accuracy:.2f}",
            " ".join(f"{100 * accuracy:.2f}" for _, accuracy in trial.accuracies),
            "chosen" if number == best else "",
        )
        for number, trial in enumerate(trials)
    )
    names = tuple(name for name, _ in trials[0].point) if trials else ()
    header = (*names, "held-out accuracy, %", "each seed, %", "")
    return TuningSection(label, header, rows, best, chosen, at_edge, tuning_chart(trials, best))
