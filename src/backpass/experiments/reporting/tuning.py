"""What tuning has tried for one entry, as a table and a picture."""

from dataclasses import dataclass

from backpass.experiments.reporting.figures import heat_map, value_curve
from backpass.experiments.tuning import Choice

__all__ = ["TuningSection", "tuning_section"]


@dataclass(frozen=True)
class TuningSection:
    """What the report shows of one entry.

    Attributes:
        label: of the entry.
        header: names of the columns.
        rows: one for each point, in the order in which they were tried.
        best: index of the chosen one.
        at_edge: settings whose chosen value ends its range; empty: none.
        svg: accuracy over one setting as a curve, over two as a heat map; empty: over more.
    """

    label: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int
    at_edge: str
    svg: str

    @property
    def count(self) -> int:
        """Number of points."""
        return len(self.rows)


def tuning_section(choice: Choice, label: str) -> TuningSection:
    """Return table and picture of what was tried for an entry called ``label``."""
    names = tuple(name for name, _ in choice.settings)
    rows = tuple(
        (
            *(value for _, value in trial.point),
            "diverged" if trial.accuracy is None else f"{100 * trial.accuracy:.2f}",
            " ".join(f"{100 * accuracy:.2f}" for _, accuracy in trial.accuracies),
            "chosen" if number == choice.best else "",
        )
        for number, trial in enumerate(choice.trials)
    )
    header = (*names, "held-out accuracy, %", "each seed, %", "")
    return TuningSection(label, header, rows, choice.best, ", ".join(choice.at_edge), _picture(choice, names))


def _picture(choice: Choice, names: tuple[str, ...]) -> str:
    accuracies = {tuple(value for _, value in trial.point): trial.accuracy for trial in choice.trials}
    if len(names) == 1:
        return value_curve(names[0], {point[0]: accuracy for point, accuracy in accuracies.items()})
    if len(names) == 2:
        return heat_map(names, {(point[0], point[1]): accuracy for point, accuracy in accuracies.items()})
    return ""
