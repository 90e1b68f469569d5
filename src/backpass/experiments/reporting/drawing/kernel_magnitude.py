"""The mean kernel magnitude with and without SGS, next to the scaling (SGS paper, Figure 6)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from backpass.errors import InputError
from backpass.experiments.record import Record
from backpass.experiments.reporting.drawing.canvas import new_figure, plain_text
from backpass.experiments.reporting.drawing.groups import Group, layers_shown, mean_of, shared_names
from backpass.experiments.reporting.drawing.layers import fill_rows
from backpass.experiments.reporting.drawing.scalings import measured_epochs

__all__ = ["draw_kernel_magnitude"]

_MAGNITUDE = "mean |W|"
_SCALING = "scaling G"


def draw_kernel_magnitude(groups: Sequence[Group], layers: Sequence[str] = ()) -> Any:
    """Return the figure: a column for each layer, a row for the kernels of each group, and one for its scaling.

    The magnitude is the mean absolute weight over input and output channels after training, divided by its mean over
    taps (SGS paper, Appendix A.7), averaged over seeds; of the kernels that all runs of the group have. The scaling is
    the last one; the column of a layer that has none, such as one of another kernel size than fixed scalings, is empty
    there. Magnitudes have one range of colours, from the smallest to the largest, and scalings another, from 0.

    Raises:
        InputError: no run has traces of its kernels, no kernel is in all runs of any group, or an unknown
            layer.
    """
    ended = [(group, [_last_kernels(record) for record in group.records]) for group in groups]
    shown = [(group, ends, names) for group, ends in ended if (names := shared_names(ends))]
    if not shown:
        raise InputError(
            "expected runs with traces of their kernels, the same in all seeds, got none; train them with "
            "runtime.traces, or name one run"
        )
    rows: list[tuple[str, str, dict[str, Tensor | None]]] = []
    for group, ends, names in shown:
        chosen = layers_shown(names, layers)
        magnitudes = {name: mean_of([end[name] for end in ends]) for name in chosen}
        rows.append((_MAGNITUDE, group.label, {name: m / m.mean() for name, m in magnitudes.items()}))
        if all(measured_epochs(record) for record in group.records):
            last = [record.traces.scalings[measured_epochs(record)[-1]] for record in group.records]
            scaled = {n: mean_of([s[n] for s in last]) if all(n in s for s in last) else None for n in chosen}
            if any(scaling is not None for scaling in scaled.values()):
                rows.append((_SCALING, group.label, scaled))
    columns = max(len(values) for *_, values in rows)
    figure = new_figure(2.1 * columns + 1.6, 2.0 * len(rows) + 0.5)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for kind, low in ((_MAGNITUDE, None), (_SCALING, 0.0)):
        places = [place for place, (other, *_) in enumerate(rows) if other == kind]
        own = [(f"{label}\n{kind}", values) for other, label, values in rows if other == kind]
        if own:
            fill_rows(figure, panels[places], own, f"{kind} (mean 1)", low=low)
    figure.suptitle(plain_text(", ".join(dict.fromkeys(group.subject for group, *_ in shown))), fontsize=10)
    return figure


def _last_kernels(record: Record) -> dict[str, Any]:
    return record.traces.kernels[max(record.traces.kernels)] if record.traces.kernels else {}
