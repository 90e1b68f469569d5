"""What a model is trained for: the form of a batch, the loss, the metrics. The loop knows nothing else of the task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass.training.calibration import CalibrationError

__all__ = ["Classification", "ClassificationEvaluation", "Criterion", "Evaluation", "Task", "Total"]

Criterion = Callable[[Tensor, Tensor], Tensor]
Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


class Evaluation(Protocol):
    """The metrics of one pass over a split."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch, without waiting for the device."""
        ...

    def compute(self, total: Total) -> dict[str, float]:
        """Return the metrics over all batches of all processes, the headline metric among them."""
        ...


class Task(Protocol):
    """What the loop requires of a task."""

    @property
    def metric_name(self) -> str:
        """Name of the headline metric; larger is better."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean training loss of a batch."""
        ...

    def training_score(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the headline metric of a training batch times its number of images, on the device."""
        ...

    def evaluation(self, device: torch.device, alpha: float | None = None) -> Evaluation:
        """Return the metrics of a new pass.

        Args:
            device: device of the outputs.
            alpha: factor on the outputs at which the model is calibrated, if the method has one.
        """
        ...


@dataclass(frozen=True)
class Classification:
    """Single-label classification with cross-entropy; the headline metric is top-1 accuracy as a fraction.

    Attributes:
        label_smoothing: label smoothing of the training loss; evaluation uses none.
    """

    label_smoothing: float = 0.0
    metric_name: str = "accuracy"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats, with label smoothing."""
        return F.cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def training_score(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the number of images whose largest logit is that of their class."""
        return _correct(output.detach(), target)

    def evaluation(self, device: torch.device, alpha: float | None = None) -> "ClassificationEvaluation":
        """Return the accuracy, the loss and the calibration error of a new pass."""
        return ClassificationEvaluation(device, alpha)


class ClassificationEvaluation:
    """Accuracy, cross-entropy and expected calibration error of logits ``z``, and the last two at ``alpha * z`` too.

    The metrics are ``loss`` (nats), ``accuracy`` and ``calibration_error`` (fractions) and, with ``alpha``,
    ``loss_at_alpha`` and ``calibration_error_at_alpha``.
    """

    def __init__(self, device: torch.device, alpha: float | None = None) -> None:
        self._factors = {"": 1.0} if alpha is None else {"": 1.0, "_at_alpha": alpha}
        self._calibration = {suffix: CalibrationError(device) for suffix in self._factors}
        # The sum of the losses for each factor, the number of correct images, and that of all.
        self._sums = torch.zeros(len(self._factors) + 2, dtype=torch.float64, device=device)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of logits, shape ``(N, C)``, and class indices, shape ``(N,)``."""
        for number, (suffix, factor) in enumerate(self._factors.items()):
            logits = output if factor == 1.0 else factor * output
            self._sums[number] += F.cross_entropy(logits, target) * len(target)
            self._calibration[suffix].update(logits, target)
        self._sums[-2] += _correct(output, target)
        self._sums[-1] += len(target)

    def compute(self, total: Total) -> dict[str, float]:
        """Return the metrics over all batches of all processes."""
        *losses, correct, count = total(self._sums)
        metrics = {"accuracy": correct.float() / count.float()}
        for (suffix, calibration), loss in zip(self._calibration.items(), losses, strict=True):
            metrics[f"loss{suffix}"] = loss / count
            metrics[f"calibration_error{suffix}"] = calibration.compute(total)
        return {name: value.item() for name, value in metrics.items()}

    def reliability(self, total: Total) -> dict[str, Tensor]:
        """Return images, mean probability and accuracy of each bin, ``(3, 15)``, by the suffix of the metrics.

        Of the most probable class, over all batches of all processes; an empty bin has zeros.
        """
        sums = {suffix: calibration.sums(total) for suffix, calibration in self._calibration.items()}
        return {suffix: torch.stack([n, *(s / n.clamp(min=1) for s in rest)]) for suffix, (n, *rest) in sums.items()}


# torchmetrics has the same count, and doubles the time in which a process starts.
def _correct(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).sum()
