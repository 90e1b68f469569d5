"""The PowerGrad Transform by its definition: powers of probabilities, in plain loops and float64."""

import math

import torch
from torch import Tensor


def power_transform(probabilities: list[float], alpha: float) -> list[float]:
    """Return p**alpha / sum(p**alpha)."""
    powers = [p**alpha for p in probabilities]
    return [power / sum(powers) for power in powers]


def softmax(logits: list[float]) -> list[float]:
    """Return exp(z) / sum(exp(z))."""
    return [math.exp(z) / sum(math.exp(other) for other in logits) for z in logits]


def cross_entropy_gradient(
    logits: Tensor,
    target: Tensor,
    alpha: float,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the PowerGrad gradient of the summed or averaged cross-entropy; logits (N, C), float64.

    ``target`` is (N,) class indices or (N, C) class probabilities. ``reduction="none"`` stands for the sum.
    """
    samples, classes = logits.shape
    class_weight = [1.0] * classes if weight is None else weight.tolist()
    gradient = torch.zeros(samples, classes, dtype=torch.float64)
    count = 0.0
    for n in range(samples):
        if target.ndim == 2:
            mass = target[n].tolist()
            count += 1.0
        elif target[n] == ignore_index:
            continue
        else:
            mass = [1.0 if c == target[n] else 0.0 for c in range(classes)]
            count += class_weight[int(target[n])]
        mass = [(1 - label_smoothing) * m + label_smoothing / classes for m in mass]
        mass = [m * w for m, w in zip(mass, class_weight, strict=True)]
        powered = power_transform(softmax(logits[n].tolist()), alpha)
        for c in range(classes):
            gradient[n, c] = sum(mass) * powered[c] - mass[c]
    return gradient / count if reduction == "mean" else gradient


def binary_cross_entropy_gradient(
    logits: Tensor,
    target: Tensor,
    alpha: float,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the PowerGrad gradient of the summed or averaged binary cross-entropy; any shape, float64."""
    factor = torch.ones_like(logits) if weight is None else weight.expand_as(logits)
    positive = torch.ones_like(logits) if pos_weight is None else pos_weight.expand_as(logits)
    gradient = []
    for z, t, w, c in zip(
        logits.flatten().tolist(),
        target.flatten().tolist(),
        factor.flatten().tolist(),
        positive.flatten().tolist(),
        strict=True,
    ):
        p = 1 / (1 + math.exp(-z))
        yes, no = power_transform([p, 1 - p], alpha)
        gradient.append(w * ((1 - t) * yes - c * t * no))
    total = torch.tensor(gradient, dtype=torch.float64).reshape(logits.shape)
    return total / logits.numel() if reduction == "mean" else total
