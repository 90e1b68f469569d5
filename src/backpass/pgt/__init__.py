"""PowerGrad Transform: cross-entropy whose backward pass flattens the predicted probabilities."""

from backpass.pgt.binary_cross_entropy import power_grad_binary_cross_entropy_with_logits
from backpass.pgt.cross_entropy import power_grad_cross_entropy
from backpass.pgt.modules import PowerGradBCEWithLogitsLoss, PowerGradCrossEntropyLoss

__all__ = [
    "PowerGradBCEWithLogitsLoss",
    "PowerGradCrossEntropyLoss",
    "power_grad_binary_cross_entropy_with_logits",
    "power_grad_cross_entropy",
]
