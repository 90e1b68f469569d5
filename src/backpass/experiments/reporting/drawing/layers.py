"""One value for each tap of many kernels: a grid of heat maps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from backpass.experiments.reporting.drawing.canvas import heat_map, new_figure, plain_text

__all__ = ["draw_layers"]

_COLUMNS = 6
_LAYERS = 30


def draw_layers(scalings: Mapping[str, Tensor], title: str = "") -> Any:
    """Return a heat map of each scaling, under its name.

    Of more than 30 scalings, 30 are drawn, evenly spaced from the first to the last. Colours run from 0 to the largest
    value; 1 is plain training.
    """
    names = list(scalings)
    count = min(_LAYERS, len(names))
    shown = [names[place * (len(names) - 1) // max(1, count - 1)] for place in range(count)]
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = new_figure(1.75 * columns + 1.2, 2.15 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    high = max(float(scalings[name].max()) for name in shown)
    for axes in panels[count:]:
        axes.axis("off")
    for axes, name in zip(panels, shown, strict=False):
        image = heat_map(axes, scalings[name], high, size=7)
        axes.set_title(plain_text(name), fontsize=7)
    figure.colorbar(image, ax=panels.tolist(), label="gradient scaling G (mean 1)", shrink=0.7)
    if title:
        figure.suptitle(plain_text(title), fontsize=10)
    return figure
