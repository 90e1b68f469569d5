"""The scalings of a model's layers, measured without training."""

from collections.abc import Sequence
from pathlib import Path

import torch

from backpass.errors import InputError
from backpass.experiments.inspection import LayerInspection
from backpass.experiments.reporting.drawing.canvas import save_figure
from backpass.experiments.reporting.drawing.layers import draw_layers

__all__ = ["write_inspection"]


def write_inspection(layers: Sequence[LayerInspection], path: Path, title: str) -> None:
    """Write the scaling of each layer as a heat map, as PNG, SVG or PDF, with what padding and chance make of it.

    Raises:
        InputError: no layer has a scaling, or another suffix.
    """
    scalings = {_name(layer): torch.tensor(layer.scaling) for layer in layers if layer.scaling is not None}
    if not scalings:
        raise InputError("expected layers with a scaling, got none; pass batches that reach them")
    save_figure(draw_layers(scalings, title), path)


def _name(layer: LayerInspection) -> str:
    padding, chance = (100 * (fraction or 0.0) for fraction in (layer.padding, layer.chance))
    return f"{layer.name.removesuffix('.weight')}\npadding {padding:.0f} %, chance {chance:.0f} %"
