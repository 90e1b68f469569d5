"""One value for each tap of many kernels: rows of heat maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from backpass.experiments.reporting.drawing.canvas import heat_map, new_figure, plain_text

__all__ = ["SCALING", "draw_layers", "fill_rows"]

SCALING = "gradient scaling G (mean 1)"
_COLUMNS = 6
_LAYERS = 30


def draw_layers(scalings: Mapping[str, Tensor], title: str) -> Any:
    """Return a heat map of each scaling, under its name.

    Of more than 30 scalings, 30 are drawn, evenly spaced from the first to the last. Colours run from 0 to the largest
    value; 1 is plain training.
    """
    names = list(scalings)
    count = min(_LAYERS, len(names))
    shown = [names[place * (len(names) - 1) // max(1, count - 1)] for place in range(count)]
    columns = min(_COLUMNS, count)
    rows = [("", {name: scalings[name] for name in shown[n : n + columns]}) for n in range(0, count, columns)]
    figure = new_figure(1.75 * columns + 1.2, 2.15 * len(rows) + 0.4)
    fill_rows(figure, figure.subplots(len(rows), columns, squeeze=False), rows, SCALING, size=7)
    figure.suptitle(plain_text(title), fontsize=10)
    return figure


def fill_rows(
    figure: Any,
    panels: Any,
    rows: Sequence[tuple[str, Mapping[str, Tensor | None]]],
    label: str,
    *,
    low: float | None = 0.0,
    size: float = 9,
) -> None:
    """Draw rows of heat maps, each under the name of its layer, in one range of colours, and the bar of these.

    Args:
        figure: that the panels are of.
        panels: an array with a row for each of ``rows``.
        rows: for each its label, and the values of its layers; ``None`` leaves a panel empty.
        label: of the bar.
        low: lower end of the colours; ``None``: the smallest value. The upper end is the largest.
        size: of the texts.
    """
    taps = torch.cat([v.flatten() for _, values in rows for v in values.values() if v is not None])
    low, high = float(taps.min()) if low is None else low, float(taps.max())
    for axes in panels.ravel():
        axes.axis("off")
    for line, (text, values) in zip(panels, rows, strict=True):
        for axes, (name, value) in zip(line, values.items(), strict=False):
            if value is not None:
                axes.axis("on")
                axes.set_title(plain_text(name.removesuffix(".weight")), fontsize=size)
                image = heat_map(axes, value, high, low=low, size=size)
        next(axes for axes in line if axes.axison).set_ylabel(plain_text(text), fontsize=size)
    figure.colorbar(image, ax=panels.ravel().tolist(), label=label, shrink=0.7)
