"""The expected calibration error of a classifier."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CalibrationError"]

_BINS = 15


class CalibrationError:
    """The expected calibration error of the most probable class, over 15 bins of equal width.

    With ``n_b`` the number of images whose largest probability lies in bin ``b``, ``conf_b`` the mean of these
    probabilities and ``acc_b`` the accuracy on these images,

        ECE = sum_b n_b / n * |acc_b - conf_b|

    (Naeini et al., 2015; Guo et al., 2017). Bin ``b`` is ``[b / 15, (b + 1) / 15)``, and 1 belongs to the last bin:
    confident models round to it. ``torchmetrics`` has the same bins, except that it counts 1 apart.

    Args:
        device: device of the outputs.
    """

    def __init__(self, device: torch.device) -> None:
        self._edges = torch.linspace(0, 1, _BINS + 1, device=device)
        # Images, sum of their largest probabilities, number of correct ones, for each bin.
        self._sums = torch.zeros(3, _BINS, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch, without waiting for the device.

        Args:
            logits: shape ``(N, C)``.
            target: class indices, shape ``(N,)``.
        """
        confidence, predicted = logits.softmax(1).max(1)
        bins = (torch.bucketize(confidence, self._edges, right=True) - 1).clamp(max=_BINS - 1)
        rows = torch.stack([torch.ones_like(confidence), confidence, predicted == target])
        self._sums.scatter_add_(1, bins.expand(3, -1), rows.to(self._sums.dtype))

    def sums(self, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Return images, sum of their largest probabilities and number of correct ones, float64 ``(3, 15)``."""
        return total(self._sums)

    def compute(self, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the error as a fraction; ``total`` sums a tensor over all processes."""
        count, confidence, correct = self.sums(total)
        error: Tensor = (correct - confidence).abs().sum() / count.sum()
        return error
