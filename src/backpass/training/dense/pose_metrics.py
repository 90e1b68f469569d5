"""PCKh, the metric of MPII, in both published variants, and PCK, that of LSP."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from backpass.errors import InputError

__all__ = [
    "MPII_NOT_SCORED",
    "THRESHOLDS",
    "PckEvaluation",
    "PoseMetric",
    "head_sizes",
    "joint_errors",
    "pck",
    "pck_counts",
    "torso_sizes",
]

PoseMetric = Literal["pckh", "pck"]
"""PCKh, in units of the head (:func:`head_sizes`), or PCK, in units of the torso (:func:`torso_sizes`)."""

THRESHOLDS: dict[PoseMetric, float] = {"pckh": 0.5, "pck": 0.2}
"""Largest distance that is right, in the unit of the metric: PCKh@0.5 and PCK@0.2."""

MPII_NOT_SCORED = (6, 7)
"""Pelvis and thorax, which the published means over the joints of MPII leave out."""

_HEAD_FACTOR = 0.6


def head_sizes(head_boxes: Tensor) -> Tensor:
    """Return 0.6 times the length of the diagonal of each head box, the unit of PCKh.

    Args:
        head_boxes: two opposite corners of each box in pixels of the image, shape ``(N, 2, 2)``.

    Raises:
        InputError: a box is a point.
    """
    sizes: Tensor = _HEAD_FACTOR * torch.linalg.vector_norm(head_boxes[:, 1] - head_boxes[:, 0], dim=-1)
    if not bool((sizes > 0).all()):
        first = int((~(sizes > 0)).nonzero()[0])
        raise InputError(
            f"expected head boxes with a diagonal above 0, got {head_boxes[first].tolist()} for person {first}; "
            "correct the annotation or leave the person out"
        )
    return sizes


def torso_sizes(joints: Tensor, visible: Tensor, ends: tuple[int, int]) -> Tensor:
    """Return the distance between a hip and the shoulder of the other side, the unit of PCK.

    Args:
        joints: x and y of each joint in pixels of the image, shape ``(N, J, 2)``.
        visible: joints that are annotated, bool, shape ``(N, J)``.
        ends: the two joints.

    Returns:
        Shape ``(N,)``; 0 where one of the two is not annotated.
    """
    first, second = ends
    sizes: Tensor = torch.linalg.vector_norm(joints[:, first] - joints[:, second], dim=-1)
    return sizes * (visible[:, first] & visible[:, second])


def joint_errors(prediction: Tensor, truth: Tensor, sizes: Tensor) -> Tensor:
    """Return the distance of each predicted joint from its true place, in units of the person's size.

    Args:
        prediction: x and y in pixels of the image, shape ``(N, J, 2)``.
        truth: same shape, in the same pixels.
        sizes: unit of each person (:func:`head_sizes`, :func:`torso_sizes`), shape ``(N,)``.

    Returns:
        float64, shape ``(N, J)``.
    """
    distance: Tensor = torch.linalg.vector_norm(prediction.double() - truth.double(), dim=-1)
    return distance / sizes.double().unsqueeze(-1)


def pck_counts(errors: Tensor, visible: Tensor, threshold: float = 0.5) -> Tensor:
    """Count the visible joints, those closer than ``threshold``, and those closer or exactly as far.

    Args:
        errors: :func:`joint_errors`, shape ``(N, J)``.
        visible: joints that are annotated, bool, shape ``(N, J)``.
        threshold: largest distance that is right; default 0.5, which makes the metric PCKh@0.5.

    Returns:
        int64, shape ``(3, J)``. Counts of several batches and processes add up.
    """
    return torch.stack([visible, visible & (errors < threshold), visible & (errors <= threshold)]).sum(1)


def pck(counts: Tensor, not_scored: Sequence[int] = MPII_NOT_SCORED) -> tuple[Tensor, Tensor, Tensor]:
    """Return PCK or PCKh as fractions: of each joint, and the mean over the joints in both published variants.

    - Mean of the joints' fractions, with errors strictly below the threshold: bearpaw/pytorch-pose and
      xingyizhou/pytorch-pose-hg-3d, hence SGS Table 8.
    - All right joints over all visible joints, with errors up to the threshold:
      microsoft/human-pose-estimation.pytorch.

    Args:
        counts: :func:`pck_counts`, shape ``(3, J)``.
        not_scored: joints left out of both means; default: pelvis and thorax of MPII.

    Returns:
        The fraction of each joint (errors strictly below the threshold, nan without a visible joint), shape ``(J,)``,
        and the two means; joints that are nowhere visible count in neither.
    """
    visible, below, up_to = counts.double()
    kept = [joint for joint in range(counts.shape[1]) if joint not in not_scored]
    joints = below / visible
    return joints, joints[kept].nanmean(), up_to[kept].sum() / visible[kept].sum()


class PckEvaluation:
    """PCKh or PCK of one pass over a split, as both of its means over the joints (:func:`pck`).

    Args:
        num_joints: number of joints J.
        device: device of the outputs.
        metric: name of the metric, with its threshold (:data:`THRESHOLDS`).
        not_scored: joints left out of the means.
    """

    def __init__(
        self,
        num_joints: int,
        device: torch.device,
        metric: PoseMetric = "pckh",
        not_scored: Sequence[int] = MPII_NOT_SCORED,
    ) -> None:
        self._metric = metric
        self._not_scored = tuple(not_scored)
        self._counts = torch.zeros(3, num_joints, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, truth: Tensor, visible: Tensor, sizes: Tensor) -> None:
        """Add a batch, without waiting for the device; arguments as in :func:`joint_errors` and :func:`pck_counts`."""
        self._counts += pck_counts(joint_errors(prediction, truth, sizes), visible, THRESHOLDS[self._metric])

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return both means over all processes, as fractions; ``total`` sums over the processes.

        The names are that of the metric for the mean over joints, and with ``_weighted`` for that over visible joints.

        Raises:
            InputError: no joint that counts was visible.
        """
        counts = total(self._counts)
        _, mean, weighted = pck(counts, self._not_scored)
        if not bool(weighted == weighted):
            besides = f" other than {self._not_scored}" if self._not_scored else ""
            raise InputError(f"expected visible joints{besides} to score, got none; check the annotation of the split")
        return {self._metric: mean.item(), f"{self._metric}_weighted": weighted.item()}
