"""The scalings of a few layers at the start and at the end of training (SGS paper, Figures 4 and 5)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from backpass.errors import InputError
from backpass.experiments.record import Record
from backpass.experiments.reporting.drawing.canvas import new_figure, plain_text
from backpass.experiments.reporting.drawing.groups import Group, layers_shown, mean_of
from backpass.experiments.reporting.drawing.layers import SCALING, fill_rows

__all__ = ["draw_scalings", "measured_epochs"]


def draw_scalings(groups: Sequence[Group], layers: Sequence[str] = ()) -> Any:
    """Return the figure: a column for each layer, two rows for each group of runs with SGS; means over seeds.

    The start is the first measurement. Colours run from 0 to the largest value; 1 is plain training.

    Raises:
        InputError: no run has measured scalings, or an unknown layer.
    """
    shown = [group for group in groups if all(measured_epochs(record) for record in group.records)]
    if not shown:
        raise InputError(
            "expected runs of SGS with traces of their scalings, got none; train with a method that has sgs, measured "
            "scalings and runtime.traces"
        )
    rows: list[tuple[str, dict[str, Tensor]]] = []
    for group in shown:
        names = list(group.records[0].traces.scalings[measured_epochs(group.records[0])[-1]])
        chosen = layers_shown(names, layers)
        pair = [_scalings_at(group, chosen, place) for place in (0, -1)]
        head = f"{group.label}\n" if len(shown) > 1 else ""
        for moment, (epochs, scalings) in zip(("start", "end"), pair, strict=True):
            rows.append((f"{head}{moment} (after {epochs} epoch{'s'[: epochs != 1]})", scalings))
    columns = max(len(scalings) for _, scalings in rows)
    figure = new_figure(2.2 * columns + 1.4, 2.1 * len(rows) + 0.5)
    fill_rows(figure, figure.subplots(len(rows), columns, squeeze=False), rows, SCALING)
    figure.suptitle(plain_text(_title(shown)), fontsize=10)
    return figure


def measured_epochs(record: Record) -> list[int]:
    """Return the epochs at whose start scalings were measured or, where they are fixed, epoch 0."""
    epochs = sorted(record.traces.scalings)
    first = record.traces.scalings[epochs[0]] if epochs else {}
    ones = all(value == 1.0 for scaling in first.values() for value in _numbers(scaling))
    return epochs[1:] if ones else epochs


def _numbers(value: Any) -> list[float]:
    return [number for item in value for number in _numbers(item)] if isinstance(value, list) else [value]


def _scalings_at(group: Group, layers: Sequence[str], place: int) -> tuple[int, dict[str, Tensor]]:
    epoch = measured_epochs(group.records[0])[place]
    found = [record.traces.scalings[measured_epochs(record)[place]] for record in group.records]
    return epoch, {name: mean_of([scalings[name] for scalings in found]) for name in layers}


def _title(groups: Sequence[Group]) -> str:
    subjects = ", ".join(dict.fromkeys(group.subject for group in groups))
    return f"{subjects}, {groups[0].method}" if len(groups) == 1 else subjects
