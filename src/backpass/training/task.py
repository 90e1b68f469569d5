"""What a model is trained for: the form of a batch, the loss, the metrics. The loop knows nothing else of the task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Classification", "Criterion", "Task"]

Criterion = Callable[[Tensor, Tensor], Tensor]


class Task(Protocol):
    """What the loop asks of a task."""

    @property
    def metric_name(self) -> str:
        """Name of the headline metric; larger is better."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean training loss of a batch."""
        ...

    def evaluation_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss that evaluation reports."""
        ...

    def metric(self, device: torch.device) -> "Metric":
        """Return a fresh headline metric in percent or its own unit, updated with ``(output, target)``."""
        ...


@dataclass(frozen=True)
class Classification:
    """Single-label classification with cross-entropy; the headline metric is top-1 accuracy as a fraction.

    Attributes:
        num_classes: number of classes.
        label_smoothing: of the training loss; evaluation uses none.
    """

    num_classes: int
    label_smoothing: float = 0.0
    metric_name: str = "accuracy"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats, with label smoothing."""
        return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def evaluation_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats."""
        return F.cross_entropy(output, target)

    def metric(self, device: torch.device) -> "Metric":
        """Return top-1 accuracy as a fraction."""
        # Imported late: torchmetrics loads seconds' worth of other libraries that most commands never need.
        from torchmetrics.classification import MulticlassAccuracy

        # Without its checks of every batch's values, which the host would have to wait for; the data set's are checked.
        return MulticlassAccuracy(num_classes=self.num_classes, average="micro", validate_args=False).to(device)
