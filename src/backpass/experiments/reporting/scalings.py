"""The scalings of a run over time, as the report shows them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backpass.experiments.record import Record
from backpass.experiments.reporting.drawing.canvas import plane

__all__ = ["scalings_by_epoch", "scalings_view"]

_DIGITS = 3


def scalings_by_epoch(record: Record) -> dict[int, dict[str, Tensor]]:
    """Return the scalings by epoch, counted from 0, from which they apply, and by parameter name.

    A record without traces has the last alone, which its last epoch used.
    """
    last = {len(record.history) - 1: record.scalings} if record.scalings else {}
    by_epoch = record.traces.scalings or last
    return {epoch: {name: torch.tensor(v) for name, v in layers.items()} for epoch, layers in by_epoch.items()}


def scalings_view(name: str, by_epoch: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Return the scalings of one run as plain values for the page.

    Args:
        name: of the run.
        by_epoch: as :func:`scalings_by_epoch` returns them; layers that an epoch lacks are left out.

    Returns:
        ``name``, ``epochs`` (counted from 1) and ``layers``: for each its name and its planes, one for each epoch.
    """
    epochs = sorted(by_epoch)
    layers = [
        {
            "name": layer.removesuffix(".weight"),
            "planes": [_rounded(plane(by_epoch[epoch][layer])) for epoch in epochs],
        }
        for layer in by_epoch[epochs[-1]]
        if all(layer in by_epoch[epoch] for epoch in epochs)
    ]
    return {"name": name, "epochs": [epoch + 1 for epoch in epochs], "layers": layers}


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, _DIGITS) for value in row] for row in values.tolist()]
