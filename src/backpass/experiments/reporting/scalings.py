"""The scalings of a run over time, as the report shows them."""

from typing import Any

import torch

from backpass.experiments.record import Record
from backpass.experiments.reporting.drawing.canvas import plane

__all__ = ["scalings_view"]

_DIGITS = 3


def scalings_view(name: str, record: Record) -> dict[str, Any] | None:
    """Return the scalings of a run as plain values for the page; ``None``: it has none.

    A record without traces has the last alone, which its last epoch used. Layers that an epoch lacks are left out.

    Returns:
        ``name``, ``epochs`` (counted from 1) from which the scalings apply, and ``layers``: for each its name and its
        planes, one for each epoch.
    """
    by_epoch = record.traces.scalings or {len(record.history) - 1: record.scalings}
    epochs = sorted(by_epoch)
    layers = [
        {
            "name": layer.removesuffix(".weight"),
            "planes": [_rounded(by_epoch[epoch][layer]) for epoch in epochs],
        }
        for layer in by_epoch[epochs[-1]]
        if all(layer in by_epoch[epoch] for epoch in epochs)
    ]
    return {"name": name, "epochs": [epoch + 1 for epoch in epochs], "layers": layers} if layers else None


def _rounded(scaling: list[Any]) -> list[list[float]]:
    return [[round(value, _DIGITS) for value in row] for row in plane(torch.tensor(scaling)).tolist()]
