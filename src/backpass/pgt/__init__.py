"""PowerGrad Transform: cross-entropy whose backward pass flattens the predicted probabilities."""

from backpass.pgt.loss import (
    PowerGradBCEWithLogitsLoss,
    PowerGradCrossEntropyLoss,
    power_grad_binary_cross_entropy_with_logits,
    power_grad_cross_entropy,
)

__all__ = [
    "PowerGradBCEWithLogitsLoss",
    "PowerGradCrossEntropyLoss",
    "power_grad_binary_cross_entropy_with_logits",
    "power_grad_cross_entropy",
]
