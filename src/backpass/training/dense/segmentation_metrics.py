"""Metrics of semantic segmentation, all from one confusion matrix over the pixels of a split."""

from collections.abc import Callable

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.dense.segmentation_files import IGNORED

__all__ = ["SegmentationEvaluation", "confusion_matrix", "segmentation_scores"]

_EPS = 1e-10


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each pair of labelled and predicted class, without waiting for the device.

    Args:
        prediction: class indices from 0 to ``num_classes - 1``, any integer dtype and shape.
        target: class indices, or 255 for pixels that are left out, same shape.
        num_classes: number of classes C.

    Returns:
        int64, shape ``(C + 1, C)``: entry ``[t, p]`` is the number of pixels of class ``t`` predicted as ``p``. The
        last row holds the pixels whose label is neither a class nor 255.

    Raises:
        InputError: the shapes differ.

    >>> confusion_matrix(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 255]), num_classes=2)
    tensor([[1, 1],
            [0, 1],
            [0, 0]])
    """
    if prediction.shape != target.shape:
        raise InputError(
            f"expected prediction and target of one shape, got {tuple(prediction.shape)} and {tuple(target.shape)}; "
            "resize the logits to the labels"
        )
    labels = target.reshape(-1).long()
    known = (labels >= 0) & (labels < num_classes)
    rows = torch.where(known, labels, num_classes)
    pairs = rows * num_classes + prediction.reshape(-1)
    counted = (labels != IGNORED).long()
    counts = counted.new_zeros((num_classes + 1) * num_classes)
    return counts.scatter_add_(0, pairs, counted).view(num_classes + 1, num_classes)


def segmentation_scores(confusion: Tensor) -> dict[str, float]:
    """Return ``mean_iou``, ``mean_accuracy`` and ``pixel_accuracy`` of a confusion matrix, as fractions.

    With ``I_c`` the pixels of class ``c`` predicted as ``c``, ``T_c`` the pixels of class ``c`` and ``P_c`` the pixels
    predicted as ``c``,

        IoU_c = I_c / (T_c + P_c - I_c + 1e-10),  mIoU = mean_c IoU_c,
        mAcc = mean_c I_c / (T_c + 1e-10),  allAcc = sum_c I_c / (sum_c T_c + 1e-10)

    in float64, as the evaluation of PSPNet that SGS Table 7 uses (hszhao/semseg). The means run over all C classes: a
    class that occurs in neither labels nor predictions counts as 0, where ``torchmetrics`` would leave it out.

    Args:
        confusion: integer counts, shape ``(C, C)``, labelled class by predicted class.
    """
    counts = confusion.double()
    intersection, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou = intersection / (labelled + predicted - intersection + _EPS)
    return {
        "mean_iou": iou.mean().item(),
        "mean_accuracy": (intersection / (labelled + _EPS)).mean().item(),
        "pixel_accuracy": (intersection.sum() / (labelled.sum() + _EPS)).item(),
    }


class SegmentationEvaluation:
    """mIoU, mAcc and allAcc of one pass over a split, from one confusion matrix.

    Args:
        num_classes: number of classes C.
        device: device of the outputs.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._counts = torch.zeros(num_classes + 1, num_classes, dtype=torch.int64, device=device)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of logits or probabilities ``(N, C, H, W)`` and labels ``(N, H, W)``, without waiting for them.

        Raises:
            InputError: the output has another number of classes, or another size than the labels.
        """
        if output.ndim != 4 or output.shape[1] != self._num_classes:
            raise InputError(
                f"expected logits of shape (N, {self._num_classes}, H, W), got {tuple(output.shape)}; create the model "
                f"with num_classes={self._num_classes}"
            )
        self._counts += confusion_matrix(output.argmax(1), target, self._num_classes)

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the metrics over all batches of all processes, as fractions; ``total`` sums over the processes.

        Raises:
            InputError: there were labels that are neither a class nor 255, or none at all.
        """
        *rows, strange = total(self._counts)
        counts = torch.stack(rows)
        if (wrong := int(strange.sum())) > 0:
            raise InputError(
                f"expected labels from 0 to {self._num_classes - 1} or {IGNORED}, got {wrong} pixels with "
                "other labels; map the ids of the data set to train ids"
            )
        if int(counts.sum()) == 0:
            raise InputError(f"expected labelled pixels, got none but those of label {IGNORED}; check the split")
        return segmentation_scores(counts)
