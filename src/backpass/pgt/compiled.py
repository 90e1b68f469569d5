"""Class indices under ``torch.compile``: the same gradient with fewer passes over the logits. Only there for speed."""

import torch
from torch import Tensor
from torch.nn import functional as F

from backpass.pgt.arguments import CrossEntropyOptions

__all__ = ["label_surrogate"]


def label_surrogate(
    input: Tensor, target: Tensor, weight: Tensor | None, options: CrossEntropyOptions, alpha: float
) -> Tensor:
    """Return a loss of class indices with the gradient of ``cross_entropy(alpha * input) / alpha``, for the compiler.

    A sample's loss is ``T * logsumexp(alpha * z) / alpha - sum(t * z)``. Written like this, T is not summed over the
    classes once more in the backward pass, and the maximum is that of the plain loss; Inductor sees neither by itself.
    """
    ignore_index, reduction, label_smoothing = options
    class_dim = 0 if input.ndim == 1 else 1
    centred = (input - input.detach().amax(class_dim, keepdim=True)).to(torch.promote_types(input.dtype, torch.float32))
    log_sum = (centred * alpha).exp().sum(class_dim).log() * (1 / alpha)
    kept = target != ignore_index
    factors = centred.new_ones(input.shape[class_dim]) if weight is None else weight.to(centred.dtype)
    label_mass = factors.take(target.where(kept, 0)) * kept
    mass, linear = label_mass, F.nll_loss(centred, target, factors, ignore_index=ignore_index, reduction="none")
    if label_smoothing:
        # Not a product of matrices: autocast would take it in half precision.
        each = (factors * (label_smoothing / len(factors))).view(-1, *[1] * (centred.ndim - 1 - class_dim))
        mass = (1 - label_smoothing) * mass + each.sum()
        linear = (1 - label_smoothing) * linear - (centred * each).sum(class_dim)
    # An ignored sample's gradient is zero also where nothing is left to take the mean of.
    losses = torch.where(kept, mass * log_sum + linear, 0)
    if reduction == "none":
        return losses
    return losses.sum() / label_mass.sum() if reduction == "mean" else losses.sum()
