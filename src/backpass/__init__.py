"""Train better convnets by altering only the backward pass.

Spatial Gradient Scaling and the PowerGrad Transform for any PyTorch training loop, and the peers they are judged
against. The trained network is the plain one: same architecture, same ``state_dict``, same inference cost.
"""

from backpass import agc, models, pgt, reparam, sgs
from backpass.agc import AdaptiveGradientClipping, adaptive_clip_grad_
from backpass.errors import BackpassError, BackpassWarning
from backpass.pgt import (
    PowerGradBCEWithLogitsLoss,
    PowerGradCrossEntropyLoss,
    power_grad_binary_cross_entropy_with_logits,
    power_grad_cross_entropy,
)
from backpass.sgs import SpatialGradientScaling

__version__ = "0.1.0.dev0"

__all__ = [
    "AdaptiveGradientClipping",
    "BackpassError",
    "BackpassWarning",
    "PowerGradBCEWithLogitsLoss",
    "PowerGradCrossEntropyLoss",
    "SpatialGradientScaling",
    "adaptive_clip_grad_",
    "agc",
    "models",
    "pgt",
    "power_grad_binary_cross_entropy_with_logits",
    "power_grad_cross_entropy",
    "reparam",
    "sgs",
]
