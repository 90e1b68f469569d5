"""The scalings of a model's layers, measured without training."""

from collections.abc import Sequence
from pathlib import Path

import torch

from backpass.errors import InputError
from backpass.experiments.inspection import LayerInspection
from backpass.experiments.reporting.drawing.canvas import heat_map, new_figure, plain_text, save_figure

__all__ = ["write_inspection"]

_COLUMNS = 6
_LAYERS = 30


def write_inspection(layers: Sequence[LayerInspection], path: Path, title: str = "") -> None:
    """Write the scaling of each layer as a heat map, as PNG, SVG or PDF, with what padding and chance make of it.

    Of more than 30 layers, 30 are drawn, evenly spaced from the first to the last. Colours run from 0 to the largest
    scaling; 1 is plain training.

    Raises:
        InputError: no layer has a scaling, or another suffix.
    """
    measured = [layer for layer in layers if layer.scaling is not None]
    if not measured:
        raise InputError("expected layers with a scaling, got none; pass batches that reach them")
    count = min(_LAYERS, len(measured))
    steps = max(1, count - 1)
    shown = [measured[place * (len(measured) - 1) // steps] for place in range(count)]
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = new_figure(1.75 * columns + 1.2, 2.15 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False)
    high = max(float(torch.tensor(layer.scaling).max()) for layer in shown)
    for axes in panels.ravel():
        axes.axis("off")
    for axes, layer in zip(panels.ravel(), shown, strict=False):
        axes.axis("on")
        image = heat_map(axes, torch.tensor(layer.scaling), high, size=7)
        origin = f"padding {100 * (layer.padding or 0.0):.0f} %, chance {100 * (layer.chance or 0.0):.0f} %"
        axes.set_title(plain_text(f"{layer.name.removesuffix('.weight')}\n{origin}"), fontsize=7)
    figure.colorbar(image, ax=panels.ravel().tolist(), label="gradient scaling G (mean 1)", shrink=0.7)
    if title:
        figure.suptitle(plain_text(title), fontsize=10)
    save_figure(figure, path)
